"""The explorer's page: what is packed is what was recorded, predictions come from the run, and limits are said."""

import base64
import json
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT

import gesture_nb as gn
from gesture_nb.config import UserError
from gesture_nb.data.sequences import table_from_arrays, take, with_meta
from gesture_nb.data.simulate import simulate
from gesture_nb.explorer import page as page_module
from gesture_nb.explorer.alike import nearest, standardised
from gesture_nb.explorer.overview import overview_of, pixels_of
from gesture_nb.explorer.page import MAX_CLASSES, listed, make_page, top_classes, wanted_order
from gesture_nb.explorer.recordings import ADAPTED, Explored, Predictions, explored, of_recordings, of_run
from gesture_nb.explorer.signals import (
    ABSENT,
    FAR,
    MAX_FRAMES,
    MAX_POINTS,
    devices_of,
    grid_bytes,
    grids_of,
    pack,
    packed_pieces,
    rounded,
    stride,
    track_values,
    tracks_of,
)
from gesture_nb.progress import Reporter
from gesture_nb.training.results import read_oof

pytest.importorskip("plotly", reason="plotly, with which the explorer draws, is not installed")

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "يد على الخد", "頬をつまむ & <b>x</b>")
TYPES = {"u1": "u1", "u2": "<u2", "i2": "<i2", "u4": "<u4", "i4": "<i4", "f4": "<f4"}


@pytest.fixture(scope="module")
def table():
    return simulate(40, seed=5)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explore") / "run"
    return gn.train(toy, folder, members="lgbm", folds=2, boosting_rounds=3, progress="lines")


def invented(table, classes=HOSTILE, seed=0):
    """Labels and predictions for a table, without a training."""
    rng = np.random.default_rng(seed)
    y = rng.integers(len(classes), size=len(table))
    probs = rng.dirichlet(np.ones(len(classes)), size=(3, len(table))).astype(np.float32)
    named = with_meta(table, gesture=np.array(classes)[y])
    predictions = Predictions(
        probs[0].argmax(1), y * 0, {"ensemble": probs[0], "lgbm": probs[1], "torch": probs[2]}
    )
    return Explored("made up", named, tuple(classes), y.astype(np.int64), predictions, "Made up.")


def page_of(found, **how):
    with Reporter(sinks=[]) as reporter:
        return make_page(found, reporter, **how)


