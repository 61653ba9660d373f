"Features mirrored to the other wrist, sensors registered by users, and options selected on training subjects."
from dataclasses import replace

import numpy as np
import pytest
import torch

from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.data.simulate import simulate
from gesture_nb.features.augment import (
    DROP,
    NONE,
    Augment,
    augment,
    device_vectors,
    drop_sensors,
    mirror,
    soft_labels,
    turn,
)
from gesture_nb.features.compute import frame_features, mirror_hands
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.features.mirror import mirror_map, mirrored_frames
from gesture_nb.models.base import Batch, FoldOptions
from gesture_nb.models.fold_options import candidate_mirrors, candidate_views, select_options
from gesture_nb.sensors import Sensor, register_sensor, unregister_sensor

def wrists(axis, seed=0, n=30):
    "Accelerometer and gyroscope of random turns, and the same mirrored in a device axis."
    rng = np.random.default_rng(seed)
    start = np.array([1, 2, 9, 0, 0, 0])[:, None]
    x = [rng.normal(size=(6, k)).cumsum(1) * 0.3 + start for k in rng.integers(1, 40, n)]
    other = "xyz".index(axis)
    vector, pseudovector = np.ones(3), -np.ones(3)
    vector[other], pseudovector[other] = -1, 1
    sign = np.concatenate([vector, pseudovector])[:, None]
    names = ("acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z")
    return [table_from_arrays(v, names, rate_hz=20) for v in (x, [a * sign for a in x])]


@pytest.mark.parametrize("axis", ["x", "y"])
def test_features_of_mirrored_rows_are_mirrored_features(axis):
    one, two = (frame_features(t) for t in wrists(axis))
    mirrored = mirrored_frames(one, axis)
    assert np.abs(mirrored.values - two.values).max() < 2e-3
    assert not np.allclose(one.values, two.values, atol=1e-2)
    assert np.array_equal(mirrored_frames(mirrored, axis).values, one.values)


def test_all_sensors_of_the_competition_are_mirrored():
    table = simulate(30, seed=4, imu_only=0.3)
    one, two = frame_features(mirror_hands(table)), mirrored_frames(frame_features(table))
    assert np.abs(one.values - two.values).max() < 1e-4 and np.array_equal(one.grids, two.grids)
    assert all(np.array_equal(one.masks[m], two.masks[m]) for m in one.masks)


def first_sequence(f):
    "The first 30 steps as a batch of one."
    flags = np.stack([f.masks[m][:1] for m in f.masks], 1).astype("f4")
    return {"x": torch.from_numpy(f.values[:30].T[None]), "mask": torch.ones(1, 30, dtype=torch.bool),
            "y": soft_labels(torch.tensor([0]), 2), "flags": torch.from_numpy(flags),
            "grids": torch.from_numpy(f.grids[None, :30])}


def test_a_batch_is_mirrored_as_recordings_are():
    f = frame_features(simulate(12, seed=2))
    other = mirrored_frames(f)
    mirrored = mirror(first_sequence(f), f.names, tuple(f.masks), 1.0, "x", torch.Generator())
    assert all(torch.equal(mirrored[k], v) for k, v in first_sequence(other).items())
    spec = replace(NONE, mirror=0.5, names=f.names, flags=tuple(f.masks))
    many = {k: torch.cat([v] * 40) for k, v in first_sequence(f).items()}
    augmented = augment(many, spec, torch.Generator().manual_seed(0))["x"]
    turned = (augmented == torch.from_numpy(other.values[:30].T)).all(2).all(1)
    assert 5 < int(turned.sum()) < 35


# ---------------------------------------------------------------- a sensor registered by a user

@pytest.fixture
def magnetometer():
    "Three components of a pseudovector, a group of its own that always falls silent."
    yield register_sensor(Sensor(name="mag", title="magnetic field", unit="µT", columns=("mag_x", "mag_y", "mag_z"),
                                 mirror="pseudovector", drop_chance=1.0))
    unregister_sensor("mag")


MAG = ("mag.x", "mag.x_rate", "mag.y", "mag.y_rate", "mag.z", "mag.z_rate")


def test_a_registered_sensor_is_mirrored_as_it_says(magnetometer):
    assert mirror_map(("acc.x", *MAG)).sign.tolist() == [-1, 1, 1, -1, -1, -1, -1]
    assert mirror_map(MAG, "y").sign.tolist() == [-1, -1, 1, 1, -1, -1]
    assert candidate_mirrors(("acc.x", *MAG)) == ["x", "y"] and candidate_mirrors(("acc.x", "tof.1_mean")) == ["x"]


