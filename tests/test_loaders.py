"""What a notebook cannot show of loaders: clean worker processes, start methods, killed workers, many shapes."""
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gesture_nb.config import UserError
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features import loaders, lost_workers
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.features.loaders import (
    Activity,
    BatchOrder,
    LostWorker,
    ResilientLoader,
    SequenceDataset,
    View,
    Vigil,
    choose_view,
    gather_windows,
    make_loader,
    workers_that_fit,
)

ROOT = Path(__file__).resolve().parent.parent


def frames(lengths, features=3, grids=0, seed=0):
    rng, rows, n = np.random.default_rng(seed), int(np.sum(lengths)), len(lengths)
    values, names = rng.normal(size=(rows, features)).astype("f4"), tuple(f"acc.{i}" for i in range(features))
    masks, rate = {"has_acc": rng.random(n) < 0.8}, np.full(n, 20, "f4")
    tof = rng.integers(-2, 250, (rows, grids, 8, 8)).astype("i2") if grids else None
    return FrameFeatures(values, names, offsets_of(lengths), masks, rate, tof)


def one_by_one(f, i, view):
    """The slow way: a single sequence with plain NumPy."""
    x = f.values[f.offsets[i]:f.offsets[i + 1]].astype("f8")
    n, length = len(x), view.length
    if view.kind == "tail":
        x = x[-length:]
        return np.vstack([np.zeros((length - len(x), x.shape[1])), x]).T, np.arange(length) >= length - len(x)
    if n >= length:
        edges = np.arange(length + 1) * n // length
        return np.array([x[a:b].mean(0) for a, b in zip(edges, edges[1:])]).T, np.ones(length, bool)
    return np.array([np.interp(np.linspace(0, n - 1, length), np.arange(n), c) for c in x.T]), np.ones(length, bool)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.sampled_from(["tail", "resample"]),
       st.integers(1, 40), st.integers(0, 5))
def test_gather_agrees_with_the_slow_way(lengths, kind, length, seed):
    f, view = frames(lengths, seed=seed), View(kind, length)
    index = np.random.default_rng(seed).permutation(len(lengths))
    got = gather_windows(f, index, view)
    assert got["x"].dtype == np.float32 and got["x"].flags.c_contiguous
    for row, i in enumerate(index):
        x, mask = one_by_one(f, i, view)
        assert np.allclose(got["x"][row], x, atol=1e-5) and np.array_equal(got["mask"][row], mask)
        alone = gather_windows(f, np.array([i]), view)["x"]
        assert got["x"][row].tobytes() == alone.tobytes()   # neighbours do not matter


def test_grids_follow(tmp_path):
    f = frames([5, 30], grids=2)
    tail = gather_windows(f, np.array([0, 1]), View("tail", 8))["grids"]
    assert tail.shape == (2, 8, 2, 8, 8) and tail.dtype == np.int16 and (tail[0, :3] == -2).all()
    assert np.array_equal(tail[0, 3:], f.grids[:5]) and np.array_equal(tail[1], f.grids[27:])
    whole = gather_windows(f, np.array([0, 1]), View("resample", 8))["grids"]
    assert np.array_equal(whole[1, 0], f.grids[5 + 1]) and np.array_equal(whole[0, -1], f.grids[4])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(2, 64), st.integers(0, 9))
