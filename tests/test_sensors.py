"""Sensors: one record is enough for a new one, and what the built-in ones say is what the house has always done."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from gesture_nb.config import UserError
from gesture_nb.data.dataframes import from_frame
from gesture_nb.data.readers import read_recordings, read_tidy, source_fingerprint
from gesture_nb.data.sequences import check_table, concat, table_from_arrays, take, with_meta
from gesture_nb.data.stream import stream_sequences
from gesture_nb.schema import ACC, CHANNELS, DEMOGRAPHICS, GROUPS, ROT, TEST_COLUMNS, TRAIN_COLUMNS
from gesture_nb.sensors import (
    BUILT_IN,
    RESERVED,
    SENSORS,
    Sensor,
    channels,
    drop_groups,
    guess_channel,
    masks_of_feature,
    register_sensor,
    sensor_of,
    sensor_of_feature,
    sensors,
    unregister_sensor,
)

HEART_RATE = Sensor(
    "hr", "heart rate", "beats/min", ("hr_bpm",), aliases=("heartrate", "pulse"), valid=(20, 250), plausible=(40, 200)
)
MUSCLES = Sensor(
    "emg",
    "muscle activity",
    "mV",
    ("emg_1_raw", "emg_1_rms", "emg_2_raw", "emg_2_rms"),
    devices=(("emg_1_raw", "emg_1_rms"), ("emg_2_raw", "emg_2_rms")),
    complete=True,
    drop_chance=0.2,
)


@pytest.fixture
def heart_rate():
    yield register_sensor(HEART_RATE)
    unregister_sensor("hr")


@pytest.fixture
def muscles():
    yield register_sensor(MUSCLES)
    unregister_sensor("emg")


def tidy(**more):
    "Two sequences of one person, with acceleration and heart rate."
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"sequence_id": ["s0"] * 4 + ["s1"] * 3, "subject": "ann", "gesture": ["wave"] * 4 + ["drink"] * 3}
    )
    frame["sequence_counter"] = [0, 1, 2, 3, 0, 1, 2]
    for name in ACC:
        frame[name] = rng.normal(size=7).round(3)
    frame["hr_bpm"] = [70, 71, np.nan, 73, 90, 91, 92]
    return frame.assign(**more)


# ---------------------------------------------------------------- the built-in sensors


def test_built_in_sensors_are_what_the_house_has_always_had():
    assert BUILT_IN == tuple(SENSORS) == ("acc", "gyr", "rot", "thm", "tof")
    assert channels() == CHANNELS and len(CHANNELS) == 335 and len(set(CHANNELS)) == 335
    assert {s.name: s.columns for s in sensors()} == GROUPS
    assert [sensor_of(c) for c in ("acc_x", "rot_w", "thm_5", "tof_5_v63")] == ["acc", "rot", "thm", "tof"]
    assert sensor_of("acc_q") is sensor_of("subject") is sensor_of("tof_1_v64") is None
    assert SENSORS["thm"].masks == tuple(f"has_thm_{k}" for k in range(1, 6))
    assert SENSORS["tof"].masks == tuple(f"has_tof_{k}" for k in range(1, 6))
    assert [s.masks for s in sensors()[:3]] == [("has_acc",), ("has_gyr",), ("has_rot",)]
    assert [len(d) for d in SENSORS["tof"].devices] == [64] * 5
    assert drop_groups() == drop_groups(("has_acc",)) == (("thm tof", 0.4), ("rot", 0.05), ("gyr", 0.05))
    assert [s.noise for s in sensors()] == [(0, 8), (0, 4), (0, 1), (30, 3), (90, 120)]


def test_columns_with_another_meaning_are_reserved():
    named = {*TRAIN_COLUMNS, *TEST_COLUMNS, *DEMOGRAPHICS, "sample_rate_hz", "gesture_start"} - set(CHANNELS)
    assert {name for name in named if "_" in name} <= set(RESERVED)


NEEDS = {
    ("has_acc",): [
        "acc.x",
        "acc.mag",
        "motion.lin_x",
        "motion.jerk",
        "motion.grav_z",
        "motion.world_z",
        "motion.world_h",
    ],
    ("has_rot", "has_gyr"): [
        *("gyr.x", "gyr.mag", "rot.w", "rot.r11", "motion.world_x", "motion.world_y"),
        *("motion.angle", "motion.turned", "motion.away", "motion.ang_x", "motion.ang_mag"),
    ],
    ("has_thm_3",): ["thm.3", "thm.3_others", "thm.3_rate"],
    ("has_tof_2",): ["tof.2_near", "tof.2_q11", "tof.2_n33"],
}


@pytest.mark.parametrize("masks", NEEDS)
def test_masks_behind_features(masks):
    for feature in NEEDS[masks]:
        assert set(masks_of_feature(feature)) == set(masks), feature


def test_an_unknown_feature_belongs_to_no_sensor():
    assert (
        sensor_of_feature("motion.jerk").name == "acc"
        and sensor_of_feature("hr.bpm") is sensor_of_feature("acc") is None
    )
    with pytest.raises(UserError, match="'hr.bpm'.*registered"):
        masks_of_feature("hr.bpm")


def test_misspelt_columns():
    right = {
        **dict.fromkeys(("AccX", "accel_x", "Acceleration X", "accelerometer-x", " acc.x "), "acc_x"),
        **dict.fromkeys(("gyro-z", "GyroscopeZ"), "gyr_z"),
        **dict.fromkeys(("Rot W", "quat_w", "QuaternionW", "rotation.w"), "rot_w"),
        **dict.fromkeys(("thm5", "thermopile_5"), "thm_5"),
        **dict.fromkeys(("TOF_1_V3", "tof1v3"), "tof_1_v3"),
    }
    assert {name: guess_channel(name) for name in right} == right
    for name in ("acc_x", "tof_1_v3", "acc", "accident_x", "age", "tof_3_7", "acc_x_", "thm_6", ""):
        assert guess_channel(name) is None, name


# ---------------------------------------------------------------- a new sensor


def test_a_registered_sensor_is_known_everywhere(heart_rate):
    assert heart_rate is SENSORS["hr"] and channels() == (*CHANNELS, "hr_bpm") and sensor_of("hr_bpm") == "hr"
    assert heart_rate.masks == masks_of_feature("hr.bpm") == masks_of_feature("hr.bpm_rate") == ("has_hr",)
    assert sensor_of_feature("hr.bpm_rate") is heart_rate
    assert guess_channel("HeartRate BPM") == guess_channel("PulseBpm") == guess_channel("HR-bpm") == "hr_bpm"
    np.testing.assert_array_equal(
        heart_rate.is_valid(np.array([19, 20, 250, 251, np.nan])), [False, True, True, False, False]
    )
    assert register_sensor(Sensor(**vars(HEART_RATE))) is heart_rate  # the same record again


def test_random_numbers_change_only_with_the_data(heart_rate):
    assert drop_groups(("has_acc", "has_thm_1")) == (("thm tof", 0.4), ("rot", 0.05), ("gyr", 0.05))
    assert drop_groups(("has_acc", "has_hr"))[3:] == (("hr", 0.05),)


def test_several_devices(muscles):
    assert muscles.masks == ("has_emg_1", "has_emg_2")
    assert masks_of_feature("emg.2_rms_rate") == ("has_emg_2",) and masks_of_feature("emg.balance") == muscles.masks
    with pytest.raises(UserError, match="no column 'emg_2_rms'"):
        read_recordings(tidy(emg_2_raw=1.0))
    assert read_recordings(tidy(emg_2_raw=1.0, emg_2_rms=2.0)).names[-2:] == ("emg_2_raw", "emg_2_rms")


def test_forgotten_sensors_are_gone(heart_rate):
    unregister_sensor("hr")
    assert channels() == CHANNELS and sensor_of("hr_bpm") is None and guess_channel("HeartRate BPM") is None
    with pytest.raises(UserError, match="built in"):
        unregister_sensor("acc")


MISTAKES = {
    "a taken name": (dict(name="acc", columns=("acc_q",)), "it is registered with another record"),
    "a taken alias": (dict(aliases=("gyro",)), "'gyro' is taken by the sensor 'gyr'"),
    "the group motion": (dict(name="motion", columns=("motion_x",)), "'motion' is taken"),
    "another prefix": (dict(columns=("oxygen",)), "must begin with 'spo_'"),
    "a word for columns": (dict(columns="spo_2"), "must be tuples"),
    "no columns": (dict(columns=()), "no columns"),
    "capitals": (dict(name="SpO"), "lower-case"),
    "underscores": (dict(name="sp_o", columns=("sp_o_2",)), "without underscores"),
    "a column of files": (dict(name="sequence", columns=("sequence_id",)), "another meaning"),
    "features of one name": (dict(columns=("spo_2", "spo_2_rate")), "would have one name"),
    "ranges upside down": (dict(valid=(100, 0)), "valid is"),
    "ranges of nothing": (dict(plausible=(np.nan, 1)), "plausible is"),
    "too large": (dict(valid=(0, 1e9)), "inside ±1,000,000"),
    "a lost column": (dict(columns=("spo_1", "spo_2"), devices=(("spo_1",),)), "exactly one"),
    "devices of one name": (
        dict(columns=("spo_a", "spo_b", "spo_c"), devices=(("spo_a", "spo_b"), ("spo_c",))),
        "a beginning of their own",
    ),
    "a chance of two": (dict(drop_chance=2.0), "from 0 to 1"),
    "an unknown swap": (dict(mirror_swaps=(("spo_1", "spo_2"),)), "mirror_swaps"),
    "an unknown mirror": (dict(mirror="left"), "'pseudovector'"),
    "an unknown summary": (dict(summary="everything"), "'brief'"),
    "features of others": (dict(features="motion"), "leave it away"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_a_record_are_sentences(kind):
    fields, words = MISTAKES[kind]
    before = channels()
    with pytest.raises(UserError, match=re.escape(words)) as e:
        register_sensor(Sensor(**{"name": "spo", "title": "oxygen", "unit": "%", "columns": ("spo_2",)} | fields))
    assert str(e.value).endswith(".") and channels() == before


def test_another_record_of_one_name_is_refused(heart_rate):
    with pytest.raises(UserError, match="registered with another record"):
        register_sensor(Sensor("hr", "heart rate", "Hz", ("hr_hz",)))
    with pytest.raises(TypeError):
        SENSORS["hr"] = heart_rate


# ---------------------------------------------------------------- a new sensor in files and frames


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_a_new_sensor_is_read_from_files(tmp_path, heart_rate, ending):
    path, frame = tmp_path / f"a{ending}", tidy()
    frame.to_parquet(path, index=False) if ending == ".parquet" else frame.to_csv(path, index=False)
    table = read_tidy(path)
    assert table.names == (*ACC, "hr_bpm") and table.has("hr") and "hr(1)" in repr(table)
    np.testing.assert_array_equal(table.channel("hr_bpm"), frame.hr_bpm.to_numpy(np.float32))
    assert "hr_bpm" not in table.meta
    blocks = list(stream_sequences(path, rows=1))
    np.testing.assert_array_equal(concat(blocks).values, table.values)


def test_an_unregistered_sensor_is_metadata_or_nothing(tmp_path):
    tidy(hr_bpm=70).to_csv(tmp_path / "a.csv", index=False)
    table = read_tidy(tmp_path / "a.csv")
    assert table.names == ACC and table.meta["hr_bpm"].tolist() == ["70", "70"]


def test_a_sensor_alone_is_enough(heart_rate):
    frame = tidy().drop(columns=list(ACC))
    assert read_recordings(frame).names == from_frame(frame).names == ("hr_bpm",)


FRAMES = {
    "pandas": lambda f: f,
    "polars": pl.from_pandas,
    "arrow": pa.Table.from_pandas,
    "batch": pa.RecordBatch.from_pandas,
    "dict": lambda f: {name: f[name].to_numpy() for name in f},
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_are_read_like_files(tmp_path, heart_rate, kind):
    frame = tidy(age=[30] * 4 + [31] * 3, note="x", row_id="r")
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    want, got = read_tidy(tmp_path / "a.parquet"), read_recordings(FRAMES[kind](frame))
    assert got.names == want.names and set(got.meta) == set(want.meta)
    np.testing.assert_array_equal(got.values, want.values)
    for name in want.meta:
        np.testing.assert_array_equal(got.meta[name], want.meta[name])
    lenient = from_frame(FRAMES[kind](frame))
    np.testing.assert_array_equal(lenient.values, want.values)


def refused(frame, *words, **options):
    with pytest.raises(UserError) as e:
        read_recordings(frame, **options)
    assert all(word in str(e.value) for word in words) and str(e.value)[-1] in ".?", str(e.value)


def test_frames_are_refused_with_the_sentences_of_files(heart_rate):
    frame = tidy()
    refused(
        frame.rename(columns={"hr_bpm": "HeartRateBPM"}), "the frame, column 'HeartRateBPM'", "Did you mean 'hr_bpm'?"
    )
    refused(frame.rename(columns={"acc_x": "AccX"}), "the frame, column 'AccX'", "Did you mean 'acc_x'?")
    refused(frame.drop(columns="subject"), "the frame: there is no column 'subject'", "The columns are")
    refused(frame.assign(hr_bpm=["70"] * 5 + ["fast"] * 2), "the frame, row 6, column 'hr_bpm': 'fast' is not a number")
    refused(frame.assign(acc_x=[0.0] * 6 + [np.inf]), "the frame, row 7, column 'acc_x'", "no reading of a sensor")
    refused(frame.assign(sequence_counter=0), "the frame, row 2, column 'sequence_counter'", "twice")
    refused(frame.assign(gesture=["wave"] * 3 + ["drink"] * 4), "the frame, row 4, column 'gesture'")
    refused(frame.iloc[:0], "the frame: there are no rows")
    refused(frame.assign(subject=[[1]] * 7), "column 'subject'", "not numbers or words")
    refused(pd.concat([frame, frame.acc_x], axis=1), "column 'acc_x'", "twice")
    refused(
        {"acc_x": [1], **{c: [1, 2] for c in ("sequence_id", "subject", "sequence_counter", "acc_y", "acc_z")}},
        "length",
    )
    refused(7, "no frame")
    refused(frame, "fold_column is 'side'", "the frame", fold_column="side")


def test_settings_of_read_recordings(tmp_path):
    frame = tidy(fold=[0] * 4 + [1] * 3, hr_bpm=1)
    assert read_recordings(frame, rate_hz=25).meta["sample_rate_hz"].tolist() == [25, 25]
    assert np.isnan(read_recordings(frame).meta["sample_rate_hz"]).all()
    assert read_recordings(frame, fold_column="fold").meta["fold"].tolist() == [0, 1]
    table = read_recordings(frame)
    assert read_recordings(table) is table
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read_recordings(str(tmp_path / "a.csv"), rate_hz=25).meta["sample_rate_hz"].tolist() == [25, 25]


def test_fingerprints_of_frames():
    frame = tidy()
    same = source_fingerprint(frame)
    assert same == source_fingerprint(frame.copy()) == source_fingerprint(pl.from_pandas(frame))
    assert same == source_fingerprint(read_recordings(frame))
    assert len({same, source_fingerprint(tidy(acc_x=1.0)), source_fingerprint(tidy(gesture="wave"))}) == 3


# ---------------------------------------------------------------- tables


def test_tables_describe_themselves(heart_rate):
    table = read_recordings(tidy(gesture=["<b>"] * 4 + ["drink"] * 3, sample_rate_hz=25.0))
    html = table._repr_html_()
    assert "2 of 1 subject" in html and "acc (3), hr (1)" in html and "25.0 Hz" in html and "<b>" not in html
    unlabelled = table_from_arrays([np.zeros((3, 4))], ACC)
    assert "not known" in unlabelled._repr_html_() and "gestures" not in unlabelled._repr_html_()


def test_tables_refuse_parts_that_do_not_fit():
    table = table_from_arrays([np.zeros((3, 4)), np.ones((3, 2))], ACC, gesture=["wave", "drink"])
    assert check_table(table) is table and len(take(table, [True, False])) == 1
    for bad, words in (
        (lambda: table_from_arrays([], ACC), "no sequence"),
        (lambda: table_from_arrays([np.zeros((3, 0))], ACC), "no rows"),
        (lambda: table_from_arrays([np.zeros((2, 4))], ACC), "shape"),
        (lambda: check_table(with_meta(table, age=[1])), "'age' has 1 entries for 2 sequences"),
        (lambda: concat([table, table_from_arrays([np.zeros((4, 4))], ROT)]), "different channels"),
    ):
        with pytest.raises(UserError, match=words):
            bad()
