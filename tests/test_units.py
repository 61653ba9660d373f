"""Units: what looks like another unit is refused with the ways out, converted where told, and never accused wrongly."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED

from gesture_nb.cli import main as gesture_nb
from gesture_nb.data.evidence import Evidence, measure
from gesture_nb.data.options import ReadOptions
from gesture_nb.data.readers import read_recordings
from gesture_nb.data.sequences import slice_sequences, table_from_arrays, take
from gesture_nb.data.understanding import announced, inspect_recordings, rate_warning, understand
from gesture_nb.data.units import (
    Units,
    UnitsError,
    _with_findings,
    convert_units,
    read_units,
    settle,
    settle_stream,
    settle_units,
    trained_units,
    unchecked_units,
)
from gesture_nb.errors import UserError
from gesture_nb.schema import ACC, GRAVITY, GYR, ROT
from gesture_nb.sensors import Sensor, register_sensor, unregister_sensor

DEGREES = 180 / np.pi


def product(p, q):
    a, b, c, d = p
    w, x, y, z = q
    return np.array(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )


def turned(q, v):
    "Vectors `[3]` turned by the unit quaternion `q`."
    return product(product(q, np.append(0, v)), q * np.array([1, -1, -1, -1]))[1:]


def one_recording(rng, steps, rate, speeds=(1, 4), shaking=0.3):
    "Acceleration, angular velocity and rotation of one device that is turned to and fro: `[10, steps]`."
    q = rng.normal(size=4)
    q /= np.linalg.norm(q)
    axis, speed, phase = rng.normal(size=3), rng.uniform(*speeds), rng.uniform(0, 6)
    rows = []
    for k in range(steps):
        gyr = speed * axis / np.linalg.norm(axis) * np.sin(6 * k / rate + phase)
        rows.append([*turned(q * [1, -1, -1, -1], rng.normal(size=3) * shaking + [0, 0, GRAVITY]), *gyr, *q])
        q = product(q, np.append(1, gyr / rate / 2))
        q /= np.linalg.norm(q)
    return np.array(rows, np.float32).T


@pytest.fixture(scope="module")
def right():
    "Twelve recordings of four people in SI units, all sensors consistent."
    rng, n = np.random.default_rng(3), 12
    x = [one_recording(rng, 40, 50.0) for _ in range(n)]
    gesture, subject = [f"g{i % 2}" for i in range(n)], [f"p{i // 3}" for i in range(n)]
    return table_from_arrays(x, (*ACC, *GYR, *ROT), gesture, subject, 50.0)


def changed(table, **factors):
    "The table with its channels of a sensor (acc, gyr, rot) multiplied, or put in another order."
    values = np.array(table.values, float)
    for sensor, change in factors.items():
        rows = [i for i, name in enumerate(table.names) if name.startswith(sensor)]
        values[rows] = change(values[rows]) if callable(change) else values[rows] * change
    return replace(table, values=values.astype(np.float32), findings={})


def conjugated(q):
    return q * np.array([[1], [-1], [-1], [-1]])


def to_last(q):
    "w, x, y, z → x, y, z, w"
    return q[[1, 2, 3, 0]]


FORMS = {  # how a person's file may be → the options that say so, and the sentence about it
    "g": (dict(acc=1 / GRAVITY), dict(acc_unit="g"), "acceleration looks like g, not m/s²: its median length"),
    "mg": (dict(acc=1000 / GRAVITY), dict(acc_unit="mg"), "acceleration looks like thousandths of g"),
    "16 bits": (dict(acc=16384 / GRAVITY), dict(acc_unit="counts:16384"), "raw counts (16,384 to the unit)"),
    "E4": (dict(acc=64 / GRAVITY), dict(acc_unit="counts:64"), "raw counts (64 to the unit)"),
    "deg/s": (dict(gyr=DEGREES), dict(gyr_unit="deg/s"), "angular velocity looks like degrees a second, not rad/s"),
    "mdeg/s": (dict(gyr=1000 * DEGREES), dict(gyr_unit="mdeg/s"), "angular velocity looks like thousandths of deg/s"),
    "gyr counts": (
        dict(gyr=131 * DEGREES),
        dict(gyr_unit="counts:131"),
        "angular velocity looks like raw counts (131 to the unit)",
    ),
    "xyzw": (dict(rot=to_last), dict(quaternion_order="xyzw"), "the order x, y, z, w fits"),
    "Apple": (dict(acc=-1), dict(acc_sign="-"), "the other sign of the acceleration (Apple's) fits"),
    "iPhone": (
        dict(acc=-1 / GRAVITY, rot=to_last),
        dict(acc_unit="g", acc_sign="-", quaternion_order="xyzw"),
        "the order x, y, z, w with the other sign",
    ),
    "board": (
        dict(acc=4096 / GRAVITY, gyr=DEGREES),
        dict(acc_unit="counts:4096", gyr_unit="deg/s"),
        "4,096 to the unit",
    ),
    "inverse": (dict(rot=conjugated), dict(quaternion_order="wxyz-inverse"), "from the world to the device fits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_refused_with_its_way_out_and_gives_the_same_table_once_it_is_stated_or_accepted(right, form):
    changes, options, sentence = FORMS[form]
    table = changed(right, **changes)
    with pytest.raises(UnitsError, match=re.escape(sentence)) as refused:
        settle_units(table)
    for name, value in options.items():
        way = f"--{name.replace('_', '-')}{'=' if value == '-' else ' '}{value}"
        assert way in str(refused.value) and f"{name}={value!r}" in str(refused.value), str(refused.value)
    assert "--units auto" in str(refused.value) and "insist with" in str(refused.value)
    for how in (ReadOptions(**options), ReadOptions(units="auto")):
        settled = settle_units(table, how)
        np.testing.assert_allclose(settled.values, right.values, rtol=2e-6, atol=2e-5)
        assert not settled.findings["units"]["problems"]
        answer = settled.findings["units"]["answer"]
        assert {name: answer[name] for name in options} == options


def test_what_is_right_stays_the_same_object(right):
    settled = settle_units(right)
    assert settled.values is right.values and convert_units(right, Units()) is right
    assert settled.findings["units"]["answer"] == asdict(Units())
    assert {found["how"] for found in settled.findings["units"]["sensors"].values()} == {"documented"}


def test_insisting_takes_what_is_there(right):
    table = changed(right, acc=1 / GRAVITY, gyr=DEGREES, rot=to_last)
    insisted = ReadOptions(acc_unit="m/s2", gyr_unit="rad/s", quaternion_order="wxyz", acc_sign="+")
    said = []
    settled = settle_units(table, insisted, _Said(said))
    assert settled.values is table.values
    assert any("acceleration looks like g" in line and "as stated" in line for line in said), said
    assert settle_units(table, ReadOptions(units="keep")).values is table.values


class _Said:
    def __init__(self, lines):
        self.lines = lines

    def say(self, text):
        self.lines.append(text)


def test_a_stated_unit_that_cannot_be_is_said(right):
    said = []
    settle_units(right, ReadOptions(acc_unit="g"), _Said(said))
    assert any("acceleration looks like m/s², not g" in line for line in said), said


@pytest.mark.parametrize("names", [(*ACC, *GYR, *ROT), (*ACC, *GYR)])
def test_slow_turning_in_degrees_is_seen_by_the_other_sensors(names):
    rng = np.random.default_rng(4)
    x = [one_recording(rng, 60, 20.0, speeds=(0.2, 0.4), shaking=0.02)[: len(names)] for _ in range(12)]
    slow = changed(table_from_arrays(x, names, rate_hz=20.0), gyr=DEGREES)
    assert np.abs(slow.channels(GYR)).max() < 25  # no more than a lively hand has in rad/s
    with pytest.raises(UnitsError, match="like degrees a second, not rad/s: .* the other sensors see one radian"):
        settle_units(slow)
    settle_units(changed(slow, gyr=1 / DEGREES))


def test_little_data_accuses_nobody(right):
    for few in (take(changed(right, acc=1 / GRAVITY, rot=to_last), [0, 1, 2]), _short(right)):
        settled = settle_units(few)
        assert settled.values is few.values
        assert ("Only 3 recordings: units cannot be checked. acc (median length 1" in unchecked_units(settled)) == (
            len(few) == 3
        )
    assert unchecked_units(settle_units(right)) == unchecked_units(settle_units(_joined(right, 1))) == ""
    stated = ReadOptions(acc_unit="g", gyr_unit="rad/s")
    assert unchecked_units(settle_units(take(changed(right, acc=1 / GRAVITY), [0]), stated)) == ""


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_no_gyroscope_measures_is_refused_in_any_number_of_recordings(right, count):
    few = take(changed(right, gyr=DEGREES), range(count))
    with pytest.raises(UnitsError, match="turns a second") as refused:
        settle_units(few)
    assert "gyr_unit='rad/s'" not in str(refused.value)
    assert settle_units(few, ReadOptions(gyr_unit="deg/s")).values.max() < 35
    spike = np.array(take(right, range(count)).values)
    spike[3:6, 20:22] = 60   # two rows of nonsense accuse nobody
    settle_units(replace(take(right, range(count)), values=spike))


@pytest.mark.parametrize("ratio, way", [(5, "--gyr-unit deg/s"), (1, "--gyr-unit UNIT")])
def test_what_no_gyroscope_measures_is_refused_where_turning_seems_to_fit(ratio, way):
    names = np.array([f"s{i}" for i in range(12)])
    lengths = {"acc_middle": np.full(12, 9.8), "acc_low": np.full(12, 9.0), "acc_together": np.ones(12)}
    turns = {"gyr_length": np.full((12, 32), 347.0), "turn_share": np.full(12, 1 / ratio), "turn_fit": np.ones(12)}
    evidence = Evidence(subject=names, sequence=names, acc_square=np.ones((12, 3)), **lengths, **turns)
    settled = settle(evidence, ReadOptions())
    assert list(settled.refused) == ["gyr"] and "rad/s" not in settled.refused["gyr"].guess.values()
    table = table_from_arrays([np.full((3, 40), 200.0)] * 12, GYR, rate_hz=50.0)
    with pytest.raises(UnitsError, match=way) as refused:
        _with_findings(table, settled, ReadOptions())
    assert "gyr_unit='rad/s'" not in str(refused.value)


def _joined(table, count):
    "The table with its rows in `count` long recordings."
    times = -(-count * 2500 // table.rows)
    x = np.array_split(np.tile(table.values, times), count, axis=1)
    return table_from_arrays(x, table.names, rate_hz=50.0)


@pytest.mark.parametrize(
    "form, count",
    [(form, 3) for form in ("g", "mg", "16 bits", "deg/s", "mdeg/s", "xyzw", "Apple", "iPhone", "board")]
    + [(form, 1) for form in ("g", "mg", "16 bits", "xyzw", "iPhone")],
)
def test_a_few_long_recordings_are_judged_by_their_stretches(right, form, count):
    changes, options, sentence = FORMS[form]
    long = _joined(right, count)
    assert settle_units(long).values is long.values
    with pytest.raises(UnitsError, match=re.escape(sentence)) as refused:
        settle_units(changed(long, **changes))
    assert "stretches of" in str(refused.value) or form not in ("g", "mg", "16 bits")
    settled = settle_units(changed(long, **changes), ReadOptions(units="auto"))
    np.testing.assert_allclose(settled.values, long.values, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("source", ["spar", "sim:200", "uhh_gestures", "spsw_har_watch", "wisdm_watch"])
def test_no_long_stretch_of_right_recordings_is_accused(source, request):
    shared = source not in ("spar", "sim:200")
    table = read_recordings(request.getfixturevalue("shared_data") / f"{source}.parquet" if shared else source)
    groups = [table.meta["subject"] == person for person in np.unique(table.meta["subject"])[:12]]
    groups += [table.meta["gesture"] == label for label in np.unique(table.meta["gesture"])]
    for chosen in groups:
        part = take(table, np.flatnonzero(chosen)[:120])
        x = np.array_split(part.values, 2, axis=1)
        for long in (x, x[:1], [part.values[:, : 4 * 500]]):
            rate = float(table.meta["sample_rate_hz"][0])
            settled = settle(measure(table_from_arrays(long, table.names, rate_hz=rate)), ReadOptions())
            assert not set(settled.refused) & {"acc", "gyr"}, settled.refused


def _short(table):
    "Sequences of five rows, in g."
    in_g = changed(table, acc=1 / GRAVITY).values
    x = [in_g[:, i : i + 5] for i in range(0, 300, 5)]
    return table_from_arrays(x, table.names, rate_hz=50.0)


def test_linear_acceleration_is_said_and_not_taken_for_g():
    rng = np.random.default_rng(5)
    x = [rng.normal(size=(3, 60)) * rng.uniform(0.3, 4) for _ in range(60)]
    settled = settle_units(table_from_arrays(x, ACC, rate_hz=50.0))
    assert settled.findings["units"]["sensors"]["acc"]["kind"] == "without gravity"
    with pytest.raises(UnitsError, match="acceleration cannot be in m/s²"):
        settle_units(table_from_arrays([1000 / GRAVITY * a for a in x], ACC, rate_hz=50.0))


def test_two_units_in_one_file_are_refused_even_where_guesses_are_accepted(right):
    values = np.array(right.values)
    values[:3, right.offsets[6] :] /= GRAVITY
    for options in (ReadOptions(), ReadOptions(units="auto")):
        with pytest.raises(UnitsError, match="acceleration is in g in 6 of 12 recordings .of p2, p3., in m/s² in 6"):
            settle_units(replace(right, values=values), options)


def test_angles_are_no_quaternion(right):
    angles = changed(right, rot=lambda q: 180 * q * np.linspace(0.1, 1, q.shape[1]))
    with pytest.raises(UnitsError, match="rotation is no quaternion"):
        settle_units(angles)


def test_quaternions_of_another_length_are_divided_by_it(right):
    settled = settle_units(changed(right, rot=16384))
    np.testing.assert_allclose(settled.values, right.values, rtol=1e-4, atol=1e-4)
    assert any("length 16,384" in note for note in settled.findings["units"]["notes"])


@pytest.mark.parametrize(
    "readings, sentence",
    [
        (lambda n: np.linspace(101_200, 101_900, n), "all readings .*outside 300 to 1100 hPa"),
        (lambda n: np.full(n, 1013.2), None),
        (lambda n: np.full(n, np.nan), None),
        (lambda n: np.r_[np.full(n - n // 4, 1013.0), np.full(n // 4, 0.0)], None),
    ],
)
def test_readings_that_would_all_be_missing_are_refused(readings, sentence):
    register_sensor(Sensor("baro", "air pressure", "hPa", ("baro_hpa",), valid=(300, 1100)))
    try:
        rng = np.random.default_rng(0)
        x = [np.stack([*rng.normal(size=(2, 20)), 9.8 + 0 * rng.normal(size=20), readings(20)]) for _ in range(8)]
        table = table_from_arrays(x, (*ACC, "baro_hpa"), rate_hz=50.0)
        if sentence is None:
            settle_units(table)
        else:
            with pytest.raises(UnitsError, match=sentence):
                settle_units(table)
    finally:
        unregister_sensor("baro")


@pytest.mark.parametrize("change, sentence", [(lambda c: c + 273.15, "kelvin"), (lambda c: c * 1.8 + 32, "°F")])
def test_temperatures_in_other_degrees_are_refused(change, sentence):
    sim = read_recordings("sim:30")
    assert settle_units(sim).values is sim.values
    with pytest.raises(UnitsError, match=sentence):
        settle_units(changed(sim, thm=change))


def test_dead_thermopiles_accuse_nobody():
    sim = read_recordings("sim:30")
    values = np.array(sim.values)
    values[sim.names.index("thm_1")] = np.linspace(0, 12, sim.rows)
    settle_units(replace(sim, values=values))


def test_a_stream_is_settled_on_its_first_blocks(right):
    table = changed(right, acc=1 / GRAVITY)
    blocks = [slice_sequences(table, i, i + 2) for i in range(0, len(table), 2)]
    settled = list(settle_stream(blocks, ReadOptions(units="auto")))
    assert [len(block) for block in settled] == [2] * 6
    np.testing.assert_allclose(np.concatenate([block.values for block in settled], 1), right.values, atol=1e-5)
    with pytest.raises(UnitsError, match="looks like g"):
        next(settle_stream(blocks))
    assert list(settle_stream([])) == []


def _held(table, **options):
    "Options that hold data to a run that was trained on the table."
    found = understand(settle_units(table, ReadOptions(**options)))
    config = json.loads(json.dumps({"reading": {"understood": found.as_json()}}))
    return ReadOptions(trained=trained_units(config))


def test_one_recording_is_enough_where_a_run_knows_better(right):
    one, in_g = take(right, [4]), take(changed(right, acc=1 / GRAVITY), [4])
    held = _held(right)
    assert settle_units(one, held).values is one.values
    with pytest.raises(UnitsError, match="but was 9.* m/s² then"):
        settle_units(in_g, held)
    for way in (replace(held, acc_unit="g"), replace(held, units="auto")):
        np.testing.assert_allclose(settle_units(in_g, way).values, one.values, atol=1e-5)
    assert settle_units(in_g, replace(held, acc_unit="m/s2")).values is in_g.values


def test_a_run_in_g_takes_new_files_to_be_in_g(right):
    table = changed(right, acc=1 / GRAVITY, gyr=DEGREES)
    held = _held(table, acc_unit="g", gyr_unit="deg/s")
    for index in ([4], range(12)):
        np.testing.assert_allclose(
            settle_units(take(table, index), held).values, take(right, index).values, rtol=2e-6, atol=2e-5
        )
    with pytest.raises(UnitsError, match="as in the training"):
        settle_units(take(right, [4]), held)
    one = take(right, [4])
    assert settle_units(one, replace(held, acc_unit="m/s2", gyr_unit="rad/s")).values is one.values


@pytest.mark.parametrize(
    "config", [{}, {"reading": 3}, {"reading": {"understood": {"units": {"sensors": {"acc": 1}}}}}, {"reading": {}}]
)
def test_runs_that_kept_no_units_hold_nobody(config):
    assert trained_units(config) is None


@pytest.mark.parametrize("record", [{"acc_unit": 3}, {"acc": "g"}, {"acc_unit": "counts:0"}, {"rot_length": "x"}])
def test_units_of_a_run_that_are_none_are_refused(record):
    with pytest.raises(UserError, match="are no units"):
        read_units(record)


# --- no false alarms ---


def parts(table, rng):
    "A table and parts of it: people, classes, both, the calmest and liveliest, and a few at random."
    subject, gesture = table.meta["subject"], table.meta["gesture"]
    yield table
    people, classes = np.unique(subject)[:20], np.unique(gesture)
    for person in people:
        yield take(table, subject == person)
    for label in classes:
        yield take(table, gesture == label)
    for person in people[:6]:
        for label in classes:
            if ((subject == person) & (gesture == label)).any():
                yield take(table, (subject == person) & (gesture == label))
    length = np.sqrt(np.square(table.channels(ACC)).sum(0))
    lively = np.argsort([np.nanstd(length[a:b]) for a, b in zip(table.offsets, table.offsets[1:])])
    yield take(table, lively[: len(lively) // 5 + 1])
    yield take(table, lively[-(len(lively) // 5) - 1 :])
    for count in (4, 6, 20):
        for _ in range(15):
            yield take(table, rng.choice(len(table), min(count, len(table)), replace=False))


@pytest.mark.parametrize(
    "source", ["spar", "sim:200", "sim:40:5", "uhh_gestures", "spsw_har_watch", "bfrb_watch", "wisdm_watch"]
)
def test_no_part_of_right_recordings_is_accused(source, request):
    if ":" in source or source == "spar":
        table = read_recordings(source)
    else:
        table = read_recordings(request.getfixturevalue("shared_data") / f"{source}.parquet")
    if len(table) > 1500:
        table = take(table, np.arange(0, len(table), len(table) // 1500))
    accused = [
        s.refused
        for part in parts(table, np.random.default_rng(1))
        if (s := settle(measure(part), ReadOptions())).refused
    ]
    assert not accused
    assert not settle_units(table).findings["units"]["problems"]


# --- the cases ---


def case(name):
    path = SHARED / "cases/data" / name
    if not path.exists():
        pytest.skip("../shared/cases is not here")
    return path


CASES = {
    "01_acc_in_g.csv": (dict(acc_unit="g"), "acceleration looks like g"),
    "02_gyr_in_degrees.csv": (dict(gyr_unit="deg/s"), "angular velocity looks like degrees a second"),
    "03_quaternion_xyzw_under_wxyz_names.csv": (
        dict(quaternion_order="xyzw"),
        r"\(0, 0, 9.8\) is expected; the order x, y",
    ),
    "10_raw_int16_counts.csv": (
        dict(acc_unit="counts:16384", gyr_unit="counts:131"),
        "raw counts .16,384 to the unit.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cases_are_refused_and_right_once_stated(name):
    options, sentence = CASES[name]
    control = read_recordings(case("00_right.csv"))
    with pytest.raises(UserError, match=sentence):
        read_recordings(case(name))
    table = read_recordings(case(name), **options)
    np.testing.assert_allclose(table.values, control.channels(table.names), rtol=1e-3, atol=3e-3)


# --- the way through the program ---


def write(table, path):
    "The table as a tidy CSV file."
    frame = pd.DataFrame(table.values.T, columns=table.names)
    first = np.repeat(table.offsets[:-1], table.lengths)
    frame.insert(0, "sequence_counter", np.arange(table.rows) - first)
    for name in ("gesture", "subject", "sequence_id"):
        frame.insert(0, name, np.repeat(table.meta[name], table.lengths))
    frame["t"] = frame.sequence_counter / 50
    frame.to_csv(path, index=False)
    return str(path)


def test_inspect_shows_everything_and_ends_as_a_training_would(right, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, in_g = write(right, tmp_path / "good.csv"), write(changed(right, acc=1 / GRAVITY), tmp_path / "g.csv")
    assert gesture_nb(["inspect", "--data", good]) == 0
    shown = capsys.readouterr().out
    assert "Recordings: 12 of 4 subjects" in shown and "Gestures: g0 6, g1 6" in shown and "50 Hz" in shown
    assert gesture_nb(["inspect", "--data", in_g]) == 2
    shown = capsys.readouterr()
    assert "Recordings: 12 of 4 subjects" in shown.out and "--acc-unit g" in shown.err
    assert gesture_nb(["inspect", "--data", in_g, "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert "looks like g" in record["problem"] and record["units"]["problems"]
    assert gesture_nb(["inspect", "--data", in_g, "--acc-unit", "g", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["units"]["answer"]["acc_unit"] == "g"
    for command in (["train", "--out", "run"], ["features", "--out", "run"]):
        assert gesture_nb([command[0], "--data", in_g, *command[1:]]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.csv", "good.csv"]


@pytest.fixture(scope="module")
def run_in_g(right, tmp_path_factory):
    "(file in g, file in m/s², finished run of the first)."
    folder = tmp_path_factory.mktemp("units")
    table = take(right, np.tile(np.arange(12), 2))
    table.meta["sequence_id"] = np.array([f"s{i:02d}" for i in range(24)])
    in_si, in_g = write(table, folder / "si.csv"), write(changed(table, acc=1 / GRAVITY), folder / "g.csv")
    small = ["--members", "lgbm", "--folds", "2", "--boosting-rounds", "5"]
    assert gesture_nb(["train", "--data", in_g, "--out", str(folder / "run"), "--units", "auto", *small]) == 0
    return in_g, in_si, folder / "run"


def test_a_run_keeps_its_units_and_holds_new_data_to_them(run_in_g, tmp_path, capsys):
    from gesture_nb.serving.predictor import load

    in_g, in_si, run = run_in_g
    config = json.loads((run / "config.json").read_text())
    assert config["reading"]["stated"] == {"units": "auto"}
    assert config["reading"]["understood"]["units"]["answer"]["acc_unit"] == "g"
    assert "with gravity, median length" in (run / "report.html").read_text()
    as_trained, stated = tmp_path / "a.csv", tmp_path / "b.csv"
    predict = ["predict", "--out", str(run), "--adapt", "off", "--data"]   # each alone, as in Python below
    assert gesture_nb([*predict, in_g, "--to", str(as_trained)]) == 0
    capsys.readouterr()
    assert gesture_nb([*predict, in_si, "--to", str(tmp_path / "no.csv")]) == 2
    assert "--acc-unit m/s2" in capsys.readouterr().err and not (tmp_path / "no.csv").exists()
    assert gesture_nb([*predict, in_si, "--to", str(stated), "--acc-unit", "m/s2"]) == 0
    a, b = pd.read_csv(as_trained), pd.read_csv(stated)
    probs = [name for name in a if name.startswith("p_")]
    np.testing.assert_allclose(a[probs], b[probs], atol=1e-3)
    predictor = load(run, adapt=False)
    for name, group in list(pd.read_csv(in_g).groupby("sequence_id"))[:3]:
        np.testing.assert_allclose(predictor.proba(group), a.loc[a.sequence_id == name, probs].to_numpy()[0], atol=1e-3)
    wrong = pd.read_csv(in_si)
    with pytest.raises(UserError, match="It looks like m/s²"):
        predictor(wrong[wrong.sequence_id == "s00"])


def test_the_rate_of_new_data_is_compared_with_that_of_the_run(right):
    assert rate_warning(right, 50.0) == rate_warning(right, 70.0) == ""
    assert "trained with 20 Hz" in rate_warning(right, 20.0)
    assert "without a rate" in rate_warning(right, None)
    unknown = replace(right, meta=right.meta | {"sample_rate_hz": np.full(12, np.nan)})
    assert "as in the training" in rate_warning(unknown, 50.0) and rate_warning(unknown, None) == ""
    said = []
    assert list(announced([right, right], 20.0, said.append)) == [right, right]
    assert any("trained with 20 Hz" in line for line in said) and len(said) <= 8


def test_what_is_understood_is_short_complete_and_plain(right):
    found = inspect_recordings(right)
    assert len(found.lines()) <= 8 and found.problem == "" and found.people == 4
    assert json.loads(json.dumps(found.as_json()))["classes"] == {"g0": 6, "g1": 6}
    twice = take(right, [0, 1, 1, 2, 0])
    assert understand(twice).same_recordings == 2
    still = np.array(right.values)
    still[:, 10:20] = still[:, 10:11]
    assert understand(replace(right, values=still)).repeated_rows == pytest.approx(9 / right.rows, abs=1e-4)
    gone = np.array(right.values)
    gone[6:, :120] = np.nan
    assert understand(replace(right, values=gone)).missing == {"rot": 0.25}
    evil = replace(right, meta=right.meta | {"gesture": np.array(["<b>$x$</b>"] * 12)})
    assert "<b>$" not in understand(evil)._repr_html_().replace("<p><b>", "")


def in_some(table, sequences, names, change):
    "The table with the channels `names` of some sequences changed."
    values = np.array(table.values, float)
    rows = np.isin(np.repeat(np.arange(len(table)), table.lengths), sequences)
    place = np.ix_([table.names.index(name) for name in names], rows)
    values[place] = change(values[place])
    return replace(table, values=values.astype(np.float32), findings={})


@pytest.mark.parametrize(
    "people, names, change, sentence",
    [
        ([0, 1, 2], ACC, lambda a: a / GRAVITY * 1000, "in thousandths of g in 3 of 12 .* .of p0., in m/s² in 9"),
        ([0, 1, 2], ACC, lambda a: a / GRAVITY * 4096, r"in raw counts .4,096 to the unit. in 3 of 12"),
        ([0, 1, 2], ACC, lambda a: -a, "in 3 .of p0. only with the other sign"),
        ([0, 1, 2], GYR, lambda a: a * DEGREES, "in two units: in 3 of 12 recordings .of p0. it is 57.. times"),
        (range(6), GYR, lambda a: a * DEGREES, "in two units: in 6 of 12 recordings .of p0, p1."),
        ([0, 1, 2], ROT, to_last, "in 3 .of p0. only in the order x, y, z, w"),
        (range(6), ROT, to_last, "in 6 .of p0, p1. only in the order x, y, z, w"),
        (range(12), ["acc_z"], lambda a: a / GRAVITY, "acc_z is in another unit than the other two: multiplied by 9"),
    ],
)
@pytest.mark.parametrize("accepted", ["check", "auto"])
def test_one_person_or_axis_in_another_unit_is_never_guessed(right, people, names, change, sentence, accepted):
    odd = in_some(right, list(people), names, change)
    with pytest.raises(UnitsError, match=sentence) as refused:
        settle_units(odd, ReadOptions(units=accepted))
    assert "--units keep" in str(refused.value)
    assert np.array_equal(settle_units(odd, ReadOptions(units="keep")).values, odd.values)


@pytest.mark.parametrize(
    "names, change, sentence",
    [
        (ACC, lambda a: a / GRAVITY, r"of 1 recording \(s000004\) looks like g"),
        (ACC, lambda a: a / GRAVITY * 8192, r"of 1 recording \(s000004\) looks like raw counts"),
        (GYR, lambda a: a * DEGREES, r"of 1 recording \(s000004\) is 5\d.* times the turning"),
    ],
)
def test_a_single_recording_in_another_unit_is_named(right, names, change, sentence):
    notes = settle_units(in_some(right, [4], names, change)).findings["units"]["notes"]
    assert any(re.search(sentence, note) for note in notes)


def test_channels_that_never_change_are_named(right):
    notes = settle_units(in_some(right, range(12), ["acc_z", "gyr_x"], lambda a: 0 * a)).findings["units"]["notes"]
    assert any("acc_z (0), gyr_x (0)" in note for note in notes)
    assert not any("the same in all recordings" in note for note in settle_units(right).findings["units"]["notes"])


@pytest.mark.parametrize(
    "sensor, factor, option",
    [
        ("acc", 1000, "counts:9806.65"),
        ("acc", 3.28084, "counts:32.174"),
        ("gyr", 30 / np.pi, "counts:0.10471975512"),
        ("gyr", 1000, "counts:17.5"),
    ],
)
def test_rarer_units_are_guessed_as_what_they_are(right, sensor, factor, option):
    settled = settle_units(changed(right, **{sensor: factor}), ReadOptions(units="auto"))
    assert settled.findings["units"]["answer"][f"{sensor}_unit"] == option
    np.testing.assert_allclose(settled.values, right.values, rtol=0.005, atol=1e-4)


def test_a_stream_that_goes_on_in_another_unit_is_refused(right):
    blocks = [slice_sequences(right, i, i + 6) for i in (0, 6)] * 20
    later = changed(slice_sequences(right, 0, 6), acc=1 / GRAVITY)
    for options in (ReadOptions(), ReadOptions(units="auto")):
        with pytest.raises(UnitsError, match="looks like g"):
            list(settle_stream([*blocks, later], options))
    assert len(list(settle_stream([*blocks, later], ReadOptions(units="keep")))) == 41
    assert len(list(settle_stream([*blocks, later], ReadOptions(acc_unit="m/s2")))) == 41
    said = []
    list(announced(blocks, 50.0, said.append))
    assert said[-1] == "In all: 240 recordings, 9,600 rows, 50 Hz"
