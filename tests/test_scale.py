"""Data larger than memory: the same results from readings in a file, large tables by rows, shuffles in blocks."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesture_nb import scratch
from gesture_nb.config import read_settings
from gesture_nb.data.readers import read_recordings
from gesture_nb.data.sequences import concat, take
from gesture_nb.data.simulate import simulate
from gesture_nb.errors import UserError
from gesture_nb.features.compute import flip_upside_down, frame_features, mirror_hands
from gesture_nb.features.order import BlockShuffle, epoch_order, order_quality, shuffle_for
from gesture_nb.features.record import Store
from gesture_nb.features.summary import summarise, summary_blocks
from gesture_nb.features.summary_files import read_summaries, write_summaries
from gesture_nb.features.wearer import reference_of
from gesture_nb.models.base import Batch, FoldOptions
from gesture_nb.progress import Quiet
from gesture_nb.training import memory
from gesture_nb.training.dataset import load_dataset
from gesture_nb.training.identity import identity
from gesture_nb.training.recordings import recording_fingerprints
from gesture_nb.training.wearers import with_training_shifts

@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(scratch, "SMALL", 0)


@pytest.fixture(scope="module")
def simulated():
    return simulate(90, seed=5)


@pytest.fixture(scope="module")
def train(simulated):
    "A batch of all sensors, with summaries and with what the people's other recordings say."
    frames = frame_features(simulated)
    classes, y = np.unique(simulated.meta["gesture"], return_inverse=True)
    people, options = simulated.meta["subject"], FoldOptions(mirror="x")
    index = np.arange(len(y))
    batch = Batch(frames, index, tuple(classes), y, people, summaries=summarise(frames), options=options)
    return with_training_shifts(batch, people, reference_of(frames, index))


def loaded(path, out, **stated):
    own = read_settings({}, data=str(path), out=str(out), folds=2, **stated)
    return load_dataset(own, Quiet()), own


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_readings_in_a_file_give_the_same_data_set(toy, tmp_path, monkeypatch, nothing_is_small, ending):
    path = toy
    if ending == "csv":
        import pandas as pd

        path = tmp_path / "toy.csv"
        pd.read_parquet(toy).to_csv(path, index=False)
    usual, own = loaded(path, tmp_path / "usual")
    monkeypatch.setattr(memory, "READINGS", 1e-9)
    mapped, _ = loaded(path, tmp_path / "mapped", memory_gb=0.1)
    assert scratch.is_in_file(mapped.table.values) and not scratch.is_in_file(usual.table.values)
    for a, b in ((usual.table.values, mapped.table.values), (usual.frames.values, mapped.frames.values),
                 (usual.summaries.values, mapped.summaries.values)):
        assert a.tobytes() == b.tobytes()
    assert np.array_equal(usual.fold, mapped.fold) and usual.table.findings == mapped.table.findings
    assert identity(usual, own) == identity(mapped, own)
    assert np.array_equal(recording_fingerprints(usual.table), recording_fingerprints(mapped.table))
    assert usual.reading["memory"] == {"readings": "memory"}
    assert mapped.reading["memory"] == {"readings": "file", "gb": 0.1}
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "usual/features").glob("*.*")}
    again, _ = loaded(path, tmp_path / "usual", memory_gb=0.1)   # a store that was made with another limit
    assert again.frames.values.tobytes() == usual.frames.values.tobytes()
    assert all(path.stat().st_mtime_ns == time for path, time in stored.items())


def test_a_run_that_is_resumed_decides_as_before(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"reading": {"memory": {"readings": "file", "gb": 2.5}}}))
    assert memory.plan_memory(read_settings({}, out=tmp_path)) == memory.MemoryPlan(2.5, "as before")
    assert memory.plan_memory(read_settings({}, out=tmp_path, memory_gb=3)) == memory.MemoryPlan(3.0, "stated")
    for damaged in ('{"reading": [', '{"reading": {"memory": {"gb": -1.0}}}', '{"reading": {"memory": {"gb": NaN}}}'):
        (tmp_path / "config.json").write_text(damaged)
        assert memory.plan_memory(read_settings({}, out=tmp_path)).origin == "free"


def test_tables_in_a_file_are_changed_without_being_in_memory(simulated, tmp_path, nothing_is_small):
    values = scratch.scratch_array(tmp_path, simulated.values.shape)
    values[:] = simulated.values
    mapped, some = replace(simulated, values=values), np.arange(90) % 3 == 0
    for change in (flip_upside_down, mirror_hands, lambda t: flip_upside_down(t, some), lambda t: take(t, some),
                   lambda t: concat([t, take(t, [4, 2])])):
        here, there = change(simulated), change(mapped)
        assert scratch.is_in_file(there.values)
        assert here.values.tobytes() == there.values.tobytes()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no room for .* --feature-store"):
        scratch.scratch_array(tmp_path, (1 << 30, 1 << 20))
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size):
    "No file of this process may be larger, as on a disk that is full."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_nothing(toy, tmp_path, monkeypatch, nothing_is_small):
    monkeypatch.setattr(memory, "READINGS", 1e-9)
    with files_of_at_most(20_000), pytest.raises(UserError, match="has no room for 0.0 GB"):
        loaded(toy, tmp_path / "readings", memory_gb=0.1)
    monkeypatch.undo()
    with files_of_at_most(20_000), pytest.raises(UserError, match="Cannot write .*frames-.*too large"):
        loaded(toy, tmp_path / "features")
    kept = {path.name for path in tmp_path.glob("*/features/*") if not path.name.endswith(".lock")}
    assert kept <= {"sources.json"}


def test_a_scratch_file_has_no_name_when_it_is_filled(tmp_path, monkeypatch):
    seen, reserve = [], scratch._reserve
    monkeypatch.setattr(scratch, "_reserve", lambda *of: (seen.append(list(tmp_path.iterdir())), reserve(*of)))
    assert scratch.is_in_file(scratch.scratch_array(tmp_path, (10, 10))) and seen == [[]]
    def unsupported(*of): raise OSError(errno.EOPNOTSUPP, "not supported")
    monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    assert scratch.scratch_array(tmp_path, (10, 10)).sum() == 0
    with pytest.raises(UserError, match="no room for"):
        scratch.scratch_array(tmp_path, (1 << 30, 1 << 20))


def test_the_kernel_is_asked_for_what_is_needed_and_for_nothing_around_it(simulated, tmp_path, monkeypatch):
    """The bytes that it is asked for are those of the slice, and writing in parts asks it to read nothing else."""
    from gesture_nb.data.sequences import slice_sequences
    from gesture_nb.features.frames import take_frames

    asked = []
    monkeypatch.setattr(scratch, "KEPT_BY_KERNEL", 0)
    monkeypatch.setattr(scratch, "_advise", lambda array, advice, *part: asked.append((advice, *part)))
    values = scratch.scratch_array(tmp_path, simulated.values.shape)
    values[:] = np.arange(values.size).reshape(values.shape)
    part = slice_sequences(replace(simulated, values=values), 3, 7)
    whole = np.frombuffer(values._mmap, np.uint8)
    bytes_asked = b"".join(whole[start:start + length].tobytes() for _, start, length in asked)
    assert bytes_asked == part.values.tobytes() and {advice for advice, *_ in asked} == {"MADV_WILLNEED"}
    asked.clear()
    with scratch.written_in_parts(values): values[:, :4] = 1
    assert [advice for advice, *_ in asked] == ["MADV_RANDOM", "MADV_NORMAL"]
    asked.clear()
    frames = frame_features(simulated)
    mapped = scratch.scratch_array(tmp_path, frames.values.shape)
    mapped[:] = frames.values
    taken = take_frames(replace(frames, values=mapped, grids=None), np.array([5, 2]))
    whole = np.frombuffer(mapped._mmap, np.uint8)
    assert b"".join(whole[start:start + n].tobytes() for _, start, n in asked) == taken.values.tobytes()


def test_advice_reaches_the_kernel(tmp_path, monkeypatch):
    """Whatever part of a page is asked for; a system without such advice, or one that refuses it, goes on."""
    monkeypatch.setattr(scratch, "KEPT_BY_KERNEL", 0)
    values = scratch.scratch_array(tmp_path, (3, 5000))
    for start, stop in ((0, 5000), (1, 2), (4000, 5000)): scratch.will_need(values[:, start:stop])
    scratch._advise(values, "MADV_NO_SUCH_ADVICE")
    scratch._advise(values, "MADV_WILLNEED", 1 << 40, 10)
    scratch.will_need(np.zeros((3, 4)))
    scratch.will_need(values[:, :0])
    scratch.will_need(values.T[::2])


def test_folders_in_memory_hold_no_large_files(tmp_path, monkeypatch):
    store, other = tmp_path / "store", tmp_path / "tmp"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch, "is_in_memory", lambda folder: Path(folder) == store)
    assert Path(scratch.scratch_array(store, (10, 10)).filename).parent == other
    assert scratch.temporary_room().folder == other
    monkeypatch.setattr(scratch, "is_in_memory", lambda folder: True)
    monkeypatch.setattr(scratch, "free_memory", lambda: 1000)
    assert Path(scratch.scratch_array(store, (10, 10)).filename).parent == store and scratch.temporary_room() is None
    with pytest.raises(UserError, match="in memory themselves.*TMPDIR"):
        scratch.scratch_array(store, (100, 100))


def test_a_folder_that_cannot_be_written_is_not_used(tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    assert Path(scratch.scratch_array(tmp_path, (10, 10)).filename).parent == Path(tempfile.gettempdir())


@pytest.mark.parametrize("value", ["nan", "-4", "0", "0.01", "1e99", "much", ""])
def test_a_limit_that_is_none(value, tmp_path):
    if value:
        with pytest.raises(UserError, match="memory_gb is .* a number from 0.1"): read_settings({}, memory_gb=value)
    else: assert read_settings({"GESTURE_NB_MEMORY_GB": value}).memory_gb is None


def test_a_limit_that_is_too_small_is_said(toy, simulated):
    assert not memory.MemoryPlan(4.0, "stated").lines(simulated)
    assert "less than any training takes" in memory.MemoryPlan(0.1, "stated").lines(simulated)[0]


def test_what_only_looks_at_recordings_keeps_them_in_a_file(toy, tmp_path, monkeypatch, nothing_is_small):
    from gesture_nb.data import understanding
    from gesture_nb.explorer import recordings

    usual, shown = understanding.inspect_recordings(toy), recordings.explored(toy)
    kept, put = [], scratch.Room.empty
    monkeypatch.setattr(scratch.Room, "empty", lambda *of: (kept.append(put(*of)), kept[-1])[1])
    for module in (understanding, recordings):
        monkeypatch.setattr(module, "temporary_room", lambda: scratch.Room(tmp_path, 0))
    assert understanding.inspect_recordings(toy) == usual and scratch.is_in_file(kept[0])
    found = recordings.explored(toy)
    assert scratch.is_in_file(found.table.values)
    assert found.table.values.tobytes() == shown.table.values.tobytes() and not list(tmp_path.iterdir())


def test_irregular_times_of_readings_in_a_file(tmp_path, nothing_is_small, monkeypatch):
    import pandas as pd

    from gesture_nb.data import timing

    rng = np.random.default_rng(0)
    parts = []
    for i in range(20):
        t = np.cumsum(rng.uniform(0.005, 0.05, 80) if i % 2 else np.full(80, 0.02))
        acc = rng.normal(size=(80, 3)) + [0, 0, 9.8]
        parts.append(pd.DataFrame({"sequence_id": f"s{i}", "subject": "abcd"[i % 4], "gesture": "xy"[i % 2], "t": t,
                                   **dict(zip(("acc_x", "acc_y", "acc_z"), acc.T))}))
    pd.concat(parts).to_parquet(tmp_path / "bent.parquet", index=False)
    monkeypatch.setattr(timing, "_AT_ONCE", 3000)
    here = read_recordings(tmp_path / "bent.parquet")
    there = read_recordings(tmp_path / "bent.parquet", room=scratch.Room(tmp_path, 0))
    assert here.findings["time"]["irregular"] > 0 and scratch.is_in_file(there.values)
    assert here.values.tobytes() == there.values.tobytes() and np.array_equal(here.offsets, there.offsets)


def test_padding_and_units_of_readings_in_a_file(tmp_path, nothing_is_small):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, rows = np.random.default_rng(0), 30 * 40
    x = rng.normal(size=(3, rows)).astype("f4") + np.array([[0], [0], [1]], "f4")
    padding = np.arange(rows) % 40 > 34
    columns = {"sequence_id": np.repeat([f"s{i}" for i in range(30)], 40), "subject": np.repeat(list("abcdef"), 200),
               "gesture": np.repeat(["x", "y"] * 15, 40), "sequence_counter": np.tile(np.arange(40), 30)}
    columns |= {name: pa.array(values, mask=padding) for name, values in zip(("acc_x", "acc_y", "acc_z"), x)}
    pq.write_table(pa.table(columns), tmp_path / "padded.parquet")
    stated = {"acc_unit": "g", "rate_hz": 20.0}
    here = read_recordings(tmp_path / "padded.parquet", **stated)
    there = read_recordings(tmp_path / "padded.parquet", room=scratch.Room(tmp_path, 0), **stated)
    assert scratch.is_in_file(there.values) and there.rows == 30 * 35
    assert here.values.tobytes() == there.values.tobytes() and here.findings == there.findings


def test_large_row_groups_are_read_alike(toy, monkeypatch):
    from gesture_nb.data import parquet_files

    usual = read_recordings(toy)
    monkeypatch.setattr(parquet_files, "LARGE_GROUP", 0)
    assert read_recordings(toy).values.tobytes() == usual.values.tobytes()


def test_large_summaries_are_mapped_and_checked(train, tmp_path):
    store = Store(tmp_path, {"kind": "summaries", "code": 1})
    written = write_summaries(store, summary_blocks(train.frames), len(train), large=0)
    assert scratch.is_in_file(written.values) and written.values.tobytes() == train.summaries.values.tobytes()
    assert read_summaries(store).names == train.summaries.names
    path = next(tmp_path.glob("*.values.raw"))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        read_summaries(store)


def test_trees_of_fetched_rows_are_the_same_bytes(train, monkeypatch):
    from gesture_nb.models import gbdt, rows

    split, found = (np.arange(60), np.arange(60, 90)), []
    for large in (rows.LARGE_CELLS, 0):
        monkeypatch.setattr(rows, "LARGE_CELLS", large)
        monkeypatch.setattr(gbdt, "sample_of_bins", lambda *size: {})
        member = gbdt.LgbmMember(read_settings({}, boosting_rounds=1), 1, 0)
        history = member.fit(train, inner_split=split)
        found.append((member.booster.model_to_string(), member.twin.model_to_string(), history["check_loss"]))
        assert isinstance(gbdt.training_table(train).x, rows.Rows) == (large == 0)
    assert found[0] == found[1]


def test_kernels_of_many_sequences(train, monkeypatch):
    from gesture_nb.models import minirocket

    recipe = minirocket.RocketRecipe(dilations=2, draws=1, biases=1, sample=16)
    split = np.arange(30), np.arange(30, 40)
    train = replace(train.take(np.arange(40)), options=FoldOptions())
    monkeypatch.setattr(minirocket, "MOST_DUAL", 20)
    monkeypatch.setattr(minirocket, "COLUMNS_OF_MANY", 100)
    many = minirocket.RocketMember(read_settings({}), 1, 0, recipe)
    assert many.hyperparameters(train)["columns"] == 100
    many.fit(train, inner_split=split)
    features = many.features(train)
    assert 80 < features.shape[1] <= 100 and many.twin is not None
    assert np.allclose(many.classifier.centre, features.mean(0), atol=1e-5)
    parts = many._probs(many.classifier, train, part=15)
    assert np.allclose(parts, many.classifier.probs(features), atol=1e-6)


def test_the_primal_ridge_is_the_dual_one():
    from gesture_nb.models.primal import ManyRows, fit_many
    from gesture_nb.models.ridge import fit_classifier

    rng = np.random.default_rng(0)
    y = rng.integers(4, size=5000)
    x = (rng.normal(size=(5000, 30)) + np.eye(4, 30)[y]).astype("f4")
    split, alphas = (np.arange(4000), np.arange(4000, 5000)), (1.0, 100.0)
    primal = fit_many(ManyRows(lambda index: x[index], y, 4), split, alphas)
    few = slice(None, 800)
    dual = fit_classifier(x[few], y[few], 4, [(np.arange(700), np.arange(700, 800))], alphas, originals=800)
    again = fit_many(ManyRows(lambda index: x[few][index], y[few], 4), (np.arange(700), np.arange(700, 800)), alphas)
    assert np.allclose(again.probs(x), dual.probs(x), atol=1e-3) and again.alpha == dual.alpha
    assert (primal.probs(x).argmax(1) == y).mean() > 0.5


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_block_shuffle_is_a_permutation_of_blocks(n, block, buffer, epoch):
    mixing = BlockShuffle(block, buffer)
    order = epoch_order(n, 7, epoch, mixing)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, epoch_order(n, 7, epoch, mixing))
    mixed = order[:max(0, buffer - 2) * block]   # of the first blocks that are mixed: few parts of the file at a time
    assert len(np.unique(mixed // block)) <= 2 * buffer


def test_a_block_shuffle_mixes_people():
    people = np.arange(20_000) // 100
    mixed = [order_quality(epoch_order(20_000, 1, e, BlockShuffle(16, 60)), people, 128) for e in range(4)]
    full = [order_quality(epoch_order(20_000, 1, e), people, 128) for e in range(4)]
    assert max(abs(q.correlation) for q in mixed) < 0.15
    assert np.mean([q.entropy for q in mixed]) > 0.75 * np.mean([q.entropy for q in full])


def test_the_shuffle_follows_from_settings_and_data(train):
    assert shuffle_for(train.frames) is None
    mixing = shuffle_for(train.frames, memory_gb=1e-3)
    assert mixing.block == 16 and mixing.buffer >= 2
    from gesture_nb.models.cnn import TorchMember

    usual, small = (TorchMember(read_settings({}, memory_gb=gb)) for gb in (None, 100))
    assert usual.hyperparameters(train) == small.hyperparameters(train)
    own = replace(small.settings, memory_gb=1e-3)
    assert TorchMember(own).hyperparameters(train)["shuffle"] == mixing._asdict()


def test_batches_of_a_block_shuffle_can_be_resumed(train):
    from gesture_nb.features.loaders import SequenceDataset, View, make_loader

    dataset = SequenceDataset(train.frames, train.index, View("tail", 32), {"y": train.y}, None, BlockShuffle(4, 3))
    loader = make_loader(dataset, 8, shuffle=True, seed=3)
    loader.sampler.set_epoch(2)
    whole = [batch["pos"].tolist() for batch in loader]
    loader.sampler.set_epoch(2, first=5)
    assert [batch["pos"].tolist() for batch in loader] == whole[5:]
    assert sorted(sum(whole, [])) == list(range(90))


LIMITED = """
import resource, sys
from gesture_nb.config import read_settings
from gesture_nb.progress import Quiet
from gesture_nb.training import memory
from gesture_nb.training.dataset import load_dataset
load_dataset(read_settings({}, data="spar", out=sys.argv[2], folds=2), Quiet())
def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
import threading, time
most, before = [0], held()
def watch():
    while True:
        most[0] = max(most[0], held())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
load_dataset(read_settings({}, data=sys.argv[1], out=sys.argv[3], folds=2, memory_gb=float(sys.argv[4])), Quiet())
print(most[0] - before)
"""


@pytest.mark.soak
def test_memory_does_not_grow_with_the_readings(tmp_path):
    "Two gigabytes of readings: in a file they take a fraction of that, in memory all of it."
    script = Path(__file__).parents[1] / "benchmarks/scale.py"
    subprocess.run([sys.executable, str(script), "data", str(tmp_path), "--times", "2"], check=True)
    taken = []
    for gb in ("1", "64"):
        command = [sys.executable, "-c", LIMITED, str(tmp_path / "x2.parquet"), str(tmp_path / f"spar{gb}"),
                   str(tmp_path / f"run{gb}"), gb]
        taken.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(taken)
    assert taken[0] < 1.0e9 < 1.5e9 < taken[1]
