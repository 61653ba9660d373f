"MiniRocket on odd data, on any number of sequences at once, and with damaged files."
import gc
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from gesture_nb.config import Settings, UserError
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures, take_frames
from gesture_nb.features.mirror import mirrored_frames
from gesture_nb.features.wearer import shift_frames
from gesture_nb.models import kernel_counts, kernel_inputs
from gesture_nb.models.base import Batch, FoldOptions, Member, Outputs, training_size
from gesture_nb.models.kernels import (
    MAX_LEVEL,
    Thresholds,
    count_positive,
    fit_thresholds,
    init_kernels,
    kernel_blocks,
    kernel_weights,
    level_of,
    threshold_of,
)
from gesture_nb.models.minirocket import RocketMember, RocketRecipe, mirrored_sample, shifted_features
from gesture_nb.progress import Quiet
from gesture_nb.registry import MEMBERS

SMALL = RocketRecipe(dilations=3, draws=1, biases=2, sample=8)


def batch_of(lengths, y, classes=4, seed=0):
    "Noise whose strength depends on the label."
    rng, n, y = np.random.default_rng(seed), len(lengths), np.asarray(y)
    x = rng.normal(size=(sum(lengths), 3)).astype("f4") * np.float32(1 + np.repeat(y, lengths))[:, None]
    frames = FrameFeatures(x, ("acc.x", "acc.y", "acc.z"), offsets_of(lengths), {"has_acc": np.ones(n, bool)},
                           np.full(n, 20, "f4"))
    return Batch(frames, np.arange(n), tuple("abcd"[:classes]), y, (np.arange(n) % 3).astype(str))


def fitted(batch, inner=None):
    member = RocketMember(Settings(), 1, 0, SMALL)
    inner = inner or (np.flatnonzero(batch.subjects != "0"), np.flatnonzero(batch.subjects == "0"))
    member.fit(batch, inner_split=inner)
    return member


def test_import_brings_nothing_heavy():
    heavy = {"torch", "tensorflow", "sklearn", "scipy", "lightgbm", "pandas"}
    code = f"import gesture_nb.models.minirocket, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_import_brings_no_other_member():
    code = "import gesture_nb.models.minirocket, sys; print([m for m in sys.modules if 'models' in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "minirocket" in loaded and not any(name in loaded for name in ("gru", "cnn", "gbdt"))


def labels_name(y): return f"{len(y)}of{len(set(np.asarray(y).tolist()))}"


LABELS = [np.arange(48) % 4, np.array([1, 3])[np.arange(40) % 2], np.full(12, 2), [0, 3], [1]]


@pytest.mark.parametrize("y", LABELS, ids=labels_name)
def test_any_labels(y):
    b = batch_of([40 + i % 9 for i in range(len(y))], y)
    p = fitted(b).predict_proba(b)
    assert isinstance(RocketMember(), Member) and p.dtype == np.float32 and p.shape == (len(y), 4)
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    assert (p[:, [c for c in range(4) if c not in b.y]] == 0).all()


def test_without_a_check_part():
    b = batch_of([40] * 30, np.arange(30) % 2)
    assert (fitted(b, (np.arange(30), [])).predict_proba(b).argmax(1) == b.y).mean() > 0.9


def test_same_bytes_again_and_loaded(tmp_path):
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fitted(b).save(tmp_path / name)
    for f in ("arrays.safetensors", "member.json"):
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes()
    assert np.array_equal(RocketMember.load(tmp_path / "one").predict_proba(b), fitted(b).predict_proba(b))
    assert RocketMember.load(tmp_path / "one").recipe == SMALL


def test_predictions_do_not_depend_on_the_other_sequences_and_any_length_is_predicted():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    m = fitted(b)
    single = np.concatenate([m.predict_proba(b.take([i])) for i in (0, 47)])
    assert np.allclose(single, m.predict_proba(b)[[0, 47]], atol=1e-5)
    p = m.predict_proba(batch_of([1, 2, 3000], [0, 1, 2]))
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-6)
    assert m.predict_proba(b.take(np.arange(0))).shape == (0, 4)


