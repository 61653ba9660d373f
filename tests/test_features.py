"""Frame and summary features against slow references written from the definitions, and their properties."""
import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from slow_features import features as slow

from gesture_nb.config import UserError
from gesture_nb.data.sequences import SequenceTable, concat, offsets_of, table_from_arrays, take
from gesture_nb.features.compute import FrameSettings, feature_names, flip_upside_down, frame_features, mirror_hands
from gesture_nb.features.frames import groups_of, take_frames
from gesture_nb.features.summary import BANDS, LAGS, PARTS, QUANTILES, present, summarise
from gesture_nb.schema import ACC, CHANNELS, GYR, ROT, THM, TOF
from gesture_nb.sensors import Sensor, register_sensor, unregister_sensor

WHOLE = ACC + ROT + THM + TOF


def recording(steps, seed=0, names=WHOLE, gaps=0.0):
    """Smooth turning, gravity and shaking, warm sensors, something near. `gaps` is the share of rows with nulls."""
    rng, t = np.random.default_rng(seed), np.arange(steps) / 10
    r = Rotation.from_rotvec(np.cumsum(rng.normal(0, .15, (steps, 3)), axis=0) + rng.normal(0, 1.5, 3))
    gravity = r.inv().apply(np.tile([0, 0, 9.81], (steps, 1)))
    acc = gravity + 2 * np.sin(t[:, None] * [5, 7, 9]) + rng.normal(0, .2, (steps, 3))
    q = r.as_quat(scalar_first=True)
    gyr = np.concatenate([np.zeros((1, 3)), (r[:-1].inv() * r[1:]).as_rotvec() * 10]) if steps > 1 else np.zeros((1, 3))
    thm = 27 + rng.normal(0, .3, (steps, 5)).cumsum(axis=0)
    tof = np.where(rng.random((steps, 320)) < .55, -1, rng.integers(0, 250, (steps, 320))).astype(float)
    everything = np.concatenate([acc, np.where(q[:, :1] < 0, -q, q), gyr, thm, tof], axis=1)
    columns = dict(zip(ACC + ROT + GYR + THM + TOF, everything.T))
    if gaps:
        gone = rng.random((5, steps)) < gaps
        for c in ROT: columns[c] = np.where(gone[0], np.nan, columns[c])
        columns["thm_1"] = np.where(gone[1], 3.5, columns["thm_1"])
        columns["thm_4"] = np.where(gone[2], np.nan, columns["thm_4"])
        for c in TOF[64:128]: columns[c] = np.where(gone[3], np.nan, columns[c])
    return np.stack([columns[c] for c in names]).astype(np.float32)


def without(x, *start): return np.where(np.array([c.startswith(start) for c in WHOLE])[:, None], np.float32(np.nan), x)


def degenerate():
    """Recordings that break naive code: one row, constants, zeros, no sensor but the accelerometer, one null cell."""
    zero_q, still = recording(12, 5), np.repeat(recording(1, 6), 15, axis=1)
    zero_q[3:7, 4:6] = 0
    all_zero_q, nothing, one_cell = recording(9, 7), np.full((len(WHOLE), 4), np.nan, np.float32), recording(8, 8)
    all_zero_q[3:7] = 0
    one_cell[WHOLE.index("tof_3_v17"), 2] = np.nan
    far = recording(10, 9)
    far[12:] = -1
    odd = recording(10, 10)
    odd[0, 3], odd[3, 5], odd[8, 2] = np.inf, -np.inf, np.inf
    odd[1, 7] = 1e30
    upside_down = recording(14, 11)
    upside_down[:3] = [[0], [0], [-9.81]]
    return [recording(1, 1), recording(2, 2), still, zero_q, all_zero_q, nothing, one_cell, far, odd,
            without(upside_down, "rot"), without(recording(30, 3), "rot"), np.zeros((len(WHOLE), 5), np.float32),
            without(recording(25, 4), "thm", "tof"), without(recording(25, 4), "tof_5", "thm_5")]


