"""The other hand, told in features; and what the training people say of a set."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from gesture_nb.data.frames import FrameFeatures
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.data.simulate import simulate
from gesture_nb.features.augment import NONE, augment, mirror, soft_labels
from gesture_nb.features.frames import frame_features, mirror_hands
from gesture_nb.features.mirror import mirrored_frames
from gesture_nb.models.choices import find_choices, views_of
from gesture_nb.models.member import Batch, Choices


def wrists(axis, seed=0, n=30):
    """Accelerometer and gyroscope of random turns, and the same mirrored in a device axis."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(6, k)).cumsum(1) * 0.3 + np.array([1, 2, 9, 0, 0, 0])[:, None] for k in rng.integers(1, 40, n)]
    other = "xyz".index(axis)
    sign = np.array([*(-1 if i == other else 1 for i in range(3)), *(1 if i == other else -1 for i in range(3))])[:, None]
    names = ("acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z")
    return [table_from_arrays(v, names, rate_hz=20) for v in (x, [a * sign for a in x])]


@pytest.mark.parametrize("axis", ["x", "y"])
def test_features_of_mirrored_rows_are_mirrored_features(axis):
    one, two = (frame_features(t) for t in wrists(axis))
    told = mirrored_frames(one, axis)
    assert np.abs(told.values - two.values).max() < 2e-3
    assert not np.allclose(one.values, two.values, atol=1e-2)
    assert np.array_equal(mirrored_frames(told, axis).values, one.values)


def test_all_sensors_of_the_competition_are_mirrored():
    table = simulate(30, seed=4, imu_only=0.3)
    one, two = frame_features(mirror_hands(table)), mirrored_frames(frame_features(table))
    assert np.abs(one.values - two.values).max() < 1e-4 and np.array_equal(one.grids, two.grids)
    assert all(np.array_equal(one.masks[m], two.masks[m]) for m in one.masks)


def test_a_batch_is_mirrored_as_recordings_are():
    f = frame_features(simulate(12, seed=2))
    other = mirrored_frames(f)
    def batch(f): return {"x": torch.from_numpy(f.values[:30].T[None]), "mask": torch.ones(1, 30, dtype=torch.bool), "y": soft_labels(torch.tensor([0]), 2),
                          "flags": torch.from_numpy(np.stack([f.masks[m][:1] for m in f.masks], 1).astype("f4")), "grids": torch.from_numpy(f.grids[None, :30])}
    found = mirror(batch(f), f.names, tuple(f.masks), 1.0, "x", torch.Generator())
    assert all(torch.equal(found[k], v) for k, v in batch(other).items())
    spec = replace(NONE, mirror=0.5, names=f.names, flags=tuple(f.masks))
    many = {k: torch.cat([v] * 40) for k, v in batch(f).items()}
    turned = (augment(many, spec, torch.Generator().manual_seed(0))["x"] == torch.from_numpy(other.values[:30].T)).all(2).all(1)
    assert 5 < int(turned.sum()) < 35


def pushes(sides, lengths=(40,), seed=0):
    """Two gestures that differ in direction; `sides` says which way each person wears the device."""
    rng = np.random.default_rng(seed)
    n = 24 * len(sides)
    who, y = np.repeat(np.arange(len(sides)), 24), np.arange(n) % 2
    size = rng.choice(lengths, n)
    side = np.asarray(sides)[who]
    x = [np.stack([side[i] * (1 - 2 * y[i]) * (1.5 + np.sin(np.arange(k) / 2)) + rng.normal(size=k),
                   side[i] * 2 + rng.normal(size=k), 9.8 + rng.normal(size=k)], 1) for i, k in enumerate(size)]
    f = FrameFeatures(np.concatenate(x).astype("f4"), ("acc.x", "acc.y", "acc.z"), np.append(0, size.cumsum()), {"has_acc": np.ones(n, bool)}, np.full(n, 20, "f4"))
    return Batch(f, np.arange(n), ("pull", "push"), y, who.astype(str))


def test_the_mirror_is_refused_where_directions_are_gestures():
    assert find_choices(pushes([1, 1, 1, 1, 1]), 0).mirror == ""


def test_the_mirror_is_found_where_some_wear_the_device_the_other_way_round():
    rng = np.random.default_rng(3)
    b = pushes([1] * 6, seed=5)
    values, who = b.frames.values.copy(), np.repeat(b.subjects.astype(int), 40)
    shape = np.tile(np.sin(np.arange(40) / np.where(np.arange(2)[:, None] == 0, 2, 5)), (72, 1)).ravel()
    values[:, 0] = np.where(who % 6 < 1, -1, 1) * (4 + 2 * shape) + rng.normal(size=len(values)) * 3
    assert find_choices(replace(b, frames=replace(b.frames, values=values)), 0).mirror == "x"


def test_few_people_leave_the_plain_answers():
    assert find_choices(pushes([1, -1]), 0) == Choices()


def test_views_are_only_compared_where_they_differ():
    assert len(views_of(pushes([1, 1, 1]))) == 1 and len(views_of(pushes([1, 1, 1], (20, 40, 90)))) == 2


def test_choices_repeat_and_never_see_other_sequences():
    b = pushes([1, -1, 1, 1], (20, 50))
    train = b.take(np.flatnonzero(b.subjects != "3"))
    spoiled = b.frames.values.copy()
    spoiled[b.frames.offsets[72]:] = 1e3
    other = Batch(replace(b.frames, values=spoiled), train.index, train.classes, train.y, train.subjects)
    assert find_choices(train, 1) == find_choices(train, 1) == find_choices(other, 1)
