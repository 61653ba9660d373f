"""Damage, failing members, older runs, and time that runs out: found, named, survived."""
import ast
import json
import shutil
import time

import numpy as np
import pytest
from conftest import ROOT
from faults import FLIPS, answers_always, flipped, frames_and_people

from gesture_nb.artifacts import (
    MANIFEST,
    DamagedError,
    check_manifest,
    check_results,
    read_json,
    read_sealed,
    write_manifest,
    write_sealed,
)
from gesture_nb.config import UserError, read_settings, with_settings
from gesture_nb.control import StopSignal, TimeUp
from gesture_nb.progress import Quiet, Reporter
from gesture_nb.serving.predictor import load
from gesture_nb.sinks import Sink
from gesture_nb.training.budget import units_that_fit
from gesture_nb.training.checkpoint import FolderCheckpoint
from gesture_nb.training.results import read_oof
from gesture_nb.training.run import train

class Ear(Sink):
    """Keeps what was said."""
    def __init__(self):
        self.lines = []

    def on_event(self, event):
        self.lines.append(event.get("text") or "")


@pytest.fixture(scope="module")
def settings(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "out"
    return read_settings({}, data=toy, out=out, members="lgbm,torch", folds=2, epochs=1, boosting_rounds=5,
                         batch_size=16)


@pytest.fixture(scope="module")
def run(settings):
    train(settings, Quiet())
    return settings.output_path


# ---------------------------------------------------------------- damage

def test_any_byte_of_any_file_is_found_and_named(run):
    seen = set()
    for manifest in sorted(run.rglob(MANIFEST)):
        check_manifest(manifest.parent)
        for path in [manifest, *(manifest.parent / name for name in read_json(manifest)["files"])]:
            seen.add(path.name)
            for _ in flipped(path, FLIPS):
                with pytest.raises(DamagedError, match=path.name): check_manifest(manifest.parent)
        check_manifest(manifest.parent)
    expected = {"weights.safetensors", "model.txt", "oof.safetensors", "history.json", "oof.parquet", "metrics.json",
                "config.json", "ensemble.json"}
    assert expected <= seen


def test_sealed_records_know_themselves(run):
    for path in (run / "members" / "identity.json", run / "ensemble.json"):
        read_sealed(path)
        for _ in flipped(path, 4 * FLIPS):
            with pytest.raises(DamagedError, match=path.name): read_sealed(path)


def test_damage_is_mended_by_the_unit_that_has_it(run, settings):
    path = run / "members" / "torch" / "fold1" / "weights.safetensors"
    before, oof = path.read_bytes(), (run / "oof.parquet").read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    ear = Ear()
    predictor = load(run, reporter=Reporter(settings, sinks=[ear]))
    assert len(predictor.members["torch"]) == 1
    assert any("torch of fold1 cannot be loaded" in line and "weights.safetensors is damaged" in line
               for line in ear.lines)
    (run / "members" / "identity.json").write_text("{}")
    train(settings, Reporter(settings, sinks=[ear]))
    assert any("Training torch fold 2 again" in line for line in ear.lines)
    assert any("identity.json is damaged" in line for line in ear.lines)
    assert path.read_bytes() == before and (run / "oof.parquet").read_bytes() == oof


def test_results_that_were_changed_are_not_reported(run):
    from gesture_nb.report.report import read_predictions

    check_results(run)
    for _ in flipped(run / "metrics.json", 1):
        for read in (read_oof, read_predictions):
            with pytest.raises(DamagedError, match="metrics.json is damaged"): read(run)


def test_a_manifest_cannot_point_outside(run, tmp_path):
    for name in ("../secret", "/etc/hostname", "a/../../secret"):
        write_sealed(tmp_path / MANIFEST, {"facts": {}, "files": {name: {"bytes": 1, "sha256": "0"}}})
        with pytest.raises(DamagedError, match="outside"): check_manifest(tmp_path)


FORBIDDEN = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "joblib.load", "load_model",
             "keras.models.load_model", "deserialize_keras_object", "model_from_json"}