def against_slow(table, rate=10.0, atol=3e-4):
    f = frame_features(table)
    assert np.isfinite(f.values).all()
    for i in range(len(table)):
        want, masks = slow(table, i, rate)
        got = f.values[f.offsets[i]:f.offsets[i + 1]]
        for j, name in enumerate(f.names):
            per_second = name.endswith(("jerk", "jerk_x", "jerk_y", "jerk_z", "change", "rate")) or ".ang_" in name
            tolerance = atol * max(1.0, rate if per_second else 1)
            message = f"{name} of sequence {i}"
            np.testing.assert_allclose(got[:, j], want[name], rtol=2e-5, atol=tolerance, err_msg=message)
        for m, has in masks.items():
            if m in f.masks: assert f.masks[m][i] == has, (m, i)
    return f


def test_every_feature_equals_the_slow_reference():
    recordings = [recording(k, s) for s, k in enumerate((29, 60, 43))] + [recording(50, 9, gaps=.3)]
    f = against_slow(table_from_arrays(recordings, WHOLE, rate_hz=10))
    assert len(f.names) == 156 and f.grids.shape == (182, 5, 8, 8)


def test_degenerate_recordings(): against_slow(table_from_arrays(degenerate(), WHOLE, rate_hz=10))


@pytest.mark.parametrize("names", [ACC, ACC + GYR, ACC + ROT, ACC + GYR + ROT])
def test_sources_with_fewer_sensors(names):
    x = [recording(k, s, names) for s, k in enumerate((40, 1, 25))]
    if set(ROT) & set(names):       # the gyroscope must help out, or gravity alone
        x[0][[names.index(c) for c in ROT]] = np.nan
    f = against_slow(table_from_arrays(x, names, rate_hz=10))
    assert any(n.startswith("gyr.") for n in f.names) == (GYR[0] in names)
    assert any(n.startswith("rot.") for n in f.names) == (ROT[0] in names)


SETS = [("wisdm_watch", 20), ("uhh_gestures", None), ("spsw_har_watch", 50), ("bfrb_watch", 10)]


@pytest.mark.parametrize("name, rate", SETS)
def test_real_recordings(shared_data, name, rate):
    import pyarrow.parquet as pq
    t = pq.read_table(shared_data / f"{name}.parquet", columns=["sequence_id", *ACC, *GYR]).slice(0, 20_000)
    ids = np.asarray(t["sequence_id"].to_numpy(zero_copy_only=False), str)
    edges = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))[:9]
    values = np.stack([t[c].to_numpy() for c in ACC + GYR]).astype(np.float32)[:, :edges[-1]]
    meta = {"sample_rate_hz": np.full(8, rate or 10, np.float32), "subject": ids[edges[:-1]]}
    table = SequenceTable(values, ACC + GYR, edges, meta)
    f = against_slow(table, rate or 10.0, atol=1e-3)
    if name == "uhh_gestures":      # gravity was removed by the source
        assert not f.values[:, f.names.index("motion.grav_z")].any()


def test_a_wild_hand_with_measured_rotation_keeps_its_gravity():
    x = recording(60, 3, ACC + ROT)
    r = Rotation.from_quat(x[3:].T, scalar_first=True)
    thrown = np.outer(np.arange(60) % 4 == 0, [0, 0, -12.5])      # every fourth row
    push = np.random.default_rng(0).normal(0, .2, (60, 3)) + thrown
    x[:3] = r.inv().apply(push - push.mean(axis=0) + [0, 0, 9.80665]).T
    assert (np.linalg.norm(x[:3], axis=0) < 4).mean() > 1 / 8
    gone = x.copy()
    gone[:3] = r.inv().apply(push - push.mean(axis=0)).T
    f = against_slow(table_from_arrays([x, gone], ACC + ROT, rate_hz=10))
    lin = [f.names.index(f"motion.lin_{a}") for a in "xyz"]
    np.testing.assert_allclose(f.values[:60, lin], f.values[60:, lin], atol=1e-4)


