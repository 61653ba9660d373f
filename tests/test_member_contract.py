"""What every member promises, built in or registered from outside, and what registering refuses."""
import importlib.util
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from gesture_nb.config import Settings, UserError
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.models.base import Batch, FoldOptions, Member, Outputs, average_outputs, sum_outputs, training_size
from gesture_nb.models.registry import member_class, member_names, register_member
from gesture_nb.registry import MEMBERS

BUILT_IN = ("lgbm", "torch", "keras", "rocket")


@pytest.fixture(scope="module", autouse=True)
def fifth_member():
    """The member of examples/fifth_member.py, registered for the tests of this file."""
    spec = importlib.util.spec_from_file_location("fifth_member", ROOT / "examples" / "fifth_member.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.HistMember
    MEMBERS.unregister("hist")


@pytest.fixture(scope="module")
def batch():
    """Three rhythms of six subjects; sequences of several lengths."""
    rng, n = np.random.default_rng(0), 60
    lengths, y = rng.integers(20, 40, n), np.arange(n) % 3
    steps = np.concatenate([np.arange(length) for length in lengths])
    wave = np.sin(steps * np.repeat(0.2 + 0.35 * y, lengths))[:, None]
    values = (rng.normal(size=(len(steps), 3)) + 3 * wave).astype("f4")
    frames = FrameFeatures(values, ("acc.x", "acc.y", "acc.z"), offsets_of(lengths), {"has_acc": np.ones(n, bool)},
                           np.full(n, 20, "f4"))
    subjects = np.array([f"p{i % 6}" for i in range(n)])
    batch = Batch(frames, np.arange(n), ("hold", "shake", "wave"), y, subjects, options=FoldOptions("tail", "x"))
    return replace(batch, summaries=batch.summary())


SETTINGS = Settings(epochs=1, batch_size=16, boosting_rounds=5)


def fitted(name, batch):
    member = member_class(name)(SETTINGS, 3, 1)
    check = batch.subjects == "p0"
    history = member.fit(batch, inner_split=(np.flatnonzero(~check), np.flatnonzero(check)))
    return member, history


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_registry_says_the_same_as_the_class(name):
    cls, entry = member_class(name), MEMBERS.entry(name)
    assert issubclass(cls, Member) and cls.name == name and cls.version >= 1
    assert (cls.title, cls.libraries, cls.components) == (entry.title, entry.libraries, entry.components)


@pytest.mark.parametrize("name", [*BUILT_IN, "hist"])
def test_a_member_keeps_its_promises(name, batch, tmp_path):
    cls = member_class(name)
    before = cls(SETTINGS, 3, 1).hyperparameters(batch)
    member, history = fitted(name, batch)
    assert member.hyperparameters(batch) == before and json.loads(json.dumps(before))
    assert all(not isinstance(value, str) or "(" not in value for value in before.values())   # no repr of an object
    json.dumps(history)

    outputs = member.predict_outputs(batch)
    assert outputs.probs.shape == (60, 3) and outputs.probs.dtype == np.float32
    assert np.allclose(outputs.probs.sum(1), 1, atol=1e-5)
    assert member.predict_outputs(batch.take(np.arange(0))).probs.shape == (0, 3)
    unlabelled = replace(batch, y=None, subjects=None)
    assert np.array_equal(member.predict_proba(unlabelled), outputs.probs)

    member.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt"}
    assert cls.load(tmp_path).predict_outputs(batch).probs.tobytes() == outputs.probs.tobytes()
    assert cls.seconds(before, training_size(batch), "full") >= cls.seconds(before, training_size(batch), "fast") > 0


def test_a_fifth_member_predicts_what_its_library_does(batch, monkeypatch):
    from sklearn.ensemble import HistGradientBoostingClassifier
    models, fit = [], HistGradientBoostingClassifier.fit
    def spy(self, x, y): return models.append((fit(self, x, y), x)) or self
    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", spy)
    two_classes = replace(batch, y=np.where(batch.y == 2, 0, batch.y))
    for b in (batch, two_classes):
        member, _ = fitted("hist", b)
        model, x = models[-1]
        theirs = model.predict_proba(x)
        assert np.allclose(member.predict_proba(b)[:, model.classes_], theirs, atol=1e-6)


def test_outputs_and_their_names_on_disk():
    one = Outputs(np.float32([[0.25, 0.75]]), {"orientation": np.float32([[1, 0]])})
    two = Outputs(np.float32([[0.75, 0.25]]), {"orientation": np.float32([[0, 1]])})
    assert list(one.as_arrays()) == ["proba", "head.orientation"]
    again = Outputs.from_arrays(one.as_arrays() | {"index": np.arange(1)})
    assert again.probs is not None and list(again.heads) == ["orientation"]
    mean, total = average_outputs([one, two]), sum_outputs([one, two])
    assert mean.probs.tolist() == [[0.5, 0.5]] and mean.heads["orientation"].tolist() == [[0.5, 0.5]]
    assert total.probs.tolist() == [[1, 1]] and {a.dtype for a in (mean.probs, total.probs)} == {np.dtype("f4")}
    assert pickle.loads(pickle.dumps(one)).probs.tolist() == one.probs.tolist()


class Incomplete(Member):
    name, title, version = "incomplete", "Not ready", 1
    def hyperparameters(self, train): return {}
    def fit(self, train, *, inner_split, reporter=None, checkpoint=None, stop=None): return {}
    def predict_outputs(self, batch): return Outputs(np.ones((len(batch), 1), "f4"))


class Complete(Incomplete):
    def save(self, folder): pass
    @classmethod
    def load(cls, folder): return cls()


def test_what_a_class_lacks_is_named():
    unnamed = type("Unnamed", (Member,), {k: v for k, v in vars(Complete).items() if k not in ("name", "__dict__")})
    with pytest.raises(TypeError, match="lacks .*name, title, version"): unnamed()
    with pytest.raises(TypeError, match=r"Incomplete is not a complete member: it lacks load\(\), save\(\)"):
        Incomplete()
    with pytest.raises(UserError, match=r"Incomplete cannot be registered: it lacks load\(\), save\(\)"):
        register_member(Incomplete)
    Complete()


@pytest.mark.parametrize("changes,message", [
    ({"name": "two words"}, "must be a word"), ({"name": "a-b"}, "must be a word"), ({"version": 0}, "at least 1"),
    ({"version": "1"}, "at least 1"), ({"version": True}, "at least 1"), ({"name": "lgbm"}, "lgbm"),
])
def test_registering_refuses(changes, message):
    with pytest.raises(UserError, match=message): register_member(type("Odd", (Complete,), changes))
    assert member_names()[:4] == BUILT_IN


def test_registering_twice_and_as_a_decorator():
    try:
        assert register_member(Complete, title="All there") is Complete
        assert register_member(title="Again")(Complete) is Complete
        assert member_class("incomplete") is Complete and MEMBERS.entry("incomplete").title == "Again"
        with pytest.raises(UserError, match="choose another name"):
            register_member(type("Other", (Complete,), {"__module__": "elsewhere"}))
    finally: MEMBERS.unregister("incomplete")
    with pytest.raises(UserError, match="register_member"): member_class("incomplete_")
    for wrong in (Complete(), dict, "lgbm"):
        with pytest.raises(UserError, match="subclass of"): register_member(wrong)
