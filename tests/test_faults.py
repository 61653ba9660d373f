"""Damage, failing members, and time that runs out: found, named, survived."""
import ast
import json
import math
import time

import numpy as np
import pytest
from conftest import ROOT
from faults import FLIPS, answers_always, flipped, frames_and_people

from gesture_nb.artifacts import MANIFEST, DamagedError, check_manifest, check_results, read_json, read_sealed, write_manifest
from gesture_nb.config import UserError, read_settings
from gesture_nb.progress import Quiet, Reporter, TimeUp
from gesture_nb.serving.predictor import load
from gesture_nb.sinks import Sink
from gesture_nb.training.checkpoint import FolderCheckpoint
from gesture_nb.training.deadline import chosen
from gesture_nb.training.run import train


class Ear(Sink):
    def __init__(self): self.lines = []
    def take(self, event): self.lines.append(event.get("text") or "")


@pytest.fixture(scope="module")
def settings(toy, tmp_path_factory):
    return read_settings({}, data=toy, out=tmp_path_factory.mktemp("faults") / "out", members="lgbm,torch", folds=2, epochs=1, boosting_rounds=5, batch_size=16)


@pytest.fixture(scope="module")
def run(settings):
    train(settings, Quiet())
    return settings.output_path


# ---------------------------------------------------------------- damage

def test_any_byte_of_any_file_is_found_and_named(run):
    seen = set()
    for manifest in sorted(run.rglob(MANIFEST)):
        check_manifest(manifest.parent)
        for path in [manifest, *(manifest.parent / n for n in read_json(manifest)["files"])]:
            seen.add(path.name)
            for _ in flipped(path, FLIPS):
                with pytest.raises(DamagedError, match=path.name): check_manifest(manifest.parent)
        check_manifest(manifest.parent)
    assert {"weights.safetensors", "model.txt", "oof.safetensors", "history.json", "oof.parquet", "metrics.json", "config.json", "ensemble.json"} <= seen


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
    assert len(predictor.members["torch"]) == 1 and any("torch of fold1 cannot answer" in s and "weights.safetensors is damaged" in s for s in ear.lines)
    (run / "members" / "identity.json").write_text("{}")
    train(settings, Reporter(settings, sinks=[ear]))
    assert any("Training torch fold 2 again" in s for s in ear.lines) and any("identity.json is damaged" in s for s in ear.lines)
    assert path.read_bytes() == before and (run / "oof.parquet").read_bytes() == oof


def test_results_that_were_changed_are_not_reported(run):
    from gesture_nb.commands import read_oof
    from gesture_nb.report.report import read_answers

    check_results(run)
    for _ in flipped(run / "metrics.json", 1):
        for read in (read_oof, read_answers):
            with pytest.raises(DamagedError, match="metrics.json is damaged"): read(run)


def test_a_manifest_cannot_point_outside(run, tmp_path):
    from gesture_nb.artifacts import write_sealed

    for name in ("../secret", "/etc/hostname", "a/../../secret"):
        write_sealed(tmp_path / MANIFEST, {"facts": {}, "files": {name: {"bytes": 1, "sha256": "0"}}})
        with pytest.raises(DamagedError, match="outside"): check_manifest(tmp_path)


def test_nothing_that_is_loaded_can_run_code():
    forbidden = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "joblib.load", "load_model", "keras.models.load_model", "deserialize_keras_object", "model_from_json"}
    found = []
    for p in (ROOT / "gesture_nb").rglob("*.py"):
        for n in ast.walk(ast.parse(p.read_text(encoding="utf-8"))):
            if isinstance(n, ast.Call) and (name := ast.unparse(n.func)) and (name in forbidden or name.split(".")[-1] in forbidden & {"load_model", "deserialize_keras_object"}): found.append((p.name, name))
            if isinstance(n, ast.keyword) and n.arg == "allow_pickle" and getattr(n.value, "value", None) is not False: found.append((p.name, "allow_pickle"))
    assert found == []


# ---------------------------------------------------------------- serving

def test_members_that_fail_leave_the_others_to_answer(run, settings):
    ear, answer = Ear(), load(run)
    whole, sequence = answer.classes, {"acc_x": np.zeros(30), "acc_y": np.zeros(30), "acc_z": np.full(30, 9.8)}
    answer.reporter = Reporter(settings, sinks=[ear])
    class Broken:
        def predict_proba(self, batch): raise MemoryError("no more of it")
    alone = load(run, fixed={"torch": 0.0}).proba(sequence)
    answer.members["torch"] = [Broken()]
    assert answer(sequence) in whole and np.allclose(answer.proba(sequence), alone, atol=0.2) and any("torch failed" in s for s in ear.lines)
    answer.members["lgbm"] = [Broken()]
    assert answer(sequence) == whole[0] and any("no member could" in s for s in ear.lines)


