"""Trackers: a log gives the points of its run, once, in the same run of the tool; nothing of it is left behind."""

import json
import subprocess
import sys
import types

import pytest

import gesture_nb as gn
from gesture_nb import trackers
from gesture_nb.errors import UserError
from gesture_nb.progress import Reporter
from gesture_nb.report.run_log import read_events
from gesture_nb.sinks import LineSink
from gesture_nb.tracked_values import Curves, score_values, tag_of
from gesture_nb.tracking import Tracker, last_attempt, record

class Lists(Tracker):
    """Keeps what it is given: (tag, step) → (value, time)."""

    name = title = place = "lists"

    def __init__(self, **how):
        super().__init__(**how)
        self.points, self.calls, self.settings, self.files = {}, [], {}, []

    def start(self, run_id, name, time):
        self.calls.append(("start", run_id, name))
        return run_id or f"run {len(self.calls)}"

    def describe(self, description):
        self.settings = description.settings

    def write(self, row):
        for tag, value in row.tagged().items():
            assert (tag, row.step) not in self.points
            self.points[tag, row.step] = (value, row.time)

    def picture(self, path):
        self.files.append(path.name)

    def artifact(self, path, name):
        self.files.append(name)

    def status(self, status):
        self.calls.append(("status", status))

    def finish(self, status, time):
        self.calls.append(("finish", status))


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A finished run, what a tracker recorded of it while it trained, and its log."""
    live, out = Lists(), tmp_path_factory.mktemp("tracked") / "run"
    gn.train(toy, out, members="lgbm", folds=2, boosting_rounds=5, progress="lines", print_every_steps=2, sinks=[live])
    return types.SimpleNamespace(out=out, live=live, events=read_events(out))


@pytest.fixture
def copy(run, tmp_path):
    """The folder of the run without what trackers keep there."""
    import shutil

    out = tmp_path / "run"
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns("trackers", "features", ".lock"))
    return out


def step(label, fold, epoch, k, **more):
    of_training = {"label": label, "fold": fold, "epochs": 2, "steps": 4}
    return {"kind": "step", "time": 1.0, "epoch": epoch, "step": k, "loss": 0.5, "lr": 1e-3} | of_training | more


def training(*events, **opened):
    return [{"kind": "open", "time": 0.0} | opened, {"kind": "plan", "time": 0.5, "units": 1}, *events]


def test_a_log_gives_the_points_of_the_run(run, copy):
    again = Lists()
    record(again, run.events, copy)
    assert again.points == run.live.points and again.settings == run.live.settings and again.files == run.live.files
    assert again.calls == run.live.calls == [("start", None, "run"), ("status", "finished"), ("finish", "finished")]
    tags = {tag for tag, _ in again.points}
    assert {"LightGBM/fold1/loss", "LightGBM/fold2/lr", "scores/ensemble/macro_f1", "scores/lgbm/all_at_once/accuracy",
            "f1/wave", "unit_seconds/lgbm/fold2", "seconds/ensemble"} <= tags
    assert again.settings["boosting_rounds"] == "5" and again.settings["members"] == "lgbm"
    results = {"config.json", "metrics.json", "ensemble.json", "report.html", "oof.parquet", "confusion.png"}
    assert results <= {*again.files}
    assert not [name for name in again.files if name.startswith("members/")]


def test_what_is_there_is_not_recorded_again(run, copy):
    class More(Lists):
        name = place = "more"
    half = [e for e in run.events if e["kind"] == "step"][3]
    first, second, third = More(members=True), More(members=True), More()
    record(first, run.events[: run.events.index(half) + 1], copy)
    assert first.calls[-1] == ("finish", "killed")
    record(second, run.events, copy)
    assert second.calls[0] == ("start", "run 1", "run") and not first.points.keys() & second.points.keys()
    assert first.points | second.points == run.live.points
    assert "members/lgbm/fold0/manifest.json" in second.files
    record(third, run.events, copy)
    assert third.calls == [] and third.points == {}


def test_rows_that_a_kill_took_from_a_buffer_are_recorded_again(run, copy):
    class Buffered(Lists):
        def kept(self, run_id): return 3
    first, second = Lists(), Buffered()
    record(first, run.events, copy)
    for event in training():   # the process that goes on trains nothing more
        second.on_event(event | {"folder": str(copy)})
    second.close(False)
    rows = {(tag.rpartition("/")[0], step) for tag, step in first.points if tag.startswith("LightGBM")}
    again = {(tag.rpartition("/")[0], step) for tag, step in second.points}
    assert second.calls[0] == ("start", "run 1", "run") and 0 < len(rows - again) <= 3 and again < rows
    assert second.points.items() <= run.live.points.items()


def test_a_broken_line_of_what_is_there_costs_that_line_only(run, copy):
    record(Lists(), run.events, copy)
    ledger = copy / "trackers" / "lists.jsonl"
    lines = ledger.read_text().splitlines()
    assert json.loads(lines[0]) == {"run": "run 1"}
    ledger.write_text("\n".join([*lines[:-1], lines[-1][:9]]))
    again = Lists()
    record(again, run.events, copy)
    assert again.points == {} and [call[1] for call in again.calls] == ["run 1", "finished", "finished"]


def test_units_that_learn_at_once_have_steps_of_their_own():
    curves, found = Curves(), []
    for event in (step("Torch", 1, 1, 4), step("Torch", 2, 1, 1), step("Torch", 1, 2, 2),
                  step("Torch", 2, 1, 4) | {"kind": "epoch", "loss": "nan", "check_loss": 0.4}):
        row = curves.row(event)
        found.append((row.prefix, row.step, sorted(row.values)))
    steps = ["loss_so_far", "lr"]
    assert found == [("Torch/fold1", 4, steps), ("Torch/fold2", 1, steps), ("Torch/fold1", 6, steps),
                     ("Torch/fold2", 1, ["check_loss", "epoch", "loss"])]
    assert row.values["loss"] != row.values["loss"] and curves.row({"kind": "say", "text": "x"}) is None


def test_a_restart_begins_a_new_run_of_the_tool(tmp_path):
    first = training(step("Torch", 1, 1, 1), {"kind": "close", "time": 2.0, "failed": True})
    second = training(step("Torch", 1, 1, 1), resume=False)
    tracker = Lists(folder=tmp_path)
    for event in first + second:
        tracker.on_event(event)
        if event["kind"] == "close":
            tracker.close(True)
            tracker.points.clear()
    assert [call for call in tracker.calls if call[0] == "start"] == [("start", None, tmp_path.name)] * 2
    assert ("Torch/fold1/loss_so_far", 1) in tracker.points
    assert last_attempt(first + second) == second and last_attempt(first) == first


def test_another_seed_in_the_same_folder_is_another_run_of_the_tool(run, copy):
    """RUN_ANY_TRAINING=1 trains again beside what is there: neither its log nor its points are mixed with the old."""
    from gesture_nb.artifacts import read_sealed, write_sealed

    opened, plan = [e for e in run.events if e["kind"] in ("open", "plan")][:2]
    again = [{**e, "loss": e["loss"] / 2} if e["kind"] == "step" else e for e in run.events]
    assert last_attempt(run.events + again) == again and last_attempt(run.events + run.events) == run.events * 2
    first, second, third = Lists(), Lists(), Lists()
    record(first, run.events, copy)
    known = read_sealed(copy / "members" / "identity.json")
    write_sealed(copy / "members.next" / "identity.json", known | {"seed": 7})   # as another training begins
    for event in (opened | {"folder": str(copy)}, plan, *(e for e in again if e["kind"] == "step")):
        second.on_event(event)
    second.close(True)
    steps = {key for key in first.points if key[0].endswith("loss")}
    assert second.calls[0] == ("start", None, "run") and steps <= second.points.keys()
    assert all(second.points[key][0] == first.points[key][0] / 2 for key in steps)
    third.folder = copy
    for event in (opened | {"folder": str(copy)}, plan, again[-1]): third.on_event(event)
    assert third._ledger.run_id == "run 1" and third._resumes   # the other training goes on in its own run


def test_a_tool_without_the_run_gets_it_anew(run, copy):
    class Lost(Lists):
        def has_run(self, run_id): return False
    first, second = Lists(), Lost()
    record(first, run.events, copy)
    record(second, run.events, copy)
    assert second.calls[0] == ("start", None, "run") and second.points == first.points
    assert second.recorded == first.recorded > 0 and second.run_id == "run 1"


def test_ablations_and_other_commands_are_not_recorded(tmp_path):
    tracker = Lists()
    opened = {"kind": "open", "time": 0.0, "folder": str(tmp_path)}
    ablation = [opened, {"kind": "ablation", "time": 0.1}, *training(step("Torch", 1, 1, 1))[1:]]
    search = [opened, {"kind": "search", "time": 0.1}, *training(step("Torch", 1, 1, 1))[1:]]
    for event in [*ablation, *search, opened, {"kind": "say", "time": 3.0, "text": "a report"}, step("Torch", 1, 1, 2)]:
        tracker.on_event(event)
    tracker.close(False)
    assert tracker.calls == [] and not [*tmp_path.iterdir()]
    assert last_attempt(ablation) == last_attempt(search) == [opened]


@pytest.mark.parametrize("error, status", [(None, "finished"), (ValueError, "failed"), (KeyboardInterrupt, "killed")])
def test_how_a_run_ended(error, status):
    tracker = Lists()
    try:
        with Reporter(sinks=[tracker]) as reporter:
            reporter.plan(1)
            with reporter.training("Torch", epochs=1, steps=2) as t:
                t.start_epoch(1)
                t.step(0.5, 1e-3)
                if error: raise error
    except BaseException as e:
        assert type(e) is error
    assert tracker.calls[1:] == [("status", status), ("finish", status)]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(capsys):
    class Broken(Lists):
        def write(self, row): raise OSError("the store is gone")
    healthy = Lists()
    with Reporter(sinks=[Broken(), healthy, LineSink()]) as reporter:
        reporter.plan(1)
        with reporter.training("Torch", epochs=1, steps=2) as t:
            t.start_epoch(1)
            for _ in range(2): t.step(0.5, 1e-3)
    assert healthy.calls[-1] == ("finish", "finished") and len(healthy.points) == 2 * 3
    assert [type(s).__name__ for s in reporter.sinks] == ["Lists", "LineSink"]
    assert "OSError: the store is gone. The training goes on; a replay of its log" in capsys.readouterr().out


def test_a_tool_that_has_failed_is_asked_for_nothing_more():
    """A server that hangs costs its limit once, not again for the end of the run; what is open here is closed."""
    class Gone(Lists):
        def write(self, row): raise TimeoutError("no answer")
        def drop(self): self.calls.append(("drop",))
    tracker = Gone()
    with Reporter(sinks=[tracker]) as reporter:
        reporter.plan(1)
        with reporter.training("Torch", epochs=1, steps=2) as t:
            t.start_epoch(1)
            for _ in range(2): t.step(0.5, 1e-3)
    assert [call[0] for call in tracker.calls] == ["start", "drop"]


def test_a_slow_tool_is_named_once(monkeypatch):
    class Slow(Lists):
        def write(self, row): now[0] += 30
    now = [0.0]
    monkeypatch.setattr("gesture_nb.tracking.clock", types.SimpleNamespace(monotonic=lambda: now[0]))
    tracker = Slow()
    said = [tracker.on_event(event) for event in training(*(step("Torch", 1, 1, k) for k in (1, 2)))]
    assert said == [None, None, "lists took 30 s to record one event; the training waited for it.", None]


def test_a_missing_library_is_said_before_the_work(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"MLflow needs a library .* pip install 'gesture-nb\[trackers\]'"):
        gn.train(toy, tmp_path / "new", members="lgbm", trackers="mlflow", progress="lines")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="no tracker 'mlfow'; trackers are tensorboard, mlflow, wandb"):
        gn.replay(tmp_path, to="mlfow")


def test_what_the_mode_of_wandb_asks_for(monkeypatch, run, copy, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match="WANDB_MODE is 'nonsense', but must be one of online, offline"):
        trackers.make_trackers("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    gn.replay(copy, to="wandb")
    assert "WANDB_MODE=disabled: Weights & Biases records nothing." in capsys.readouterr().out
    assert not (copy / "trackers").exists()   # so that a later replay records it


def test_a_full_disk_leaves_no_torn_record(monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    writer = trackers.EventFile(tmp_path)
    monkeypatch.setattr(trackers.os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="the disk is full"):
        writer.add_scalar("loss", 0.5, 1, 1.0)


def test_names_of_classes_are_fit_for_every_tool():
    metrics = {"classes": ["a/b", "a.b", "é"], "members": {}, "ensemble": {"accuracy": 1.0, "seconds": 1, "per_class": {
        name: {"f1": 0.5, "n": 1} for name in ("a/b", "a.b", "é")}}}
    assert [name for name in score_values(metrics) if name.startswith("f1/")] == ["f1/1 a_b", "f1/2 a_b", "f1/é"]
    assert tag_of("\n") == tag_of("") == "_" and tag_of("../x") == "___x"


def test_a_link_in_the_run_folder_is_not_followed(run, copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (copy / "trackers").mkdir()
    (copy / "trackers" / "lists").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        record(Lists(), run.events, copy)
    assert not [*(tmp_path / "elsewhere").iterdir()]


# ------------------------------------------------------------------ the tools, read by their own readers

def close_to(found, live, seconds=2e-3):
    """Whether (tag, step) → (value, time) is what was recorded; float32 values, milliseconds."""
    assert found.keys() == live.keys()
    for key, (value, time) in found.items():
        assert value == pytest.approx(live[key][0], rel=1e-6, abs=1e-7) and abs(time - live[key][1]) <= seconds


def test_tensorboard(run, copy, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))   # TensorFlow is not needed
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for _ in range(2):
        gn.replay(copy, to="tensorboard")
    found = EventAccumulator(str(copy / "trackers" / "tensorboard" / "run"), {"scalars": 0, "tensors": 0, "images": 0})
    found.Reload()
    points = {(tag, s.step): (s.value, s.wall_time) for tag in found.Tags()["scalars"] for s in found.Scalars(tag)}
    close_to(points, run.live.points)
    assert {tag: len(found.Images(tag)) for tag in found.Tags()["images"]} == {"confusion": 1, "curves": 1}
    texts = {tag: found.Tensors(tag) for tag in found.Tags()["tensors"]}
    assert {tag: len(all_of) for tag, all_of in texts.items()} == {"settings": 1, "versions and data": 1, "status": 1}
    assert b"| boosting_rounds | 5 |" in texts["settings"][0].tensor_proto.string_val[0]


def test_a_writer_of_ones_own_is_not_closed(run, copy):
    class Writer:
        log_dir, calls = "mine", []

        def __getattr__(self, name):
            return lambda *a, **k: self.calls.append((name, *a[:1]))
    writer = Writer()
    gn.replay(copy, to=gn.trackers.TensorBoardTracker(writer))
    kinds = {call[0] for call in writer.calls}
    assert kinds == {"add_scalar", "add_text", "add_image", "flush"} and ("add_image", "confusion") in writer.calls
    assert not (copy / "trackers" / "tensorboard").exists()


def test_mlflow(run, copy, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):
        gn.replay(copy, to="mlflow")
    client = mlflow.MlflowClient((copy / "trackers" / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("gesture_nb").experiment_id])
    points = {(m.key, m.step): (m.value, m.timestamp / 1000) for tag in found.data.metrics
              for m in client.get_metric_history(found.info.run_id, tag)}
    assert len(points) == sum(len(client.get_metric_history(found.info.run_id, tag)) for tag in found.data.metrics)
    close_to(points, run.live.points)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["boosting_rounds"] == "5"
    assert found.data.tags["version gesture_nb"] == gn.__version__ and "mlflow.source.git.commit" not in found.data.tags
    assert {"oof.parquet", "confusion.png"} <= {file.path for file in client.list_artifacts(found.info.run_id)}
    own = client.create_run(client.create_experiment("own"))
    monkeypatch.setattr("mlflow.MlflowClient", lambda uri=None: client)
    gn.replay(copy, to=gn.trackers.MlflowTracker(own))
    own = client.get_run(own.info.run_id)
    assert own.info.status == "RUNNING" and own.data.metrics == found.data.metrics


def history_of(path):
    """The rows of W&B's own file, and the exit codes."""
    from wandb.proto.wandb_internal_pb2 import Record
    rows, exits = [], []
    for found in map(Record.FromString, trackers._wandb_records(path.read_bytes())):
        if found.HasField("history"):
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in found.history.item})
        if found.HasField("exit"):
            exits.append(found.exit.exit_code)
    return rows, exits


