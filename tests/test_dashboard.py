"""A run is drawn again from its log, whatever happened to it; it can be followed; a person can pick a sequence."""
import itertools
import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from test_progress import run_cells

from gesture_nb.config import Settings, with_settings
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.errors import UserError
from gesture_nb.progress import Reporter
from gesture_nb.remaining import Remaining
from gesture_nb.report.dashboard import PickerWidgets, Watch, bars_after, pick, replay
from gesture_nb.report.run_log import LogReader, learning_curves, longest_silence
from gesture_nb.show import canvas
from gesture_nb.story import Best, Story, card, charts, status

@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("PROGRESS", raising=False)


def small_run(folder, epochs=3, fail=False, start=1):
    with Reporter(with_settings(Settings(), progress="lines"), folder) as r:
        r.plan(2)
        with r.task("Frame features", total=400) as t:
            t.advance(400)
        with r.training("Torch", fold=1, epochs=4, steps=5) as t:
            for epoch in range(start, epochs + 1):
                t.start_epoch(epoch)
                for _ in range(5):
                    t.step(1 / epoch, 1e-3)
                t.end_epoch(check_loss=2 / epoch)
            if fail:
                raise RuntimeError("diverged")
        r.unit_done("Torch fold 1")


def log_of(folder):
    return folder / "logs" / "run.jsonl"


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    small_run(folder)
    return log_of(folder).read_text()


def test_a_run_is_drawn_again(tmp_path, capsys):
    small_run(tmp_path)
    capsys.readouterr()
    r = replay(tmp_path)
    assert "Frame features  400/400" in str(r) and "loss 0.3333 check_loss 0.6667" in str(r)
    assert r._repr_png_().startswith(b"\x89PNG") and capsys.readouterr() == ("", "")
    loss, check_loss = ([(1, a), (2, a / 2), (3, pytest.approx(a / 3))] for a in (1.0, 2.0))
    assert learning_curves(r.events) == {"Torch": {1: {"loss": loss, "check_loss": check_loss}}}


def test_a_resumed_run_is_one_curve(tmp_path):
    with pytest.raises(RuntimeError):
        small_run(tmp_path, epochs=3, fail=True)
    small_run(tmp_path, epochs=4, start=3)
    r = replay(tmp_path)
    assert [x for x, _ in learning_curves(r.events)["Torch"][1]["loss"]] == [1, 2, 3, 4]
    assert "failed" in str(r) and "RuntimeError: diverged" in str(r)


def test_a_run_that_was_killed_is_unfinished(tmp_path):
    small_run(tmp_path)
    kept = log_of(tmp_path).read_text().splitlines()
    end = next(i for i, line in enumerate(kept) if '"training_end"' in line)
    log_of(tmp_path).write_text("\n".join(kept[:end]) + '\n{"kind": "tr')
    r = replay(tmp_path)
    assert r.bad[0].number == end + 1
    assert "unfinished" in str(r) and f"Line {end + 1} of logs/run.jsonl was left out" in str(r)
    assert r.figure() is not None


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_named_or_harmless(tmp_path, seed):
    small_run(tmp_path)
    good, rng = log_of(tmp_path).read_bytes(), random.Random(seed)
    for _ in range(250):
        raw = bytearray(good)
        raw[rng.randrange(len(raw))] = rng.randrange(256)
        log_of(tmp_path).write_bytes(raw)
        r = replay(tmp_path)
        text = str(r)
        assert all(f"Line {n} of logs/run.jsonl" in text for n, _ in r.bad)
        bars, story, remaining = {}, Story(), Remaining()
        for e in r.events:
            bars = bars_after(bars, e)
            story.hear(e)
            remaining.hear(e)
        assert status(story) is not None and remaining.seconds(1e9) != 0
    assert charts(story) and card(story, False)
    r.figure()


FIELDS = ("time", "t", "pid", "kind", "fold", "epoch", "epochs", "step", "steps", "loss", "lr", "label", "title",
          "total", "units", "done", "rate", "unit", "text")


