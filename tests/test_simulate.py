"Simulated data: schema, design, physics, traps, and how hard it is."
import hashlib

import numpy as np
import pandas as pd
import pytest

from gesture_nb.data.design import CONDITIONS, NO_FIFTH, NO_THM_TOF, Timings, make_schedule, people, timings
from gesture_nb.data.motion import make_block, oddity
from gesture_nb.data.sequences import SequenceTable, offsets_of, sequence_of_row, take
from gesture_nb.data.simulate import SIMULATED_CHANNELS, SIMULATOR_VERSION, _values, simulate, write_competition
from gesture_nb.data.statistics import REAL, REAL_ACC_STEP, only_phase, statistics
from gesture_nb.errors import UserError
from gesture_nb.schema import (
    ACC,
    BEHAVIORS,
    DEMOGRAPHICS,
    GESTURES,
    LEGAL_PAIRS,
    OPENINGS,
    PHASES,
    ROT,
    TARGETS,
    TEST_COLUMNS,
    THM,
    TOF,
    TRAIN_COLUMNS,
)

GESTURE_OF_CONDITION = np.array([gesture for _, gesture, _ in CONDITIONS])


@pytest.fixture(scope="module")
def table():
    return simulate(1200, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    f = tmp_path_factory.mktemp("sim")
    labels = write_competition(f, sequences=300, test_sequences=40, seed=3)
    return f, pd.read_csv(f / "train.csv"), pd.read_csv(f / "test.csv"), labels


def _rotate(q, v):
    t = 2 * np.cross(q[1:], v, axis=0)
    return v + q[0] * t + np.cross(q[1:], t, axis=0)


def test_columns_and_types(folder):
    f, train, test, _ = folder
    assert tuple(train.columns) == TRAIN_COLUMNS and tuple(test.columns) == TEST_COLUMNS
    for frame in (train, test):
        assert (frame.dtypes[[*ACC, *ROT, *THM, *TOF]] == "float64").all()
        assert frame["sequence_counter"].dtype == "int64"
    assert set(train["phase"]) == set(PHASES) and set(train["behavior"]) == set(BEHAVIORS)
    assert set(train["sequence_type"]) == {"Target", "Non-Target"}
    for name in ("train", "test"):
        assert tuple(pd.read_csv(f / f"{name}_demographics.csv").columns) == DEMOGRAPHICS


def test_rows_are_numbered_and_labelled_consistently(folder):
    _, train, test, _ = folder
    for frame in (train, test):
        counter = frame["sequence_counter"]
        assert (counter == frame.groupby("sequence_id").cumcount()).all()
        assert (frame["row_id"] == frame["sequence_id"] + "_" + counter.astype(str).str.zfill(6)).all()
        assert frame["sequence_id"].is_monotonic_increasing and frame["row_id"].is_unique
    assert ((train["behavior"] == BEHAVIORS[3]) == (train["phase"] == "Gesture")).all()
    assert (train["gesture"].isin(TARGETS) == (train["sequence_type"] == "Target")).all()
    order = train["behavior"].map({OPENINGS[0]: 0, OPENINGS[1]: 0, BEHAVIORS[2]: 1, BEHAVIORS[3]: 2})
    assert (order.groupby(train["sequence_id"]).diff().dropna() >= 0).all()


def test_units_and_steps(folder):
    _, train, _, _ = folder
    assert (train[list(ACC)].astype("float32") * 256 % 1 == 0).all(axis=None)
    rot = train[list(ROT)].dropna().astype("float32").to_numpy()
    assert (rot * 2**14 % 1 == 0).all() and (rot[:, 0] >= 0).all() and np.abs((rot**2).sum(1) - 1).max() < 1e-3
    tof = train[list(TOF)].to_numpy()
    tof = tof[np.isfinite(tof)]
    assert (tof % 1 == 0).all() and tof.min() == -1 and tof.max() <= 249
    assert train[list(ACC)].notna().all(axis=None) and train[list(THM)].max().max() <= 39.6


def test_test_data_are_other_people_and_half_imu_only(folder):
    f, train, test, labels = folder
    assert not set(train["subject"]) & set(test["subject"])
    assert not set(train["sequence_id"]) & set(test["sequence_id"])
    assert set(pd.read_csv(f / "test_demographics.csv")["subject"]) == set(test["subject"])
    assert sorted(labels["sequence_id"]) == sorted(test["sequence_id"].unique())
    assert set(labels["gesture"]) <= set(GESTURES)
    imu_only = test[[*THM, *TOF]].isna().all(axis=1).groupby(test["sequence_id"]).mean()
    assert set(imu_only) == {0, 1} and 0.2 < imu_only.mean() < 0.8


def test_same_seed_same_bytes(tmp_path):
    def digest(folder, seed):
        write_competition(folder, 40, 4, seed)
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    a, b, c = digest(tmp_path / "a", 1), digest(tmp_path / "b", 1), digest(tmp_path / "c", 2)
    assert a == b and len(a) == 4 and all(a[k] != c[k] for k in a)


def test_a_change_of_the_simulator_raises_its_version():
    "What SIMULATOR_VERSION stands for: whoever changes these bytes raises the version, and only then the digest here."
    t = simulate(40, seed=1)
    digest = hashlib.sha256(t.values.tobytes() + t.offsets.tobytes()).hexdigest()
    assert (SIMULATOR_VERSION, digest[:16]) == (2, "d6c07018320d79d1")


def test_a_recording_does_not_depend_on_how_many_are_made(table):
    few = simulate(150, seed=5)
    where = {s: i for i, s in enumerate(table.meta["sequence_id"])}
    common = [(i, where[s]) for i, s in enumerate(few.meta["sequence_id"]) if s in where]
    assert len(common) > 100
    a, b = (take(t, [c[k] for c in common]) for k, t in enumerate((few, table)))
    assert a.values.tobytes() == b.values.tobytes() and all(np.array_equal(a.meta[k], b.meta[k]) for k in a.meta)


def test_the_files_hold_the_table(folder):
    _, train, _, _ = folder
    t = simulate(300, seed=3)
    assert np.array_equal(t.values, train[list(SIMULATED_CHANNELS)].to_numpy("float32").T, equal_nan=True)
    assert list(t.meta["sequence_id"]) == list(train["sequence_id"].unique())


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_counts_of_a_whole_competition(seed):
    s = make_schedule(8151, seed)
    counts = {g: int((GESTURE_OF_CONDITION[s.condition] == g).sum()) for g in GESTURES}
    assert counts["Above ear - pull hair"] == 638 and counts["Cheek - pinch skin"] == 637
    assert counts["Text on phone"] == 640 and counts["Wave hello"] == 478
    assert counts["Write name in air"] == counts["Pull air toward your face"] == 477
    assert counts["Drink from bottle/cup"] == 161
    assert sum(counts[g] for g in TARGETS) == 5113 and len(np.unique(s.person)) == 81
    assert len({*zip(s.person, s.condition)}) == 8151 == len(set(s.sequence_id))
    cohort = people(np.unique(s.person), seed)
    assert (cohort.handedness == 0).sum() == 10 and cohort.flipped.sum() == 2 and len(set(cohort.subject)) == 81


def test_only_pairs_of_the_design_occur(table):
    assert {*zip(table.meta["orientation"].tolist(), table.meta["gesture"].tolist())} == set(LEGAL_PAIRS)


@pytest.mark.parametrize("n", [180, 200, 500, 900])
def test_small_sets_keep_people_and_classes(n):
    s = make_schedule(n)
    gesture = GESTURE_OF_CONDITION[s.condition]
    assert len(s.person) == n and len(np.unique(s.person)) >= 10
    for person in np.unique(s.person):
        assert len(set(gesture[s.person == person])) == 18


@pytest.mark.parametrize("n", [1, 2, 17, 103, 9000])
def test_any_number(n):
    assert len(make_schedule(n).condition) == n == len(set(make_schedule(n).sequence_id))


def test_none_at_all_is_refused():
    with pytest.raises(UserError, match="at least one"):
        simulate(0)


def test_gravity_points_up_at_rest_for_every_wearer(table):
    s = sequence_of_row(table.offsets)
    step = np.arange(table.rows) - table.offsets[s]
    still = (step > table.meta["rest_start"][s]) & (step < table.meta["gesture_start"][s])
    still &= np.isfinite(table.channel("rot_w"))
    up = _rotate(table.channels(ROT)[:, still].astype(float), table.channels(ACC)[:, still].astype(float))
    flipped, left_handed = table.meta["flipped"][s][still], table.meta["handedness"][s][still] == 0
    for group in (flipped, left_handed, np.ones(still.sum(), bool)):
        assert group.any() and np.allclose(up[:, group].mean(1), [0, 0, 9.80665], atol=0.05)
        assert (up[:, group].std(1) < 0.4).all()
    assert np.abs(np.linalg.norm(table.channels(ACC)[:, still], axis=0).mean() - 9.80665) < 0.05


def test_a_turned_device_points_the_other_way(table):
    "Half a turn undone, the wearer looks like the others."
    flipped, meta = table.meta["flipped"], table.meta
    s = sequence_of_row(table.offsets)

    def mean(x, rows):
        return np.mean(np.bincount(s, x)[rows] / table.lengths[rows])
    straight = (meta["orientation"] == "Seated Straight") & (meta["handedness"] == 1)
    straight &= np.isin(meta["gesture"], TARGETS)
    for c in ("acc_x", "acc_y"):
        a, b = mean(table.channel(c), straight & ~flipped), mean(table.channel(c), straight & flipped)
        if abs(a) > 2:
            assert np.sign(a) == -np.sign(b)


def test_rotation_jumps_in_sign_and_changes_smoothly(table):
    q, s = table.channels(ROT), sequence_of_row(table.offsets)
    dot = (q[:, 1:] * q[:, :-1]).sum(0)[s[1:] == s[:-1]]
    dot = dot[np.isfinite(dot)]
    assert (dot < -0.5).sum() > 20 and np.quantile(np.abs(dot), 0.001) > 0.5


def _recordings_of(positions, seed=5):
    """All recordings of the people at these positions of the cohort, as in a whole competition."""
    schedule = make_schedule(8151, seed)
    rows = np.isin(schedule.person // 2, positions)
    part, timing = schedule.take(rows), Timings(*(x[rows] for x in timings(schedule, seed)))
    values = _values(make_block(part, timing, seed), 0)
    meta = {"subject": people(part.person, seed).subject, "sequence_id": part.sequence_id}
    return SequenceTable(values, SIMULATED_CHANNELS, offsets_of(timing.length), meta)


def _missing_shares(t):
    """Channel → share of the rows of each sequence without a reading."""
    s = sequence_of_row(t.offsets)
    null = {c: np.isnan(t.channel(c)) for c in ("rot_w", "thm_1", "thm_5", "tof_1_v0", "tof_5_v63")}
    return {c: np.bincount(s, x, len(t)) / t.lengths for c, x in null.items()}


def test_whole_sensors_are_missing():
    t = _recordings_of([0, NO_THM_TOF, *NO_FIFTH])
    share = _missing_shares(t)
    assert all(set(np.unique(x)) == {0, 1} for x in share.values())
    imu_only = share["tof_1_v0"] == 1
    assert len(set(t.meta["subject"][imu_only])) == 1 and 90 < imu_only.sum() <= 96
    assert np.array_equal(imu_only, share["thm_1"] == 1)
    assert len(set(t.meta["subject"][share["thm_5"] == 1])) == len(set(t.meta["subject"][share["tof_5_v63"] == 1])) == 5


@pytest.mark.parametrize("sequences", [60, 300, 1020])
def test_small_sets_lack_hardly_more_than_the_whole(sequences):
    t = simulate(sequences)
    share = _missing_shares(t)
    assert share["tof_1_v0"].mean() < 0.02 and share["tof_5_v63"].mean() < 0.1 and share["rot_w"].mean() < 0.03


def test_traps(table):
    assert 1 <= (_missing_shares(table)["rot_w"] == 1).sum() <= 30
    assert (table.meta["gesture_start"] == table.lengths).sum() == 1
    assert np.nanmin(table.channel("thm_1")) < 20 and np.nanmin(table.channel("thm_2")) > 21


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_readings_are_like_real_ones(seed):
    t = simulate(300, seed=seed)
    found = statistics(t)
    outside = {name: getattr(found, name) for name, real in REAL.items() if not real.holds(getattr(found, name))}
    assert not outside
    for phase, real in REAL_ACC_STEP.items():
        assert real.holds(statistics(t, phase).acc_step), (phase, statistics(t, phase).acc_step)


def test_statistics_see_what_differs():
    """A table that is quieter, smoother, colder and emptier lies outside in just that."""
    t = simulate(300, seed=1)
    names, values = list(t.names), t.values.copy()
    acc, thm = ([names.index(c) for c in group] for group in (ACC, THM))
    tof = [names.index(c) for c in TOF]
    values[acc] = np.cumsum(values[acc] - values[acc].mean(1, keepdims=True), axis=1) / 50
    values[thm] = 25
    values[tof] = np.where(np.isnan(values[tof]), np.nan, -1)
    values[tof, 0] = 100   # one frame that is not empty
    found = statistics(SequenceTable(values, t.names, t.offsets, t.meta))
    for name in ("power_below_half_hz", "power_above_4_hz", "thm_range", "thm_step", "tof_empty", "tof_far",
                 "tof_nearest"):
        assert REAL[name].holds(getattr(statistics(t), name)), name
        assert not REAL[name].holds(getattr(found, name)), name


def test_phases_are_the_rows_before_and_from_the_gesture_on(table):
    before, gesture = (only_phase(table, phase) for phase in PHASES)
    assert before.rows + gesture.rows == table.rows and len(gesture) == len(table) - 1
    assert np.array_equal(before.lengths, table.meta["gesture_start"])
    last = table.offsets[1:][table.meta["gesture_start"] < table.lengths] - 1
    assert np.array_equal(gesture.values[:, gesture.offsets[1:] - 1], table.values[:, last], equal_nan=True)
    with pytest.raises(UserError, match="is not a phase"): only_phase(table, "gesture")
    without = SequenceTable(table.values, table.names, table.offsets, {"subject": table.meta["subject"]})
    with pytest.raises(UserError, match="does not say where"): only_phase(without, PHASES[0])


def test_few_people_are_very_unlike_the_others():
    odd = oddity(np.arange(0, 4000, 2), 0)
    assert 0.6 < np.median(odd) < 1 and np.quantile(odd, 0.9) > 1.5 * np.median(odd) and odd.max() < 4


def test_people_of_another_seed_do_the_same_gestures(table):
    """Who takes part is random; what a gesture is and how a face is shaped is not."""
    from sklearn.ensemble import ExtraTreesClassifier
    other = simulate(400, seed=6, test=True)
    channels = (*ACC, *THM)
    x, y = _simple_features(table, table.channels(channels)), table.meta["gesture"]
    trees = ExtraTreesClassifier(60, n_jobs=2, random_state=0).fit(x, y)
    predicted = trees.predict(_simple_features(other, other.channels(channels)))
    usual = max(np.mean(other.meta["gesture"] == g) for g in GESTURES)
    assert np.mean(predicted == other.meta["gesture"]) > 3 * usual


def _simple_features(t, channels):
    "Mean and deviation of channels over the last 33 rows and the rows before."
    s = sequence_of_row(t.offsets)
    late = np.arange(t.rows) >= t.offsets[s + 1] - 33
    out = []
    for x in channels:
        for rows in (late, ~late):
            rows = rows & np.isfinite(x)
            n = np.maximum(np.bincount(s, rows, len(t)), 1)
            y = np.where(rows, x, 0)
            mean = np.bincount(s, y, len(t)) / n
            out += [mean, np.sqrt(np.maximum(np.bincount(s, y * y, len(t)) / n - mean**2, 0))]
    return np.stack(out, 1)


def test_more_sensors_make_it_easier_and_neither_is_easy(table):
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import f1_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    acc, q = table.channels(ACC), np.nan_to_num(table.channels(ROT))
    up = np.array([[0.0], [0], [1]]) * np.ones(table.rows)
    gravity = _rotate(q * [[1], [-1], [-1], [-1]], up)
    imu = [*acc, *np.abs(np.diff(acc, axis=1, prepend=acc[:, :1])), *np.abs(q), *gravity]
    cells = table.channels(TOF).reshape(5, 64, -1)
    thm_tof = [*table.channels(THM), *(cells == -1).mean(1), *np.where(cells < 0, 300, cells).mean(1)]
    y = np.where(np.isin(table.meta["gesture"], TARGETS), table.meta["gesture"], "non_target")

    def score(channels):
        trees = ExtraTreesClassifier(150, n_jobs=2, random_state=0)
        people_out, features = GroupKFold(4), _simple_features(table, channels)
        p = cross_val_predict(trees, features, y, groups=table.meta["subject"], cv=people_out)
        return 0.5 * f1_score(y != "non_target", p != "non_target") + 0.5 * f1_score(y, p, average="macro")
    imu_score, all_score = score(imu), score(imu + thm_tof)
    assert 0.6 < imu_score < 0.85 and imu_score + 0.03 < all_score < 0.92, (imu_score, all_score)


@pytest.mark.parametrize("number", [10**12, 10**20, 10**400])
@pytest.mark.parametrize("make", [simulate, lambda n: write_competition("new", n),
                                  lambda n: write_competition("new", 2, n)])
def test_what_no_memory_or_disk_holds_is_refused_before_anything_is_made(make, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="simulated sequences need about") as caught: make(number)
    assert len(str(caught.value)) < 300
    assert not list(tmp_path.iterdir())


def test_seeds_of_any_size():
    assert len(simulate(2, seed=2**63 - 1)) == 2
    for seed in (-1, 2**63, 10**400):
        with pytest.raises(UserError, match="is not from 0 to"): simulate(2, seed=seed)


def test_the_bound_is_the_memory_that_is_there(monkeypatch):
    from gesture_nb.data import design

    monkeypatch.setattr(design, "free_memory", lambda: 10_000_000)
    assert len(simulate(20)) == 20
    with pytest.raises(UserError, match="^1,000 simulated sequences need about 1 GB of memory, .* at most 105"):
        simulate(1000)