def content(html):
    """The data that a page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def array(column):
    return np.frombuffer(base64.b64decode(column["data"]), TYPES[column["type"]])


def unpack(piece, lines, devices, rows):
    """The rounded lines and the cells of a piece, as `page.js` reads it."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(piece)), np.uint8)
    n, frames = -(-rows // stride(rows, MAX_POINTS)), -(-rows // stride(rows, MAX_FRAMES))
    low, high = raw[: 2 * lines * n].reshape(2, lines, n).astype(np.uint16)
    values = np.cumsum((low | high << 8).astype(np.uint16), axis=1, dtype=np.uint16).view(np.int16)
    cells = np.cumsum(raw[2 * lines * n :].reshape(devices, 64, frames), axis=2, dtype=np.uint8)
    return values, cells


# ---------------------------------------------------------------- signals


def test_what_is_packed_comes_out_again(table):
    tracks, grids = tracks_of(table), grids_of(table)
    lines = sum(len(track.names) for track in tracks)
    values, cells = rounded(track_values(table, tracks), tracks), grid_bytes(table, grids)
    pieces = packed_pieces(table, np.arange(len(table)), 1e9)
    assert len(pieces) == len(table)
    for i, piece in enumerate(pieces):
        start, stop = table.offsets[i : i + 2]
        n = int(stop - start)
        found, found_cells = unpack(piece, lines, len(grids.devices), n)
        np.testing.assert_array_equal(found, values[:, start : stop : stride(n, MAX_POINTS)])
        np.testing.assert_array_equal(found_cells, cells[:, :, start : stop : stride(n, MAX_FRAMES)])


def test_signals_are_rounded_by_no_more_than_half_a_step(table):
    tracks = [track for track in tracks_of(table) if track.key == "acc"]
    kept = rounded(track_values(table, tracks), tracks) * tracks[0].step
    recorded = table.channels(("acc_x", "acc_y", "acc_z"))
    assert np.abs(kept - recorded).max() <= tracks[0].step * 0.51


def test_a_long_recording_keeps_every_kth_row():
    assert stride(MAX_POINTS, MAX_POINTS) == 1 and stride(MAX_POINTS + 1, MAX_POINTS) == 2
    x = np.arange(9000.0)
    long = table_from_arrays([np.stack([x, x, x])], ("acc_x", "acc_y", "acc_z"), rate_hz=50)
    tracks = [track for track in tracks_of(long) if track.key == "acc"]
    piece = pack(rounded(track_values(long, tracks) / 100, tracks), np.zeros((0, 64, 9000), np.uint8))
    found, _ = unpack(base64.b64encode(piece), 3, 0, 9000)
    assert found.shape[1] <= MAX_POINTS
    np.testing.assert_array_equal(found[0], np.arange(0, 9000, stride(9000, MAX_POINTS)))


def test_far_and_absent_are_told_apart(table):
    values = table.values.copy()
    first, second, third = (table.names.index(f"tof_1_v{cell}") for cell in (0, 1, 2))
    values[first], values[second], values[third] = -1, np.nan, 17
    cells = grid_bytes(replace(table, values=values), grids_of(table))[0]
    assert set(cells[0]) == {FAR} and set(cells[1]) == {ABSENT} and set(cells[2]) == {17}


def test_what_is_not_known_is_a_gap():
    acc = np.tile(np.array([[0.0], [0.0], [9.8]]), 30)
    holes = acc.copy()
    holes[:, 10:] = np.nan
    two = table_from_arrays([holes, acc * np.nan], ("acc_x", "acc_y", "acc_z"), rate_hz=10)
    values = dict(zip([track.key for track in tracks_of(two)], np.split(track_values(two, tracks_of(two)), [3, 6, 9])))
    assert np.isnan(values["acc"][:, 10:]).all() and np.isnan(values["lin"][:, 30:]).all()
    assert np.isfinite(values["acc"][:, :10]).all() and np.isfinite(values["lin"][:, :30]).all()


def test_missing_devices_are_found(table):
    values = table.values.copy()
    rows = slice(table.offsets[3], table.offsets[4])
    values[table.names.index("thm_2"), rows] = 3.0  # below what a living thermopile reads
    values[[name.startswith("tof_5") for name in table.names], rows] = np.nan
    devices = devices_of(replace(table, values=values))
    missing = {name for name, here in zip(devices.names, devices.missing[3]) if here}
    assert {"thm_2", "tof_5"} <= missing and "acc" not in missing


# ---------------------------------------------------------------- look-alikes


def test_the_nearest_is_the_twin_and_never_itself():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 600)).astype(np.float32)
    x[1::2] = x[::2] + 0.01 * rng.normal(size=(100, 600))
    x[:, 5], x[7, 9] = 4.0, np.nan
    z = standardised(x)
    assert np.isfinite(z).all()
    alike = nearest(z, block=64)
    np.testing.assert_array_equal(alike.index[:, 0], np.arange(200) ^ 1)
    assert (alike.index != np.arange(200)[:, None]).all() and (np.diff(alike.distance, axis=1) >= 0).all()


@pytest.mark.parametrize("n, k", [(1, 0), (2, 1), (4, 3)])
def test_few_sequences_have_few_look_alikes(n, k):
    assert nearest(standardised(np.random.default_rng(0).normal(size=(n, 3)))).index.shape == (n, k)


# ---------------------------------------------------------------- runs and recordings


def test_a_run_is_read_without_its_models(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "members")
    found = of_run(tmp_path / "run")
    frame = run.predictions()
    assert list(found.predictions.probs) == ["ensemble", "lgbm", "all at once"]
    np.testing.assert_array_equal(found.predictions.probs["all at once"], read_oof(run.folder)[ADAPTED])
    assert [found.classes[k] for k in found.predictions.labels] == frame["pred"].tolist()
    given = [frame[f"p_{label}"][i] for i, label in enumerate(frame["gesture"])]
    np.testing.assert_allclose(found.loss, -np.log(given), rtol=1e-5)


def test_a_run_its_folder_and_its_text_are_the_same(run):
    titles = {explored(source).title for source in (run, run.folder, str(run.folder))}
    assert titles == {str(run.folder)}


def test_other_recordings_are_refused(run, toy, tmp_path):
    import pandas as pd

    other = pd.read_parquet(toy)
    other["subject"] = "z" + other["subject"]
    other.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="differ in subject"):
        gn.explore(run, tmp_path / "other.parquet")
    other = pd.read_parquet(toy)
    other.loc[0, "acc_x"] += 1
    other.to_parquet(tmp_path / "changed.parquet")
    with pytest.raises(UserError, match="has changed since the run"):
        gn.explore(run, tmp_path / "changed.parquet")
    with pytest.raises(UserError, match="no finished run, so data= must be left out"):
        gn.explore("spar", data="spar")


