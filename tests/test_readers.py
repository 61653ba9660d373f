"""Files and frames: every mistake has its place and its sentence, and nothing that arrives while serving raises."""

import gzip
import json
import os
import string

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gesture_nb.config import Settings, UserError
from gesture_nb.data.parsing import LARGEST, rate_from_times
from gesture_nb.data.readers import from_frame, read_competition, read_table, read_tidy, source_fingerprint
from gesture_nb.data.simulate import simulate, write_competition
from gesture_nb.schema import ACC, CHANNELS, DEMOGRAPHICS, ROT, TEST_COLUMNS, THM, TOF

CASES = int(os.environ.get("READER_CASES", "300"))
fuzz = settings(max_examples=CASES, deadline=None, derandomize=CASES <= 300, suppress_health_check=list(HealthCheck))


def tidy(lengths=(4, 3, 5), **more):
    "A small good frame."
    n, rng = sum(lengths), np.random.default_rng(0)
    who = np.repeat(np.arange(len(lengths)), lengths)
    return pd.DataFrame(
        {
            "sequence_id": np.char.add("s", who.astype(str)),
            "subject": np.array(["ann", "ann", "bob", "cyd"])[who % 4],
            "gesture": np.array(["wave", "drink"])[who % 2],
            "sequence_counter": np.concatenate([np.arange(k) for k in lengths]),
            **{c: rng.normal(size=n).round(3) for c in ACC},
        }
        | more
    )