@pytest.mark.parametrize("value", [None, "x", "nan", [], {}, True, 1e999, -1])
def test_a_field_of_another_type_is_named_or_harmless(tmp_path, value, whole_log):
    events = [json.loads(s) for s in whole_log.splitlines()]
    log_of(tmp_path).parent.mkdir()
    for field in FIELDS:
        changed = [json.dumps(e | ({field: value} if field in e else {})) for e in events]
        log_of(tmp_path).write_text("\n".join([*changed, json.dumps(events[0])]))
        r = replay(tmp_path)
        assert str(r)
        if field in ("time", "fold", "epoch", "loss", "total"):
            assert r.figure()
        story, remaining = Story(), Remaining()
        for e in r.events:
            assert all(isinstance(n, (int, float)) for _, n, _, _ in bars_after({}, e).values())
            story.hear(e)
            remaining.hear(e)
        charts(story), status(story), card(story, False), remaining.seconds(2e9)


def test_a_run_that_is_not_finished_can_be_watched_and_nothing_else(tmp_path):
    from gesture_nb.api import Run
    small_run(tmp_path)
    run = Run(tmp_path)
    assert "Frame features" in str(run.watch()) and "not finished" in repr(run) and "not finished" in run._repr_html_()
    for name in ("metrics", "config", "classes"):
        with pytest.raises(UserError, match="holds no finished run"):
            getattr(run, name)
    with pytest.raises(UserError, match="holds no finished run"):
        Run(tmp_path / "other")


def test_without_a_log_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no event in .*run.jsonl.*SAVE_JSONL=1"):
        replay(tmp_path)
    log_of(tmp_path).parent.mkdir()
    log_of(tmp_path).write_text("\x00\n[]\n")
    with pytest.raises(UserError, match="no event"):
        replay(tmp_path)


def test_a_growing_log_is_read_once_and_in_whole_lines(tmp_path):
    path = tmp_path / "run.jsonl"
    reader = LogReader(path)
    assert reader.new_events() == []
    line = json.dumps({"kind": "say", "time": 1.0, "t": 0.0, "pid": 1}).encode()
    path.write_bytes(line + b"\n" + line[:9])
    assert len(reader.new_events()) == 1 and reader.new_events() == []
    with open(path, "ab") as f:
        f.write(line[9:] + b"\nbroken\n")
    assert len(reader.new_events()) == 1 and [n for n, _ in reader.bad] == [3]
    path.write_bytes(line + b"\n")  # started again
    assert len(reader.new_events()) == 1


def test_silence_is_measured_between_lines_of_an_open_reporter():
    def e(kind, t, pid=1, **more):
        return {"kind": kind, "t": t, "time": t, "pid": pid} | more
    events = [e("open", 0), e("say", 1, text="a"), e("step", 5), e("say", 8, text="b"),
              e("say", 9, pid=2, text="other"), e("close", 9), e("open", 100), e("say", 101, text="c"), e("close", 102)]
    assert longest_silence(events) == 7


def test_watch_follows_until_the_end(tmp_path, capsys):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from gesture_nb.progress import Reporter
with Reporter(folder={str(tmp_path)!r}) as r, r.training('Torch', 1, 1, 50) as t:
    t.start_epoch(1)
    sys.stdin.readline()
    for _ in range(50): t.step(0.5, 1e-3)
