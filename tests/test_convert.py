"""`convert`: raw files of any layout become one tidy file; each format gives the gestures that were written into it."""

import gzip

import numpy as np
import pandas as pd
import pytest

import gesture_nb as gn
from gesture_nb.data.convert import convert, from_frame, raw_options, tidy_arrow, write_tidy
from gesture_nb.data.pattern import find_files, match_path, read_pattern
from gesture_nb.data.pieces import cut_windows, label_changes
from gesture_nb.data.readers import read_recordings
from gesture_nb.data.samples import SAMPLES, swings
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.data.streams import merge_streams, sorted_stream
from gesture_nb.errors import UserError
from gesture_nb.schema import ACC, GYR, ROT

class Ears:
    "A reporter that keeps what was said."

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def motions():
    return swings(people=("anna", "bob"), takes=2)


def tidy(motions):
    "The motions as the tidy frame that people should have."
    frames = []
    for m in motions:
        columns = {"sequence_id": f"{m.gesture}/{m.subject}_{m.take}", "subject": m.subject, "gesture": m.gesture}
        columns |= {"take": str(m.take), "sequence_counter": np.arange(len(m.t)), "t": m.t}
        values = np.concatenate([m.acc, m.gyr, m.rot]).astype(np.float32)
        frames.append(pd.DataFrame(columns | dict(zip(ACC + GYR + ROT, values))))
    return pd.concat(frames, ignore_index=True)


def same_tables(a, b):
    "Whether two tables have the same sequences, in any order."
    x, y = (np.argsort(t.meta["sequence_id"]) for t in (a, b))
    assert set(a.names) == set(b.names) and set(a.meta) == set(b.meta)
    for key in set(a.meta):
        assert np.array_equal(a.meta[key][x].astype(str), b.meta[key][y].astype(str)), key
    for i, j in zip(x, y):
        assert np.array_equal(
            a.values[:, a.offsets[i] : a.offsets[i + 1]],
            b.channels(a.names)[:, b.offsets[j] : b.offsets[j + 1]],
            equal_nan=True,
        )
    return True


# ---------------------------------------------------------------- a folder is its tidy file


@pytest.mark.parametrize("style", ["plain", "semicolons", "utf16", "gzip", "parquet"])
def test_a_folder_equals_the_tidy_file(motions, tmp_path, style):
    frame = tidy(motions)
    ending = {"parquet": "parquet", "gzip": "csv.gz"}.get(style, "csv")
    for name, rows in frame.groupby("sequence_id"):
        path = tmp_path / "raw" / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = rows.drop(columns=["sequence_id", "subject", "gesture", "take", "sequence_counter"])
        if style == "parquet":
            rows.to_parquet(path, index=False)
        elif style == "semicolons":
            rows.to_csv(path, index=False, sep=";", decimal=",")
        elif style == "utf16":
            rows.to_csv(path, index=False, encoding="utf-16")
        elif style == "gzip":
            path.write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
        else:
            rows.to_csv(path, index=False)
    pattern = "{gesture}/{subject}_{take}." + ending
    table = convert(tmp_path / "raw", tmp_path / "tidy.parquet", pattern=pattern)
    want = read_recordings(frame)
    table.meta["sequence_id"] = np.array([n.removesuffix(".csv") for n in table.meta["sequence_id"]])
    assert same_tables(table, want)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_written_is_read_again_without_any_option(motions, tmp_path, ending):
    table = read_recordings(tidy(motions))
    again = read_recordings(write_tidy(table, tmp_path / f"tidy.{ending}"))
    assert same_tables(table, again)
    once_more = convert(tmp_path / f"tidy.{ending}")
    assert same_tables(table, once_more)


# ---------------------------------------------------------------- ten public formats


