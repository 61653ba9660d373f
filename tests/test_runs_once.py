"""Nothing runs twice, nothing hangs in other people's processes, and what is refused or interrupted leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

BANNER = "Loading training data"
SMALL = {"members": "torch", "folds": 2, "epochs": 2, "batch_size": 16, "dl_num_workers": 2, "progress": "lines"}


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


def test_a_second_run_in_the_same_folder_is_refused(toy, tmp_path, program):
    from gesture_nb.artifacts import locked

    with locked(tmp_path / "out"):
        done = program("train", *arguments(toy, tmp_path / "out"))
    assert done.returncode == 2 and "Another run is at work" in done.stderr


# ------------------------------------------------------------------ inside other people's processes

IN_POOLS = """
import multiprocessing as mp, os, sys
from concurrent.futures import ProcessPoolExecutor
from gesture_nb.app import main
from gesture_nb.session import in_worker

IMPORTED_BY_A_WORKER = in_worker()

def calls_it(): return in_worker()

def train(settings):
    done = main(**settings)
    return IMPORTED_BY_A_WORKER, calls_it(), eval("in_worker()"), None if done is None else done.metrics["ensemble"]

if __name__ == "__main__":
    data, out = sys.argv[1:]
    common = dict(data=data, folds=2, progress="lines")
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        made = dict(output_path=out + "/spawned", members="lgbm", boosting_rounds=2)
        imported, later, evaluated, scores = pool.submit(train, common | made).result()
        assert imported and not later and not evaluated and scores, (imported, later, evaluated, scores)
    import torch
    torch.set_num_threads(2)
    torch.ones(1 << 20).add_(1).sum()    # OpenMP has threads now, which a fork does not copy
    with mp.get_context("fork").Pool(1) as pool:
        made = dict(output_path=out + "/forked", members="torch", epochs=1, dl_num_workers=1)
        imported, later, evaluated, scores = pool.apply(train, (common | made,))
        assert not (imported or later or evaluated) and scores
    print("both trained")
"""


@pytest.mark.soak   # half a minute
def test_main_trains_in_pools_of_processes(toy, tmp_path):
    script = tmp_path / "pools.py"
    script.write_text(IN_POOLS)
    code, out, err, _ = watch([sys.executable, script, toy, tmp_path], tmp_path, PYTHONPATH=str(ROOT))
    assert code == 0 and "both trained" in out, out[-1500:] + err[-3000:]
    assert out.count(BANNER) == 2
    assert out.count("is daemonic") == 1 and out.count("going on with one thread here") == 1
    forked = out[out.index("is daemonic") - 500 :]
    assert forked.index("is daemonic") < forked.index("Settings:") < forked.index(BANNER)


IN_A_COPY = """
import os, sys, types
from gesture_nb.app import main
from gesture_nb.config import UserError

# as if TensorFlow had computed here
context = types.ModuleType("tensorflow.python.eager.context")
context._context = types.SimpleNamespace(_initialized=True)
sys.modules[context.__name__] = context
if os.fork() == 0:
    try: main(data="sim:40", output_path="out", members="lgbm,keras", progress="lines")
    except UserError as e: print(e, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_copied_process_refuses_what_would_hang_before_anything_is_made(tmp_path):
    done = subprocess.run([sys.executable, "-c", IN_A_COPY], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "TensorFlow had been at work" in done.stdout and "leave it out with --members" in done.stdout.lower()
    assert BANNER not in done.stdout and not list(tmp_path.iterdir())


def test_a_refused_session_leaves_no_folder(tmp_path, monkeypatch):
    import gesture_nb as gn
    from gesture_nb.config import UserError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("sequence_id,subject,gesture,acc_x\n1,a,b,0.5\n")
    (tmp_path / "mine").mkdir()
    for out in ("o", "a/b/c", "mine"):
        for settings in ({"data": "nope.csv"}, {"data": "one.csv"}, {"data": "sim:30", "members": "lgbm,nobody"},
                         {"data": "sim:30", "decision": "nothing"}):
            with pytest.raises(UserError): gn.train(out=out, progress="lines", **settings)
            assert {p.name for p in tmp_path.iterdir()} == {"one.csv", "mine"}, settings
    assert {p.name for p in (tmp_path / "mine").iterdir()} <= {".lock", "logs", "features"}


def test_a_command_that_is_interrupted_leaves_nothing_and_says_so(tmp_path, capsys):
    from gesture_nb.config import Settings
    from gesture_nb.session import command

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), command(Settings(), tmp_path / "a" / "b", lock=True):
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        assert capsys.readouterr().out.count("the same command can be given again") == 1
        assert not list(tmp_path.iterdir()) and signal.getsignal(number) == before
    with command(Settings(), tmp_path / "kept") as reporter: reporter.say("done")
    assert (tmp_path / "kept" / "logs" / "run.jsonl").exists()
