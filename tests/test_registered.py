"""What is registered from outside is held to its promises: mistakes are named first, changes are refused."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import gesture_nb as gn
from gesture_nb.config import UserError
from gesture_nb.models.base import Member, Outputs
from gesture_nb.registry import DECISIONS, MEMBERS
from gesture_nb.sensors import SENSORS, Sensor, register_sensor, unregister_sensor
from gesture_nb.session import session
from gesture_nb.sinks import Sink

QUICK = dict(folds=2, boosting_rounds=5, progress="lines")


class Prior(Member):
    "Predicts how frequent the classes are."

    name, title, version = "prior", "class frequencies", 1
    smoothing = 1

    def hyperparameters(self, train):
        return {"smoothing": self.smoothing}

    def fit(self, train, *, inner_split, reporter=None, checkpoint=None, stop=None):
        counts = np.bincount(train.y, minlength=len(train.classes)) + self.smoothing
        self.probs = (counts / counts.sum()).astype("f4")
        return {}

    def predict_outputs(self, batch):
        return Outputs(np.tile(self.probs, (len(batch), 1)))

    def save(self, folder):
        (folder / "prior.txt").write_text(" ".join(map(str, self.probs)))

    @classmethod
    def load(cls, folder):
        member = cls()
        member.probs = np.array((folder / "prior.txt").read_text().split(), "f4")
        return member


@pytest.fixture
def prior(monkeypatch):
    gn.register_member(Prior)
    yield monkeypatch
    MEMBERS.unregister("prior")


def test_changed_hyperparameters_or_versions_are_refused(toy, tmp_path, prior):
    settings = dict(members=("lgbm", "prior"), **QUICK)
    gn.train(toy, tmp_path / "run", **settings)
    gn.train(toy, tmp_path / "run", **settings)  # the same again is fine
    prior.setattr(Prior, "smoothing", 2)
    with pytest.raises(UserError, match="prior.smoothing was 1 and is now 2"):
        gn.train(toy, tmp_path / "run", **settings)
    prior.setattr(Prior, "smoothing", 1)
    prior.setattr(Prior, "version", 2)
    with pytest.raises(UserError, match="prior.version was 1 and is now 2"):
        gn.train(toy, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    "outputs, fault",
    [
        (lambda n: np.full((n, 3), 1 / 3), "a ndarray"),
        (lambda n: Outputs(np.full((n, 2), 0.5, "f4")), "shape"),
        (lambda n: Outputs(np.full((n, 3), np.nan, "f4")), "not finite"),
        (lambda n: Outputs(np.tile(np.float32([-1, 1, 1]), (n, 1))), "negative"),
        (lambda n: Outputs(np.full((n, 3), 1.0, "f4")), "do not sum to 1"),
    ],
)
def test_wrong_outputs_are_named_and_nothing_is_kept(toy, tmp_path, prior, outputs, fault):
    prior.setattr(Prior, "predict_outputs", lambda self, batch: outputs(len(batch)))
    with pytest.raises(UserError, match=f"prior fold 1: predict_outputs must return .*{fault}"):
        gn.train(toy, tmp_path / "run", members="prior", **QUICK)
    assert not list((tmp_path / "run" / "members").glob("prior/fold*/manifest.json"))


def test_a_rule_that_is_no_decision_is_named(toy, tmp_path):
    from gesture_nb.training.decision import register_decision

    register_decision("odd", lambda data: 3)
    try:
        with pytest.raises(UserError, match="'odd' returned a int, but must return a Decision"):
            gn.train(toy, tmp_path / "run", members="lgbm", decision="odd", **QUICK)
    finally:
        DECISIONS.unregister("odd")


def test_a_registered_rule_is_followed_without_its_module(toy, tmp_path):
    """The rule is kept as numbers: it predicts after the registration is gone."""
    from dataclasses import replace

    from gesture_nb.evaluation.decode import argmax_rule
    from gesture_nb.training.decision import Decision, register_decision

    def never_the_first(data):
        return Decision(replace(argmax_rule(data.classes), threshold=np.float64([1, 0, 0])))

    register_decision("never_the_first", never_the_first)
    try:
        run = gn.train(toy, tmp_path / "run", members="lgbm", decision="never_the_first", **QUICK)
    finally:
        DECISIONS.unregister("never_the_first")
    labels = run.predictor().decide_labels(gn.read_recordings(toy))
    assert 0 not in labels and 0 in run.predictor().table_proba(gn.read_recordings(toy)).argmax(1)
    assert run.classes[0] not in set(run.predictions()["pred"])


@pytest.fixture
def pulse(toy, tmp_path):
    """A file with heart rate, and its sensor."""
    import pandas as pd

    sensor = register_sensor(Sensor("pulse", "pulse", "1/min", ("pulse_bpm",), valid=(20, 250)))
    frame = pd.read_parquet(toy)
    frame["pulse_bpm"] = 60.0 + 20 * (frame.gesture == "wave")
    yield frame, sensor
    unregister_sensor("pulse")


def test_a_run_is_held_to_the_record_of_its_sensor(pulse, tmp_path):
    frame, sensor = pulse
    run = gn.train(frame, tmp_path / "run", members="lgbm", **QUICK)
    one = frame[frame.sequence_id == "q001"]
    label = run.predictor()(one)
    unregister_sensor("pulse")
    with pytest.raises(UserError, match="'pulse_bpm', whose sensor is not registered"):
        gn.load(tmp_path / "run")
    register_sensor(dataclasses.replace(sensor, drop_chance=0.9))
    with pytest.raises(UserError, match="another record of a sensor .pulse."):
        gn.load(tmp_path / "run")
    with pytest.raises(UserError, match="sensors.pulse was"):
        gn.train(frame, tmp_path / "run", members="lgbm", **QUICK)
    unregister_sensor("pulse")
    register_sensor(sensor)
    assert gn.load(tmp_path / "run")(one) == label and SENSORS["pulse"] == sensor


def test_mirrors_that_cannot_act_are_refused():
    with pytest.raises(UserError, match="do not end in _x, _y and _z"):
        register_sensor(Sensor("mgn", "field", "µT", ("mgn_1", "mgn_2", "mgn_3"), mirror="vector"))


def test_sinks_are_sinks(toy, tmp_path):
    for wrong in (Sink(), [print]):
        with pytest.raises(UserError, match="must be a list of sinks"):
            with session(sinks=wrong, data=toy, out=tmp_path / "run"):
                pass
    assert not (tmp_path / "run").exists()


def test_the_command_line_imports_what_registers(toy, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gesture_nb as gn\nfrom test_registered import Prior\ngn.register_member(Prior)\n"
    )
    command = [sys.executable, "-m", "gesture_nb", "train", "--import", "mine", "--data", str(toy), "--out", "run"]
    command += ["--members", "lgbm,prior", "--folds", "2", "--boosting-rounds", "5", "--progress", "lines"]
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "prior" in done.stdout, done.stderr
    done = subprocess.run([*command, "--import", "nowhere"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 2 and "--import nowhere: the module cannot be imported" in done.stderr