@pytest.mark.parametrize("name", SAMPLES)
def test_ten_formats_give_the_gestures_that_were_written(name, tmp_path):
    sample = SAMPLES[name]
    motions = swings(people=("anna", "bob"), takes=2, rate_hz=sample.rate_hz)
    sample.write(tmp_path / "raw", motions)
    ears = Ears()
    table = convert(to=tmp_path / "tidy.csv", reporter=ears, **sample.arguments(tmp_path / "raw"))
    assert len(table) == len(motions) and any("Written" in line for line in ears.lines)
    assert np.allclose(table.meta["sample_rate_hz"], sample.rate_hz, rtol=1e-3)
    labels = {"1": "wave", "2": "turn", "3": "hold"}  # of the archive whose labels are numbers
    found = np.array([labels.get(label, label) for label in table.meta["gesture"]])
    for m in motions:
        length = len(m.t)
        errors = []
        for i in np.flatnonzero(found == m.gesture):
            rows = slice(table.offsets[i], table.offsets[i + 1])
            if abs(table.lengths[i] - length) > 1:
                continue
            n = min(table.lengths[i], length)
            errors.append(max(np.abs(table.channels(ACC)[:, rows][:, :n] - m.acc[:, :n]).max() / 9.8, 0))
            if "gyr_x" in table.names:
                errors[-1] = max(errors[-1], np.abs(table.channels(GYR)[:, rows][:, :n] - m.gyr[:, :n]).max() / 10)
            if "rot_w" in table.names:
                errors[-1] = max(errors[-1], np.abs(table.channels(ROT)[:, rows][:, :n] - m.rot[:, :n]).max())
        assert min(errors) < 0.02, (name, m.gesture, errors)
    again = read_recordings(tmp_path / "tidy.csv")
    assert np.array_equal(again.values, table.channels(again.names), equal_nan=True)


def test_a_person_can_follow_the_commands(tmp_path, program):
    sample = SAMPLES["arduino"]
    sample.write(tmp_path, swings(people=("me",), takes=3, rate_hz=sample.rate_hz))
    command = sample.command("tidy.parquet").replace("gesture-nb ", "").replace("'", "").split()
    done = program(*command, cwd=tmp_path)
    assert done.returncode == 0 and "acc_x = aX" in done.stdout and "Written to tidy.parquet" in done.stdout
    assert len(read_recordings(tmp_path / "tidy.parquet")) == 9


# ---------------------------------------------------------------- streams


def test_streams_are_merged_by_time():
    from gesture_nb.data.parsing import FileLocation

    location = FileLocation("recording", False)
    t = np.arange(200) / 100
    late = np.arange(90) / 50 + 0.003
    fast = sorted_stream("Accelerometer", t, {"acc_x": np.sin(t)})
    slow = sorted_stream("Gyroscope", late[::-1], {"gyr_x": np.cos(late)[::-1]})
    merged = merge_streams(location, [fast, slow])
    assert np.array_equal(merged.values["acc_x"], np.sin(merged.t)) and len(merged.t) >= 178
    inside = (merged.t > 0.003) & (merged.t < late[-1])
    assert np.abs(merged.values["gyr_x"] - np.cos(merged.t))[inside].max() < 1e-3
    at_rate = merge_streams(location, [fast, slow], 25)
    assert np.allclose(np.diff(at_rate.t), 0.04)
    keep = (t < 0.5) | (t > 1.2)
    torn = merge_streams(location, [sorted_stream("Accelerometer", t[keep], {"acc_x": t[keep]}), slow])
    assert any("1 gap" in note for note in torn.notes)
    gone = merge_streams(location, [fast, sorted_stream("Gyroscope", late[late > 0.9], {"gyr_x": late[late > 0.9]})])
    assert gone.t[0] > 0.85
    with pytest.raises(UserError, match="do not overlap"):
        merge_streams(location, [fast, sorted_stream("Gyroscope", t + 10, {"gyr_x": t})])


def test_two_files_of_one_sensor_are_refused(tmp_path):
    for name in ("Accelerometer", "acc"):
        (tmp_path / f"{name}.csv").write_text("t,x,y,z\n0,0,0,9.8\n0.1,0,0,9.8\n0.2,0,0,9.8\n")
    with pytest.raises(UserError, match="both of the sensor 'acc'"):
        convert(tmp_path, pattern="{stream}.csv")


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    "pattern, path, fields",
    [
        ("{gesture}/{subject}_{take}.csv", "wave/anna_3.csv", dict(gesture="wave", subject="anna", take="3")),
        ("{gesture}/{subject}_{take}.csv", "wave/anna.csv", None),
        ("{subject}_{take:d}.csv", "anna_lena_3.csv", dict(subject="anna_lena", take="3")),
        ("{subject}/{gesture}_{subject}.csv", "a/wave_b.csv", None),
        ("*/{gesture}.csv", "day1/wave.csv", dict(gesture="wave")),
        ("./{gesture}.csv", "wave.csv", dict(gesture="wave")),
        ("{gesture}.csv", "Tourne\u0301.csv", dict(gesture="Tourn\u00e9")),
        ("{gesture} (1).csv", "wave (1).csv", dict(gesture="wave")),
    ],
)
def test_patterns(pattern, path, fields):
    assert match_path(read_pattern(pattern), path) == fields


