"""What a notebook cannot show of loaders: clean worker processes, start methods, killed workers, many shapes."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesture_nb.config import UserError
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.features.loaders import (
    BatchOrder,
    ResilientLoader,
    SequenceDataset,
    View,
    choose_view,
    gather_windows,
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
STARTS = ((0, "spawn"), (1, "spawn"), (2, "spawn"), (1, "fork"), (2, "fork"), (4, "fork"), (2, "forkserver"),
          (4, "forkserver"))

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
        loader = make_loader(dataset, 7, True, 5, workers, method)
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


def test_an_error_of_the_work_itself_is_not_repeated():
    attempts = []
    def work(batches):
        attempts.append(True)
        raise RuntimeError("the net fell over")
    dataset = SequenceDataset(frames([4] * 20), np.arange(20), View("tail", 4))
    with ResilientLoader(dataset, 4, seed=1, workers=1, start_method="fork") as loader:
        with pytest.raises(RuntimeError, match="the net fell over"): loader.run(work, restore=lambda: None)
    assert len(attempts) == 1 and not multiprocessing.active_children()
