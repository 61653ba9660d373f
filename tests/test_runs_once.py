"""Nothing runs twice: with two spawned workers the data is loaded once, in one process, wherever `main()` is called."""

import json
import os
import subprocess
import sys
import threading
import time

import psutil

BANNER = "Loading training data"
SMALL = {"members": "torch", "folds": 2, "epochs": 2, "batch_size": 8, "dl_num_workers": 2, "progress": "lines"}


def watch(command, cwd, **environ):
    """Runs a command; returns (exit code, stdout, stderr, the most worker processes that lived at once below it)."""
    process = subprocess.Popen(
        [str(c) for c in command],
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    most, stop = [0], threading.Event()

    def look():
        while not stop.is_set():
            try:
                workers = [
                    p
                    for p in psutil.Process(process.pid).children(recursive=True)
                    if "spawn_main" in " ".join(p.cmdline())
                ]
                most[0] = max(most[0], len(workers))
            except psutil.Error:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    out, err = process.communicate(timeout=300)
    stop.set()
    watcher.join()
    return process.returncode, out, err, most[0]


def events(out):
    return [json.loads(s) for s in (out / "logs" / "run.jsonl").read_text().splitlines()]


def check_once(out, stdout, workers=2, most=None):
    assert stdout.count(BANNER) == 1, stdout
    assert most is None or most >= workers
    loads = [e for e in events(out) if e["kind"] == "side_effect"]
    assert len(loads) == 1
    assert len({e["pid"] for e in events(out)}) == 1
    assert (out / "metrics.json").exists() and (out / "submission.parquet").exists()


def arguments(toy, out):
    return [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | {"data": toy, "out": out}).items()]


def call(toy, out):
    settings = ", ".join(f"{k}={v!r}" for k, v in (SMALL | {"data": str(toy), "out": str(out)}).items())
    return f"main({settings})"


def test_module(toy, tmp_path):
    code, out, err, most = watch([sys.executable, "-m", "gesture_nb", *arguments(toy, tmp_path / "out")], tmp_path)
    assert code == 0, err
    check_once(tmp_path / "out", out, most=most)


def test_guarded_script(toy, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(
        'print("top of the script", flush=True)\nfrom gesture_nb.app import main\n'
        f'if __name__ == "__main__":\n    {call(toy, tmp_path / "out")}\n'
    )
    code, out, err, most = watch([sys.executable, script], tmp_path)
    assert code == 0, err
    check_once(tmp_path / "out", out, most=most)


def test_unguarded_script_gets_one_sentence_and_one_run(toy, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(f"from gesture_nb.app import main\n{call(toy, tmp_path / 'out')}\n")
    code, out, err, most = watch([sys.executable, script], tmp_path)
    assert code == 0, err
    assert most == 0
    assert (out + err).count("outside `if __name__") == 1
    check_once(tmp_path / "out", out)


def notebook(toy, out):
    import nbformat

    cells = [
        "print('top of the notebook')",
        "from gesture_nb.app import main",
        f'if __name__ == "__main__":\n    {call(toy, out)}',
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    return nb


def test_headless_notebook(toy, tmp_path):
    import nbformat

    nbformat.write(notebook(toy, tmp_path / "out"), tmp_path / "go.ipynb")
    code, out, err, most = watch(
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
        tmp_path,
    )
    assert code == 0, err
    assert out.count("top of the notebook") == 1
    check_once(tmp_path / "out", out, most=most)


def test_kernel(toy, tmp_path):
    """A live kernel, as in JupyterLab: widgets as well as lines."""
    from nbclient import NotebookClient

    nb = notebook(toy, tmp_path / "out")
    nb.cells[2].source = nb.cells[2].source.replace("progress='lines'", "progress='widgets'")
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(o.get("text", "") for o in nb.cells[2].outputs)
    check_once(tmp_path / "out", text)


def test_same_bytes_with_and_without_workers(toy, tmp_path, program):
    for workers in (0, 2):
        done = program("train", *arguments(toy, tmp_path / f"w{workers}"), "--workers", workers)
        assert done.returncode == 0, done.stderr
    for name in ("oof.parquet", "ensemble.json"):
        assert (tmp_path / "w0" / name).read_bytes() == (tmp_path / "w2" / name).read_bytes(), name
    weights = sorted(p.relative_to(tmp_path / "w0") for p in (tmp_path / "w0" / "members").rglob("*.safetensors"))
    assert len(weights) >= 4
    for name in weights:
        assert (tmp_path / "w0" / name).read_bytes() == (tmp_path / "w2" / name).read_bytes(), name


def test_a_second_run_in_the_same_folder_is_refused(toy, tmp_path, program):
    from gesture_nb.artifacts import locked

    with locked(tmp_path / "out"):
        done = program("train", *arguments(toy, tmp_path / "out"))
    assert done.returncode == 2 and "Another run is at work" in done.stderr


def test_nothing_is_left_behind(toy, tmp_path, program):
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    done = program("train", *arguments(toy, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))
    if before:
        assert set(os.listdir("/dev/shm")) <= before | {n for n in os.listdir("/dev/shm") if not n.startswith("torch_")}