@pytest.mark.parametrize(
    "pattern, path, said",
    [
        ("{subject}_{gesture}.csv", "anna_lena_wave.csv", "'anna' or 'anna_lena'"),
        ("{a}{b}.csv", "xy.csv", "nothing parts"),
        ("wave.csv", "wave.csv", "names no field"),
        ("{gesture.csv", "wave.csv", "field|braces"),
        ("{}/{gesture}.csv", "a/wave.csv", "no name"),
        ("{gesture:x}.csv", "wave.csv", "unknown"),
    ],
)
def test_patterns_that_cannot_be_followed_are_refused(pattern, path, said):
    with pytest.raises(UserError, match=said):
        match_path(read_pattern(pattern), path)


def test_files_that_do_not_fit_are_listed(tmp_path):
    for name in ("wave_1.csv", "draw_1.csv", "notes.txt", ".DS_Store", "old/wave_1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("t,acc_x,acc_y,acc_z\n0,0,0,9.8\n0.1,0,0,9.8\n0.2,0,0.1,9.8\n")
    matches = find_files(tmp_path, read_pattern("{gesture}_{take}.csv"))
    assert len(matches.found) == 2 and matches.others == ["notes.txt", "old/wave_1.csv"]
    ears = Ears()
    convert(tmp_path, pattern="{gesture}_{take}.csv", reporter=ears)
    assert any("2 files do not fit" in line for line in ears.lines)
    with pytest.raises(UserError, match="'draw_1.csv'"):
        convert(tmp_path, pattern="{gesture}.parquet")
    with pytest.raises(UserError, match="--pattern"):
        convert(tmp_path)


# ---------------------------------------------------------------- cutting


@pytest.fixture
def day(motions):
    "One long recording of one person, labelled row by row, with unlabelled rows between."
    frame = tidy([m for m in motions if m.subject == "anna"]).drop(columns=["sequence_id", "take", "sequence_counter"])
    frame["t"] = np.arange(len(frame)) / 50
    frame.loc[frame.index % 150 >= 140, "gesture"] = ""
    return frame


def test_a_recording_is_cut_where_its_label_changes(day):
    table = from_frame(day, cut_at_label=True)
    assert table.lengths.tolist() == [140] * 6 and set(table.meta["gesture"]) == {"wave", "turn", "hold"}
    assert set(table.meta["recording"]) == {"recording"}
    assert any("60 of 900 rows" in line for line in table.findings["converted"])
    with pytest.raises(UserError, match="gesture"):
        from_frame(day)


@pytest.mark.parametrize("clock", ["since the beginning", "of the recording", "dates"])
def test_intervals_on_any_clock(day, tmp_path, clock):
    start, frame = 0.0, day.drop(columns="gesture")
    if clock != "since the beginning":
        start = 1_760_000_000.0
        frame["t"] += start
    if clock == "dates":
        frame["t"] = pd.to_datetime(frame["t"], unit="s").astype(str)
    rows = [(start + 3 * k, start + 3 * k + 2.8, "abc"[k % 3]) for k in range(6)]
    labels = pd.DataFrame(rows, columns=["start", "end", "label"])
    if clock == "dates":
        labels[["start", "end"]] = labels[["start", "end"]].apply(lambda c: pd.to_datetime(c, unit="s").astype(str))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table = from_frame(frame, intervals=tmp_path / "labels.csv")
    assert table.lengths.tolist() == [140] * 6 and table.meta["gesture"].tolist() == list("abcabc")
    assert np.allclose(table.meta["sample_rate_hz"], 50, rtol=1e-6)


@pytest.mark.parametrize(
    "rows, said",
    [
        ("0,2,a\n1,3,b", "'a'.*line 2.*'b'.*line 3.*overlap"),
        ("2,2,a", "is empty"),
        ("2,1,a", "is empty"),
        ("500,501,a", "runs from"),
        ("0,1,", "Name the gesture"),
        ("soon,later,a", "is no time"),
    ],
)
def test_intervals_that_cannot_be_followed_are_refused(day, tmp_path, rows, said):
    (tmp_path / "labels.csv").write_text(f"start,end,label\n{rows}\n")
    with pytest.raises(UserError, match=said):
        from_frame(day.drop(columns="gesture"), intervals=tmp_path / "labels.csv")


def test_intervals_are_about_their_own_people(motions, tmp_path):
    frame = tidy([m for m in motions if m.take == 0 and m.gesture == "wave"]).drop(columns="gesture")
    (tmp_path / "labels.csv").write_text("from,to,activity,user\n0,1,a,anna\n1,2,b,anna\n0,3,c,bob\n8,9,d,bob\n")
    table = from_frame(frame, intervals=tmp_path / "labels.csv")
    pairs = sorted(zip(table.meta["subject"], table.meta["gesture"]))
    assert pairs == [("anna", "a"), ("anna", "b"), ("bob", "c")]
    assert any("'d'" in line for line in table.findings["converted"])


def test_windows_keep_recordings_and_labels_whole(day):
    table = from_frame(day, window="1s", step="500ms", set="session=monday")
    assert set(table.lengths) == {50} and len(table) == 6 * 4
    assert set(table.meta["session"]) == {"monday"}
    assert len(set(table.meta["recording"])) == 1
    assert any("windows of 1 s" in line for line in table.findings["converted"])
    n = [70, 49, 200]
    long = table_from_arrays([np.full((3, k), i) for i, k in enumerate(n)], ACC, list("abc"), ["me"] * 3, 50)
    cut = cut_windows(long, 1.0, 0.5)
    assert cut.table.meta["recording"].tolist() == ["s000000"] + ["s000002"] * 7
    assert (cut.too_short, cut.left_over) == (1, 20 + 49)
    assert all(np.ptp(cut.table.values[0, a:b]) == 0 for a, b in zip(cut.table.offsets, cut.table.offsets[1:]))


@pytest.mark.parametrize("seed", range(5))
def test_label_changes_are_every_row_once(seed):
    labels = np.random.default_rng(seed).choice(["", "a", "b"], 60)
    pieces = label_changes(labels)
    rows = np.concatenate([piece.rows for piece in pieces])
    assert np.array_equal(np.sort(rows), np.flatnonzero(labels != "")) and len(rows) == len(set(rows))
    assert all(set(labels[piece.rows]) == {piece.label} for piece in pieces)


def test_blank_lines_part_recordings(shared_data):
    path = shared_data.parent / "cases" / "data" / "18_arduino_flex.csv"
    if not path.exists():
        pytest.skip("the cases are not here")
    how = dict(rate_hz=119, acc_unit="g", gyr_unit="deg/s", set="subject=me,gesture=flex")
    table = convert(path, blank_lines=True, **how)
    assert len(table) == 2 and table.meta["gesture"].tolist() == ["flex"] * 2
    assert np.allclose(table.values[0, 0], -1.234 * 9.80665) and table.meta["sample_rate_hz"].tolist() == [119, 119]
    assert len(convert(path, **how)) == 1


# ---------------------------------------------------------------- refusals leave nothing


def test_nothing_is_written_where_something_is_wrong(motions, tmp_path):
    frame = tidy(motions)
    source = tmp_path / "raw.csv"
    frame.to_csv(source, index=False)
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    (tmp_path / "folder.csv").mkdir()
    no_rate = frame.drop(columns="t")
    for data, to, how, said in [
        (source, source, {}, "inputs"),
        (source, tmp_path / "link.csv", {}, "regular file"),
        (source, tmp_path / "folder.csv", {}, "regular file"),
        (source, tmp_path / "tidy.xlsx", {}, "ends in"),
        (source, tmp_path / "tidy.csv", dict(window="1 week"), "duration"),
        (source, tmp_path / "tidy.csv", dict(window="100s"), "longest"),
        (source, tmp_path / "tidy.csv", dict(step="1s"), "without --window"),
        (source, tmp_path / "tidy.csv", dict(set="subject=zoe"), "column of the file"),
        (source, tmp_path / "tidy.csv", dict(columns="acc_x=acx"), "'acx'"),
        (source, tmp_path / "tidy.csv", dict(pattern="{gesture}.csv"), "is a file"),
        (source, tmp_path / "tidy.csv", dict(windows="1s"), "'window'"),
        (tmp_path / "row.csv", tmp_path / "tidy.csv", {}, "raw.csv"),
        (no_rate, tmp_path / "tidy.csv", {}, "--rate"),
    ]:
        with pytest.raises(UserError, match=said):
            convert(data, to, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csv", "link.csv", "raw.csv"]
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    "content, said",
    [
        ("1,2,3\n4,5,6\n7,8,9\n", "there is no header.*--names"),
        ("", "empty"),
        ("t,acc_x,acc_y,acc_z\n", "no rows|is no"),
        ("t,acc_x,acc_y,acc_z\n0,1,2,3\n0.1,1,2\n0.2,1,2,3\n0.3,1,2,3\n", "line 3.*3 cells"),
        ("t,acc_x,acc_x,acc_z\n0,1,2,3\n0.1,1,2,3\n", "twice"),
    ],
)
def test_raw_files_that_cannot_be_read_are_refused(tmp_path, content, said):
    (tmp_path / "raw.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "raw.csv")


def test_columns_without_a_header_by_name_or_position(tmp_path):
    (tmp_path / "raw.csv").write_text("0,5,0,9.8,0.1\n0.02,6,0,9.7,0.1\n0.04,7,0.1,9.8,0.2\n")
    by_name = convert(tmp_path / "raw.csv", names="t,-,acc_x,acc_y,acc_z")
    by_position = convert(tmp_path / "raw.csv", columns="t=1,acc_x=3,acc_y=4,acc_z=5")
    assert np.array_equal(by_name.values, by_position.values) and by_name.meta["sample_rate_hz"].tolist() == [50]


def test_options_are_checked():
    assert raw_options(window="1500ms").window == 1.5
    assert raw_options(set={"subject": "a"}).constants == (("subject", "a"),)
    for wrong in (dict(set="subject"), dict(window="-1s"), dict(intervals="a", cut_at_label=True), dict(patern="x")):
        with pytest.raises(UserError):
            raw_options(**wrong)


# ---------------------------------------------------------------- arrays


def test_arrays_become_a_table_that_trains(tmp_path, motions):
    x = [np.concatenate([m.acc, m.gyr]) for m in motions]
    labels, people = [m.gesture for m in motions], [m.subject for m in motions]
    table = gn.from_arrays(x, gesture=labels, subject=people, rate_hz=50)
    quick = dict(members="lgbm", folds=2, boosting_rounds=5, progress="lines")
    run = gn.train(table, tmp_path / "run", **quick)
    assert run.metrics["sequences"] == 12 and "note" not in run.metrics
    assert len(run.predictor().table_proba(table)) == 12


def test_one_person_trains_and_the_scores_say_so(tmp_path, motions):
    own = [m for m in motions if m.subject == "anna"] * 2
    x = [m.acc + 0.01 * i for i, m in enumerate(own)]
    labels, sessions = [m.gesture for m in own], ["a"] * 6 + ["b"] * 6
    table = gn.from_arrays(x, gesture=labels, subject="anna", rate_hz=50, session=sessions)
    quick = dict(members="lgbm", folds=2, boosting_rounds=5, progress="lines")
    by_session = gn.train(table, tmp_path / "sessions", group_column="session", **quick)
    assert "this person only" in by_session.metrics["note"] and by_session.metrics["note"] in repr(by_session)
    assert by_session.metrics["note"] in by_session.report().read_text()
    oof = by_session.predictions()
    assert set(oof["subject"]) == {"anna"} and oof.groupby("fold")["sequence_id"].count().tolist() == [6, 6]
    by_chance = gn.train(table, tmp_path / "chance", **quick)
    assert "optimistic" in by_chance.metrics["note"] and by_chance.metrics["subjects"] == 1
    with pytest.raises(UserError, match="'session'"):
        gn.train(table, tmp_path / "wrong", group_column="sesion", **quick)


def test_frames_of_all_kinds_are_one_recording_or_many(motions):
    import polars as pl

    frame = tidy(motions[:1]).drop(columns=["sequence_id", "subject", "gesture", "take", "sequence_counter"])
    want = from_frame(frame, set={"subject": "anna", "gesture": "wave"})
    assert len(want) == 1 and want.meta["subject"][0] == "anna"
    for other in (pl.from_pandas(frame), frame.to_dict("list"), tidy_arrow(want).drop_columns(["sequence_id"])):
        table = from_frame(other) if not isinstance(other, (dict, pl.DataFrame)) else from_frame(
            other, set={"subject": "anna", "gesture": "wave"})
        assert np.array_equal(table.values, want.values)
    short = from_frame(frame.rename(columns={"acc_x": "ax", "acc_y": "ay", "acc_z": "az"}))
    assert np.array_equal(short.channels(ACC), want.channels(ACC)) and short.meta["subject"][0] == "unknown"


PATTERN = "{gesture}/{subject}_{take}.csv"


def plain(motion, **columns):
    "A motion as a frame with our names."
    channels = zip(ACC + GYR, np.concatenate([motion.acc, motion.gyr]))
    return pd.DataFrame({"t": motion.t, **dict(channels), **columns})


def folder_of(motions, folder, change=lambda frame, i: frame):
    "A file a motion, each perhaps changed."
    for i, m in enumerate(motions):
        path = folder / m.gesture / f"{m.subject}_{m.take}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        change(plain(m), i).to_csv(path, index=False)
    return folder


def test_a_unit_that_one_file_states_is_not_that_of_the_others(motions, tmp_path):
    def one_in_g(frame, i):
        if i != 3:
            return frame
        return frame.assign(**{f"Acc {a} (g)": frame[f"acc_{a}"] / 9.80665 for a in "xyz"}).drop(columns=list(ACC))

    with pytest.raises(UserError, match="Some of the files state the unit g, and others none"):
        convert(folder_of(motions, tmp_path, one_in_g), pattern=PATTERN)


def test_a_mistake_is_shown_in_its_file(motions, tmp_path):
    def damaged(frame, i):
        frame = frame.astype(object)
        if i == 2:
            frame.loc[7, "acc_y"] = "oops"
        return frame

    folder = folder_of(motions, tmp_path, damaged)
    file = folder / motions[2].gesture / f"{motions[2].subject}_{motions[2].take}.csv"
    with pytest.raises(UserError, match=rf"^{file}, line 9, column 'acc_y': 'oops' is not a number"):
        convert(folder, pattern=PATTERN)
    text = file.read_text().splitlines()
    file.write_text("\n".join(["made by an app", "at home", *text[:3], "", *text[3:]]))
    with pytest.raises(UserError, match=r", line 12, column 'acc_y'"):
        convert(folder, pattern=PATTERN)


def test_gaps_name_the_line_of_their_file(motions, tmp_path):
    def back(frame, i):
        return frame.assign(t=frame["t"] - 1.5 * ((frame.index >= 50) & (i == 2)))

    ears = Ears()
    convert(folder_of(motions, tmp_path, back), pattern=PATTERN, reporter=ears)
    m = motions[2]
    assert any(f"before line 52 of {tmp_path}/{m.gesture}/{m.subject}_{m.take}.csv" in line for line in ears.lines)


def test_files_without_channels_and_cells_without_a_time_are_said(motions, tmp_path):
    def odd(frame, i):
        if i == 1:
            return frame.rename(columns={name: f"column{k}" for k, name in enumerate(ACC + GYR)})
        return frame.assign(t=frame["t"].where(~((frame.index % 30 == 5) & (i == 2))))

    ears = Ears()
    table = convert(folder_of(motions, tmp_path, odd), pattern=PATTERN, reporter=ears)
    assert len(table) == len(motions) - 1 and set(table.meta["sample_rate_hz"]) == {50.0}
    assert any("1 files have no channel of any sensor and are left out" in line for line in ears.lines)
    assert any("5 rows have no time" in line for line in ears.lines)


def test_times_that_are_mostly_missing_are_refused(motions, tmp_path):
    with pytest.raises(UserError, match="line 3, column 't': the cell is empty"):
        convert(folder_of(motions, tmp_path, lambda f, i: f.assign(t=f["t"].where(f.index % 2 == 0))), pattern=PATTERN)


def test_what_the_index_of_a_frame_says_is_read(motions):
    m = motions[0]
    stated = {"set": {"subject": "anna", "gesture": "wave"}}
    expected = from_frame(plain(m), **stated).values
    times = pd.to_datetime(m.t, unit="s")
    for index in (pd.Index(m.t, name="t"), pd.DatetimeIndex(times), pd.TimedeltaIndex(times - times[0])):
        assert np.array_equal(from_frame(plain(m).drop(columns="t").set_index(index), **stated).values, expected)
    two = pd.concat([plain(m), plain(m)], keys=["a", "b"], names=["sequence_id", None])
    assert from_frame(two, **stated).meta["sequence_id"].tolist() == ["a", "b"]
    assert np.array_equal(from_frame(plain(m).assign(t=times - times[0]), **stated).values, expected)


@pytest.mark.parametrize(
    "frame, said",
    [
        (lambda m: plain(m)[:0], "has no rows"),
        (lambda m: pd.concat([plain(m), plain(m)], axis=1), "two columns 't'"),
        (lambda m: {"a": plain(m)}, "dictionary holds frames"),
    ],
)
def test_frames_that_are_none_are_refused(motions, frame, said):
    with pytest.raises(UserError, match=said):
        from_frame(frame(motions[0]), set="subject=anna,gesture=wave")


@pytest.mark.parametrize(
    "rows, labels",
    [
        ('0,3,"wave, big"\n3.5,6,"say ""hi"""', ["wave, big", 'say "hi"']),
        ("0:00,0:03,wave\n0:04,0:06,turn", ["wave", "turn"]),
        ("00:00:00,00:00:03.0,wave", ["wave"]),
    ],
)
def test_intervals_with_quotes_and_clocks(day, tmp_path, rows, labels):
    (tmp_path / "labels.csv").write_text(f"start,end,label\n{rows}\n")
    frame = day.drop(columns="gesture")
    table = from_frame(frame, intervals=tmp_path / "labels.csv")
    assert table.meta["gesture"].tolist() == labels
    write_tidy(table, tmp_path / "tidy.csv")
    assert read_recordings(tmp_path / "tidy.csv").meta["gesture"].tolist() == labels


def test_streams_whose_clocks_differ_are_said(motions, tmp_path):
    m = motions[0]
    for name, xyz, offset in (("Accelerometer", m.acc, 0), ("Gyroscope", m.gyr, 1.0)):
        frame = pd.DataFrame({"time": m.t + offset, **dict(zip("xyz", xyz))})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    ears = Ears()
    convert(tmp_path, set="subject=anna,gesture=wave", reporter=ears)
    assert any("share 1.98 of 3.98 s" in line for line in ears.lines)


def test_labels_under_another_name_and_unknown_columns_are_said_with_the_way_out(motions, tmp_path):
    words = {f"Spalte {axis}": motions[0].acc[i] for i, axis in enumerate("XYZ")}
    pd.DataFrame({"Uhr": motions[0].t} | words).to_csv(tmp_path / "long.csv", index=False)
    with pytest.raises(UserError, match="long.csv: no column is known .* Uhr; Spalte X; Spalte Y; Spalte Z. Name them"):
        convert(tmp_path / "long.csv")
    frame = pd.DataFrame(dict(zip(ACC, motions[0].acc)) | {"activity": ["a"] * 5 + ["b"] * (len(motions[0].t) - 5)})
    with pytest.raises(UserError, match="'activity' changes within a recording.* --label-column activity"):
        convert(frame, rate_hz=50)
    assert len(convert(frame, rate_hz=50, label_column="activity")) == 2


def test_what_is_written_has_the_units_of_the_program(motions, tmp_path):
    in_g = folder_of(motions, tmp_path / "raw", lambda frame, i: frame.assign(**{c: frame[c] / 9.80665 for c in ACC}))
    how = dict(pattern="{gesture}/{subject}_{take}.csv", acc_unit="g")
    for cut in ({}, {"window": "1s"}):
        ears = Ears()
        written = convert(in_g, tmp_path / "a.parquet", reporter=ears, **how, **cut)
        assert "Acceleration: g, as stated." in ears.lines
        assert any(line.startswith("Units: acc m/s² (from g, stated") for line in ears.lines)
        again = convert(tmp_path / "a.parquet", tmp_path / "b.parquet")
        for table in (written, again, read_recordings(tmp_path / "b.parquet")):
            assert 8 < np.median(np.linalg.norm(table.channels(ACC), axis=0)) < 12
        assert np.array_equal(written.channels(ACC), again.channels(ACC))