def test_the_contract_of_a_member():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    m, entry = fitted(b), MEMBERS.entry("rocket")
    assert MEMBERS.get("rocket") is RocketMember
    assert (entry.title, entry.libraries, entry.components) == (m.title, m.libraries, m.components)
    outputs = m.predict_outputs(b)
    assert isinstance(outputs, Outputs) and outputs.heads == {} and np.array_equal(outputs.probs, m.predict_proba(b))
    fresh = RocketMember(Settings(), 1, 0, SMALL)
    assert fresh.hyperparameters(b) == m.hyperparameters(b) and fresh.hyperparameters(b)["biases"] == 2
    assert 0 < m.seconds(m.hyperparameters(b), training_size(b), "fast") < 60


def test_mirror_images_fill_the_rows_that_are_left():
    b = batch_of([40] * 48, np.arange(48) % 4)
    mirrored = replace(b, options=FoldOptions(mirror="x"))
    assert len(mirrored_sample(b, 100)) == 0 and len(mirrored_sample(mirrored, 48)) == 0
    assert mirrored_sample(mirrored, 100).tolist() == list(range(48))
    assert mirrored_sample(mirrored, 60).tolist() == list(range(0, 48, 4))
    assert fitted(mirrored).hyperparameters(mirrored)["mirror_axis"] == "x"


def test_damage_is_named(tmp_path):
    fitted(batch_of([40] * 12, np.arange(12) % 4)).save(tmp_path)
    (tmp_path / "member.json").write_text("{}")
    with pytest.raises(UserError, match="member.json"): RocketMember.load(tmp_path)


# ---------------------------------------------------------------- what folds share

def in_folds(batch, k):
    "Training and held-out part of a batch, by subject."
    held_out = batch.subjects == str(k)
    return batch.take(np.flatnonzero(~held_out)), batch.take(np.flatnonzero(held_out))


def counted(monkeypatch):
    "The sequences that are convolved from now on: (mirror axis, positions, thresholds)."
    calls, real = [], kernel_counts.count_sequences
    def watch(transform, frames, index, mirror="", advance=None):
        calls.append((mirror, len(index), len(transform.thresholds.level)))
        return real(transform, frames, index, mirror, advance)
    monkeypatch.setattr(kernel_counts, "count_sequences", watch)
    return calls


def of_folds(batch, order, recipe=SMALL):
    "Fold → its member, fitted in this order."
    members = {}
    for k in order:
        members[k] = RocketMember(Settings(), 1, k, recipe)
        members[k].fit(in_folds(batch, k)[0], inner_split=([], []))
    return members


def arrays_are_equal(one, other):
    a, b = one.as_arrays(), other.as_arrays()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_folds_share_convolutions_and_nothing_changes_by_it(monkeypatch):
    b = replace(batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4), options=FoldOptions(mirror="x"))
    calls = counted(monkeypatch)
    forwards, most = of_folds(b, [0, 1, 2]), max(columns for *_, columns in calls)
    for axis in ("", "x"):   # two views: each sequence is counted once, and later folds add few thresholds
        assert sum(n for mirror, n, columns in calls if mirror == axis and columns == most) == 2 * 48
        assert sum(n * columns for mirror, n, columns in calls if mirror == axis) < 1.25 * 2 * 48 * most
    backwards = of_folds(b, [2, 1, 0])
    monkeypatch.setattr(kernel_counts, "MAX_BYTES", 0)
    alone = of_folds(replace(b, frames=replace(b.frames)), [0, 1, 2])
    for k in range(3):
        assert arrays_are_equal(forwards[k], backwards[k]) and arrays_are_equal(forwards[k], alone[k])
        held_out = in_folds(b, k)[1]
        elsewhere = replace(held_out, frames=replace(b.frames))
        assert np.array_equal(forwards[k].predict_proba(held_out), forwards[k].predict_proba(elsewhere))