def test_wandb(run, copy):
    pytest.importorskip("wandb")
    code = ("import sys, threading, subprocess, os, gesture_nb as gn\n"
            f"for _ in range(2): gn.replay({str(copy)!r}, to='wandb')\n"
            "left = subprocess.run(['ps', '-o', 'args=', '--ppid', str(os.getpid())], capture_output=True, text=True)\n"
            "print('left:', [t.name for t in threading.enumerate()], 'wandb-core' in left.stdout)")
    done = subprocess.run([sys.executable, "-c", code], cwd=copy.parent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.splitlines()[-1] == "left: ['MainThread'] False"
    assert "wandb:" not in done.stdout   # how its lines begin
    (path,) = (copy / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    rows, exits = history_of(path)
    points = {}
    for row in rows:
        axis = next((name for name in row if name.endswith("/step") or name == "scored"), None)
        values = {name: v for name, v in row.items() if name != axis and not name.startswith("_")}
        values = {name: v for name, v in values.items() if not name.startswith(("confusion", "curves"))}
        if axis: points |= {(name, row[axis]): (value, row["_timestamp"]) for name, value in values.items()}
    close_to(points, run.live.points)
    assert exits == [0] and [row["_step"] for row in rows] == [*range(len(rows))]
    assert (path.parent / "files" / "oof.parquet").read_bytes() == (copy / "oof.parquet").read_bytes()
    assert {p.name for p in copy.parent.iterdir()} == {"run"}
