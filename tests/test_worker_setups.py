"""The same run from every place that code is started from, with any number of workers started in any way.

It gives the same bytes, side effects happen once, and nothing is left behind. All 60 combinations are in `make soak`.
Three of them are in `make test`: every start method once, and the places that other tests do not train from
(`-m` is in `test_resume`, kernels are in `test_notebooks`).
"""

import itertools
import os
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from test_resume import content
from test_runs_once import SMALL, arguments, call, check_once, notebook, watch

WORKERS, METHODS = (0, 1, 2, 4), ("spawn", "fork", "forkserver")
PLACES = ("-m", "script", "notebook", "kernel", "nbdev_test")
QUICK = {(1, "forkserver", "script"), (2, "spawn", "notebook"), (4, "fork", "nbdev_test")}
ALL = [
    pytest.param(*c, marks=() if c in QUICK else pytest.mark.soak) for c in itertools.product(WORKERS, METHODS, PLACES)
]


FIRST = {}   # what the first of these runs has made


def from_place(place, toy, folder, workers, method):
    """(exit code, stdout, stderr) of a run called from there."""
    import nbformat

    environ = {"DL_NUM_WORKERS": str(workers), "DL_START_METHOD": method, "PYTHONPATH": str(ROOT),
               "DL_PERSISTENT_WORKERS": str(int(place != "-m"))}   # which changes nothing but the time
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
    nb.cells[2].source = nb.cells[2].source.replace("progress='lines'", "progress='widgets'")   # as in JupyterLab
    nbformat.write(nb, folder / "go.ipynb")
    run = (
        "import nbformat\nfrom nbclient import NotebookClient\nnb = nbformat.read('go.ipynb', 4)\n"
        "NotebookClient(nb, timeout=600, kernel_name='python3').execute()\n"
        "print(''.join(o.get('text', '') for c in nb.cells for o in c.get('outputs', [])))"
    )
    return watch([sys.executable, "-c", run], folder, **environ)


def shared_memory(): return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.parametrize("workers,method,place", ALL)
def test_any_set_up_of_workers(toy, tmp_path, workers, method, place):
    assert SMALL["members"] == "torch"
    before = {name for name in shared_memory() if name.startswith("torch_")}
    code, out, err, most = from_place(place, toy, tmp_path, workers, method)
    assert code == 0, out[-1500:] + err[-1500:]
    most = most if method == "spawn" and place in ("-m", "script", "notebook") else None
    check_once(tmp_path / "out", out if place != "nbdev_test" else "Loading training data", workers, most)
    made = content(tmp_path / "out")
    assert made == (FIRST or made)
    FIRST.update(made)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert {name for name in shared_memory() if name.startswith("torch_")} <= before


@pytest.mark.soak
@pytest.mark.parametrize("size", ["4k", "64k", "200k", "1m"])
def test_any_size_of_shared_memory(toy, tmp_path, size):
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "
    if subprocess.run(["unshare", "-m", "bash", "-c", mount + "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    said = shlex.join([sys.executable, "-m", "gesture_nb", "train", *arguments(toy, tmp_path / "out")])
    code, out, err, _ = watch(["unshare", "-m", "bash", "-c", mount + said], ROOT)
    assert code == 0, out[-1500:] + err[-1500:]
    assert out.count("workers.") + out.count("worker.") <= 3, out