"""
    p = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    w = Watch(tmp_path, seconds=0.02, show=lambda box: None)
    assert w.thread.is_alive()
    p.communicate("\n", timeout=60)
    w.thread.join(30)
    assert not w.thread.is_alive() and w.error is None and w.bars["fold"][:3] == ("Torch fold 1", 50, 50)
    assert w.line.value.endswith("The run has ended.") and w.button.disabled
    panel, *_, card = w.box.children
    assert [c.children[0].value for c in panel.children[0].children][1] == 50
    assert "loss 0.5000" in panel.children[1].value and "<polyline" in panel.children[2].value


def test_watch_shows_a_finished_log_with_its_forecast_and_its_scores(tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<p>")
    rows = [{"member": "ensemble <b>", "metric": "macro F1", "value": 0.5, "low": 0.4, "high": 0.61}]
    with Reporter(with_settings(Settings(), progress="lines"), tmp_path) as r:
        r.plan(2, {"Torch fold 1": 5.0, "Torch fold 2": 5.0}, after=3)
        r.unit_done("Torch fold 1")
        r.event("scores", rows=rows, report=str(report))
    w = Watch(tmp_path, seconds=0.02, show=lambda box: None)
    w.thread.join(30)
    card = w.box.children[-1].value
    assert w.error is None and "0.500" in card and "0.400 – 0.610" in card and "report.html" in card
    assert "ensemble &lt;b&gt;" in card and w.remaining.seconds(0) is None


def test_watch_has_a_bar_for_each_unit_that_is_at_work(tmp_path):
    times = itertools.count()
    def event(kind, pid=1, **fields):
        return {"kind": kind, "pid": pid, "time": 1e9 + next(times), "t": 0.0} | fields
    def step(fold, k):
        done = {"epochs": 2, "steps": 4, "epoch": 2, "step": k, "loss": 0.5, "lr": 1e-3}
        return event("step", pid=100 + fold, label="Torch", fold=fold, **done)
    events = [event("open"), event("plan", units=3), event("unit_start"), event("unit_start"), step(2, 1), step(1, 3),
              step(1, 4), event("unit", label="torch fold 2", done=1, units=3, trained=True), event("unit_start"),
              step(3, 2), event("close", failed=False)]
    log_of(tmp_path).parent.mkdir()
    log_of(tmp_path).write_text("".join(json.dumps(e) + "\n" for e in events))
    w = Watch(tmp_path, seconds=0.02, show=lambda box: None)
    w.thread.join(30)
    assert w.error is None and {row: bar[:3] for row, bar in w.bars.items()} == {
        "overall": ("overall", 1, 3), "unit 1": ("Torch fold 3", 6, 8), "unit 2": ("Torch fold 1", 8, 8)}


def test_bars_name_the_unit_unless_their_title_does():
    from gesture_nb.report.dashboard import unit_bar

    def label(title, of): return unit_bar(None, {"kind": "task", "title": title, "total": 3, "of": of}).label

    assert label("Processing pass", "torch fold 1") == "torch fold 1: Processing pass"
    assert label("LightGBM fold 1", "lgbm fold 1") == "LightGBM fold 1"
    assert label("LightGBM fold 1", "lgbm-trial3 fold 1") == "lgbm-trial3 fold 1: LightGBM fold 1"
    assert unit_bar(None, {"kind": "task", "title": "Reading", "total": 3}).label == "Reading"


def test_a_failed_unit_is_no_longer_at_work():
    from gesture_nb.remaining import Remaining
    from gesture_nb.report.dashboard import UnitRows

    rows, remaining = UnitRows(), Remaining()
    for event in ({"kind": "plan", "units": 2, "expected": {"a fold 1": 5.0, "b fold 1": 5.0}, "after": 0.0},
                  {"kind": "unit_start", "label": "a fold 1"}, {"kind": "unit_start", "label": "b fold 1"},
                  {"kind": "unit_failed", "label": "a fold 1", "message": "no"}):
        rows.row(event | {"pid": 1, "time": 1.0})
        remaining.hear(event | {"pid": 1, "time": 1.0})
    assert rows.at_work == 1 and list(remaining.running) == ["b fold 1"]


def test_a_log_without_its_end_shows_the_time_that_remains(tmp_path):
    with Reporter(with_settings(Settings(), progress="lines"), tmp_path) as r:
        r.plan(2, {"Torch fold 1": 500.0, "Torch fold 2": 500.0})
    kept = [line for line in log_of(tmp_path).read_text().splitlines() if '"close"' not in line]
    log_of(tmp_path).write_text("\n".join(kept) + "\n")
    w = Watch(tmp_path, seconds=0.02, show=lambda box: None)
    end = time.monotonic() + 20
    while not w.bars and time.monotonic() < end:
        time.sleep(0.02)
    assert w._shown()["overall"].note.startswith("ETA 16.")
    w.stop()


def test_a_story_thins_its_curves_and_keeps_their_ends():
    story = Story()
    for step in range(1, 2001):
        story.hear({"kind": "step", "label": "LightGBM", "fold": 1, "epoch": 1, "epochs": 1, "step": step,
                    "steps": 2000, "loss": 1 / step})
    points = story.curves["LightGBM"][1]["loss"].points
    assert points[0] == (1, 1.0) and points[-1] == (2000, 1 / 2000) and len(points) <= 240
    assert story.best["LightGBM"].value == 1 / 2000 and story.units["LightGBM"] == "round"


def test_a_story_prefers_what_was_checked_and_forgets_steps_of_a_whole_epoch():
    story = Story()
    def event(kind, **more):
        return {"kind": kind, "label": "T", "fold": 2, "epochs": 9, "steps": 10} | more
    story.hear(event("step", epoch=1, step=5, loss=2.0))
    assert story.curves["T"][2]["now"].points == [(0.5, 2.0)] and story.best == {}
    story.hear(event("epoch", epoch=1, loss=1.5, check_loss=1.9, fit_loss=1.2))
    story.hear(event("epoch", epoch=2, loss=1.0, check_loss=2.1))
    story.hear(event("epoch", epoch=3, loss="nan"))
    series = story.curves["T"][2]
    assert set(series) == {"loss", "check_loss", "fit_loss"} and len(series["loss"].points) == 2
    assert story.best["T"] == Best("check_loss", 1.9, "fold 2, epoch 1")
    drawn = charts(story)
    assert "stroke-dasharray" in drawn and "dashed: " in drawn and "thin: " in drawn and "nan" not in drawn


@pytest.mark.parametrize("label, unit", [("LightGBM", "round"), ("Torch", "epoch 1/1")])
def test_boosting_counts_rounds(tmp_path, label, unit):
    with Reporter(with_settings(Settings(), progress="lines"), tmp_path) as r, r.training(label, 1, 1, 5) as t:
        t.start_epoch(1)
        for _ in range(5):
            t.step(0.5, 1e-3)
    bars = {}
    for e in replay(tmp_path).events:
        bars = bars_after(bars, e)
    assert bars["epoch"][:3] == (unit, 5, 5)


def test_watch_stops_by_its_button(tmp_path):
    w = Watch(tmp_path, seconds=0.02, show=lambda box: None)
    w.button.click()
    assert not w.thread.is_alive() and w.line.value.endswith("Stopped watching.")


# ------------------------------------------------------------------ picking

NAMES = ("drink", "wave")


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    x, gesture, subject = rng.normal(size=(3, 20)), ["wave", "drink", "wave"], ["ann", "bob", "<i>"]
    return table_from_arrays([x] * 3, ["acc_x", "acc_y", "acc_z"], gesture=gesture, subject=subject, rate_hz=50)


def show(i):
    figure, axes = canvas(3, 1)
    axes[0, 0].plot([0, i])
    return figure


def predict(i):
    return NAMES, np.array([.1, .9])


def test_without_a_front_end_the_first_sequence_is_shown(table, capsys):
    picked = pick(table, predict, show)
    assert picked.index == 0 and picked.label == "wave" and all(p.startswith(b"\x89PNG") for p in picked.pictures)
    assert "which is right" in picked.message and not hasattr(picked, "widgets")


@pytest.mark.parametrize("given", [
    (NAMES, [.1, .9]), ("wave", {"drink": .1, "wave": .9}), ("wave", np.array([.1, .9]))])
def test_predictions_come_in_two_forms(table, given):
    assert pick(table, lambda i: given, lambda i: None).label == "wave"


def test_show_may_leave_its_figure_to_pyplot_or_show_nothing(table):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    assert pick(table, predict, lambda i: plt.plot([1, 2]) and None).pictures[0]
    assert plt.get_fignums() == []
    assert pick(table, predict, lambda i: plt.subplots(2)[1]).pictures[0] and plt.get_fignums() == []
    assert pick(table, predict, lambda i: None).pictures[0] is None


def test_errors_of_drawing_or_answering_are_not_hidden(table):
    def broken(i):
        if i:
            raise RuntimeError("no <answer>")
        return predict(i)
    w = PickerWidgets(pick(table, broken, show))
    with pytest.raises(RuntimeError):
        w.menu.value = 1
    assert w.text.value == "<b>RuntimeError: no &lt;answer&gt;</b>"
    w.back.click()
    assert w.menu.value == 0 and "which is right" in w.text.value


def test_arrows_go_round_and_names_are_escaped(table):
    w = PickerWidgets(pick(table, predict, show))
    first = w.images[0].value
    w.back.click()
    assert w.menu.value == 2 and "&lt;i&gt;" in w.text.value and w.images[0].value != first
    w.next.click()
    assert w.menu.value == 0 and w.images[0].value == first


CELL = """
import numpy as np
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.report.dashboard import pick
from gesture_nb.show import canvas
table = table_from_arrays([np.zeros((1, 9))] * 2, ['acc_x'], gesture=['wave', 'drink'])
def show(i): return canvas(3, 1)[0]
if True: picked = pick(table, lambda i: (['drink', 'wave'], [.1, .9]), show)
"""


@pytest.mark.parametrize("environ, widgets", [({}, True), ({"PROGRESS": "lines"}, False), ({"IN_TEST": "1"}, False)])
def test_in_a_kernel_there_is_a_menu_or_two_pictures(tmp_path, environ, widgets):
    last = "picked.widgets.next.click()\npicked.message" if widgets else "picked.message"
    nb = run_cells(tmp_path, CELL, "picked", last, **environ)
    kinds = [set(o.get("data", {})) - {"text/plain", "text/html"} for o in nb.cells[0].outputs]
    without_widgets = [set(), {"image/png"}, {"image/png"}]
    assert kinds == ([{"application/vnd.jupyter.widget-view+json"}] if widgets else without_widgets)
    assert nb.cells[1].outputs == []
    assert ("but it was drink" if widgets else "which is right") in nb.cells[2].outputs[0].data["text/plain"]


def test_watch_in_a_kernel_follows_a_training_of_the_same_kernel(tmp_path):
    train = """