def test_a_registered_sensor_turns_with_the_device(magnetometer):
    assert device_vectors(MAG) == ((0, 2, 4), (1, 3, 5))
    x = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0))
    batch = {"x": x, "mask": torch.ones(4, 10, dtype=torch.bool)}
    after = turn(batch, MAG, 0.5, torch.Generator().manual_seed(1))["x"]
    assert not torch.allclose(after, x, atol=1e-2)
    assert torch.allclose(after[:, ::2].norm(dim=1), x[:, ::2].norm(dim=1), atol=1e-5)


def test_a_registered_sensor_is_dropped_as_it_says(magnetometer):
    names, flags = ("acc.x", *MAG), ("has_acc", "has_mag")
    batch = {"x": torch.ones(5, 7, 8), "mask": torch.ones(5, 8, dtype=torch.bool), "y": torch.ones(5, 1),
             "flags": torch.ones(5, 2)}
    out = augment(batch, replace(NONE, drop=DROP, names=names, flags=flags), torch.Generator().manual_seed(0))
    assert out["flags"].tolist() == [[1, 0]] * 5 and (out["x"][:, 0] == 1).all() and (out["x"][:, 1:] == 0).all()
    kept = augment(batch, replace(NONE, drop=(("gyr", 1.0),), names=names, flags=flags), torch.Generator())
    assert torch.equal(kept["x"], batch["x"])


def test_the_built_in_groups_do_not_change_when_a_sensor_is_registered(magnetometer):
    assert Augment().drop == DROP == (("thm tof", 0.4), ("rot", 0.05), ("gyr", 0.05))


def test_devices_of_one_sensor_fall_silent_one_by_one():
    names, flags = ("acc.x", "thm.1", "thm.1_rate", "thm.2", "thm.2_rate"), ("has_acc", "has_thm_1", "has_thm_2")
    batch = {"x": torch.ones(200, 5, 4), "flags": torch.ones(200, 3)}
    out = drop_sensors(batch, names, flags, (), 0.5, torch.Generator().manual_seed(0))
    lowered = out["flags"].mean(0).tolist()
    assert lowered[0] == 1 and all(0.3 < v < 0.7 for v in lowered[1:])
    assert torch.equal(out["x"][:, 1, 0], out["flags"][:, 1]) and torch.equal(out["x"][:, 4, 0], out["flags"][:, 2])


# ---------------------------------------------------------------- options of a fold

def pushes(sides, lengths=(40,), seed=0):
    "Two gestures that differ in direction; `sides` says which way each person wears the device."
    rng = np.random.default_rng(seed)
    n = 24 * len(sides)
    who, y = np.repeat(np.arange(len(sides)), 24), np.arange(n) % 2
    size = rng.choice(lengths, n)
    side = np.asarray(sides)[who]
    x = [np.stack([side[i] * (1 - 2 * y[i]) * (1.5 + np.sin(np.arange(k) / 2)) + rng.normal(size=k),
                   side[i] * 2 + rng.normal(size=k), 9.8 + rng.normal(size=k)], 1) for i, k in enumerate(size)]
    f = FrameFeatures(np.concatenate(x).astype("f4"), ("acc.x", "acc.y", "acc.z"), np.append(0, size.cumsum()),
                      {"has_acc": np.ones(n, bool)}, np.full(n, 20, "f4"))
    return Batch(f, np.arange(n), ("pull", "push"), y, who.astype(str))


def test_the_mirror_is_refused_where_directions_are_gestures():
    assert select_options(pushes([1, 1, 1, 1, 1]), 0).mirror == ""


def test_the_mirror_is_found_where_some_wear_the_device_the_other_way_round():
    rng = np.random.default_rng(3)
    b = pushes([1] * 6, seed=5)
    values, who = b.frames.values.copy(), np.repeat(b.subjects.astype(int), 40)
    shape = np.tile(np.sin(np.arange(40) / np.where(np.arange(2)[:, None] == 0, 2, 5)), (72, 1)).ravel()
    values[:, 0] = np.where(who % 6 < 1, -1, 1) * (4 + 2 * shape) + rng.normal(size=len(values)) * 3
    assert select_options(replace(b, frames=replace(b.frames, values=values)), 0).mirror == "x"


def test_few_people_leave_the_defaults():
    assert select_options(pushes([1, -1]), 0) == FoldOptions()


def test_views_are_only_compared_where_they_differ():
    assert len(candidate_views(pushes([1, 1, 1]))) == 1 and len(candidate_views(pushes([1, 1, 1], (20, 40, 90)))) == 2


def test_options_repeat_and_never_see_other_sequences():
    b = pushes([1, -1, 1, 1], (20, 50))
    train = b.take(np.flatnonzero(b.subjects != "3"))
    spoiled = b.frames.values.copy()
    spoiled[b.frames.offsets[72]:] = 1e3
    other = Batch(replace(b.frames, values=spoiled), train.index, train.classes, train.y, train.subjects)
    assert select_options(train, 1) == select_options(train, 1) == select_options(other, 1)