def test_each_epoch_visits_everyone_once(n, size, epoch):
    order = BatchOrder(n, size, shuffle=True, seed=3)
    order.set_epoch(epoch)
    got = list(order)
    assert len(got) == len(order) == -(-n // size) and np.array_equal(np.sort(np.concatenate(got)), np.arange(n))
    assert max(map(len, got)) - min(map(len, got)) <= 1 and max(map(len, got)) <= size
    assert all(np.array_equal(a, b) for a, b in zip(got, order))


def test_views():
    assert choose_view([200] * 9) == View("tail", 200)
    assert choose_view(np.arange(17, 201)).kind == "tail"
    assert choose_view(np.arange(300, 1600)) == View("resample", 256)
    assert choose_view([30, 40], kind="resample").kind == "resample"
    assert choose_view([1]).length == 16
    assert choose_view([100] * 6, rate_hz=np.array([10, 10, 10, 50, 50, 50], "f4")).kind == "resample"
    with pytest.raises(UserError, match="no view"): choose_view([3], kind="sideways")


def test_labels_travel():
    labels = {"y": [1, 0], "orientation": [-1, 3], "opening": None}
    b = SequenceDataset(frames([4, 5, 6]), np.array([2, 0]), View("tail", 6), labels)[np.array([1, 0])]
    assert b["y"].tolist() == [0, 1] and b["orientation"].tolist() == [3, -1] and b["pos"].tolist() == [1, 0]
    assert "opening" not in b


WORKERS = """
import hashlib, json, sys
import numpy as np
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures, map_array
from gesture_nb.features.loaders import SequenceDataset, View, end_workers, make_loader

FORBIDDEN = ("pandas", "pyarrow", "polars", "sklearn", "tensorflow", "keras", "lightgbm", "ipywidgets", "matplotlib",
             "scipy", "IPython")
STARTS = ((0, "spawn"), (2, "spawn"), (1, "fork"), (4, "fork"), (2, "forkserver"))

class Spy(SequenceDataset):
    "Tells which modules its process has loaded."
    def __getitem__(self, pos):
        import os, sys
        loaded = sorted({m.split(".")[0] for m in sys.modules} & set(FORBIDDEN))
        report = json.dumps([os.getpid(), loaded]).encode().ljust(300)
        return super().__getitem__(pos) | {"spy": np.frombuffer(report, "u1").copy()}

def main(folder):
    lengths = np.random.default_rng(0).integers(5, 60, 40)
    np.random.default_rng(1).normal(size=(lengths.sum(), 6)).astype("f4").tofile(folder + "/v.raw")
    values = map_array(folder + "/v.raw", "f4", (lengths.sum(), 6))
    masks = {"has_acc": np.ones(40, bool)}
    f = FrameFeatures(values, tuple("abcdef"), offsets_of(lengths), masks, np.full(40, 20, "f4"))
    out, spied = {}, set()
    for workers, method in STARTS:
        h = hashlib.sha256()
        kind = Spy if method == "spawn" else SequenceDataset
        dataset = kind(f, np.arange(40), View("tail", 32), {"y": np.arange(40)})
        loader = make_loader(dataset, 7, True, 5, workers, method, persistent=workers == 2)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            for b in loader:
                for k in ("x", "mask", "flags", "pos", "y"): h.update(b[k].numpy().tobytes())
                if workers and "spy" in b: spied.add(bytes(b["spy"].numpy()).decode().strip())
        end_workers(loader)
        out[f"{workers} {method}"] = h.hexdigest()
    print(json.dumps({"digests": out, "spied": sorted(spied)}))

if __name__ == "__main__": main(sys.argv[1])
"""


def test_any_workers_and_start_method(tmp_path):
    script = tmp_path / "loads.py"
    script.write_text(WORKERS)
    p = subprocess.run([sys.executable, str(script), str(tmp_path)], cwd=tmp_path,
                       env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0 and p.stderr == "", p.stderr
    report = json.loads(p.stdout)
    assert len(set(report["digests"].values())) == 1, report["digests"]
    assert len(report["spied"]) >= 2 and all(json.loads(s)[1] == [] for s in report["spied"]), report["spied"]


class DyingDataset(SequenceDataset):
    """Its worker processes die at the batch that has the sequence 0."""
    def __getitem__(self, positions):
        if multiprocessing.parent_process() is not None and 0 in positions: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(positions)


def test_a_resilient_loader_halves_its_workers_until_none_is_left():
    lines, restored, order = [], [], []
    dataset = DyingDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    with ResilientLoader(dataset, 4, seed=1, workers=2, start_method="fork", say=lines.append) as loader:
        def epoch(batches):
            order.clear()
            for batch in batches: order.extend(batch["pos"].tolist())
            return len(order)
        assert loader.run(epoch, restore=lambda: restored.append(True)) == 20
        assert loader.workers == 0 and loader.run(epoch, restore=lambda: restored.append(True)) == 20
    assert len(restored) == 2 and [s.split("again with ")[1] for s in lines[-2:]] == ["1 worker.", "no workers."]
    assert not multiprocessing.active_children()
    assert order == np.concatenate(list(BatchOrder(20, 4, True, 1))).tolist()


@pytest.mark.soak   # half a minute
@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there is no such signal here")
def test_workers_are_lost_in_peace_where_another_loader_watches_processes():
    """PyTorch's handler of SIGCHLD, set by any loader of the main thread, raises wherever that thread is."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        list(DataLoader([np.zeros(1)] * 2, num_workers=1, multiprocessing_context="fork"))
        assert signal.getsignal(signal.SIGCHLD) is not before
        for _ in range(5): test_a_resilient_loader_halves_its_workers_until_none_is_left()
    finally: signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def test_an_error_that_pytorch_raises_for_a_lost_worker_is_a_lost_worker():
    attempts, lines = [], []
    def work(batches):
        attempts.append(True)
        if len(attempts) == 1: raise RuntimeError("DataLoader worker (pid 20809) is killed by signal: Killed. ")
        return "done"
    dataset = SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    with ResilientLoader(dataset, 4, seed=1, workers=1, start_method="fork", say=lines.append) as loader:
        assert loader.run(work, restore=lambda: None) == "done" and loader.workers == 0
    assert "no workers" in lines[-1]


def test_an_error_of_the_work_itself_is_not_repeated():
    attempts = []
    def work(batches):
        attempts.append(True)
        raise RuntimeError("the net fell over")
    dataset = SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    with ResilientLoader(dataset, 4, seed=1, workers=1, start_method="fork") as loader:
        with pytest.raises(RuntimeError, match="the net fell over"): loader.run(work, restore=lambda: None)
    assert len(attempts) == 1 and not multiprocessing.active_children()


# ------------------------------------------------------------------ workers that live and cannot deliver

HOSTILE = """
import json, multiprocessing, os, resource, signal, sys, time
import numpy as np
from gesture_nb.features import loaders, lost_workers
from gesture_nb.features.loaders import BatchOrder, LostWorker, ResilientLoader, SequenceDataset, View
from test_loaders import frames

def stopped(self): os.kill(os.getpid(), signal.SIGSTOP)
def silent(self): time.sleep(1000)
def without_descriptors(self):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")),) * 2)
def without_memory(self): raise MemoryError
def terminated(self): os.kill(os.getpid(), signal.SIGTERM)
def dead(self): os._exit(3)
def without_room(self):
    def dumps(tensors): raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")
    lost_workers.ForkingPickler = type("Pickler", (), {"dumps": staticmethod(dumps)})
def with_a_long_path(self):
    from multiprocessing import process, resource_sharer
    process.current_process()._config["tempdir"] = os.getcwd() + "/" + "x" * 120

class Hostile(SequenceDataset):
    def __getitem__(self, positions):
        if multiprocessing.parent_process() is not None: self.happens()
        return super().__getitem__(positions)

def dataset(happens):
    d = Hostile(frames([4] * 20), np.arange(20), View("tail", 4))
    d.happens = happens.__get__(d)
    return d

def epoch(batches):
    batches.sampler.set_epoch(0)
    return [batch["pos"].tolist() for batch in batches]

expected = [list(map(int, p)) for p in BatchOrder(20, 4, True, 1)]
os.makedirs("x" * 120, exist_ok=True)
report = {}
for happens in (stopped, silent, without_descriptors, without_memory, terminated, dead, without_room, with_a_long_path):
    lines = []
    lost_workers.PATIENCE = 1.0 if happens in (stopped, silent) else 300.0
    with ResilientLoader(dataset(happens), 4, 1, 2, "fork", lines.append) as loader:
        assert loader.run(epoch, lambda: None) == expected, happens
    report[happens.__name__] = [loader.workers, lines]
    assert not multiprocessing.active_children()

# whoever waits for such a worker can be interrupted
def interrupt():
    raise KeyboardInterrupt
try:
    with ResilientLoader(dataset(silent), 4, 1, 1, "fork") as loader:
        loader.run(lambda batches: list(batches.polled(interrupt)), None)
except KeyboardInterrupt: report["interrupted"] = not multiprocessing.active_children()

def failing(self): raise OSError(5, "the data are gone")
try:
    with ResilientLoader(dataset(failing), 4, 1, 2, "fork") as loader: loader.run(epoch, None)
except OSError as error: report["error"] = str(error)

# an epoch that is left in the middle, and one after it
calm = SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
for persistent in (False, True):
    with ResilientLoader(calm, 4, 1, 2, "fork", print, persistent) as loader:
        def first(batches): return next(iter(batches))["pos"].tolist()
        assert loader.run(first, None) == expected[0]
        assert loader.run(epoch, None) == expected
        pids = {p.pid for p in multiprocessing.active_children()}
        assert loader.run(epoch, None) == expected
        assert len(pids) == (2 if persistent else 0) and pids == {p.pid for p in multiprocessing.active_children()}

# a worker that is killed while it creates shared memory
with ResilientLoader(calm, 4, 1, 1, "fork", print, True) as loader:
    assert loader.run(epoch, None) == expected
    left = f"/dev/shm/torch_{multiprocessing.active_children()[0].pid}_1_1"
    if os.path.isdir("/dev/shm"): open(left, "x").close()
    loader.close(lost=True)
    assert not os.path.exists(left)

# no descriptors are left to start workers with
lines, limit = [], resource.getrlimit(resource.RLIMIT_NOFILE)
with ResilientLoader(calm, 4, 1, 2, "spawn", lines.append) as loader:
    multiprocessing.resource_tracker.ensure_running()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, limit[1]))
    assert loader.run(epoch, lambda: None) == expected
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
report["not started"] = [loader.workers, lines]
print(json.dumps(report))
"""


def test_a_worker_that_cannot_deliver_is_lost(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", HOSTILE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("interrupted") is True
    assert "the data are gone" in report.pop("error")
    reasons = {"stopped": "delivered anything", "silent": "delivered anything", "dead": "exit code 3",
               "without_descriptors": "Too many open files", "without_memory": "ran out of memory",
               "terminated": "SIGTERM", "without_room": "No space left", "with_a_long_path": "AF_UNIX path too long",
               "not started": "cannot be started"}
    assert report.keys() == reasons.keys()
    for name, (workers, lines) in report.items():
        assert workers == 0 and [line.split("again with ")[1] for line in lines] == ["1 worker.", "no workers."], name
        assert all(reasons[name] in line for line in lines), lines


class Process:
    """What `Vigil` sees of a worker."""
    exitcode = None
    def __init__(self, pid): self.pid = pid


def watch(monkeypatch, activities, steps, clock=lambda k: 0.2 * k, starting=False):
    """Seconds until the workers are given up, None if they are not; activities(k) is what they do at the k-th look."""
    now = [0]
    monkeypatch.setattr(lost_workers, "activity", lambda pid: activities(now[0]))
    monkeypatch.setattr(lost_workers.time, "monotonic", lambda: clock(now[0]))
    monkeypatch.setattr(lost_workers.time, "process_time", lambda: 0.0)
    vigil = Vigil()
    for now[0] in range(1, steps):
        try: vigil.look([Process(1), Process(2)], starting)
        except LostWorker: return clock(now[0])
    return None


def test_slow_workers_are_waited_for_and_silent_ones_are_not(monkeypatch):
    hours = 10**6
    with monkeypatch.context() as patch:
        asleep = watch(patch, lambda k: Activity("S", 1.0 + k * 2e-5, 0), 1000)      # looks for work now and then
        assert loaders.PATIENCE <= asleep <= loaders.PATIENCE + 1
        assert loaders.PATIENCE <= watch(patch, lambda k: Activity("T", 1.0, 0), 1000) <= loaders.PATIENCE + 1
    with monkeypatch.context() as patch:
        starved = watch(patch, lambda k: Activity("S", 0.01 * 0.2 * k, 0), 2900)      # a hundredth of a core
        assert starved is None
        assert watch(patch, lambda k: Activity("D", 1.0, 0), 2900) is None
        assert watch(patch, lambda k: Activity("S", 1.0, k // 100), 2900) is None
        busy_for_ever = watch(patch, lambda k: Activity("R", 0.2 * k, 0), hours)
        assert loaders.LONGEST <= busy_for_ever <= loaders.LONGEST + 1
        unknown = watch(patch, lambda k: None, hours)
        assert loaders.LONGEST <= unknown <= loaders.LONGEST + 1
        # the whole process was suspended for an hour
        assert watch(patch, lambda k: Activity("S", 1.0, 0), 100, clock=lambda k: 0.2 * k + 3600 * (k > 50)) is None


def test_as_many_workers_as_fit_into_shared_memory(monkeypatch):
    batch = {"x": np.zeros((4, 3, 1000), "f4"), "y": np.zeros(4, "i8")}
    size = 48_000 + 4096
    assert [workers_that_fit(batch, free) for free in (0, 3 * size, 4 * size, 10 * size)] == [0, 0, 1, 4]
    monkeypatch.setattr(lost_workers.os, "statvfs", lambda path: (_ for _ in ()).throw(OSError))
    assert workers_that_fit(batch) == float("inf")
    monkeypatch.setattr(loaders, "workers_that_fit", lambda batch: 1)
    lines, dataset = [], SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    with ResilientLoader(dataset, 4, seed=1, workers=3, start_method="spawn", say=lines.append) as loader:
        assert loader.workers == 1 and len(lines) == 1 and "going on with 1 worker." in lines[0]


def test_workers_follow_the_settings():
    dataset = SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    plain, kept = (make_loader(dataset, 4, workers=2, persistent=keep) for keep in (False, True))
    assert (plain.persistent_workers, plain.prefetch_factor, kept.persistent_workers) == (False, 2, True)
    assert make_loader(dataset, 4).prefetch_factor is None


@pytest.mark.parametrize("every", [1, 7, 200])
def test_features_are_reported_at_the_first_every_nth_and_the_last_sequence(every, tmp_path, capsys):
    from gesture_nb.config import Settings
    from gesture_nb.data.readers import read_recordings
    from gesture_nb.features.store import load_or_build
    from gesture_nb.progress import Reporter
    from gesture_nb.sinks import LineSink

    table = read_recordings("sim:45")
    n, settings_ = len(table), Settings(feature_log_every=every)
    for k, rows in enumerate((1, 700, 10**6)):     # rows a block: a sequence, some, all
        capsys.readouterr()
        with Reporter(settings_, sinks=[LineSink()]) as reporter:
            load_or_build(table, tmp_path / str(k), settings_, reporter, source="a", block_rows=rows)
        found = [int(i) for i in re.findall(r"Processing sequence (\d+)/", capsys.readouterr().out)]
        assert found == sorted({1, n, *range(every, n + 1, every)}), rows