# ---- properties

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(LENGTHS, st.integers(1, 60), st.integers(1, 2))
def test_neighbours_blocks_and_threads_change_no_bit(lengths, block_rows, threads):
    recordings = [recording(k, i, gaps=.1) for i, k in enumerate(lengths)] + degenerate()[:4]
    table = table_from_arrays(recordings, WHOLE, rate_hz=10)
    f = frame_features(table)
    g = frame_features(table, block_rows=block_rows, threads=threads)
    assert f.values.tobytes() == g.values.tobytes() and f.grids.tobytes() == g.grids.tobytes()
    x, _ = summarise(f)
    assert x.tobytes() == summarise(f, block_rows=block_rows)[0].tobytes()
    for i in range(len(table)):
        alone = frame_features(take(table, [i]))
        assert alone.values.tobytes() == take_frames(f, [i]).values.tobytes()
        assert summarise(alone)[0].tobytes() == x[i:i + 1].tobytes()


@few
@given(st.integers(0, 1000), st.floats(-3, 3))
def test_turning_the_world_about_z_changes_no_magnitude(seed, angle):
    x = recording(40, seed)
    y = x.copy()
    turned = Rotation.from_euler("z", angle) * Rotation.from_quat(x[3:7].T, scalar_first=True)
    y[3:7] = turned.as_quat(scalar_first=True).T
    f = frame_features(table_from_arrays([x, y], WHOLE, rate_hz=10))
    heading = ("motion.world_x", "motion.world_y")
    same = [f.names.index(n) for n in f.names if not n.startswith("rot.") and n not in heading]
    np.testing.assert_allclose(f.values[:40, same], f.values[40:, same], rtol=1e-4, atol=2e-3)


@few
@given(st.integers(0, 1000))
def test_signs_of_quaternions_do_not_matter(seed):
    x, rng = recording(40, seed), np.random.default_rng(seed)
    y = x.copy()
    y[3:7] *= rng.choice([-1, 1], 40)
    f = frame_features(table_from_arrays([x, y, np.concatenate([x[:3], -x[3:7], x[7:]])], WHOLE, rate_hz=10))
    assert np.array_equal(f.values[:40], f.values[40:80]) and np.array_equal(f.values[:40], f.values[80:])


@few
@given(st.integers(0, 100), st.lists(st.booleans(), min_size=3, max_size=3))
def test_repairs_undo_themselves(seed, who):
    table = table_from_arrays([recording(k, seed + k) for k in (5, 9, 1)], WHOLE, rate_hz=10)
    assert np.array_equal(mirror_hands(mirror_hands(table, who), who).values, table.values)
    twice = flip_upside_down(flip_upside_down(table, who), who)
    f, g = frame_features(table), frame_features(twice)
    assert np.array_equal(f.values, g.values) and np.array_equal(f.grids, g.grids)
    once = mirror_hands(table, who)
    for i, w in enumerate(who): assert w or np.array_equal(take(once, [i]).values, take(table, [i]).values)


