"""Recordings as people have them: any times, names and formats give the same table, or a sentence with the way out.

Cases lie in ../shared/cases/data; each kind is also made here, so that it is tried without them.
"""

import bz2
import gzip
import io
import json
import lzma
import sys
import types
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gesture_nb.config import UserError
from gesture_nb.data import csv_files, formats
from gesture_nb.data.assemble import padding_rows
from gesture_nb.data.formats import find_delimiter, look_at
from gesture_nb.data.names import column_meant, sensors_meant
from gesture_nb.data.options import ReadOptions
from gesture_nb.data.readers import read_recordings, read_tidy, source_fingerprint
from gesture_nb.data.stream import stream_sequences
from gesture_nb.data.times import calendar_seconds, possible_units
from gesture_nb.schema import ACC, GYR

RATE = 50
CASES = SHARED / "cases" / "data"


def waves(sequences=4, steps=12, **more):
    "A tidy frame: a hand that turns about x, 50 Hz, m/s² with gravity, rad/s; all consistent."
    n, t = sequences * steps, np.tile(np.arange(steps) / RATE, sequences)
    who = np.repeat(np.arange(sequences), steps)
    angle, speed = np.sin(3 * t + who), 3 * np.cos(3 * t + who)
    columns = {
        "sequence_id": np.char.add("s", who.astype(str)),
        "subject": np.char.add("p", (who // 2).astype(str)),
        "gesture": np.array(["wave", "täp"])[who % 2],
        "sequence_counter": np.tile(np.arange(steps), sequences),
        "t": t,
        "acc_x": np.full(n, 0.25),
        "acc_y": (9.8 * np.sin(angle)).round(4),
        "acc_z": (9.8 * np.cos(angle)).round(4),
        "gyr_x": speed.round(4),
        "gyr_y": np.full(n, 0.5),
        "gyr_z": np.full(n, -0.5),
    }
    return pd.DataFrame(columns | more)


@pytest.fixture(scope="module")
def frame():
    return waves()


@pytest.fixture(scope="module")
def want(frame):
    return read_recordings(frame)


def assert_same(table, want):
    assert table.names == want.names and table.offsets.tolist() == want.offsets.tolist()
    np.testing.assert_allclose(table.values, want.values, atol=1e-5)
    np.testing.assert_allclose(table.meta["sample_rate_hz"], want.meta["sample_rate_hz"], rtol=1e-4)
    for name in ("sequence_id", "subject", "gesture"):
        assert table.meta[name].tolist() == want.meta[name].tolist()


def refused(data, *words, read=read_recordings, **stated):
    with pytest.raises(UserError) as e:
        read(data, **stated)
    text = str(e.value)
    assert text[-1] in ".?" and "\n" not in text and "Traceback" not in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


class Ears:
    "A reporter that keeps what it hears."

    def __init__(self):
        self.heard = []

    def say(self, text, **fields):
        self.heard.append(text)

    def task(self, *args, **kwargs):
        from contextlib import nullcontext

        return nullcontext(types.SimpleNamespace(advance=lambda n: None))


# ---------------------------------------------------------------- the cases that went wrong

SAID = {
    "09_gyro_named_gx.csv": ["column 'gx'", "Did you mean 'gyr_x'?", "--columns gyr_x=gx,gyr_y=gy,gyr_z=gz"],
    "13_every_row_its_own_sequence.csv": ["all 300 sequences have one row: is sequence_id a row number?"],
    "15_label_instead_of_gesture.csv": ["Did you mean 'label'?", "--columns gesture=label"],
    "17_empatica_ACC.csv": ["The first line holds numbers: there is no header", "Empatica E4", "convert"],
    "18_arduino_flex.csv": ["'sequence_id', 'subject' and 'sequence_counter'", "acc_x=aX", "convert", "blank lines"],
    "19_label_changes_inside.csv": ["line 8", "'gesture'", "cut a new sequence_id at each change", "convert"],
    "21_predict_without_subject.csv": ["no column 'subject'"],
}
READ = {
    "00_right.csv": "times in column 't' (s)",
    "05_t_in_epoch_ms.csv": "times in column 't' (ms)",
    "07_t_timestamp.parquet": "times in column 't' (dates)",
    "07b_t_iso.csv": "times in column 't' (dates)",
    "08_time_named_seconds_elapsed.csv": "times in column 'seconds_elapsed' (s)",
    "14_one_person.csv": "times in column 't' (s)",
    "16_european.csv": "times in column 't' (s)",
}


def case(name):
    if not (CASES / name).exists():
        pytest.skip("../shared/cases is not here")
    return CASES / name


@pytest.mark.parametrize("name", READ)
def test_cases_that_are_read(name):
    table, right = read_recordings(case(name)), read_recordings(case("00_right.csv"))
    assert table.findings["rate"] == {"hz": 50.0, "from": READ[name]}
    np.testing.assert_array_equal(table.channels(ACC), right.channels(ACC))


@pytest.mark.parametrize("name", SAID)
def test_cases_that_are_refused(name):
    refused(case(name), name, *SAID[name])


def test_case_with_padding():
    ears = Ears()
    table = read_recordings(case("11_padded_with_nan.csv"), reporter=ears)
    assert table.findings["padding_rows"] == 32 and table.lengths.tolist() == [8] * 8
    assert not np.isnan(table.values).any() and any("32 rows" in line for line in ears.heard)


def test_case_to_predict():
    (table,) = stream_sequences(case("21_predict_without_subject.csv"))
    assert len(table) == 8 and set(table.meta["subject"]) == {""} and not table.labelled


def test_shared_data_raise_no_alarm(shared_data):
    for name, rate in (("bfrb_watch", 9.99), ("spsw_har_watch", 50), ("uhh_gestures", 10)):
        found = read_recordings(shared_data / f"{name}.parquet").findings
        assert found["rate"]["hz"] == pytest.approx(rate, rel=0.01)
        assert found.get("time", {"resampled": 0, "gaps": 0, "backwards": 0, "cut": 0, "irregular": 0}) == {
            "resampled": 0,
            "gaps": 0,
            "backwards": 0,
            "cut": 0,
            "irregular": pytest.approx(0, abs=0.01),
        }


# ---------------------------------------------------------------- times

UNITS = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}


@pytest.mark.parametrize("start", [0, 1.7e9])
@pytest.mark.parametrize("unit", UNITS)
def test_times_in_any_unit(frame, want, unit, start):
    t = (start + frame.t) * UNITS[unit]
    if unit != "s":
        t = t.round().astype("int64")
    for name in ("t", "timestamp", "Time"):
        table = read_recordings(frame.assign(t=t).rename(columns={"t": name}))
        assert_same(table, want)
        assert table.findings["rate"]["from"] == f"times in column '{name}' ({unit})"


STAMPS = {
    "2024-08-23 14:51:07.000": "%Y-%m-%d %H:%M:%S.%f",
    "2024-08-23T14:51:07.000Z": "%Y-%m-%dT%H:%M:%S.%fZ",
    "14:51:07.000": "%H:%M:%S.%f",
    "23.08.2024 14:51:07.000": "%d.%m.%Y %H:%M:%S.%f",
}


@pytest.mark.parametrize("spelling", STAMPS)
def test_times_as_text(frame, want, tmp_path, spelling):
    stamps = pd.Timestamp("2024-08-23 14:51:07") + pd.to_timedelta(frame.t, unit="s")
    frame.assign(t=stamps.dt.strftime(STAMPS[spelling])).to_csv(tmp_path / "a.csv", index=False)
    assert_same(read_recordings(tmp_path / "a.csv"), want)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_times_of_arrow(frame, want, unit, zone):
    stamps = (pd.Timestamp("2024-08-23") + pd.to_timedelta(frame.t, unit="s")).astype(f"datetime64[{unit}]")
    assert_same(read_recordings(frame.assign(t=stamps.dt.tz_localize(zone))), want)
    assert_same(read_recordings(frame.assign(t=stamps - stamps[0])), want)


def test_times_that_are_not_clear(frame):
    counted = frame.assign(t=frame.sequence_counter)
    refused(counted, "'t'", "1 Hz in s", "1,000 Hz in ms", "--time-unit")
    assert read_recordings(counted, time_unit="ms").findings["rate"]["hz"] == 1000
    assert read_recordings(counted, rate_hz=50).findings["rate"] == {"hz": 50.0, "from": "stated"}
    assert read_recordings(counted.assign(sample_rate_hz=50.0)).findings["rate"]["from"] == "column sample_rate_hz"
    refused(frame.assign(t=frame.t * 1e-9), "'t'", "Hz in s")
    with_name = counted.rename(columns={"t": "time (ms)"})
    assert read_recordings(with_name).findings["rate"]["hz"] == 1000
    text = frame.assign(t=frame.t.astype(str)).astype({"t": object})
    text.loc[5, "t"] = "soon"
    refused(text, "row 6", "'t'", "'soon'")
    assert possible_units(0.7) == ["s", "ms"] and possible_units(20) == ["ms"] and possible_units(2e7) == ["ns"]
    assert calendar_seconds(pa.array(["23:59:59.5", "00:00:00.5"])).tolist() == [86399.5, 86400.5]


def test_a_column_called_time_may_be_something_else(frame):
    "Constant in each sequence: metadata; text that is no time: left alone."
    table = read_recordings(frame.assign(time="2024-08-23", date=np.arange(len(frame)) // 12))
    assert table.findings["rate"]["from"] == "times in column 't' (s)" and "time" in table.meta
    assert read_recordings(frame.drop(columns="t").assign(time="noon")).findings["rate"]["from"] == "assumed"


def test_times_that_are_damaged_or_days_apart(frame):
    holes = frame.t.where(frame.index % 5 > 0, np.inf)
    assert read_recordings(frame.assign(t=holes)).findings["time"]["backwards"] == 0
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(frame)), unit="D")
    assert read_recordings(frame.assign(t=days).rename(columns={"t": "day"})).findings["rate"]["from"] == "assumed"
    assert read_recordings(frame.rename(columns={"t": "x"}).assign(date=days)).findings["rate"]["from"] == "assumed"
    refused(frame.assign(t=days), "column 't'", "86,400 s apart")


def test_a_stated_rate_that_times_contradict(frame):
    table = read_recordings(frame, rate_hz=20)
    assert table.findings["rate"]["hz"] == 50 and any("the times are followed" in s for s in table.findings["repairs"])


def test_no_rate_is_said(frame):
    ears = Ears()
    table = read_recordings(frame.drop(columns="t").assign(fs=50), reporter=ears)
    assert table.findings["rate"] == {"hz": 10.0, "from": "assumed"} and np.isnan(table.meta["sample_rate_hz"]).all()
    assert any("10 Hz is assumed" in line and "--rate" in line and "'fs'" in line for line in ears.heard)
    assert read_recordings(frame.drop(columns=["t", "sequence_counter"]), rate_hz=25).findings["rate"]["hz"] == 25


def test_rates_that_cannot_be(frame):
    refused(frame.assign(sample_rate_hz=1e30), "sample_rate_hz", "no sensor takes 1e+30")
    refused(frame.assign(sample_rate_hz=1e-30).drop(columns="t"), "no sensor takes 1e-30")
    refused(frame.drop(columns="t"), "rate_hz is 1e+30", "0.001 to 100,000", rate_hz=1e30)
    changing = frame.assign(sample_rate_hz=np.where(np.arange(len(frame)) == 5, 25.0, 50.0))
    refused(changing, "row 6", "changes inside a sequence, from 50 to 25")


def test_rows_that_are_sequences(frame, tmp_path):
    refused(frame.assign(sequence_id=np.arange(len(frame))), "all 48 sequences have one row", "row number?")
    read_recordings(frame[frame.sequence_counter == 0].iloc[:1].drop(columns="t"))
    long = pd.concat([frame.assign(sequence_id=f"r{i}_" + frame.index.astype(str)) for i in range(3)])
    long.to_parquet(tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "all 144 sequences", read=lambda path: list(stream_sequences(path, rows=50)))


def test_gaps_and_steps_backwards(frame, tmp_path):
    t = frame.t.to_numpy().copy()
    t[6:12] += 1.0
    t[30:36] -= 0.4
    broken, ears = frame.assign(t=t), Ears()
    broken.to_csv(tmp_path / "a.csv", index=False)
    whole = read_recordings(tmp_path / "a.csv", reporter=ears)
    assert len(whole) == 4 and whole.findings["time"]["gaps"] == 1 and whole.findings["time"]["backwards"] == 1
    assert any("line 8" in line and "--gaps cut" in line for line in ears.heard)
    assert any("line 32" in line and "backwards" in line for line in ears.heard)
    cut = read_recordings(tmp_path / "a.csv", gaps="cut")
    assert cut.meta["sequence_id"].tolist() == ["s0", "s0_2", "s1", "s2", "s2_2", "s3"]
    assert cut.lengths.tolist() == [6, 6, 12, 6, 6, 12] and cut.findings["time"]["cut"] == 2
    np.testing.assert_array_equal(cut.values, whole.values)
    taken = broken.assign(sequence_id=np.repeat(["a", "a_2", "b", "c"], 12))
    assert read_recordings(taken, gaps="cut").meta["sequence_id"].tolist()[:3] == ["a", "a__2", "a_2"]


def test_a_gesture_start_follows_a_cut(frame):
    t = frame.t.to_numpy().copy()
    t[6:12] += 1.0
    phase = np.where(frame.sequence_counter < 8, "Transition", "Gesture")
    starts = read_recordings(frame.assign(t=t, phase=phase), gaps="cut").meta["gesture_start"]
    assert starts.tolist() == [-1, 2, 8, 8, 8]


@pytest.mark.parametrize("spread, resampled", [(0.15, False), (0.9, True)])
def test_irregular_steps(spread, resampled):
    rng, n = np.random.default_rng(0), 300
    t = np.cumsum(0.02 * (1 + rng.uniform(-spread, spread, n)))
    acc = np.c_[np.sin(5 * t), np.cos(5 * t), 9.8 + 0 * t]
    turn = np.c_[np.cos(4 * t), np.sin(4 * t), 0 * t, 0 * t] * np.where(np.arange(n) % 7 > 3, -1, 1)[:, None]
    readings = dict(zip((*ACC, "rot_w", "rot_x", "rot_y", "rot_z"), np.c_[acc, turn].T))
    table = read_recordings(pd.DataFrame({"sequence_id": "a", "subject": "p", "t": t} | readings), acc_unit="m/s2")
    assert bool(table.findings["time"]["resampled"]) == resampled
    if not resampled:
        np.testing.assert_array_equal(table.channel("acc_x"), acc[:, 0].astype(np.float32))
        return
    step = 1 / RATE if not resampled else float(np.sort(np.diff(t))[(n - 1) // 2])
    grid = t[0] + step * np.arange(table.rows)
    np.testing.assert_allclose(table.channel("acc_x"), np.sin(5 * grid), atol=0.01)
    rot = table.channels(["rot_w", "rot_x", "rot_y", "rot_z"])
    np.testing.assert_allclose(np.linalg.norm(rot, axis=0), 1, atol=1e-5)
    expected = np.stack([np.cos(4 * grid), np.sin(4 * grid)])
    np.testing.assert_allclose(np.abs(np.einsum("cr,cr->r", rot[:2], expected)), 1, atol=0.01)


def test_bursts_of_equal_times(frame):
    "Four readings arrive at once: the rate follows from the whole time."
    table = read_recordings(frame.assign(t=frame.sequence_counter // 4 * 0.08))
    assert table.findings["time"]["resampled"] == 0
    assert table.meta["sample_rate_hz"] == pytest.approx(50)
    assert "stand still for several rows" in "".join(table.findings["repairs"])


def test_whole_seconds_that_start_in_the_middle_of_one():
    frame = waves(1, 175)
    table = read_recordings(frame.assign(t=1.7e9 + np.floor(frame.t + 0.7)))
    assert table.meta["sample_rate_hz"] == pytest.approx(50)


def test_times_too_coarse_to_be_times(frame):
    "float32 has steps of 128 s in our century."
    frame = waves(1, 8000)
    refused(frame.assign(t=(1.7e9 + frame.t).astype("float32")), "too coarse", "float32", "--rate")
    still = read_recordings(waves().assign(t=np.float32(1.7e9)))
    assert "no times in column 't' that grow" in "".join(still.findings["repairs"])


def test_rows_that_stand_twice(frame):
    "Copies would double the rate; a sensor that is read more often than it measures keeps its counter."
    bare = frame.drop(columns="sequence_counter")
    twice = bare.loc[np.repeat(bare.index, 2)].reset_index(drop=True)
    refused(twice, "row 2", "repeats the time and the readings", "Drop repeated rows")
    one = bare.loc[[0, *bare.index]].reset_index(drop=True)
    assert read_recordings(one).rows == len(frame) + 1


def test_spellings_of_times(frame, want):
    "Minutes and seconds, durations of pandas, days before months over midnight, 12-hour clocks."
    stamp = pd.Timestamp("2024-08-11 23:59:59.9") + pd.to_timedelta(frame.t, unit="s")
    noon = pd.Timestamp("2024-08-11 12:59:59.9") + pd.to_timedelta(frame.t, unit="s")
    for t in (frame.t.map("00:{:06.3f}".format), frame.t.map("7:{:06.3f}".format),
              pd.to_timedelta(frame.t, unit="s").astype(str), stamp.dt.strftime("%d/%m/%Y %H:%M:%S.%f"),
              stamp.dt.strftime("%d.%m.%Y %H:%M:%S.%f"), noon.dt.strftime("%m/%d/%Y %I:%M:%S.%f %p")):
        table = read_recordings(frame.assign(t=t))
        assert_same(table, want)
        assert table.findings["time"]["gaps"] == table.findings["time"]["backwards"] == 0
    refused(frame.assign(t=45_000 + frame.t / 86_400), "look like days", "86,400")
    hours = read_recordings(frame.assign(t="14:51")).findings["rate"]["from"]
    assert hours == "assumed"


# ---------------------------------------------------------------- names

FOREIGN = {
    "gyr_x": ["gx", "gX", "GyX", "Gyroscope x (rad/s)", "gyroRotationX(rad/s)", "motionRotationRateX(rad/s)", "gyro_x",
              "rotationRate.x", "Gyr_X", "Shimmer_B1_Gyro_X_CAL", "wx", "gyroscope-x", "gyro_x_dps"],
    "acc_y": ["ay", "aY", "AcY", "Acceleration y (m/s^2)", "accelerometerAccelerationY(G)", "userAcceleration.y", "gFy",
              "Accelerometer Y", "Accel_LN_Y_CAL", "FreeAcc_Y", "y-accel", "Linear Acceleration y (m/s^2)", "imu_ay"],
    "rot_w": ["qw", "quat_w", "Quat_q0", "orientation_w", "attitude.quaternion.w", "rotation_w"],
    "gesture": ["label", "Activity", "class", "target", "gesture_name", "Label"],
    "subject": ["user", "participant", "person_id", "subject_id", "user-id"],
    "sequence_id": ["id", "trial", "recording", "session", "sequenceid", "Rep"],
    "t": ["time", "timestamp", "seconds_elapsed", "Time (s)", "ms", "millis", "epoch", "datetime", "time_ns"],
}


@pytest.mark.parametrize("ours, theirs", [(ours, name) for ours, names in FOREIGN.items() for name in names])
def test_names_of_apps_and_boards(ours, theirs):
    assert column_meant(theirs) == ours


def test_our_own_names_mean_nothing_else():
    own = "row_id sequence_type orientation behavior phase age sex handedness adult_child note side fold mag_x pulse"
    for name in [*own.split(), *ACC, "sequence_id", "gesture", "subject", "t", "max", "wrist", "execution"]:
        assert column_meant(name) is None, name


def test_everything_missing_in_one_sentence(frame):
    names = {"sequence_id": "trial", "subject": "user", "gesture": "activity"} | dict(
        zip((*ACC, *GYR), ["ax", "ay", "az", "gx", "gy", "gz"])
    )
    other = frame.rename(columns=names)
    text = refused(other, "'sequence_id' and 'subject'", "'trial'", "'user'")
    pasted = text.split("--columns ")[1].split(".")[0]
    assert dict(pair.split("=") for pair in pasted.split(",")) == names
    assert_same(read_recordings(other, columns=tuple(names.items())), read_recordings(frame))


def test_columns_renames_files_and_frames(frame, want, tmp_path):
    names = {"acc_x": "Acceleration x (m/s^2)", "gesture": "what", "subject": "who", "t": "when"}
    other = frame.rename(columns=names)
    other.to_csv(tmp_path / "a.csv", index=False)
    other.to_parquet(tmp_path / "a.parquet")
    for source in (other, tmp_path / "a.csv", tmp_path / "a.parquet"):
        table = read_recordings(source, columns=tuple(names.items()))
        assert_same(table, want)
        assert table.findings["columns"]["renamed"] == names
        assert_same(next(stream_sequences(source, ReadOptions(columns=tuple(names.items()))))
                    if source is not other else table, want)
    refused(tmp_path / "a.csv", "'whut'", "Did you mean 'what'?", columns=(("gesture", "whut"),))
    (block,) = stream_sequences(tmp_path / "a.csv", ReadOptions(columns=(*names.items(), ("fold", "half"))))
    assert block.names == want.names   # what a run was told may be missing when it predicts: labels, people, folds
    refused(frame, "'ac_x'", "Did you mean 'acc_x'?", columns=(("ac_x", "acc_x"),))
    bad = other.astype({"Acceleration x (m/s^2)": object})
    bad.loc[3, "Acceleration x (m/s^2)"] = "oops"
    bad.to_csv(tmp_path / "b.csv", index=False)
    refused(tmp_path / "b.csv", "line 5", "'Acceleration x (m/s^2)'", "'oops'", columns=tuple(names.items()))


def test_a_sensor_under_another_name_is_not_dropped(frame):
    other = frame.rename(columns=dict(zip(GYR, ["gx", "gy", "gz"])))
    refused(other, "'gx'", "gyr_x=gx,gyr_y=gy,gyr_z=gz", "gx=gx")
    kept_out = read_recordings(other, columns=(("gx", "gx"), ("gy", "gy"), ("gz", "gz")))
    assert kept_out.names == ACC
    assert {"name": "gx", "nearest": "gyr_x"} in kept_out.findings["columns"]["left_out"]
    assert sensors_meant(["gx", "gy"]) == {} and sensors_meant(["gx", "gy", "gz", *GYR]) == {}


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_numeric_columns_left_out_are_listed(frame, tmp_path, kind):
    other = frame.assign(mag_x=np.arange(len(frame)) * 0.5, note=[f"n{i}" for i in range(len(frame))], age=30)
    path = tmp_path / f"a.{kind}"
    if kind != "frame":
        other.to_csv(path, index=False) if kind == "csv" else other.to_parquet(path)
    table = read_recordings(other if kind == "frame" else path)
    assert table.findings["columns"]["left_out"] == [{"name": "mag_x", "nearest": None}] and "age" in table.meta


def test_labels_in_two_spellings(frame):
    ears, spelt = Ears(), frame.gesture.to_numpy(object)
    spelt[:12], spelt[24:36] = "Zoë ", "Zoe\u0308"
    table = read_recordings(frame.assign(gesture=spelt), reporter=ears)
    assert table.meta["gesture"].tolist() == ["Zoë", "täp", "Zoë", "täp"]
    assert table.findings["labels"]["merged"] == {"Zoë": ["Zoë ", "Zoe\u0308"]}
    assert any("taken for one, 'Zoë'" in line for line in ears.heard)
    ids = frame.sequence_id.to_numpy(object)
    ids[:6] = " s0"
    assert len(read_recordings(frame.assign(sequence_id=ids))) == 4


def test_padding(frame, tmp_path):
    padded = frame.astype({"gesture": object, "subject": object})
    padded.loc[(padded.sequence_counter >= 9) & (padded.sequence_id != "s3"), [*ACC, *GYR]] = np.nan
    padded.loc[9:11, ["gesture", "subject"]] = None
    padded.loc[padded.sequence_id == "s3", [*ACC, *GYR]] = np.nan   # a sequence without any reading is another matter
    padded.to_csv(tmp_path / "a.csv", index=False)
    with open(tmp_path / "a.csv", "a") as f:
        f.write("," * (len(padded.columns) - 1) + "\n")
    table = read_recordings(tmp_path / "a.csv")
    assert table.lengths.tolist() == [9, 9, 9, 12] and table.findings["padding_rows"] == 10
    padded.loc[20, "gesture"] = "oops"
    padded.loc[9:11, ["gesture", "subject"]] = ["wave", "p0"]
    padded.to_csv(tmp_path / "b.csv", index=False)
    refused(tmp_path / "b.csv", "line 22", "'oops'")
    assert padding_rows(np.array([[1.0, np.nan, 2.0]]), np.array([0, 0, 0])) is None


# ---------------------------------------------------------------- formats


def packed_zip(content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wave.csv", content)
        archive.writestr("__MACOSX/._wave.csv", b"x")
    return out.getvalue()


PACKED = {
    "plain": lambda b: b,
    "gzip": gzip.compress,
    "gzip of two members": lambda b: gzip.compress(b[:99]) + gzip.compress(b[99:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda b: pa.Codec("zstd").compress(b, asbytes=True),
    "zip": packed_zip,
}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([".", ","]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]),
    st.sampled_from(list(PACKED)),
    st.sampled_from(["s", "ms", "ns"]),
    st.sampled_from(["\n", "\r\n"]),
    st.permutations(list(waves(1).columns)),
)
def test_any_spelling_of_csv_is_the_same_table(
    tmp_path_factory, frame, want, delimiter, decimal, encoding, packing, unit, line, order
):
    path = tmp_path_factory.getbasetemp() / "spelt.csv"
    t = frame.t if unit == "s" else (frame.t * UNITS[unit]).round().astype("int64")
    other = frame.assign(t=t)[order]
    text = other.to_csv(index=False, sep=delimiter, decimal=decimal, lineterminator=line)
    path.write_bytes(PACKED[packing](text.encode(encoding)))
    assert_same(read_tidy(path), want)
    blocks = list(stream_sequences(path, rows=15))
    np.testing.assert_allclose(np.concatenate([b.values for b in blocks], 1), want.values, atol=1e-5)


def test_white_space_comments_and_no_header(frame, want, tmp_path):
    path, text = tmp_path / "a.txt", frame.to_csv(index=False)
    for other in (
        "# made by an app\n\n" + text,
        "#" + text,
        "sep=;\n" + frame.to_csv(index=False, sep=";"),
        text.replace(",", " "),
        text.replace(",", "  \t "),
        "  " + text.replace(",", " ").replace("\n", " \n  "),
        text.replace(",", ", "),
    ):
        path.write_text(other)
        assert_same(read_tidy(path), want)
    path.write_text(frame.to_csv(index=False, header=False))
    refused(path, "no header", "by position")
    numbered = tuple((name, str(i + 1)) for i, name in enumerate(frame.columns))
    table = read_tidy(path, options=ReadOptions(columns=numbered))
    assert_same(table, want)
    assert "The first line holds numbers: there is no header." in table.findings["repairs"]
    path.write_text(frame.assign(acc_y=["oops" if i == 3 else 1 for i in range(48)]).to_csv(index=False, header=False))
    refused(path, "line 4", "'oops'", read=lambda p: read_tidy(p, options=ReadOptions(columns=numbered)))
    assert find_delimiter(["a,b;c", "1,5;2"]) == ";" and find_delimiter(["Time, s;x", "0,1;2"]) == ";"


def arrays(frame):
    return {c: frame[c].to_numpy() if frame[c].dtype.kind in "if" else np.array(frame[c].tolist()) for c in frame}


def write_hdf5(frame, path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays(frame).items():
            file[name] = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values


def write_mat(frame, path):
    from scipy.io import savemat

    savemat(path, {c: a.astype(object) if a.dtype.kind == "U" else a for c, a in arrays(frame).items()})


def write_stream(frame, path):
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)


WRITERS = {
    "feather": lambda f, p: f.to_feather(p),
    "arrow stream": write_stream,
    "orc": lambda f, p: f.to_orc(p),
    "parquet": lambda f, p: f.to_parquet(p),
    "parquet in gzip": lambda f, p: p.write_bytes(gzip.compress(f.to_parquet())),
    "json rows": lambda f, p: f.to_json(p, orient="records"),
    "json columns": lambda f, p: f.to_json(p, orient="columns"),
    "json lists": lambda f, p: p.write_text(json.dumps(f.to_dict("list"))),
    "json split": lambda f, p: f.to_json(p, orient="split"),
    "json lines": lambda f, p: f.to_json(p, orient="records", lines=True),
    "npz": lambda f, p: np.savez(open(p, "wb"), **arrays(f)),
    "mat": write_mat,
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_under_any_name(frame, want, tmp_path, kind):
    path = tmp_path / "recording.csv"
    WRITERS[kind](frame, path)
    assert_same(read_tidy(path), want)
    (block,) = stream_sequences(path)
    assert_same(block, want)


BYTES = {
    "day.cwa": (b"MD\0\0" + bytes(1020), "openmovement"),
    "day.bin": (b"Device Identity\nx\n", "actipy"),
    "day.fit": (b"\x0e\x10\0\0\0\0\0\0.FIT\0\0", "fitparse"),
    "day.pkl": (b"\x80\x04\x95", "can run code"),
    "day.db": (b"SQLite format 3\0", "read_sql"),
    "day.mat": (b"\x00\x01\xff\xfe\x03" * 60, "mat"),
    "day.csv": (bytes(range(256)) * 20, "no text"),
    "day.json": (b'{"a": [1', "cannot be read as json"),
    "day.xlsx": (b"PK\x03\x04junk", "cannot be read"),
    "empty.csv": (b"", "empty"),
    "gone.csv.xz": (lzma.compress(b"a,b\n" * 9999)[:60], "cannot be read"),
    "gone.zip": (packed_zip(b"a,b\n" * 9999)[:80], "cannot be read"),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_not_read_is_said(tmp_path, name):
    content, word = BYTES[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, word)


def zip_of(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


@pytest.mark.parametrize(
    "names, word",
    [
        (["log.bin", "info.txt"], "pygt3x"),
        (["ACC.csv", "BVP.csv", "tags.csv"], "Empatica E4"),
        (["a.csv", "b.csv"], "convert"),
        (["[Content_Types].xml", "xl/workbook.xml"], "cannot be read as excel|openpyxl"),
    ],
)
def test_archives(tmp_path, names, word):
    (tmp_path / "a.zip").write_bytes(zip_of(names))
    with pytest.raises(UserError, match=word):
        read_recordings(tmp_path / "a.zip")


def test_folders_that_are_no_competition(tmp_path):
    (tmp_path / "ACC.csv").write_text("1\n")
    (tmp_path / "BVP.csv").write_text("1\n")
    refused(tmp_path, "Empatica E4")
    (tmp_path / "BVP.csv").unlink()
    (tmp_path / "b.csv").write_text("1\n")
    refused(tmp_path, "holds no train.csv", "gesture-nb convert")


def test_series_through_aeon(tmp_path, monkeypatch):
    "A stand-in for aeon: two cases of two dimensions."
    path = tmp_path / "a.ts"
    path.write_text("@problemName X\n@classLabel true a b\n@data\n1,2:3,4:a\n")
    if not any(name in sys.modules for name in ("aeon", "sktime")):
        refused(path, "aeon or sktime", "pip install")
    import importlib.machinery

    package, module = types.ModuleType("aeon"), types.ModuleType("aeon.datasets")
    package.__spec__ = importlib.machinery.ModuleSpec("aeon", None)
    module.load_from_ts_file = lambda path: ([np.ones((3, 4)), np.zeros((3, 5))], np.array(["a", "b"]))
    monkeypatch.setitem(sys.modules, "aeon", package)
    monkeypatch.setitem(sys.modules, "aeon.datasets", module)
    stated = ReadOptions(columns=(("acc_x", "1"), ("acc_y", "2"), ("acc_z", "3")))
    table = read_tidy(path, options=stated, to_predict=True)
    assert table.lengths.tolist() == [4, 5] and table.meta["gesture"].tolist() == ["a", "b"]


def test_arff(frame, tmp_path):
    frame, lines = frame.replace("täp", "tap"), ["% made by hand", "@relation waves"]
    for name in frame.columns:
        is_number = frame[name].dtype.kind in "if"
        lines.append(f"@attribute {name} {'numeric' if is_number else '{' + ','.join(sorted(set(frame[name]))) + '}'}")
    (tmp_path / "a.arff").write_text("\n".join([*lines, "@data", frame.to_csv(index=False, header=False)]))
    assert_same(read_tidy(tmp_path / "a.arff"), read_recordings(frame))


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_long_cell_costs_nothing(frame, want, tmp_path, suffix):
    notes = ["x" * 10_000_000 if i == 7 else str(i) for i in range(len(frame))]
    for column in (notes, ["y" * 100_000] * 12 + ["z"] * 36):   # changing and constant in its sequence
        other, path = frame.assign(note=column), tmp_path / f"a.{suffix}"
        other.to_csv(path, index=False) if suffix == "csv" else other.to_parquet(path)
        table = read_tidy(path)
        assert_same(table, want)
        assert "note" not in table.meta
        assert_same(next(stream_sequences(path)), want)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "UNCHECKED_BYTES", 1 << 18)
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(waves().to_csv(index=False).encode() + b"\n" * (4 << 20)))
    refused(tmp_path / "a.csv.xz", "unpacks to more than", "no recording")


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(csv_files, "_BLOCKS", (1 << 20,))
    with open(tmp_path / "a.csv", "w") as f:
        f.write(waves().to_csv(index=False) + '"' + "x" * (8 << 20))
    refused(tmp_path / "a.csv", "a.csv")


def test_very_many_columns(tmp_path):
    many = pd.DataFrame(np.zeros((24, 2_000)), columns=[f"c{i}" for i in range(2_000)])
    frame = pd.concat([waves(2), many], axis=1)
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read_tidy(tmp_path / "a.csv").names == (*ACC, *GYR)


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_cover_what_is_stated(frame, tmp_path):
    frame.to_parquet(tmp_path / "a.parquet")
    plain = source_fingerprint(tmp_path / "a.parquet")
    assert source_fingerprint(tmp_path / "a.parquet", options=ReadOptions()) == plain
    assert source_fingerprint(tmp_path / "a.parquet", options=ReadOptions(fold_column="fold")) == plain
    others = [ReadOptions(rate_hz=5), ReadOptions(gaps="cut"), ReadOptions(columns=(("note", "t"),))]
    assert len({plain, *(source_fingerprint(tmp_path / "a.parquet", options=o) for o in others)}) == 4


def test_the_plain_file_is_looked_at_as_such(frame, tmp_path):
    frame.drop(columns="gesture").to_csv(tmp_path / "a.csv", index=False)
    assert look_at(tmp_path / "a.csv").is_plain
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "b.csv")
    assert look_at(tmp_path / "b.csv").kind == "parquet"


# ---------------------------------------------------------------- what apps and boards write around the numbers

def lines_of(frame, **spelling):
    return frame.to_csv(index=False, **spelling).splitlines()


AROUND = {
    "WISDM's line ends": (lambda f: [lines_of(f)[0], *[f"{line};" for line in lines_of(f)[1:]]], []),
    "one comma too many": (lambda f: [lines_of(f)[0], *[f"{line}," for line in lines_of(f)[1:]]], []),
    "commas at all ends": (lambda f: [f"{line}," for line in lines_of(f)], []),
    "a row of units": (lambda f: [lines_of(f)[0], ",,,,s,m/s2,m/s2,m/s2,rad/s,rad/s,rad/s", *lines_of(f)[1:]],
                       ["row below the header holds units"]),
    "units under semicolons": (lambda f: [lines_of(f, sep=";")[0], ";;;no units;s;m/s^2;m/s^2;m/s^2;rad/s;rad/s;rad/s",
                                          *lines_of(f, sep=";", decimal=",")[1:]], ["holds units"]),
    "lines about the device": (lambda f: ["--- Data File Created By ActiGraph ---", "Serial Number: NEO1",
                                          "Start Time 12:00:00", "-----", *lines_of(f)], ["first 4 lines are no"]),
    "a title and a blank line": (lambda f: ["my recording", "", *lines_of(f)], ["first 2 lines"]),
    "sep= of a tab": (lambda f: ["sep=\t", *lines_of(f, sep="\t")], []),
    "single quotes": (lambda f: lines_of(f, quoting=1, quotechar="'"), []),
    "a commented header": (lambda f: ["# fs=50", "#" + lines_of(f)[0], *lines_of(f)[1:]], []),
}


@pytest.mark.parametrize("name", AROUND)
def test_around_the_numbers(frame, want, tmp_path, name):
    write, words = AROUND[name]
    (tmp_path / "a.csv").write_text("\n".join(write(frame)) + "\n")
    table = read_recordings(tmp_path / "a.csv")
    assert_same(table, want)
    heard = "".join(table.findings["repairs"])
    assert all(word in heard for word in words) and "no header" not in heard
    streamed = list(stream_sequences(tmp_path / "a.csv", rows=15))
    np.testing.assert_array_equal(np.concatenate([block.values for block in streamed], axis=1), table.values)


def test_lines_that_are_named(frame, tmp_path):
    "Line numbers count what was left out; thousands and mixed decimal signs have a way out of their own."
    head, *rows = lines_of(frame)
    broken = ["# about", head, ",,,,s,m/s2,m/s2,m/s2,rad/s,rad/s,rad/s", *rows[:3], rows[3] + "x", *rows[4:]]
    (tmp_path / "a.csv").write_text("\n".join(broken))
    refused(tmp_path / "a.csv", "line 7", "is not a number")
    (tmp_path / "a.csv").write_text("\n".join([head, *rows[:5], head, *rows[5:]]))
    refused(tmp_path / "a.csv", "line 7: the header stands there again")
    frame.assign(acc_x="1,024").to_csv(tmp_path / "a.csv", index=False)
    refused(tmp_path / "a.csv", "'1,024' is not a number", "thousands")


NO_TABLES = {
    "<!DOCTYPE html><html><body>404</body></html>": "a web page",
    "<?xml version='1.0'?><a><b>1</b></a>": "an XML file",
    "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n": "git lfs pull",
}


@pytest.mark.parametrize("text", NO_TABLES)
def test_files_that_are_no_tables(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    refused(tmp_path / "a.csv", NO_TABLES[text])


def test_archives_with_more_than_the_table(frame, want, tmp_path):
    text = frame.to_csv(index=False)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()) + bytes(512))
    assert_same(read_recordings(tmp_path / "a.csv.gz"), want)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("data/rec.csv", "data/.DS_Store", "__MACOSX/data/._rec.csv"): archive.writestr(name, text)
    assert_same(read_recordings(tmp_path / "a.zip"), want)


# ---------------------------------------------------------------- labels, marks, columns

def test_labels_that_look_alike(frame, want, tmp_path):
    "Invisible characters fall off, and that is said; case is kept, and that is said too."
    gesture = want.meta["gesture"].tolist()
    for odd in ("wave\0", "\u200bwave", "wave\t", "wave\ufeff"):
        names = [odd if i == "s0" else g for i, g in zip(frame.sequence_id, frame.gesture)]
        table = read_recordings(frame.assign(gesture=names))
        assert table.meta["gesture"].tolist() == gesture
        assert "taken for one, 'wave'" in "".join(table.findings["repairs"])
    names = np.where(frame.sequence_id == "s0", "Wave", frame.gesture)
    table = read_recordings(frame.assign(gesture=names))
    assert table.meta["gesture"][0] == "Wave"
    assert "'Wave' and 'wave' are kept apart" in "".join(table.findings["repairs"])


@pytest.mark.parametrize("label", ["drink", ""])
def test_labels_do_not_matter_when_predicting(frame, want, tmp_path, label):
    odd = frame.assign(gesture=np.where(frame.sequence_counter > 5, label, frame.gesture))
    odd.to_csv(tmp_path / "a.csv", index=False)
    refused(tmp_path / "a.csv", "line 8", "gesture")
    table = read_recordings(tmp_path / "a.csv", to_predict=True)
    np.testing.assert_array_equal(table.values, want.values)
    assert not table.labelled and "training would refuse" in "".join(table.findings["repairs"])


def test_marks_of_missing_readings_and_padding_of_zeros(frame):
    late = frame.sequence_counter % 12 >= 8
    refused(frame.assign(acc_x=np.where(late, -999.0, frame.acc_x)), "row 9", "'acc_x'", "-999 stands in 16 of 48 rows")
    read_recordings(frame.assign(acc_x=np.where(frame.index == 3, -998.0, frame.acc_x)))
    padded = frame.assign(**{name: np.where(late, 0, frame[name]) for name in (*ACC, *GYR)})
    assert "rows of zeros in all channels (16 rows)" in "".join(read_recordings(padded).findings["repairs"])


def test_a_sensor_in_one_column(frame, tmp_path):
    table = pa.Table.from_pandas(frame.drop(columns=list(ACC)), preserve_index=False)
    for cells in ([{"x": 1.0, "y": 2.0, "z": 9.0}] * len(frame), [[1.0, 2.0, 9.0]] * len(frame)):
        pq.write_table(table.append_column("acc", pa.array(cells)), tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet", "column 'acc'", "acc_x, acc_y and acc_z")


def test_times_of_each_sensor_are_suggested(frame):
    odd = frame.rename(columns={"t": "acc_time"}).assign(gyr_time=frame.t + 0.003)
    assert "--columns t=acc_time" in "".join(read_recordings(odd).findings["repairs"])
    assert read_recordings(odd, columns={"t": "acc_time"}).findings["rate"]["hz"] == pytest.approx(RATE)


def test_stated_options_are_checked(frame):
    "In Python as on the command line."
    with_comma = frame.rename(columns={"acc_x": "Acceleration, x"})
    text = refused(with_comma.rename(columns={"acc_y": "ay", "acc_z": "az"}), "acc_y=ay")
    assert "Acceleration, x" not in text or '"Acceleration, x"' in text
    for columns in ('acc_x="Acceleration, x"', {"acc_x": "Acceleration, x"}, (("acc_x", "Acceleration, x"),)):
        assert read_recordings(with_comma, columns=columns).names == (*ACC, *GYR)
    refused(frame, "'1' stands twice", columns="subject=1,sequence_id=1")
    refused(frame, "time_unit", "one of s, ms, us, ns", time_unit="sec")
    refused(frame, "gaps", gaps="drop")