def test_counts_are_forgotten_with_the_features():
    b = batch_of([40] * 12, np.arange(12) % 4)
    fitted(b)
    key = id(b.frames)
    assert key in kernel_counts._kept
    del b
    gc.collect()
    assert key not in kernel_counts._kept


def test_a_fold_learns_nothing_from_the_people_it_holds_out():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    train, held_out = in_folds(b, 0)
    spoiled = b.frames.values.copy()
    for i in held_out.index: spoiled[b.frames.offsets[i]:b.frames.offsets[i + 1]] = 1e3
    other = replace(train, frames=replace(b.frames, values=spoiled))
    one, two = (RocketMember(Settings(), 1, 0, SMALL) for _ in range(2))
    for member, batch in ((one, train), (two, other)): member.fit(batch, inner_split=([], []))
    assert arrays_are_equal(one, two)


def test_both_views_are_read_where_they_differ():
    def views(lengths, **settings):
        b = batch_of(lengths, np.arange(len(lengths)) % 4)
        member = RocketMember(Settings(**settings), 1, 0, SMALL)
        member.fit(b, inner_split=([], []))
        return [transform.view.kind for transform in member.transforms]
    assert views([40] * 12) == ["tail"] and views([400] * 12) == views([40, 50] * 6) == ["tail", "resample"]
    assert views([40, 50] * 6, disable=("view",)) == ["tail"]


def test_scales_do_not_depend_on_people_unless_a_sensor_is_unknown():
    b = batch_of([40] * 12, np.arange(12) % 4)
    known = [kernel_inputs.scaling_of(b.frames, np.array([i])) for i in (0, 3)]
    assert np.array_equal(known[0].spread, known[1].spread) and known[0].middle.tolist() == [0, 0, 0]
    mag = replace(b.frames, names=("mag.x", "mag.y", "mag.z"), values=50 + 9 * b.frames.values)
    measured = kernel_inputs.scaling_of(mag, np.arange(12))
    assert (np.log2(measured.spread) % 2 == 0).all()
    assert (np.abs(measured.middle - mag.values.mean(0)) <= measured.spread).all()


@pytest.mark.parametrize("n", [1, 2, 254, 255, 256, 600])
def test_steps_are_counted_right_at_any_length(n):
    import torch
    kernels = init_kernels(4, 1, 3, 64, 0)
    x = torch.from_numpy(kernel_inputs.quantise(np.random.default_rng(n).normal(size=(2, n, 3))))
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, : n // 2] = False
    x[~mask] = 0
    thresholds = fit_thresholds(x, mask, kernels, 4)
    counts = count_positive(x, mask, kernel_blocks(kernels, thresholds), len(thresholds.level))
    dense = kernel_weights()[np.arange(kernels.count) % 84][:, None] * kernels.chosen.reshape(-1, 3)[..., None]
    for column in np.random.default_rng(0).integers(len(thresholds.level), size=20):
        k, bias = thresholds.kernel[column], threshold_of(thresholds.level)[column]
        d = int(np.repeat(kernels.dilations, 84)[k])
        weight = torch.from_numpy(dense[k : k + 1].astype(np.float32))
        outputs = torch.nn.functional.conv1d(x.transpose(1, 2), weight, padding=4 * d, dilation=d)[:, 0]
        assert counts[:, column].tolist() == ((outputs > bias) & mask).sum(1).tolist()


def test_levels_are_those_of_the_nearest_thresholds():
    levels = np.arange(-MAX_LEVEL, MAX_LEVEL + 1)
    assert np.array_equal(level_of(threshold_of(levels)), levels)
    assert level_of(np.array([1e-9, 1e9, -1e9, 3.1, 2.7])).tolist() == [0, MAX_LEVEL, -MAX_LEVEL, 11, 10]
    own = Thresholds.from_levels(np.int8([[MAX_LEVEL, 0], [-MAX_LEVEL, -MAX_LEVEL]]))
    assert own.with_neighbours().level.tolist() == [-1, 0, 1, MAX_LEVEL - 1, MAX_LEVEL, -MAX_LEVEL, 1 - MAX_LEVEL]