def forbidden_calls(tree):
    """Names of calls that could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.split(".")[-1]
            if name in FORBIDDEN or last in FORBIDDEN & {"load_model", "deserialize_keras_object"}: yield name
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if getattr(node.value, "value", None) is not False: yield "allow_pickle"


def test_nothing_that_is_loaded_can_run_code():
    found = []
    for path in (ROOT / "gesture_nb").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(path.name, name) for name in forbidden_calls(tree)]
    # between a training and the processes that it started itself, through pipes
    assert {*found} == {("devices.py", "pickle.load"), ("ranks.py", "pickle.load")}


# ---------------------------------------------------------------- older runs

def without_versions(record):
    """An identity as it was before members and features had versions."""
    return {key: value for key, value in record.items() if not key.endswith(".version")}


@pytest.fixture
def older(run, settings, tmp_path):
    """Settings of a finished run as an older version wrote it: no identity names a version."""
    out = tmp_path / "older"
    shutil.copytree(run, out)
    path = out / "members" / "identity.json"
    write_sealed(path, without_versions(read_sealed(path)))
    for manifest in out.glob(f"members/*/fold*/{MANIFEST}"):
        metadata = check_manifest(manifest.parent)
        metadata["identity"] = without_versions(metadata["identity"])
        write_manifest(manifest.parent, **metadata)
    return with_settings(settings, output_path=out)


def refused(settings):
    """The sentence with which an older run is refused; nothing of it may change."""
    before = {path: path.read_bytes() for path in settings.output_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="older version") as error: train(settings, Quiet())
    after = {path: path.read_bytes() for path in settings.output_path.rglob("*") if path.is_file()}
    assert after == before
    message = str(error.value)
    assert "--out" in message and "--restart" in message
    return message


def test_an_older_run_serves_but_is_not_added_to(older, run):
    sequence = {"acc_x": np.zeros(30), "acc_y": np.zeros(30), "acc_z": np.full(30, 9.8)}
    assert np.array_equal(load(older.output_path).proba(sequence), load(run).proba(sequence))
    assert str(older.output_path) in refused(older)
    (older.output_path / "members" / "identity.json").unlink()
    shutil.rmtree(older.output_path / "features")
    with pytest.raises(UserError, match="lgbm fold 1 in .* older version"): train(older, Quiet())
    _, metrics = train(with_settings(older, run_any_training=True, resume=False), Quiet())   # what --restart means
    assert metrics["ensemble"]["accuracy"] == read_json(run / "metrics.json")["ensemble"]["accuracy"]
    assert "lgbm.version" in check_manifest(older.output_path / "members" / "lgbm" / "fold0")["identity"]


def test_an_older_checkpoint_is_not_continued(toy, tmp_path, monkeypatch):
    settings = read_settings({}, data=toy, out=tmp_path / "out", members="torch", folds=2, epochs=2, batch_size=16)
    save = FolderCheckpoint.save

    def interrupted(self, *state):
        save(self, *state)
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderCheckpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt): train(settings, Quiet())
    monkeypatch.undo()
    path = tmp_path / "out" / "members" / "torch" / "fold0" / "checkpoint.json"
    record = read_sealed(path)
    assert record["torch.version"] >= 1
    write_sealed(path, without_versions(record))
    assert "The checkpoint of torch fold 1" in refused(settings)


def test_another_version_of_a_member_is_refused(run, settings, monkeypatch):
    from gesture_nb.models.registry import member_class

    monkeypatch.setattr(member_class("lgbm"), "version", 99)
    with pytest.raises(UserError, match=r"lgbm\.version was 1 and is now 99"): train(settings, Quiet())


# ---------------------------------------------------------------- serving

def test_members_that_fail_leave_the_others_to_answer(run, settings):
    ear, answer = Ear(), load(run, on_error="label")
    classes = answer.classes
    sequence = {"acc_x": np.zeros(30), "acc_y": np.zeros(30), "acc_z": np.full(30, 9.8)}
    answer.reporter = Reporter(settings, sinks=[ear])

    class Broken:
        def predict_outputs(self, batch): raise MemoryError("no more of it")

    alone = load(run, fixed={"torch": 0.0}).proba(sequence)
    answer.members["torch"] = [Broken()]
    assert answer(sequence) in classes and np.allclose(answer.proba(sequence), alone, atol=0.2)
    assert any("torch failed" in line for line in ear.lines)
    answer.members["lgbm"] = [Broken()]
    assert answer(sequence) == classes[0] and any("no member could" in line for line in ear.lines)


def test_a_failure_that_repeats_is_counted_and_not_repeated(run, settings):
    ear, answer = Ear(), load(run, fixed={"lgbm": 0.0}, on_error="label")
    answer.reporter = Reporter(settings, sinks=[ear])
    sequence = {"acc_x": [0.0], "acc_y": [0.0], "acc_z": [9.8]}

    class Broken:
        calls = 0

        def predict_outputs(self, batch):
            self.calls += 1
            raise MemoryError(f"no more of it: {self.calls}")

    answer.members["torch"] = [Broken()]
    for _ in range(105): answer(sequence)
    failures, lines = [line for line in ear.lines if "torch failed" in line], [line for line in ear.lines if line]
    assert [line.rsplit(" ", 1)[1] for line in failures] == ["1", "10", "100"]
    assert "(100 times by now)" in failures[2]
    assert len(lines) == 6 and sum("no member could" in line for line in lines) == 3
    assert len(ear.lines) == 210   # the log gets every one

    class Other:
        def predict_outputs(self, batch): raise ValueError("something else")

    answer.members["torch"] = [Other()]
    answer(sequence)
    expected = "torch failed on a sequence and was left out: ValueError: something else"
    assert [line for line in ear.lines if line][6:] == [expected]   # its consequence is known


def test_there_is_always_a_label(run):
    predictor = load(run, on_error="label")
    for frame, people in frames_and_people(): answers_always(predictor, frame, people)


# ---------------------------------------------------------------- time

def test_a_plan_takes_members_as_wholes_and_never_nothing():
    seconds = {"torch": 100.0, "lgbm": 1.0, "keras": 50.0}
    assert units_that_fit(seconds, 2, 260) == [("lgbm", 0), ("lgbm", 1), ("keras", 0), ("keras", 1), ("torch", 0)]
    assert units_that_fit(seconds, 2, 0) == [("lgbm", 0)]


def test_the_limit_cuts_a_training_at_a_step_and_keeps_it():
    stop, steps, saved = StopSignal(), [], []

    def save(): saved.append(len(steps))

    with pytest.raises(TimeUp), stop.polled():
        steps.append(1)
        stop.check(save)
        stop.deadline = time.monotonic() - 1
        steps.append(2)
        stop.check(save)
    assert saved == [2]
    with stop.polled(): steps.append(3)   # the last step of all is no reason to stop


@pytest.mark.parametrize("member", ["torch", "lgbm"])
def test_the_limit_cuts_a_unit_and_a_later_run_goes_on(toy, tmp_path, monkeypatch, member):
    import gesture_nb.training.run as run_module

    monkeypatch.setattr(run_module, "estimate_seconds", lambda dataset, settings: {member: 0.0})
    whole = read_settings({}, data=toy, out=tmp_path / "whole", members=member, folds=2, epochs=2, batch_size=16,
                          boosting_rounds=20)
    _, expected = train(whole, Quiet())
    settings = with_settings(whole, output_path=tmp_path / "cut", time_limit_hours=1.0)
    stop, ear, checks = StopSignal(), Ear(), []
    check = StopSignal.check

    def late_at_the_third(self, *save):
        checks.append(save)
        if len(checks) == 3: self.deadline = time.monotonic() - 1
        check(self, *save)

    monkeypatch.setattr(StopSignal, "check", late_at_the_third)
    with pytest.raises(UserError, match="left no unit to train"):
        train(settings, Reporter(settings, sinks=[ear]), stop=stop)
    monkeypatch.setattr(StopSignal, "check", check)
    assert any(f"{member} fold 1: cut off" in line for line in ear.lines) and stop.deadline == float("inf")
    _, metrics = train(with_settings(settings, time_limit_hours=None), Quiet())
    assert metrics["ensemble"]["accuracy"] == expected["ensemble"]["accuracy"]
    assert (tmp_path / "cut" / "oof.parquet").read_bytes() == (tmp_path / "whole" / "oof.parquet").read_bytes()


def test_what_was_planned_is_kept_and_what_is_finished_answers(toy, tmp_path, monkeypatch):
    import gesture_nb.training.run as run_module
    import gesture_nb.training.units as units_module

    monkeypatch.setattr(run_module, "estimate_seconds", lambda dataset, settings: {"lgbm": 1.0, "torch": 1e6})
    ear, out = Ear(), tmp_path / "out"
    settings = read_settings({}, data=toy, out=out, members="torch,lgbm", folds=2, epochs=1, boosting_rounds=5,
                             batch_size=16, time_limit_hours=1)
    _, metrics = train(settings, Reporter(settings, sinks=[ear]))
    assert list(metrics["members"]) == ["lgbm"] and any("no time for torch" in line for line in ear.lines)
    plan = read_json(out / "config.json")["plan"]
    assert plan["units"] == [["lgbm", 0], ["lgbm", 1]]
    monkeypatch.setattr(run_module, "estimate_seconds", lambda dataset, settings: {"lgbm": 1.0, "torch": 1.0})
    train(settings, Quiet())
    assert read_json(out / "config.json")["plan"] == plan

    # a process that dies in the second unit leaves the first one answering
    one = read_settings({}, data=toy, out=tmp_path / "two", members="lgbm", folds=2, boosting_rounds=5)
    train_unit, calls = units_module.train_unit, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > 1: raise KeyboardInterrupt
        return train_unit(*arguments)

    monkeypatch.setattr(units_module, "train_unit", dies)
    with pytest.raises(KeyboardInterrupt): train(one, Quiet())
    assert not (tmp_path / "two" / "metrics.json").exists()
    classes = json.loads((tmp_path / "two" / "ensemble.json").read_text())["classes"]
    assert load(tmp_path / "two")({"acc_x": [1.0], "acc_y": [0.0], "acc_z": [9.8]}) in classes
    with pytest.raises(UserError, match="has no finished"): _serve_only(tmp_path / "none")


def _serve_only(out):
    from gesture_nb.app import may_train
    may_train(read_settings({}, out=out, run_any_training=False))


def test_a_unit_that_went_on_knows_what_it_took_in_all(toy, tmp_path, monkeypatch):
    settings = read_settings({}, data=toy, out=tmp_path / "out", members="torch", folds=2, epochs=3, batch_size=8)
    reporter, save, states = Quiet(), FolderCheckpoint.save, []

    def interrupted(self, *state):
        save(self, *state)
        states.append(self.states()[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderCheckpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt): train(settings, reporter)
    monkeypatch.undo()
    assert check_manifest(states[0])["seconds"] > 0
    write_manifest(states[0], seconds=5000.0)   # as if the first process had been at it for long
    _, metrics = train(settings, reporter)
    units = [check_manifest(tmp_path / "out" / "members" / "torch" / f"fold{k}") for k in (0, 1)]
    assert units[0]["seconds"] > 5000 > units[1]["seconds"] and metrics["members"]["torch"]["seconds"] > 5000


# ---------------------------------------------------------------- files are read once

def test_out_of_fold_files_are_read_and_blended_once_a_run(toy, tmp_path, monkeypatch):
    from gesture_nb.training import results

    blends, reads = [], []
    blend_and_decide, read_arrays = results.blend_and_decide, results.read_arrays
    monkeypatch.setattr(results, "blend_and_decide", lambda *a: blends.append(1) or blend_and_decide(*a))
    monkeypatch.setattr(results, "read_arrays", lambda path: reads.append(path) or read_arrays(path))
    settings = read_settings({}, data=toy, out=tmp_path / "out", members="lgbm", folds=2, boosting_rounds=5)
    train(settings, Quiet())
    assert len(reads) == len(set(reads)) == 2   # each unit's once
    assert len(blends) == 2   # after the first unit, so that something can serve, and after the last
    oof = (tmp_path / "out" / "oof.parquet").read_bytes()
    train(settings, Quiet())
    assert len(reads) == 4 and len(blends) == 3
    assert (tmp_path / "out" / "oof.parquet").read_bytes() == oof