def test_a_failure_that_repeats_is_counted_and_not_repeated(run, settings):
    ear, answer = Ear(), load(run, fixed={"lgbm": 0.0})
    answer.reporter, sequence = Reporter(settings, sinks=[ear]), {"acc_x": [0.0], "acc_y": [0.0], "acc_z": [9.8]}
    class Broken:
        asked = 0
        def predict_proba(self, batch): self.asked += 1; raise MemoryError(f"no more of it: {self.asked}")
    answer.members["torch"] = [Broken()]
    for _ in range(105): answer(sequence)
    told, lines = [s for s in ear.lines if "torch failed" in s], [s for s in ear.lines if s]
    assert [s.rsplit(" ", 1)[1] for s in told] == ["1", "10", "100"] and "(100 times by now)" in told[2]
    assert len(lines) == 6 and sum("no member could" in s for s in lines) == 3 and len(ear.lines) == 210   # the log gets every one
    class Other:
        def predict_proba(self, batch): raise ValueError("something else")
    answer.members["torch"] = [Other()]
    answer(sequence)
    assert [s for s in ear.lines if s][6:] == ["torch failed on a sequence and was left out: ValueError: something else"]   # its consequence is known


def test_there_is_always_a_label(run):
    predictor = load(run)
    for frame, people in frames_and_people(): answers_always(predictor, frame, people)


# ---------------------------------------------------------------- time

def test_a_plan_takes_members_as_wholes_and_never_nothing():
    each = {"torch": 100.0, "lgbm": 1.0, "keras": 50.0}
    assert chosen(each, 2, 260) == [("lgbm", 0), ("lgbm", 1), ("keras", 0), ("keras", 1), ("torch", 0)]
    assert chosen(each, 2, 0) == [("lgbm", 0)]


def test_the_limit_cuts_a_training_at_a_step_and_keeps_it():
    r, kept = Reporter(read_settings({}), sinks=[]), []
    with pytest.raises(TimeUp), r.training("W", 1, 2, 3) as t:
        t.keep = lambda: kept.append(t.count)
        t.start_epoch(1); t.step(1.0, 1.0)
        r.until = time.monotonic() - 1
        t.step(1.0, 1.0)
    assert kept == [2]
    with r.training("W", 1, 1, 1) as t: t.start_epoch(1); t.step(1.0, 1.0)   # the last step of all is no reason to stop
    r.until = math.inf


def test_what_was_planned_is_kept_and_what_is_finished_answers(toy, tmp_path, monkeypatch):
    import gesture_nb.training.run as R

    monkeypatch.setattr(R, "costs", lambda p, s: {"lgbm": 1.0, "torch": 1e6})
    ear, s = Ear(), read_settings({}, data=toy, out=tmp_path / "out", members="torch,lgbm", folds=2, epochs=1, boosting_rounds=5, batch_size=16, time_limit_hours=1)
    _, metrics = train(s, Reporter(s, sinks=[ear]))
    assert list(metrics["members"]) == ["lgbm"] and any("no time for torch" in line for line in ear.lines)
    plan = read_json(tmp_path / "out" / "config.json")["plan"]
    assert plan["units"] == [["lgbm", 0], ["lgbm", 1]]
    monkeypatch.setattr(R, "costs", lambda p, s: {"lgbm": 1.0, "torch": 1.0})
    train(s, Quiet())
    assert read_json(tmp_path / "out" / "config.json")["plan"] == plan
    # a process that dies in the second unit leaves the first one answering
    one = read_settings({}, data=toy, out=tmp_path / "two", members="lgbm", folds=2, boosting_rounds=5)
    whole, calls = R.train_unit, []
    def dies(*a): calls.append(a); return whole(*a) if len(calls) == 1 else (_ for _ in ()).throw(KeyboardInterrupt)
    monkeypatch.setattr(R, "train_unit", dies)
    with pytest.raises(KeyboardInterrupt): train(one, Quiet())
    assert not (tmp_path / "two" / "metrics.json").exists()
    assert load(tmp_path / "two")({"acc_x": [1.0], "acc_y": [0.0], "acc_z": [9.8]}) in json.loads((tmp_path / "two" / "ensemble.json").read_text())["classes"]
    with pytest.raises(UserError, match="has no finished"): _serve_only(tmp_path / "none")


def _serve_only(out):
    from gesture_nb.app import may_train
    may_train(read_settings({}, out=out, run_any_training=False))


def test_a_unit_that_went_on_knows_what_it_took_in_all(toy, tmp_path, monkeypatch):
    s, reporter = read_settings({}, data=toy, out=tmp_path / "out", members="torch", folds=2, epochs=3, batch_size=8), Quiet()
    keep, kept = FolderCheckpoint.save, []
    def interrupted(self, *state):
        keep(self, *state); kept.append(self.states()[0])
        raise KeyboardInterrupt
    monkeypatch.setattr(FolderCheckpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt): train(s, reporter)
    monkeypatch.undo()
    assert check_manifest(kept[0])["seconds"] > 0
    write_manifest(kept[0], seconds=5000.0)   # as if the first process had been at it for long
    _, metrics = train(s, reporter)
    facts = [check_manifest(tmp_path / "out" / "members" / "torch" / f"fold{k}") for k in (0, 1)]
    assert facts[0]["seconds"] > 5000 > facts[1]["seconds"] and metrics["members"]["torch"]["seconds"] > 5000