def test_recordings_that_are_gone_can_be_named(toy, tmp_path):
    moved = tmp_path / "moved.parquet"
    shutil.copy(toy, tmp_path / "here.parquet")
    run = gn.train(tmp_path / "here.parquet", tmp_path / "run", members="lgbm", folds=2, boosting_rounds=2,
                   progress="lines")
    (tmp_path / "here.parquet").rename(moved)
    with pytest.raises(UserError, match="cannot be read: There is no data .* Name them: .*--data DATA"):
        of_run(run.folder)
    assert len(of_run(run.folder, moved).table) == 60


def test_recordings_alone_have_classes_and_no_loss(table):
    found = of_recordings(table, "t")
    assert found.predictions is None and np.isnan(found.loss).all()
    assert [found.classes[k] for k in found.y] == table.meta["gesture"].tolist()


def test_recordings_without_labels_are_shown(table):
    bare = replace(table, meta={k: v for k, v in table.meta.items() if k not in ("gesture", "orientation")})
    data = content(page_of(explored(bare)).html)
    assert data["classes"] == [] and data["members"] == [] and data["orientations"] == []
    assert set(array(data["columns"]["y"])) == {-1} and data["overview"]["magnitude"][0]["name"] == "all recordings"


# ---------------------------------------------------------------- the page


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_labels_are_text_whatever_they_hold(table):
    found = replace(invented(table), title="<script>alert(3)</script>")
    html = page_of(found).html
    tags = Tags()
    tags.feed(html)
    assert [tag for tag, _ in tags.found].count("script") == 4
    assert not {"img", "b", "iframe", "link"} & {tag for tag, _ in tags.found}
    assert not [value for _, attrs in tags.found for name, value in attrs.items() if name in ("src", "href")]
    assert content(html)["classes"] == list(HOSTILE)


def test_hidden_letters_are_seen(table):
    data = content(page_of(invented(table, ("a\u202eb", "c\nd"))).html)
    assert data["classes"] == ["a\\u202eb", "c\\nd"]


def test_columns_hold_what_the_table_shows(table):
    found = invented(table)
    data = content(page_of(found).html)
    columns = {name: array(column) for name, column in data["columns"].items()}
    np.testing.assert_array_equal(columns["y"], found.y)
    np.testing.assert_array_equal(columns["pred"], found.predictions.labels)
    np.testing.assert_allclose(columns["loss"], found.loss, rtol=1e-6)
    np.testing.assert_array_equal(columns["start"], table.meta["gesture_start"])
    assert [data["people"][k] for k in columns["person"]] == table.meta["subject"].tolist()
    assert [data["orientations"][k] for k in columns["orientation"]] == table.meta["orientation"].tolist()
    assert sorted(columns["piece"]) == list(range(len(table))) and data["ids"] == table.meta["sequence_id"].tolist()


def test_probabilities_on_the_page_are_those_of_the_run(table):
    found = invented(table, tuple(f"class {k:02d}" for k in range(25)))
    data = content(page_of(found).html)
    k, n = data["top"]["k"], len(table)
    classes = array(data["top"]["classes"]).reshape(n, k)
    probs = array(data["top"]["probs"]).reshape(3, n, k) / 65534
    assert k == MAX_CLASSES and (classes == found.y[:, None]).any(axis=1).all()
    for m, values in enumerate(found.predictions.probs.values()):
        np.testing.assert_allclose(probs[m], np.take_along_axis(values, classes.astype(int), 1), atol=1e-4)


def test_sequences_that_were_not_predicted_have_no_probabilities(table):
    found = invented(table)
    probs = {name: values.copy() for name, values in found.predictions.probs.items()}
    for values in probs.values():
        values[4] = np.nan
    labels = found.predictions.labels.copy()
    labels[4] = -1
    gap = replace(found, predictions=found.predictions._replace(labels=labels, probs=probs))
    assert np.isnan(gap.loss[4]) and np.isfinite(np.delete(gap.loss, 4)).all()
    assert np.isnan(top_classes(gap.predictions, gap.y).probs[:, 4]).all()
    data = content(page_of(gap).html)
    shares = array(data["top"]["probs"]).reshape(3, len(table), -1)
    assert (shares[:, 4] == 65535).all() and (np.delete(shares, 4, axis=1) < 65535).all()


def test_a_full_page_says_what_it_left_out(table):
    found = invented(table)
    page = page_of(found, megabytes=0.1)
    data = content(page.html)
    piece = array(data["columns"]["piece"])
    assert 0 < page.embedded < page.sequences == len(table)
    assert piece[np.argmax(found.loss)] == 0
    assert sorted(piece[piece >= 0]) == list(range(page.embedded))
    assert any(f"signals of {page.embedded} of {len(table)} sequences" in line for line in data["limits"])
    assert not any("sequences are on this page" in line for line in content(page_of(found).html)["limits"])


