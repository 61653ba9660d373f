"""The same run from every place that code is started from, with any number of workers started in any way.

It gives the same bytes, and side effects happen once. All 60 combinations are in `make soak`. Twelve of them are in
`make test`: every number of workers with every start method, each of these with four of the five places, and every
number with three of them; twelve rows cannot hold all twenty pairs of number and place.
"""

import itertools
import sys

import pytest
from conftest import ROOT
from test_resume import content
from test_runs_once import SMALL, arguments, call, check_once, notebook, watch

WORKERS, METHODS = (0, 1, 2, 4), ("spawn", "fork", "forkserver")
PLACES = ("-m", "script", "notebook", "kernel", "nbdev_test")
QUICK = {(w, m, PLACES[(i + 2 * j) % 5]) for i, w in enumerate(WORKERS) for j, m in enumerate(METHODS)}
ALL = [
    pytest.param(*c, marks=() if c in QUICK else pytest.mark.soak) for c in itertools.product(WORKERS, METHODS, PLACES)
]


@pytest.fixture(scope="module")
def weights(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    code, _, err, _ = watch([sys.executable, "-m", "gesture_nb", *arguments(toy, out), "--workers=0"], ROOT)
    assert code == 0, err
    return content(out)


def from_place(place, toy, folder, workers, method):
    """(exit code, stdout, stderr) of a run called from there."""
    import nbformat

    environ = {"DL_NUM_WORKERS": str(workers), "DL_START_METHOD": method, "PYTHONPATH": str(ROOT)}
    out, said = folder / "out", call(toy, folder / "out").replace(", dl_num_workers=2", "")
    if place == "-m":
        return watch(
            [sys.executable, "-m", "gesture_nb", *[a for a in arguments(toy, out) if "workers" not in a]],
            folder,
            **environ,
        )
    if place == "script":
        (folder / "go.py").write_text(f'from gesture_nb.app import main\nif __name__ == "__main__":\n    {said}\n')
        return watch([sys.executable, folder / "go.py"], folder, **environ)
    nb = notebook(toy, out)
    nb.cells[2].source = f'if __name__ == "__main__":\n    {said}'
    nbformat.write(nb, folder / "go.ipynb")
    if place == "notebook":
        return watch(
            [
                sys.executable,
                "-m",
                "papermill",
                "go.ipynb",
                "done.ipynb",
                "--no-progress-bar",
                "--stdout-file",
                "-",
                "--kernel",
                "python3",
            ],
            folder,
            **environ,
        )
    if place == "nbdev_test":
        (folder / "settings.ini").write_text(
            (ROOT / "settings.ini").read_text().replace("nbs_path = nbs", "nbs_path = .")
        )
        return watch(
            [
                sys.executable,
                "-c",
                "from nbdev.test import nbdev_test; nbdev_test(path='.', n_workers=1, do_print=True)",
            ],
            folder,
            **environ,
        )
    run = (
        "import nbformat\nfrom nbclient import NotebookClient\nnb = nbformat.read('go.ipynb', 4)\n"
        "NotebookClient(nb, timeout=600, kernel_name='python3').execute()\n"
        "print(''.join(o.get('text', '') for c in nb.cells for o in c.get('outputs', [])))"
    )
    return watch([sys.executable, "-c", run], folder, **environ)


@pytest.mark.parametrize("workers,method,place", ALL)
def test_any_set_up_of_workers(toy, tmp_path, weights, workers, method, place):
    assert SMALL["members"] == "torch"
    code, out, err, _ = from_place(place, toy, tmp_path, workers, method)
    assert code == 0, out[-1500:] + err[-1500:]
    check_once(tmp_path / "out", out if place != "nbdev_test" else "Loading training data")
    assert content(tmp_path / "out") == weights
