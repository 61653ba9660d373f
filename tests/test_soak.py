"""Long proofs, run by `make soak`: random kills, a full disk, a jumping clock, and thousands of odd inputs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from faults import flipped, fuzz_predict
from test_resume import command, content, finish, start

from gesture_nb.artifacts import MANIFEST, DamagedError, check_manifest, read_json

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("SOAK_KILLS", "50"))
TINY = ("--epochs", "2", "--boosting-rounds", "10")


@pytest.fixture(scope="module")
def undisturbed(toy, tmp_path_factory):
    """(what a whole run leaves, its seconds)"""
    out, begun = tmp_path_factory.mktemp("whole") / "out", time.monotonic()
    finish(start(toy, out, *TINY))
    return content(out), time.monotonic() - begun


def test_random_kills(toy, tmp_path, undisturbed):
    whole, seconds = undisturbed
    rng, kills, runs, out = random.Random(7), 0, 0, tmp_path / "run0"
    while kills < KILLS:
        process = start(toy, out, *TINY)
        try:
            process.communicate(timeout=rng.uniform(0.05, 0.8) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0 and content(out) == whole and not list(out.rglob("*.tmp"))
        runs, out = runs + 1, tmp_path / f"run{runs + 1}"
    finish(start(toy, out, *TINY))
    assert content(out) == whole and not list(out.rglob("*.tmp"))
    print(f"{kills} kills over {runs + 1} runs")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes, in memory; returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options, again=False):
        p = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ("remount," if again else "") + options, "none", str(folder)],
            capture_output=True,
            text=True,
        )
        if p.returncode:
            pytest.skip(f"file systems cannot be mounted here: {p.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.parametrize("size", ["300k", "1m", "2m", "3m"])
def test_full_disk(toy, small_disk, undisturbed, size):
    out = small_disk(f"size={size}") / "out"
    p = subprocess.run(command(toy, out, *TINY), capture_output=True, text=True)
    full = p.returncode != 0
    assert size not in ("300k", "1m") or full
    if full:
        assert p.returncode == 2 and "full" in p.stderr and "Traceback" not in p.stderr, p.stderr[-2000:]
        assert not list(out.rglob("*.tmp")) and not (out / "metrics.json").exists()
        for manifest in out.rglob(MANIFEST):
            check_manifest(manifest.parent)
    small_disk("size=200m", again=True)
    finish(start(toy, out, *TINY))
    assert content(out) == undisturbed[0]


def test_read_only_output(toy, small_disk):
    out = small_disk("size=1m,ro") / "out"
    p = subprocess.run(command(toy, out, *TINY), capture_output=True, text=True)
    assert p.returncode == 2 and "read-only" in p.stderr and "Traceback" not in p.stderr, p.stderr


JUMPS = """
import random, sys, time
rng, real = random.Random(1), time.time
time.time = lambda: real() + rng.uniform(-1e6, 1e6)
from gesture_nb.cli import main
if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
"""


def test_the_clock_jumps(toy, tmp_path, undisturbed):
    (tmp_path / "jumps.py").write_text(JUMPS)
    p = subprocess.run(
        [sys.executable, tmp_path / "jumps.py", *command(toy, tmp_path / "out", *TINY, "--time-limit-hours", "1")[3:]],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert p.returncode == 0 and "left out" not in p.stdout, p.stdout + p.stderr
    assert content(tmp_path / "out") == undisturbed[0]


def beside(process):
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def test_workers_killed_by_the_system(toy, tmp_path, undisturbed):
    out, hit, lines = tmp_path / "out", 0, []
    process = start(toy, out, *TINY, "--workers", "2", "--members", "lgbm,torch,keras")
    for line in process.stdout:
        lines.append(line)
        if "step=2/" in line and hit < 2 and (found := beside(process)):
            found[0].kill()
            hit += 1
    assert process.wait() == 0 and hit == 2 and sum("was killed by the system" in s for s in lines) >= 1, "".join(
        lines[-30:]
    )
    assert content(out) == undisturbed[0]


def test_workers_die_with_their_parent(toy, tmp_path):
    process = start(toy, tmp_path / "out", "--members", "torch", "--workers", "2", "--epochs", "60")
    for line in process.stdout:
        if "[Torch] fold=1 epoch=2/" in line:
            break
    workers = beside(process)
    os.kill(process.pid, signal.SIGKILL)
    assert workers and psutil.wait_procs(workers, timeout=60)[1] == []


def test_two_runs_on_one_folder(toy, tmp_path):
    first = start(toy, tmp_path / "out", *TINY)
    next(first.stdout)
    second = subprocess.run(command(toy, tmp_path / "out", *TINY), capture_output=True, text=True)
    assert second.returncode == 2 and "Another run is at work" in second.stderr
    finish(first)


# ---------------------------------------------------------------- odd inputs, damage, long use


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    finish(start(toy, out, *TINY))
    return out


def test_ten_thousand_frames_get_a_label(run, tmp_path):
    from gesture_nb.app import export_members
    from gesture_nb.serving.predictor import load

    fuzz_predict(load(run, fixed={"keras": 0.0}, on_error="label"), int(os.environ.get("PREDICT_CASES", "10000")))
    fuzz_predict(load(run, on_error="label"), 200)
    shutil.copytree(run, out := tmp_path / "out")
    export_members(output_path=out)
    fuzz_predict(load(out, on_error="label"), 3000)


@pytest.mark.parametrize("exported", [False, True])
def test_a_thousand_predictions_leave_nothing_open(run, tmp_path, exported):
    import numpy as np

    from gesture_nb.app import export_members
    from gesture_nb.serving.compiled import KINDS
    from gesture_nb.serving.predictor import load

    shutil.copytree(run, out := tmp_path / "out")
    if exported:
        export_members(output_path=out)
    predictor, me, rng = load(out), psutil.Process(), np.random.default_rng(0)
    assert all((type(u[0]) in KINDS.values()) == exported for u in predictor.members.values())
    ask = lambda: predictor({c: rng.normal(size=40) for c in ("acc_x", "acc_y", "acc_z")})
    for _ in range(50):
        ask()
    before = me.num_fds(), me.num_threads(), me.memory_info().rss
    for _ in range(1000):
        ask()
    assert me.num_fds() <= before[0] and me.num_threads() <= before[1] and me.memory_info().rss < before[2] + 60 * 2**20


PREDICT = """
import sys
from gesture_nb.cli import main
main(["predict", "--data", sys.argv[1], "--out", sys.argv[2], "--to", sys.argv[3]])
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_memory_of_predict_does_not_grow_with_the_file(tmp_path, kind):
    import pandas as pd

    from gesture_nb.app import export_members, train_only
    from gesture_nb.commands import simulate_folder

    out, peaks = tmp_path / "out", []
    train_only(
        data="sim:60",
        members="lgbm,torch,rocket",
        folds=2,
        epochs=1,
        boosting_rounds=10,
        output_path=out,
        progress="lines",
    )
    export_members(output_path=out)
    for n in (4000, 8000):  # before, allocators have not seen all sizes yet
        simulate_folder(tmp_path / f"{n}", 20, n, progress="lines")
        file, to = tmp_path / f"{n}" / "test.csv", tmp_path / f"{n}.parquet"
        if kind == "parquet":
            pd.read_csv(file).to_parquet(file.with_suffix(".parquet"), index=False, row_group_size=20_000)
            file = file.with_suffix(".parquet")
        done = subprocess.run([sys.executable, "-c", PREDICT, file, out, to], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(pd.read_parquet(to)) == n
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    print(f"{kind}: {peaks[0]:.0f} MB for 4,000 sequences, {peaks[1]:.0f} MB for 8,000")
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_many_flipped_bytes(run):
    for manifest in sorted(run.rglob(MANIFEST)):
        for path in [manifest, *(manifest.parent / n for n in read_json(manifest)["files"])]:
            for _ in flipped(path, int(os.environ.get("FLIPS", "100"))):
                with pytest.raises(DamagedError, match=path.name):
                    check_manifest(manifest.parent)


def open_files(pid):
    """Open files of a process, without the memory of batches that are on their way from workers."""
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += not os.readlink(fd).startswith("/dev/shm/torch_")
        except FileNotFoundError:
            pass  # closed meanwhile
    return count


@pytest.mark.parametrize("member,workers", [("torch", 0), ("torch", 2), ("keras", 0)])
def test_memory_of_a_hundred_epochs_is_flat(toy, tmp_path, member, workers):
    process, seen = start(toy, tmp_path / "out", "--members", member, "--epochs", "100", "--workers", str(workers)), {}
    for line in process.stdout:
        if " fold=1 epoch=" in line and "step=1/" in line:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            seen[int(line.split("epoch=")[1].split("/")[0])] = (
                sum(p.memory_info().rss for p in family) / 2**20,
                open_files(process.pid),
            )
    assert process.wait() == 0
    (early, files), (late, files_late) = seen[20], seen[100]
    assert late < early + 30 and files_late <= files, seen