def test_more_sequences_than_a_page_lists(table, monkeypatch):
    found = invented(table)
    few = listed(found, 10)
    assert len(few.table) == len(few.y) == len(few.predictions.labels) == 10 and found.loss.max() in few.loss
    monkeypatch.setattr(page_module.listed, "__defaults__", (10,))
    data = content(page_of(found).html)
    assert data["n"] == 10 and sum(group["n"] for group in data["overview"]["classes"]) == len(table)
    assert any("Listed are 10 of 40 sequences" in line for line in data["limits"])


def test_the_order_of_embedding_takes_the_worst_and_any():
    order = wanted_order(np.array([0.1, np.nan, 5.0, 2.0]))
    assert sorted(order) == [0, 1, 2, 3] and order[0] == 2
    assert sorted(wanted_order(np.full(7, np.nan))) == list(range(7))


def test_the_overview_counts(table):
    found = invented(table)
    overview = overview_of(found, devices_of(table))
    right = found.predictions.labels == found.y
    assert {g["name"]: (g["n"], g["right"]) for g in overview["classes"]} == {
        name: (int((found.y == k).sum()), int(right[found.y == k].sum())) for k, name in enumerate(HOSTILE)
    }
    assert sum(g["right"] for g in overview["people"]) == right.sum()
    far = pixels_of(table)[1]["far"][63]
    assert far == pytest.approx((table.channel("tof_2_v63") == -1).mean(), abs=1e-4)


@pytest.mark.parametrize(
    "channels",
    [
        ("acc_x", "acc_y", "acc_z"),
        ("gyr_x", "gyr_y", "gyr_z"),
        ("thm_1",),
        tuple(f"tof_3_v{cell}" for cell in range(64)),
    ],
    ids=("acc", "gyr", "thm", "tof"),
)
def test_any_sensor_alone_makes_a_page(channels):
    rng = np.random.default_rng(0)
    x = [rng.normal(25, 1, size=(len(channels), n)) for n in (1, 30, 900)]
    page = page_of(of_recordings(table_from_arrays(x, channels, gesture=["a", "b", "a"], rate_hz=10), "few"))
    assert page.embedded == 3


def test_without_plotly_a_sentence_says_how_to_get_it(table, monkeypatch):
    page_module.plotly_script.cache_clear()
    monkeypatch.setattr(page_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'plotly"):
        page_of(of_recordings(table, "t"))


# ---------------------------------------------------------------- notebook and command


def test_a_notebook_shows_the_page_in_a_frame(table):
    shown = gn.explore(take(table, np.arange(5)), height=700)
    bundle = shown._repr_mimebundle_()
    tags = Tags()
    tags.feed(bundle["text/html"])
    (tag, attributes), = tags.found
    assert tag == "iframe" and attributes["height"] == "700" and content(attributes["srcdoc"])["n"] == 5
    assert bundle["text/plain"] == "Explorer of the recordings recordings: 5 sequences"


def test_saving_refuses_what_is_no_page(table, tmp_path):
    shown = gn.explore(take(table, [0, 1]))
    assert content(shown.save(tmp_path / "new" / "page.html").read_text(encoding="utf-8"))["n"] == 2
    with pytest.raises(UserError, match="must end in .html"):
        shown.save(tmp_path / "page.txt")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        shown.save(tmp_path / "folder.html")
    for value in (0, "much", float("nan"), 1e6):
        with pytest.raises(UserError, match="megabytes is"):
            gn.explore(table, megabytes=value)


def test_the_command_writes_a_page(run, tmp_path, program):
    done = program("explore", "--out", run.folder, "--to", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert content((tmp_path / "page.html").read_text(encoding="utf-8"))["members"][:2] == ["ensemble", "lgbm"]
    done = program("explore", "--data", "sim:3", "--to", tmp_path / "sim.html", cwd=tmp_path, PYTHONPATH=ROOT)
    assert done.returncode == 0, done.stderr
    assert content((tmp_path / "sim.html").read_text(encoding="utf-8"))["n"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "sim.html"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--out", "nowhere", "--to", "page.html"], "no finished run"),
        (["--data", "sim:3", "--to", "page.txt"], "must end in .html"),
        (["--data", "sim:3", "--to", "page.html", "--epochs", "3"], "does not read --epochs"),
        (["--data", "sim:3"], "--to"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["explore", *arguments]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_learning_library_is_loaded(run):
    code = (
        f"import sys, gesture_nb as gn; gn.explore({str(run.folder)!r})._repr_html_();"
        "print({'torch', 'lightgbm', 'tensorflow', 'plotly'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "set()", done.stderr
