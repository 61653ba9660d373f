"""Data larger than memory: the same results from readings in a file, large tables by rows, shuffles in blocks."""

import json
import subprocess
import sys
from dataclasses import replace

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


def test_a_run_that_is_resumed_decides_as_before(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"reading": {"memory": {"readings": "file", "gb": 2.5}}}))
    assert memory.plan_memory(read_settings({}, out=tmp_path)) == memory.MemoryPlan(2.5, "as before")
    assert memory.plan_memory(read_settings({}, out=tmp_path, memory_gb=3)) == memory.MemoryPlan(3.0, "stated")
    (tmp_path / "config.json").write_text('{"reading": [')
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
    from pathlib import Path

    script = Path(__file__).parents[1] / "benchmarks/scale.py"
    subprocess.run([sys.executable, str(script), "data", str(tmp_path), "--times", "2"], check=True)
    taken = []
    for gb in ("1", "64"):
        command = [sys.executable, "-c", LIMITED, str(tmp_path / "x2.parquet"), str(tmp_path / f"spar{gb}"),
                   str(tmp_path / f"run{gb}"), gb]
        taken.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(taken)
    assert taken[0] < 1.0e9 < 1.5e9 < taken[1]