import time
from gesture_nb.config import Settings
from gesture_nb.progress import Reporter
from gesture_nb.report.dashboard import watch
w = watch('.')
with Reporter(folder='.') as r, r.training('Torch', 1, 1, 5) as t:
    t.start_epoch(1)
    for _ in range(5):
        t.step(0.5, 1e-3)
    end, busy = time.monotonic() + 20, 0
    while not busy and time.monotonic() < end:
        time.sleep(.05)
        busy = w.bars.get('fold', ('', 0))[1]
w.thread.join(20)
print(busy > 0, w.bars['fold'][1], w.error)
"""
    nb = run_cells(tmp_path, train, LOG_EVERY_STEPS="1")
    printed = "".join(o.get("text", "") for o in nb.cells[0].outputs if o.output_type == "stream")
    assert printed.splitlines()[-1] == "True 5 None"


def test_a_page_says_what_folds_hold_out():
    from gesture_nb.evaluation.metric import scores
    from gesture_nb.report import report

    truth, subjects = np.array(["wave", "push"] * 3), np.array(["a", "a", "b", "b", "c", "c"])
    result = scores(truth, truth, ["push", "wave"]) | {"seconds": 0.2, "per_fold": []}
    metrics = {"classes": ["push", "wave"], "members": {"lgbm": result}, "ensemble": result, "folds": 3, "subjects": 3}
    served = {"accuracy": 1.0, "macro_f1": 1.0, "sequences": 1, "subjects": 1, "fold": 0}

    def page(subjects, **note):
        predictions = report.Predictions(truth, truth, subjects, 0)
        sections = [report.head_section(metrics | note, predictions), report.members_section(metrics | note)]
        return "".join([*sections, report.people_section(metrics | note, predictions),
                        report.gateway_section(served | note)])

    people = page(subjects)
    assert "3 people" in people and "of the people held out" in people and "<h2>People</h2>" in people
    assert "1 sequence of 1 person" in people and ">0.200<" not in people
    metrics["subjects"] = 1
    groups = page(subjects, note="All recordings are of one person (me); folds are by session.")
    assert "1 person," in groups and "of the groups held out" in groups and "<h2>Groups</h2>" in groups
    single = page(np.array([*"012345"]), note="…, drawn in another way.", scope="recording")
    assert "of the recordings held out" in single and "<h2>Recordings</h2>" not in single
    assert "people" not in (groups + single).replace("people never seen", "")


def test_pairs_of_a_setting_read_as_they_are_written():
    from gesture_nb.report.report import config_section

    page = config_section({"settings": {"columns": [["acc_x", "ax"], ["gesture", "label"]], "members": ["lgbm"]}})
    assert "acc_x=ax, gesture=label" in page and "<td class=\"text\">lgbm</td>" in page