def test_repairs_are_those_of_the_task():
    t = table_from_arrays([recording(6, 3, ACC + ROT + GYR + THM + TOF)], ACC + ROT + GYR + THM + TOF, rate_hz=10)
    grid = lambda u, k: u.channels([f"tof_{k}_v{j}" for j in range(64)]).reshape(8, 8, -1)
    turned, mirrored = flip_upside_down(t), mirror_hands(t)
    w, x, y, z = t.channels(ROT)
    assert np.array_equal(turned.channels(ROT), [-z, y, -x, w])
    assert np.array_equal(mirrored.channels(ROT), [w, x, -y, -z])
    assert np.array_equal(turned.channels(ACC), t.channels(ACC) * [[-1], [-1], [1]])
    assert np.array_equal(mirrored.channels(ACC), t.channels(ACC) * [[-1], [1], [1]])
    assert np.array_equal(turned.channels(GYR), t.channels(GYR) * [[-1], [-1], [1]])
    assert np.array_equal(mirrored.channels(GYR), t.channels(GYR) * [[1], [-1], [-1]])
    for a, b in {1: 1, 2: 4, 4: 2, 3: 5, 5: 3}.items():
        assert np.array_equal(grid(turned, a), grid(t, b)[::-1, ::-1])
        assert np.array_equal(turned.channel(f"thm_{a}"), t.channel(f"thm_{b}"))
    for a, b in {1: 1, 2: 2, 4: 4, 3: 5, 5: 3}.items():
        assert np.array_equal(grid(mirrored, a), grid(t, b)[::-1] if a in (3, 5) else grid(t, b)[:, ::-1])
        assert np.array_equal(mirrored.channel(f"thm_{a}"), t.channel(f"thm_{b}"))
    gravity = lambda u: Rotation.from_quat(u.channels(ROT).T, scalar_first=True).apply(u.channels(ACC).T)
    # the world does not notice how the device is worn; the mirrored world is the world's mirror image
    np.testing.assert_allclose(gravity(turned), gravity(t), atol=1e-4)
    np.testing.assert_allclose(gravity(mirrored), gravity(t) * [-1, 1, 1], atol=1e-4)


def test_the_columns_depend_on_the_channels_alone():
    empty = table_from_arrays([np.full((len(WHOLE), 3), np.nan, np.float32)], WHOLE)
    full, imu = table_from_arrays([recording(9)], WHOLE), table_from_arrays([recording(9, names=ACC + ROT)], ACC + ROT)
    f = frame_features(full)
    assert f.names == frame_features(empty).names == feature_names(WHOLE)[0]
    g = frame_features(imu, FrameSettings(channels=WHOLE))
    nulls = frame_features(table_from_arrays([without(recording(9), "thm", "tof")], WHOLE))
    assert g.names == f.names and list(g.masks) == list(f.masks)
    assert g.values.tobytes() == nulls.values.tobytes() and (g.grids == -2).all()
    assert summarise(g)[1] == summarise(f)[1]
    more = frame_features(table_from_arrays([recording(9)], WHOLE), FrameSettings(channels=ACC + ROT))
    assert more.names == frame_features(imu).names and more.grids is None


def test_distances_no_sensor_gives():
    "Beyond `far`, beyond 16 bits, below -1: the raw grid keeps what it can, and distances end at `far`."
    x = recording(5, 1)
    x[12:76] = np.float32([40_000, 400, 1e20, -7, 0.6])
    f = frame_features(table_from_arrays([x], WHOLE, rate_hz=10))
    assert (f.grids[:, 0] == np.array([32767, 400, 32767, -2, 1])[:, None, None]).all()
    assert f.values[:, f.names.index("tof.1_mean")].tolist() == [255, 255, 255, 255, 1]
    assert f.values[:, f.names.index("tof.1_share")].tolist() == [1] * 5
    assert f.values[:, f.names.index("tof.1_change")].tolist() == [0, 0, 0, 0, 2540]


def test_any_order_of_channels():
    rng = np.random.default_rng(0)
    order = rng.permutation(len(WHOLE))
    x = recording(20, gaps=.2)
    f = frame_features(table_from_arrays([x], WHOLE, rate_hz=10))
    g = frame_features(table_from_arrays([x[order]], tuple(np.array(WHOLE)[order]), rate_hz=10))
    assert f.names == g.names and f.values.tobytes() == g.values.tobytes() and f.grids.tobytes() == g.grids.tobytes()


def test_the_rate_scales_what_is_per_second():
    x = recording(30)
    f, g = (frame_features(table_from_arrays([x], WHOLE, rate_hz=r)) for r in (10, 20))
    for n in ("motion.jerk", "motion.ang_mag", "thm.2_rate", "tof.1_change"):
        np.testing.assert_allclose(2 * f.values[:, f.names.index(n)], g.values[:, g.names.index(n)], rtol=1e-5)
    stated = frame_features(table_from_arrays([x], WHOLE), FrameSettings(rate_hz=20))
    assert stated.values.tobytes() == g.values.tobytes()