def save(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def refused(path, *words, read=read_tidy):
    with pytest.raises(UserError) as e:
        read(path)
    text = str(e.value)
    assert text.endswith((".", "?")) and "Traceback" not in text and "\n" not in text, text
    for w in words:
        assert w in text, f"{w!r} is not in: {text}"
    return text


# ---------------------------------------------------------------- good files


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_round_trip(tmp_path, suffix):
    f = tidy(
        fold=np.repeat([0, 1, 2], [4, 3, 5]),
        age=np.repeat([30, 40, 50], [4, 3, 5]),
        mood=np.repeat(["ok", "", "low"], [4, 3, 5]),
        noise=np.arange(12),
    )
    t = read_tidy(save(f, tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(t.values.T, f[list(ACC)].to_numpy(np.float32))
    assert t.offsets.tolist() == [0, 4, 7, 12] and t.meta["sequence_id"].tolist() == ["s0", "s1", "s2"]
    assert t.meta["subject"].tolist() == ["ann", "ann", "bob"] and t.meta["gesture"].tolist() == [
        "wave",
        "drink",
        "wave",
    ]
    assert (
        t.meta["fold"].tolist() == [0, 1, 2]
        and t.meta["age"].tolist() == [30, 40, 50]
        and t.meta["mood"].tolist() == ["ok", "", "low"]
    )
    assert "noise" not in t.meta and np.isnan(t.meta["sample_rate_hz"]).all()


def test_columns_in_any_order_and_kind(tmp_path):
    f = tidy()
    want = read_tidy(save(f, tmp_path / "a.parquet"))
    g = f[f.columns[::-1]].assign(
        acc_x=f.acc_x.astype(str),
        acc_y=f.acc_y.astype("float16").astype("float64"),
        sequence_id=f.sequence_id.astype("category"),
        row_id="r",
    )
    got = read_tidy(save(g, tmp_path / "b.parquet"))
    np.testing.assert_array_equal(got.channel("acc_x"), want.channel("acc_x"))
    assert got.names == want.names and got.meta["sequence_id"].tolist() == want.meta["sequence_id"].tolist()
    nested = pa.Table.from_pandas(f).append_column("list", pa.array([[1]] * 12))
    pq.write_table(nested, tmp_path / "c.parquet")
    assert len(read_tidy(tmp_path / "c.parquet")) == 3


def test_absent_sensors_and_missing_readings(tmp_path):
    f = tidy(thm_1=[""] * 12, acc_x=[1.0, np.nan] * 6)
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        t = read_tidy(save(f, path))
        assert np.isnan(t.channel("thm_1")).all() and np.isnan(t.channel("acc_x")).sum() == 6
    f = tidy(thm_2=pd.array([None] * 12, dtype="string"))
    assert np.isnan(read_tidy(save(f, tmp_path / "b.parquet")).channel("thm_2")).all()
    pq.write_table(pa.Table.from_pandas(tidy()).append_column("thm_3", pa.nulls(12)), tmp_path / "c.parquet")
    assert np.isnan(read_tidy(tmp_path / "c.parquet").channel("thm_3")).all()


def test_unlabelled_files_are_fine(tmp_path):
    assert not read_tidy(save(tidy().drop(columns="gesture"), tmp_path / "a.csv")).labelled
    assert not read_tidy(save(tidy(gesture=[""] * 12), tmp_path / "b.csv")).labelled
    assert not read_tidy(save(tidy(gesture=[None] * 12), tmp_path / "c.parquet")).labelled


def test_words_that_look_like_nothing_stay_words(tmp_path):
    f = tidy(gesture=np.repeat(["none", "NA", "null"], [4, 3, 5]), subject=np.repeat(["1", "01", "nan"], [4, 3, 5]))
    t = read_tidy(save(f, tmp_path / "a.csv"))
    assert t.meta["gesture"].tolist() == ["none", "NA", "null"] and t.meta["subject"].tolist() == ["1", "01", "nan"]


def test_zero_bytes_do_not_make_a_second_sequence(tmp_path):
    (tmp_path / "a.csv").write_text(tidy().to_csv(index=False).replace("s0,ann,wave,1", "s0\0,ann,wave,1"))
    t = read_tidy(tmp_path / "a.csv")
    assert t.meta["sequence_id"].tolist() == ["s0", "s1", "s2"] and t.offsets.tolist() == [0, 4, 7, 12]


def test_rates(tmp_path):
    time = np.concatenate([np.arange(k) / 25 for k in (4, 3, 5)])
    assert read_tidy(save(tidy(t=time), tmp_path / "a.csv")).meta["sample_rate_hz"].tolist() == [25] * 3
    assert (
        read_tidy(save(tidy(t=time, sample_rate_hz=50), tmp_path / "b.csv")).meta["sample_rate_hz"].tolist() == [50] * 3
    )
    assert read_tidy(save(tidy(t=1.7e9 + time), tmp_path / "c.parquet")).meta["sample_rate_hz"] == pytest.approx(
        25, rel=1e-4
    )
    assert read_tidy(save(tidy(t=1.7e9 + time), tmp_path / "c.csv")).meta["sample_rate_hz"] == pytest.approx(
        25, rel=1e-4
    )
    assert np.isnan(rate_from_times(np.zeros(5), np.array([0, 2, 5]))).all()
    refused(save(tidy(sample_rate_hz=[50.0] * 11 + [-1]), tmp_path / "d.csv"), "line 13", "'sample_rate_hz'")


@pytest.mark.parametrize("name", ["wisdm_watch", "uhh_gestures", "spsw_har_watch", "bfrb_watch"])
def test_real_files(shared_data, name):
    facts = json.loads((shared_data / f"{name}.meta.json").read_text())
    want, t = facts["counts"], read_tidy(shared_data / f"{name}.parquet")
    assert (len(t), t.rows) == (want["sequences"], want["rows"])
    people, each = np.unique(t.meta["subject"], return_counts=True)
    assert dict(zip(people.tolist(), each.tolist())) == want["sequences_per_subject"]
    labels, each = np.unique(t.meta["gesture"], return_counts=True)
    assert dict(zip(labels.tolist(), each.tolist())) == want["sequences_per_class"]
    assert (t.lengths.min(), np.median(t.lengths), t.lengths.max()) == tuple(
        want["sequence_length"][k] for k in ("min", "median", "max")
    )
    assert (
        list(t.names) == [c for c in CHANNELS if c in want["columns"]]
        and np.isnan(t.values).sum() == facts["sanity"]["nan_cells"]
    )
    if "t" in want["columns"]:
        assert t.meta["sample_rate_hz"] == pytest.approx(facts["sample_rate_hz"], rel=0.03)
    f = pq.read_table(shared_data / f"{name}.parquet", columns=["sequence_id", "gyr_z"]).to_pandas()
    np.testing.assert_array_equal(f.gyr_z.to_numpy(), t.channel("gyr_z"))
    np.testing.assert_array_equal(f.sequence_id.drop_duplicates().to_numpy(), t.meta["sequence_id"])


# ---------------------------------------------------------------- bad files


def changed(row, **cells):
    f = tidy().astype(dict.fromkeys(cells, object))
    for c, v in cells.items():
        f.loc[row, c] = v
    return f


BAD = {
    "text in a channel": (lambda: changed(5, acc_y="abc"), ["line 7", "'acc_y'", "'abc'", "Mend"]),
    "infinity": (lambda: changed(2, acc_z=np.inf), ["line 4", "'acc_z'", "inf"]),
    "absurd size": (lambda: changed(2, acc_z=-9e9), ["line 4", "'acc_z'"]),
    "another gesture": (lambda: changed(1, gesture="drink"), ["line 3", "'gesture'", "'drink'", "'wave'"]),
    "gesture missing in places": (lambda: changed(1, gesture=None), ["line 3", "'gesture'", "empty"]),
    "no id": (lambda: changed(8, sequence_id=None), ["line 10", "'sequence_id'", "empty"]),
    "no subject": (lambda: changed(8, subject=None), ["line 10", "'subject'", "empty"]),
    "no counter": (lambda: changed(8, sequence_counter=None), ["line 10", "'sequence_counter'", "whole number"]),
    "half a counter": (lambda: changed(8, sequence_counter=0.5), ["line 10", "'sequence_counter'", "whole number"]),
    "id of two people": (
        lambda: changed(slice(4, 6), subject="bob", sequence_id="s0"),
        ["line 6", "'subject'", "'s0'", "another subject"],
    ),
    "a second person inside": (lambda: changed(1, subject="bob"), ["line 3", "'subject'", "'s0'"]),
    "repeated counter": (lambda: changed(3, sequence_counter=2), ["line 5", "'sequence_counter'", "twice"]),
    "unordered counters": (
        lambda: changed(3, sequence_counter=1),
        ["line 5", "'sequence_counter'", "comes after 2", "Sort"],
    ),
    "interleaved sequences": (
        lambda: tidy(subject="ann").iloc[[0, 4, 1, 5, 2, 6]],
        ["line 4", "'sequence_id'", "'s0'", "begins a second time", "Sort"],
    ),
    "repeated rows": (lambda: pd.concat([tidy().iloc[:2], tidy().iloc[1:]]), ["line 4", "'sequence_counter'", "twice"]),
    "a whole file twice": (lambda: pd.concat([tidy(), tidy()]), ["line 14", "'s0'", "second time"]),
    "header only": (lambda: tidy().iloc[:0], ["no rows"]),
    "no subject column": (lambda: tidy().drop(columns="subject"), ["no column 'subject'", "The columns are"]),
    "renamed id": (
        lambda: tidy().rename(columns={"sequence_id": "sequenceid"}),
        ["no column 'sequence_id'", "Did you mean 'sequenceid'?"],
    ),
    "renamed channel": (lambda: tidy().rename(columns={"acc_x": "accx"}), ["column 'accx'", "Did you mean 'acc_x'?"]),
    "renamed sensor": (
        lambda: tidy().rename(columns=dict(zip(ACC, ["AccelX", "AccelY", "AccelZ"]))),
        ["column 'AccelX'", "Did you mean 'acc_x'?"],
    ),
    "incomplete sensor": (lambda: tidy().drop(columns="acc_z"), ["no column 'acc_z'"]),
    "incomplete grid": (lambda: tidy(tof_2_v0=1.0, tof_2_v1=2.0), ["no column 'tof_2_v2' (and 61 more)"]),
    "no sensor": (lambda: tidy().drop(columns=list(ACC)), ["no sensor channel", "acc_x"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_csv(tmp_path, kind):
    make, words = BAD[kind]
    refused(save(make(), tmp_path / "bad.csv"), "bad.csv", *words)


def test_the_line_is_the_one_an_editor_shows(tmp_path):
    lines = tidy(note="x").astype({"acc_x": object}).to_csv(index=False).splitlines()
    lines[2] = lines[2].rsplit(",", 1)[0] + ',"two\nlines"'
    cells = lines[6].split(",")
    lines[6] = ",".join([*cells[:4], "abc", *cells[5:]])
    lines[4:4] = ["", ""]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert (tmp_path / "a.csv").read_text().split("\n")[9].count("abc") == 1
    refused(tmp_path / "a.csv", "line 10", "'acc_x'", "'abc'")
    lines[8] = lines[8].replace("abc", "9e9")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    refused(tmp_path / "a.csv", "line 10", "'acc_x'", "no reading")


@pytest.mark.parametrize("kind", BAD)
def test_bad_parquet(tmp_path, kind):
    make, words = BAD[kind]
    f = make()
    f = f.astype({c: str for c in ACC if c in f and f[c].dtype == object})
    f = f.astype({c: float for c in ["sequence_counter"] if f[c].dtype == object})
    words = [f"row {int(w[5:]) - 1}" if w.startswith("line ") else w for w in words]
    refused(save(f, tmp_path / "bad.parquet"), "bad.parquet", *words)


def test_files_that_are_no_files(tmp_path):
    refused(tmp_path / "no.csv", "There is no file", "no.csv")
    refused(tmp_path / "no.csv", "There is no data", read=read_table)
    (tmp_path / "wave.csv").write_text("")
    refused(tmp_path / "wave.csv", "wave.csv", "empty")
    refused(tmp_path / "wvae.csv", "Did you mean 'wave.csv'?", read=read_table)
    (tmp_path / "empty.parquet").write_bytes(b"")
    refused(tmp_path / "empty.parquet", "empty.parquet", "empty")
    (tmp_path / "csv.parquet").write_text("sequence_id,subject\n")
    refused(tmp_path / "csv.parquet", "csv.parquet", "no sensor channel")
    (tmp_path / "junk.parquet").write_bytes(bytes(range(256)) * 9)
    refused(tmp_path / "junk.parquet", "junk.parquet", "cannot be read as a Parquet file")


def test_cells_that_are_no_cells(tmp_path):
    for column, cells in {"acc_x": [[1.0]] * 12, "subject": [b"\xff"] * 12, "gesture": [{"a": 1}] * 12}.items():
        t = pa.Table.from_pandas(tidy().drop(columns=column)).append_column(column, pa.array(cells))
        pq.write_table(t, tmp_path / "a.parquet")
        refused(tmp_path / "a.parquet", f"column '{column}'", "not numbers or words")


def test_truncated_and_flipped_parquet(tmp_path):
    path = save(tidy((400, 300)), tmp_path / "a.parquet")
    whole = path.read_bytes()
    for cut in (4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, "a.parquet", "cannot be read as a Parquet file")
    path.write_bytes(whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:])
    refused(path, "a.parquet", "cannot be read as a Parquet file")


def test_encodings(tmp_path):
    path, text = tmp_path / "a.csv", tidy(subject="Zoë").to_csv(index=False)
    path.write_text(text, encoding="utf-8-sig")
    assert read_tidy(path).meta["subject"][0] == "Zoë"
    path.write_text(text, encoding="latin-1")
    table = read_tidy(path)
    assert table.meta["subject"][0] == "Zoë" and "read as cp1252" in table.findings["repairs"][0]
    path.write_bytes(text.replace("ë,wave,2", "\udcff,wave,2").encode("utf-8", "surrogateescape"))
    refused(path, "line 4", "'subject'", "UTF-8")
    path.write_text(text, encoding="utf-16")
    assert read_tidy(path).meta["subject"][0] == "Zoë"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    assert len(read_tidy(path)) == 3
    path.write_bytes(text.replace("gesture", "gest\udcffre").encode("utf-8", "surrogateescape"))
    refused(path, "header", "UTF-8")


def test_separators_and_ragged_lines(tmp_path):
    path = tmp_path / "a.csv"
    lines = tidy().to_csv(index=False).splitlines()
    path.write_text("\n".join([*lines[:4], lines[4] + ",7", *lines[5:]]))
    refused(path, "line 5", "8 cells", "header has 7")
    path.write_text("\n".join(lines)[:-12])
    refused(path, "line 13", "cells")
    path.write_text("\n".join([lines[0] + ",acc_x", *[x + ",1" for x in lines[1:]]]))
    refused(path, "'acc_x'", "twice in the header")


def test_damaged_gzip(tmp_path):
    path = save(tidy((500, 500)), tmp_path / "a.csv.gz")
    whole = path.read_bytes()
    assert gzip.decompress(whole)
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "a.csv.gz")
    path.write_bytes(b"no gzip at all")
    refused(path, "a.csv.gz")


# ---------------------------------------------------------------- the competition's folder


@pytest.fixture(scope="module")
def cmi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cmi")
    write_competition(folder, sequences=150, test_sequences=12, seed=3)
    return folder


def test_competition_is_what_was_simulated(cmi, tmp_path):
    t, want = read_competition(cmi, cache=tmp_path / "c"), simulate(150, seed=3)
    assert t.names == want.names and np.array_equal(t.offsets, want.offsets)
    np.testing.assert_allclose(t.values, want.values, rtol=1e-6, atol=1e-6)
    for k in ("sequence_id", "subject", "gesture", "orientation", "opening", "sequence_type"):
        assert t.meta[k].tolist() == want.meta[k].tolist(), k
    start = want.meta["gesture_start"]
    assert t.meta["gesture_start"].tolist() == np.where(start < want.lengths, start, -1).tolist()
    for k in DEMOGRAPHICS[1:]:
        np.testing.assert_allclose(t.meta[k], want.meta[k].astype(float), rtol=1e-6)
    assert set(t.meta["sample_rate_hz"]) == {10}
    test = read_competition(cmi, "test")
    assert len(test) == 12 and not test.labelled and "orientation" not in test.meta and "age" in test.meta


def test_csv_is_parsed_once(cmi, tmp_path, monkeypatch):
    from gesture_nb.data import readers

    parsed = []
    real = readers.csv_batches
    monkeypatch.setattr(readers, "csv_batches", lambda *a: parsed.append(a[0].path.name) or real(*a))
    cache = tmp_path / "cache"
    first = read_competition(cmi, cache=cache)
    second = read_competition(cmi, cache=cache)
    assert parsed == ["train.csv"]
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.values, read_competition(cmi).values)
    (kept,) = cache.glob("*.parquet")
    before = kept.read_bytes()
    for damage in (before[:1000], before[:5000] + bytes([before[5000] ^ 255]) + before[5001:], b""):
        kept.write_bytes(damage)
        np.testing.assert_array_equal(read_competition(cmi, cache=cache).values, first.values)
        assert kept.read_bytes() == before  # made again, the same bytes
    assert len(parsed) == 4 and not list(cache.glob(".*"))


def test_a_changed_csv_is_parsed_again(cmi, tmp_path):
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    text = (cmi / "train.csv").read_text()
    (folder / "train.csv").write_text(text)
    a = read_competition(folder, cache=cache)
    (folder / "train.csv").write_text("".join(text.splitlines(keepends=True)[: 1 + a.offsets[-2]]))
    assert len(read_competition(folder, cache=cache)) == len(a) - 1


def test_a_cache_that_cannot_be_written(cmi, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(read_competition(cmi, cache=tmp_path / "file" / "cache")) == 150


def test_competition_mistakes(cmi, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    refused(folder, "holds no train.csv", "nothing in it", read=read_table)
    (folder / "Train.CSV.zip").write_text("")
    refused(folder, "holds no train.csv", "Train.CSV.zip", read=read_table)
    refused(tmp_path / "nowhere", "There is no folder", read=read_competition)
    head, *lines = (cmi / "train.csv").read_text().splitlines()

    def write(head=head, lines=lines, people=None):
        (folder / "train.csv").write_text("\n".join([head, *lines]) + "\n")
        (folder / "train_demographics.csv").write_text(people or (cmi / "train_demographics.csv").read_text())
        return folder

    refused(
        write(head=head.replace("tof_3_v7,", "tof_3_7,")),
        "train.csv",
        "no column 'tof_3_v7'",
        "Did you mean 'tof_3_7'?",
        read=read_competition,
    )
    refused(
        write(head=head.replace("orientation", "Orientation")),
        "no column 'orientation'",
        "Did you mean 'Orientation'?",
        read=read_competition,
    )
    cells = lines[70].split(",")
    cells[9] = "1,2"
    refused(
        write(lines=[*lines[:70], ",".join(cells), *lines[71:]]),
        "train.csv",
        "line 72",
        "342 cells",
        read=read_competition,
    )
    cells[9] = "x"
    refused(
        write(lines=[*lines[:70], ",".join(cells), *lines[71:]]),
        "train.csv",
        "line 72",
        "'acc_x'",
        "'x'",
        read=lambda f: read_competition(f, cache=tmp_path / "cache"),
    )
    assert not list((tmp_path / "cache").glob("*"))
    refused(write(lines=[]), "no rows", read=lambda f: read_competition(f, cache=tmp_path / "cache"))
    who, *people = (cmi / "train_demographics.csv").read_text().splitlines()
    refused(
        write(people="\n".join([who, *people[1:]])),
        "train_demographics.csv",
        people[0].split(",")[0],
        "missing",
        read=read_competition,
    )
    refused(
        write(people="\n".join([who, *people, people[0]])), "train_demographics.csv", "twice", read=read_competition
    )
    refused(
        write(people="\n".join([who, people[0].replace(",", ",old,", 1).rsplit(",", 1)[0], *people[1:]])),
        "line 2",
        "'old'",
        read=read_competition,
    )
    (folder / "train_demographics.csv").unlink()
    assert (
        "age"
        not in read_competition(folder if write() and not (folder / "train_demographics.csv").unlink() else None).meta
    )


# ---------------------------------------------------------------- one door, and fingerprints


def test_read_table(cmi, tmp_path):
    assert len(read_table("spar")) == 1149 and len(read_table("sim:20:4")) == 20
    assert len(read_table(cmi, Settings(output_path=tmp_path))) == 150 and list(
        (tmp_path / "features").glob("train.*.parquet")
    )
    path = save(tidy(block=np.repeat([2, 0, 1], [4, 3, 5])), tmp_path / "a.csv")
    assert "block" in read_table(path, Settings(fold_column="block")).meta
    with pytest.raises(UserError, match="fold_column is 'blok'.*Did you mean 'block'"):
        read_table(path, Settings(fold_column="blok"))
    for bad in ("sim:x", "sim:0", "sim:5:-1", "sim:1:2:3"):
        with pytest.raises(UserError, match="simulated data"):
            read_table(bad)


def test_fingerprints_follow_the_bytes(tmp_path, cmi):
    path = save(tidy(), tmp_path / "a.csv")
    a = source_fingerprint(path)
    copy = tmp_path / "b.csv"
    copy.write_bytes(path.read_bytes())
    assert source_fingerprint(copy) == a and len(a) == 16 and int(a, 16) >= 0
    cache = tmp_path / "cache"
    assert source_fingerprint(path, cache) == source_fingerprint(path, cache) == a
    path.write_text(path.read_text().replace("s0", "s9"))
    assert source_fingerprint(path, cache) == source_fingerprint(path) != a
    assert len({source_fingerprint(d) for d in ("spar", "sim", "sim:499", "sim:500:1", cmi)}) == 5
    assert source_fingerprint("sim") == source_fingerprint("sim:500:0")
    (cache / "sources.json").write_text("[broken")
    assert source_fingerprint(copy, cache) == a


# ---------------------------------------------------------------- frames that arrive


def test_frames_agree():
    rng = np.random.default_rng(1)
    f = tidy(extra=list("abcdefghijkl"), thm_1=[None] * 12, tof_1_v0=rng.integers(-1, 250, 12)).iloc[
        rng.permutation(12)
    ]
    cells = {c: f[c].tolist() for c in f}
    tables = [
        from_frame(x)
        for x in (
            cells,
            {c: f[c].to_numpy() for c in f},
            f,
            pl.DataFrame(cells),
            pl.from_pandas(f),
            pa.table(cells),
            pa.Table.from_pandas(f),
            pa.RecordBatch.from_pydict(cells),
            f.astype(dict.fromkeys(ACC, "string")),
            f.convert_dtypes(),
            f.convert_dtypes(dtype_backend="pyarrow"),
        )
    ]
    for t in tables:
        assert t.names == tables[0].names == ("acc_x", "acc_y", "acc_z", "thm_1", "tof_1_v0")
        np.testing.assert_array_equal(t.values, tables[0].values)
        assert all(t.meta[k].tolist() == tables[0].meta[k].tolist() for k in ("sequence_id", "subject", "gesture"))
    ordered = f.sort_values(["sequence_id", "sequence_counter"])
    one = tables[0]
    for i, s in enumerate(one.meta["sequence_id"]):
        np.testing.assert_array_equal(
            one.channel("acc_y")[one.offsets[i] : one.offsets[i + 1]],
            ordered.acc_y[ordered.sequence_id == s].to_numpy(np.float32),
        )


def test_frames_and_files_agree(cmi):
    want = read_competition(cmi, "test")
    frame = pl.read_csv(cmi / "test.csv", infer_schema_length=1)  # the gateway's short inference
    people = pl.read_csv(cmi / "test_demographics.csv")
    assert frame.width == len(TEST_COLUMNS)
    whole = from_frame(frame, people, rate_hz=10)
    np.testing.assert_array_equal(whole.values, want.values)
    assert all(
        np.array_equal(whole.meta[k], want.meta[k])
        for k in ("sequence_id", "subject", "sample_rate_hz", *DEMOGRAPHICS[1:])
    )
    for i, s in enumerate(want.meta["sequence_id"]):
        part = frame.filter(pl.col("sequence_id") == s)
        t = from_frame(
            part.with_columns(pl.col(THM + TOF).cast(pl.String)),
            people.filter(pl.col("subject") == part["subject"][0]),
            one=True,
        )
        np.testing.assert_array_equal(t.values, want.values[:, want.offsets[i] : want.offsets[i + 1]])
        assert t.meta["handedness"] == want.meta["handedness"][i]


def test_lenient_cells():
    f = {
        "acc_x": ["1", " 2.5 ", "+3", "1e2", "abc", "", None, "inf", "-Infinity", "nan"],
        "acc_y": [np.inf, -np.inf, np.nan, 1e30, LARGEST, 1, 2, 3, 4, 5],
        "acc_z": [b"\xff"] * 10,
    }
    t = from_frame(f)
    np.testing.assert_array_equal(t.channel("acc_x"), np.float32([1, 2.5, 3, 100] + [np.nan] * 6))
    np.testing.assert_array_equal(t.channel("acc_y"), np.float32([np.nan] * 4 + [LARGEST, 1, 2, 3, 4, 5]))
    assert np.isnan(t.channel("acc_z")).all() and len(t) == 1
    t = from_frame({"acc_x": [1, 2]}, names=ACC + ROT, rate_hz=25)
    assert (
        t.values.shape == (7, 2)
        and np.isnan(t.channel("rot_w")).all()
        and t.meta["sample_rate_hz"] == 25
        and t.meta["subject"] == ""
    )
    for empty in (
        {},
        {"acc_x": []},
        pd.DataFrame(),
        pl.DataFrame(),
        pa.table({}),
        pl.DataFrame(schema={"acc_x": pl.String, "sequence_id": pl.String}),
    ):
        t = from_frame(empty)
        assert (len(t), t.rows) == (1, 1) and np.isnan(t.values).all()
    with pytest.raises(UserError, match="no frame"):
        from_frame(7)
    with pytest.raises(UserError, match="length"):
        from_frame({"acc_x": [1, 2], "acc_y": [1]})


def test_unordered_and_repeated_rows():
    f = tidy((50,))
    want = from_frame(f).values
    mixed = f.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(from_frame(mixed).values, want)
    twice = from_frame(pd.concat([f, f]))
    np.testing.assert_array_equal(twice.values, np.repeat(want, 2, axis=1))
    ids = f.assign(sequence_id=[None, "x"] * 25)
    assert len(from_frame(ids)) == 2
    np.testing.assert_array_equal(from_frame(ids, one=True).values, want)


# ---------------------------------------------------------------- fuzz

CELL = st.one_of(
    st.none(),
    st.floats(width=32),
    st.integers(-(10**20), 10**20),
    st.booleans(),
    st.text(max_size=6),
    st.binary(max_size=4),
    st.sampled_from(["", "nan", "inf", "-1", "1e999", "0x1F", "1,5", " 3 ", "٣", "\ud800"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
COLUMN = st.one_of(
    st.floats(),
    st.floats(width=32),
    st.integers(-300, 300),
    st.text(max_size=5),
    st.none(),
    CELL,
    st.datetimes(),
    st.decimals(allow_nan=True),
)


@fuzz
@given(st.data())
def test_fuzz_from_frame(data):
    rows = data.draw(st.integers(0, 6))
    names = data.draw(
        st.lists(
            st.sampled_from(
                [
                    *ACC,
                    *ROT,
                    "thm_1",
                    "tof_1_v0",
                    "sequence_id",
                    "subject",
                    "sequence_counter",
                    "gesture",
                    "sample_rate_hz",
                    "t",
                    "note",
                ]
            ),
            unique=True,
            max_size=8,
        )
    )
    cells = {
        n: data.draw(
            st.lists(
                data.draw(
                    st.sampled_from([st.floats(), st.integers(-9, 300), st.text(max_size=5), st.none(), CELL, COLUMN])
                ),
                min_size=rows,
                max_size=rows,
            )
        )
        for n in names
    }
    person = data.draw(
        st.one_of(st.none(), st.dictionaries(st.sampled_from(DEMOGRAPHICS), st.lists(CELL, min_size=1, max_size=1)))
    )
    frames = [cells, pd.DataFrame(cells, dtype=object)]
    plain = {n: [v if isinstance(v, (int, float, str)) else None for v in c] for n, c in cells.items()}
    try:
        frames.append(pl.DataFrame(plain, strict=False))
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):  # polars refuses some mixtures
        pass
    for f in frames:
        t = from_frame(f, person, one=data.draw(st.booleans()))
        assert (
            t.values.dtype == np.float32
            and t.values.shape == (len(t.names), t.rows)
            and t.rows == max(rows if set(names) - {"note"} else 0, 1)
        )
        assert not np.isinf(t.values).any() and (t.lengths > 0).all() and all(len(v) == len(t) for v in t.meta.values())
        assert t.meta["subject"].dtype.kind == "U" and not np.isinf(t.meta["sample_rate_hz"]).any()


GOOD = tidy((3, 2)).to_csv(index=False)
SPOIL = st.one_of(
    st.tuples(st.just("insert"), st.integers(0, 400), st.text(string.printable + "é\ud7ff\x00", max_size=4)),
    st.tuples(st.just("delete"), st.integers(0, 400), st.integers(1, 60)),
    st.tuples(st.just("swap"), st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.just("repeat"), st.integers(0, 6), st.integers(0, 6)),
    st.tuples(
        st.just("cell"),
        st.integers(0, 40),
        st.sampled_from(["", "x", "inf", "-1", "1e9", '"', "0.5", "s0", "é", "NaN", ",", "\n"]),
    ),
    st.tuples(st.just("flip"), st.integers(0, 400), st.integers(1, 255)),
)


def spoilt(raw: bytes, how, a, b) -> bytes:
    "`raw` with one thing wrong."
    if how in ("swap", "repeat"):
        lines = raw.split(b"\n")
        a, b = a % len(lines), b % len(lines)
        if how == "swap":
            lines[a], lines[b] = lines[b], lines[a]
        else:
            lines.insert(a, lines[b])
        return b"\n".join(lines)
    if how == "cell":
        cells = raw.split(b",")
        cells[a % len(cells)] = b.encode()
        return b",".join(cells)
    a = a % max(len(raw), 1)
    if how == "insert":
        return raw[:a] + b.encode("utf-8", "surrogatepass") + raw[a:]
    if how == "delete":
        return raw[:a] + raw[a + b :]
    return raw[:a] + bytes([raw[a] ^ b]) + raw[a + 1 :] if raw else raw


def read_or_refuse(path):
    "The reader returns a sound table, or refuses with one sentence that names the file."
    try:
        t = read_tidy(path)
    except UserError as e:
        text = str(e)
        assert path.name in text and text[-1] in ".?" and len(text) < 1000, text
        return
    assert (
        t.rows > 0
        and (t.lengths > 0).all()
        and t.values.shape == (len(t.names), t.rows)
        and not np.isinf(t.values).any()
    )
    assert len(set(t.meta["sequence_id"].tolist())) == len(t) and all(len(v) == len(t) for v in t.meta.values())


@fuzz
@given(st.lists(SPOIL, min_size=1, max_size=3))
def test_fuzz_csv(tmp_path_factory, faults):
    path, raw = tmp_path_factory.getbasetemp() / "fuzz.csv", GOOD.encode()
    for fault in faults:
        raw = spoilt(raw, *fault)
    path.write_bytes(raw)
    read_or_refuse(path)


@pytest.fixture(scope="module")
def good_parquet(tmp_path_factory):
    return save(tidy((30, 20)), tmp_path_factory.mktemp("p") / "a.parquet").read_bytes()


@fuzz
@given(st.data())
def test_fuzz_parquet_bytes(tmp_path_factory, good_parquet, data):
    path, raw = tmp_path_factory.getbasetemp() / "fuzz.parquet", good_parquet
    for _ in range(data.draw(st.integers(1, 3))):
        raw = spoilt(
            raw,
            data.draw(st.sampled_from(["flip", "delete"])),
            data.draw(st.integers(0, len(good_parquet))),
            data.draw(st.integers(1, 255)),
        )
    path.write_bytes(raw)
    read_or_refuse(path)


@fuzz
@given(st.data())
def test_fuzz_parquet_columns(tmp_path_factory, data):
    rows, f = 5, pa.Table.from_pandas(tidy((3, 2)))
    for name in data.draw(
        st.lists(
            st.sampled_from(
                [
                    "sequence_id",
                    "subject",
                    "gesture",
                    "sequence_counter",
                    "acc_x",
                    "acc_y",
                    "t",
                    "fold",
                    "sample_rate_hz",
                    "phase",
                    "behavior",
                    "note",
                ]
            ),
            min_size=1,
            max_size=3,
            unique=True,
        )
    ):
        kind = data.draw(
            st.sampled_from(
                [
                    st.floats(),
                    st.integers(-2, 2),
                    st.text(max_size=3),
                    st.none(),
                    st.booleans(),
                    st.datetimes(),
                    st.binary(max_size=2),
                    st.lists(st.integers(0, 1), max_size=2),
                    st.sampled_from(["1", "2", None]),
                ]
            )
        )
        try:
            cells = pa.array(data.draw(st.lists(st.one_of(kind, st.none()), min_size=rows, max_size=rows)))
        except (pa.ArrowException, UnicodeEncodeError):
            continue
        f = f.drop_columns([name]) if name in f.column_names else f
        f = f.append_column(name, cells)
    path = tmp_path_factory.getbasetemp() / "columns.parquet"
    pq.write_table(f, path)
    read_or_refuse(path)