def with_shifts(b, seed=0):
    "The batch with shifts of each person, and others for mirror images."
    draw = np.random.default_rng(seed).normal(size=(2, 3, 3)).astype("f4")
    person = b.subjects.astype(int)
    return replace(b, shifts=draw[0][person], mirrored_shifts=draw[1][person])


def test_the_twin_learns_from_shifted_features(tmp_path):
    b = with_shifts(batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4))
    stranger = replace(with_shifts(batch_of([44] * 12, np.arange(12) % 4, seed=1), seed=1), y=None)
    member = fitted(b)
    p = member.predict_adapted(stranger).probs
    assert p.shape == (12, 4) and np.allclose(p.sum(1), 1, atol=1e-6)
    assert not np.array_equal(p, member.predict_proba(stranger.shifted()))
    member.save(tmp_path)
    loaded = RocketMember.load(tmp_path)
    assert np.array_equal(loaded.predict_adapted(stranger).probs, p)
    assert np.array_equal(loaded.predict_proba(stranger), member.predict_proba(stranger))
    labelled = replace(stranger, y=np.arange(12) % 3)
    assert np.array_equal(member.predict_adapted(labelled).probs, p)   # labels of new people are not read
    assert member.predict_adapted(stranger.take(np.arange(0))).probs.shape == (0, 4)
    metadata = json.loads((tmp_path / "member.json").read_text())
    del metadata["twin"]["factor"]
    (tmp_path / "member.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="member.json"): RocketMember.load(tmp_path)


def test_mirror_images_of_the_twin_have_their_own_shifts():
    b = with_shifts(batch_of([40 + i % 9 for i in range(9)], np.arange(9) % 4))
    b = replace(b, options=FoldOptions(mirror="x"))
    transforms = fitted(b).transforms
    x = shifted_features(b, transforms, np.concatenate([np.arange(9), [0, 4, 8]]), Quiet(), part=4)
    images = mirrored_frames(take_frames(b.frames, np.array([0, 4, 8])), "x")
    expected = kernel_counts.ppv_features(transforms, shift_frames(images, np.arange(3), b.mirrored_shifts[[0, 4, 8]]),
                                          np.arange(3))
    assert np.array_equal(x[9:], expected)
    assert np.array_equal(x[:9], kernel_counts.ppv_features(transforms, b.shifted().frames, np.arange(9)))


def test_without_adaptation_there_is_no_twin(tmp_path):
    b = with_shifts(batch_of([40] * 30, np.arange(30) % 2))
    inner, found = (np.arange(20), np.arange(20, 30)), []
    unknown = replace(b, shifts=None)
    for name, settings, train in (("off", {"adapt": "off"}, b), ("unknown", {}, unknown), ("on", {}, b)):
        member = RocketMember(Settings(**settings), 1, 0, SMALL)
        member.fit(train, inner_split=inner)
        (tmp_path / name).mkdir()
        member.save(tmp_path / name)
        found.append((member, {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}))
    (off, off_files), (unknown, unknown_files), (on, _) = found
    assert off_files == unknown_files and off.twin is None and on.twin is not None
    assert "twin" not in off.hyperparameters(b) and on.hyperparameters(b)["twin"]
    assert np.array_equal(off.predict_proba(b), on.predict_proba(b))
    assert np.array_equal(off.predict_adapted(b).probs, off.predict_proba(b.shifted()))


def test_exported_twins_answer_alike(tmp_path):
    pytest.importorskip("onnxruntime")
    from gesture_nb.serving.compiled import CompiledKernels
    from gesture_nb.serving.export import difference_of, export_kernels
    b = with_shifts(batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4))
    members = {0: fitted(b), 2: fitted(b.take(b.subjects != "2"))}
    entry = export_kernels(members, b, "rocket", tmp_path)
    few = b.take(np.arange(5))
    assert difference_of(CompiledKernels(tmp_path, entry, [0, 2]), [*members.values()], few) <= 1e-5
    members[0].twin = None
    assert difference_of(CompiledKernels(tmp_path, entry, [0, 2]), [*members.values()], few) > 1e-3