# ---- summaries

def slow_summary(x, rate):
    """The statistics of one channel of one sequence."""
    x, n = x.astype(float), len(x)
    tail = x[-max(int(np.rint(3 * rate)), 1):]
    out = {"mean": x.mean(), "std": x.std(), "energy": (x * x).mean(), "min": x.min(), "max": x.max()}
    out |= {"tail_mean": tail.mean(), "tail_std": tail.std()}
    out |= {f"q{100 * p:02.0f}": np.quantile(x, p) for p in QUANTILES}
    out["iqr"] = np.quantile(x, .75) - np.quantile(x, .25)
    for k in range(PARTS):
        a = k * n // PARTS
        part = x[a:max((k + 1) * n // PARTS, a + 1)]
        out |= {f"part{k + 1}_mean": part.mean(), f"part{k + 1}_std": part.std()}
    z = x - x.mean()
    still = x.var() <= 1e-9
    out["skew"] = 0 if still else scipy.stats.skew(x)
    out["kurtosis"] = 0 if still else scipy.stats.kurtosis(x, fisher=False)
    for lag in LAGS:
        step = max(1, int(np.rint(lag * rate)))
        out[f"acf_{lag:g}"] = np.nan if step >= n else 0 if still else np.mean(z[step:] * z[:-step]) / x.var()
    out["crossings"] = sum((z[i] > 0) != (z[i - 1] > 0) for i in range(1, n)) / (max(n - 1, 1) / rate)
    out["travel"] = sum(abs(z[i] - z[i - 1]) for i in range(1, n)) / (max(n - 1, 1) / rate)
    return out | slow_spectrum(z / n, rate)


def slow_spectrum(z, rate):
    n, width = len(z), max(32, 2 ** int(np.ceil(np.log2(len(z)))))
    power = np.abs(np.fft.fft(z * (.5 - .5 * np.cos(2 * np.pi * (np.arange(n) + .5) / n)), width)[:width // 2 + 1]) ** 2
    power[0], hz = 0, np.arange(width // 2 + 1) * rate / width
    share = power / power.sum() if power.sum() > 1e-12 else power * 0
    out = {}
    for low, high in zip(BANDS, BANDS[1:]):
        out[f"band_{low:g}"] = share[(hz >= low) & (hz < high)].sum() if low < rate / 2 else np.nan
    entropy = -(share * np.log(share + 1e-12)).sum() / np.log(len(hz))
    return out | {"centre_hz": share @ hz, "peak_hz": hz[share.argmax()], "entropy": entropy}


@pytest.mark.parametrize("names, rate", [(WHOLE, 10), (ACC + GYR, 50)])
def test_summaries_equal_the_slow_reference(names, rate):
    recordings = [recording(k, s, names) for s, k in enumerate((64, 200, 33, 5, 1))]
    f = frame_features(table_from_arrays(recordings, names, rate_hz=rate))
    x, columns = summarise(f)
    for i in range(len(f)):
        rows = f.values[f.offsets[i]:f.offsets[i + 1]]
        wants = {c: slow_summary(rows[:, j], rate) for j, c in enumerate(f.names)}
        for j, name in enumerate(columns):
            if name == "duration":
                assert x[i, j] == np.float32(len(rows) / rate)
                continue
            if "~" in name: continue
            channel, statistic = name.split(":")
            tolerance = 2e-4 * max(1, np.abs(rows[:, f.names.index(channel)]).max())
            message = f"{name} of sequence {i}"
            np.testing.assert_allclose(x[i, j], wants[channel][statistic], rtol=1e-3, atol=tolerance, err_msg=message)
        for j, name in ((j, n) for j, n in enumerate(columns) if "~" in n):
            a, b = (rows[:, f.names.index(c)].astype(float) for c in name.split("~"))
            varied = a.std() > 1e-4 and b.std() > 1e-4
            assert x[i, j] == pytest.approx(np.corrcoef(a, b)[0, 1] if varied else 0, abs=1e-4), name


def test_missing_sensors_are_unknown_not_zero():
    x = recording(30)
    f = frame_features(table_from_arrays([x, without(x, "thm", "tof"), without(x, "rot")], WHOLE, rate_hz=10))
    s, names = summarise(f)
    part = lambda start: [j for j, n in enumerate(names) if n.startswith(start)]
    assert np.isnan(s[1, part("tof")]).all() and np.isnan(s[1, part("thm")]).all()
    assert np.isfinite(s[0, part("tof")]).all()
    assert np.isnan(s[2, part("rot")]).all() and np.isfinite(s[2, part("motion.grav")]).all() and not np.isinf(s).any()
    short = summarise(f, duration=False)
    assert "duration" not in short.names and short.values.tobytes() == s[:, :-1].tobytes()


def test_joined_tables_give_joined_features():
    a, b = (table_from_arrays([recording(k, k)], WHOLE, rate_hz=10) for k in (7, 12))
    joined = frame_features(concat([a, b]))
    assert joined.values.tobytes() == frame_features(a).values.tobytes() + frame_features(b).values.tobytes()
    assert offsets_of([7, 12]).tolist() == frame_features(concat([a, b])).offsets.tolist()


def test_all_channels_of_the_schema_at_once():
    f = frame_features(table_from_arrays([recording(30, 1, CHANNELS)], CHANNELS, rate_hz=10))
    assert len(f.names) == 156 and {"gyr.x", "rot.w", "thm.5_rate", "tof.5_cy"} <= set(f.names)


# ---- sensors that somebody registers

HEART = Sensor(name="hr", title="heart rate", unit="bpm", columns=("hr_bpm",), valid=(25, 250), summary="moving")
MAGNET = Sensor(name="mag", title="magnetic field", unit="µT", columns=("mag_x", "mag_y", "mag_z"), valid=(-2e3, 2e3),
                complete=True, mirror="pseudovector")
SKIN = (("eda_1_tonic", "eda_1_phasic"), ("eda_2_tonic", "eda_2_phasic"))
EDA = Sensor(name="eda", title="skin conductance", unit="µS", columns=SKIN[0] + SKIN[1], devices=SKIN, valid=(0, 100),
             summary="brief")


@pytest.fixture
def more_sensors():
    for sensor in (HEART, MAGNET, EDA): register_sensor(sensor)
    yield
    for sensor in (HEART, MAGNET, EDA): unregister_sensor(sensor.name)


def with_more(x, seed=0):
    """A recording with heart rate, magnetic field and skin conductance beside the built-in sensors."""
    rng, steps = np.random.default_rng(seed), x.shape[1]
    more = [rng.normal(70, 5, (1, steps)), rng.normal(0, 40, (3, steps)), rng.uniform(1, 9, (4, steps))]
    return np.concatenate([x, *more]).astype(np.float32)


def test_a_registered_sensor_becomes_features(more_sensors):
    names = WHOLE + HEART.columns + MAGNET.columns + EDA.columns
    a, b = with_more(recording(30, 1), 1), with_more(recording(20, 2), 2)
    bpm, field, tonic = (names.index(c) for c in ("hr_bpm", "mag_y", "eda_1_tonic"))
    a[bpm, [0, 7, 8]] = np.nan, 0, 999                     # missing, and outside what is valid
    a[field, 4], a[tonic, 5] = np.inf, -1
    b[[bpm, *range(field - 1, field + 2)]] = np.nan        # without heart rate and magnetic field
    b[[tonic, tonic + 1]] = np.nan
    f = frame_features(table_from_arrays([a, b], names, rate_hz=10))
    column = lambda n, i=0: f.values[f.offsets[i]:f.offsets[i + 1], f.names.index(n)]
    assert f.names[:156] == feature_names(WHOLE).features and np.isfinite(f.values).all()
    assert f.names[156:160] == ("hr.bpm", "hr.bpm_rate", "mag.x", "mag.x_rate")
    assert list(groups_of(f.names))[-3:] == ["hr", "mag", "eda"]
    want = a[bpm].copy()
    want[0], want[7:9] = a[bpm, 1], a[bpm, 6]
    assert np.array_equal(column("hr.bpm"), want)
    np.testing.assert_allclose(column("hr.bpm_rate"), np.append(0, np.diff(want)) * 10, rtol=1e-5, atol=1e-4)
    assert column("mag.x")[4] == a[field - 1, 3] and column("mag.z")[4] == a[field + 1, 3]     # complete: all or none
    assert column("eda.1_tonic")[5] == a[tonic, 4] and column("eda.1_phasic")[5] == a[tonic + 1, 5]    # each for itself
    assert not column("hr.bpm", 1).any() and not column("mag.y", 1).any() and column("eda.2_tonic", 1).all()
    assert all(f.masks[m].tolist() == [True, False] for m in ("has_hr", "has_mag", "has_eda_1"))
    assert f.masks["has_eda_2"].tolist() == [True, True]
    plain = frame_features(table_from_arrays([a[:len(WHOLE)], b[:len(WHOLE)]], WHOLE, rate_hz=10))
    assert plain.values.tobytes() == np.ascontiguousarray(f.values[:, :156]).tobytes()
    in_blocks = frame_features(table_from_arrays([a, b], names, rate_hz=10), block_rows=1)
    assert f.values.tobytes() == in_blocks.values.tobytes()


def test_a_registered_sensor_is_summarised_as_its_record_says(more_sensors):
    names = ACC + HEART.columns + EDA.columns
    a, b = recording(30, 1, ACC), recording(20, 2, ACC)
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([x, rng.uniform(60, 90, (5, x.shape[1]))]).astype(np.float32) for x in (a, b))
    b[3], b[4:6] = np.nan, np.nan
    f = frame_features(table_from_arrays([a, b], names, rate_hz=10))
    s = summarise(f)
    statistics = lambda feature: [n.split(":")[1] for n in s.names if n.startswith(feature + ":")]
    assert len(statistics("hr.bpm")) == 20 and statistics("eda.1_tonic") == ["mean", "std", "tail_mean"]
    cells = lambda i, start: s.values[i, [j for j, n in enumerate(s.names) if n.startswith(start)]]
    assert np.isnan(cells(1, "hr.")).all() and np.isnan(cells(1, "eda.1")).all()
    assert np.isfinite(cells(1, "eda.2")).all()
    assert np.isfinite(cells(0, "hr.")).all() and np.isfinite(cells(0, "eda.")).all()
    assert cells(0, "hr.bpm:mean")[0] == pytest.approx(a[3].mean(), rel=1e-5)


def test_a_sensor_registered_later_is_seen():
    names = ACC + HEART.columns
    table = table_from_arrays([np.concatenate([recording(9, 1, ACC), np.full((1, 9), 70)])], names, rate_hz=10)
    before = frame_features(table)
    try:
        register_sensor(HEART)
        assert frame_features(table).names == before.names + ("hr.bpm", "hr.bpm_rate")
    finally: unregister_sensor("hr")
    assert frame_features(table).names == before.names


def test_a_registered_vector_is_mirrored_and_turned(more_sensors):
    names = ACC + MAGNET.columns + HEART.columns
    t = table_from_arrays([np.arange(1, 15, dtype=np.float32).reshape(7, 2)], names, rate_hz=10)
    signs = lambda u: (u.values[3:] / t.values[3:])[:, 0].tolist()
    assert signs(mirror_hands(t)) == [1, -1, -1, 1] and signs(flip_upside_down(t)) == [-1, -1, 1, 1]


def test_a_feature_that_no_sensor_claims_is_an_error():
    f = frame_features(table_from_arrays([recording(9, 1, ACC)], ACC, rate_hz=10))
    with pytest.raises(UserError, match="'spo.level' belongs to no sensor"): present(f, ("acc.x", "spo.level"))
