"What the notebook on trees cannot show: unusual label sets, thread counts, silence, damaged files."
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import gesture_nb.models.gbdt as gbdt
from gesture_nb.config import Settings, UserError
from gesture_nb.control import StopSignal, TimeUp
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.features.summary import Summaries
from gesture_nb.models.base import Batch, Member
from gesture_nb.models.gbdt import LgbmMember

def batch_of(y, classes=4, features=25, seed=0, people=5):
    "A batch with the labels `y`, told apart by the first features."
    rng, y = np.random.default_rng(seed), np.asarray(y)
    n = len(y)
    x = rng.normal(size=(n, features)).astype("f4")
    x[:, :classes] += 2 * np.eye(classes)[y]
    frames = FrameFeatures(np.zeros((n, 1), "f4"), ("acc.x",), np.arange(n + 1), {}, np.full(n, 50, "f4"))
    summaries = Summaries(x, tuple(f"acc.{i}" for i in range(features)))
    subjects = (np.arange(n) % people).astype(str)
    return Batch(frames, np.arange(n), tuple("abcdefgh"[:classes]), y, subjects, summaries)


def with_summaries(b, values, names):
    return Batch(b.frames, b.index, b.classes, summaries=Summaries(values, names))


def split(b):
    check = b.subjects == b.subjects[-1]
    return np.flatnonzero(~check), np.flatnonzero(check)


def fitted(b, **kw):
    m = LgbmMember(Settings(boosting_rounds=30), **{"seed": 1, "fold": 0} | kw)
    m.fit(b, inner_split=split(b))
    return m


def legal(p, b):
    assert p.shape == (len(b), len(b.classes)) and p.dtype == np.float32
    assert np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-6)
    return p


def test_import_brings_no_lightgbm():
    heavy = ("lightgbm", "sklearn", "pandas", "torch", "tensorflow", "matplotlib")
    code = f"import gesture_nb.models.gbdt, sys; print(sorted(set({heavy!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_is_a_member():
    assert isinstance(LgbmMember(), Member)


@pytest.mark.parametrize("y", [
    np.arange(200) % 4,                       # all classes
    np.array([1, 3])[np.arange(90) % 2],      # labels with gaps
    np.array([0, 2, 3])[np.arange(90) % 3],
    np.full(40, 2),                           # one class
    [0, 1, 2, 3], [1, 0], [3],                # fewer sequences than a leaf wants
    [0] * 100 + [1],                          # a class of one
], ids=lambda y: f"{len(y)}of{len(set(np.asarray(y).tolist()))}")
def test_any_labels(y):
    b = batch_of(y)
    m = fitted(b)
    p = legal(m.predict_proba(b), b)
    absent = [c for c in range(4) if c not in b.y]
    assert (p[:, absent] == 0).all()
    if len(y) >= 40: assert (p.argmax(1) == b.y).mean() > 0.9


INNER = {"none": ([], []), "no check": (np.arange(40), []), "no fit": ([], np.arange(40)),
         "check of other classes": (np.arange(20), np.arange(20, 40))}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_inner_splits_that_cannot_be_used(inner):
    b = batch_of(np.repeat([0, 1], 20))
    m = LgbmMember(Settings(boosting_rounds=20))
    m.fit(b, inner_split=inner)
    assert (legal(m.predict_proba(b), b).argmax(1) == b.y).mean() > 0.9


def test_bytes_do_not_depend_on_threads(tmp_path, monkeypatch):
    b, found = batch_of(np.arange(400) % 4), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(gbdt, "threads_for", lambda cells, t=threads: t)
        folder = tmp_path / str(threads)
        folder.mkdir()
        m = fitted(b)
        m.save(folder)
        files = [(folder / name).read_bytes() for name in ("model.txt", "member.json")]
        found.append((*files, m.predict_proba(b).tobytes()))
    assert found[0] == found[1] == found[2]


def test_seed_and_fold_matter():
    b = batch_of(np.arange(200) % 4, features=90)
    one, two, three = (fitted(b, **kw).predict_proba(b) for kw in ({}, {"fold": 1}, {"seed": 2}))
    assert not np.array_equal(one, two) and not np.array_equal(one, three)


def test_features_are_found_by_name():
    b = batch_of(np.arange(200) % 4)
    m = fitted(b)
    x, names = b.summaries
    p, order = m.predict_proba(b), np.random.default_rng(0).permutation(len(names))
    shuffled = with_summaries(b, np.c_[x[:, order], x[:, 0]], (*[names[i] for i in order], "acc.extra"))
    assert np.array_equal(m.predict_proba(shuffled), p)
    legal(m.predict_proba(with_summaries(b, x[:, :10], names[:10])), b)
    with pytest.raises(UserError, match="None of the 25 features"):
        m.predict_proba(with_summaries(b, x, tuple(f"no.{n}" for n in names)))


def test_gaps_and_infinities_are_answered():
    b = batch_of(np.arange(200) % 4)
    m = fitted(b)
    odd = np.full_like(b.summaries[0], np.nan)
    odd[1], odd[2], odd[3] = np.inf, -np.inf, 1e30
    legal(m.predict_proba(with_summaries(b, odd, b.summaries[1])), b)
    assert m.predict_proba(b.take(np.arange(0))).shape == (0, 4)


def test_says_nothing_itself(capfd, tmp_path):
    b = batch_of([0, 1, 2, 3])
    m = fitted(b)
    m.save(tmp_path)
    LgbmMember.load(tmp_path).predict_proba(b)
    out = capfd.readouterr()
    assert out.out == out.err == ""


def test_rounds_are_reported_as_steps():
    seen = []
    class Spy:
        def training(self, label, fold, epochs, steps, unit):
            seen.append((label, fold, epochs, steps, unit))
            return self
        def __enter__(self): return self
        def __exit__(self, *e): pass
        def start_epoch(self, epoch): seen.append(epoch)
        def step(self, loss, lr): seen.append((loss, lr))
        def end_epoch(self, **metrics): pass
    b = batch_of(np.arange(200) % 4)
    LgbmMember(Settings(boosting_rounds=5), 0, 2).fit(b, inner_split=split(b), reporter=Spy())
    steps = [s for s in seen if isinstance(s, tuple) and len(s) == 2]
    assert seen[0] == ("LightGBM rounds", 3, 1, 5, "round") and seen[1] == 1
    assert ("LightGBM", 3, 1, 5, "round") in seen
    assert len(steps) == 10 and all(loss > 0 and lr == 0.04 for loss, lr in steps)


def test_what_goes_wrong_in_a_callback_reaches_the_caller():
    class Broken:
        def training(self, *a, **k): return self
        def __enter__(self): return self
        def __exit__(self, *e): return False
        def start_epoch(self, epoch): pass
        def step(self, loss, lr): raise RuntimeError("the bar fell over")
    b = batch_of(np.arange(200) % 4)
    with pytest.raises(RuntimeError, match="the bar fell over"):
        LgbmMember().fit(b, inner_split=split(b), reporter=Broken())


def test_a_time_limit_ends_it_between_rounds():
    b = batch_of(np.arange(200) % 4)
    with pytest.raises(TimeUp): LgbmMember().fit(b, inner_split=split(b), stop=StopSignal(deadline=-math.inf))
    one_round = LgbmMember(Settings(boosting_rounds=1))
    one_round.fit(b, inner_split=split(b), stop=StopSignal(deadline=-math.inf))   # done after its only round
    legal(one_round.predict_proba(b), b)


def test_damage_is_named(tmp_path):
    m = fitted(batch_of(np.arange(200) % 4))
    m.save(tmp_path)
    text = (tmp_path / "model.txt").read_text()
    (tmp_path / "model.txt").write_text("not a model")
    with pytest.raises(UserError, match="model.txt"): LgbmMember.load(tmp_path)
    (tmp_path / "model.txt").write_text(text)
    (tmp_path / "member.json").write_text("{}")
    with pytest.raises(UserError, match="member.json"): LgbmMember.load(tmp_path)


def test_another_models_text_is_refused(tmp_path):
    fitted(batch_of(np.arange(200) % 4)).save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    fitted(batch_of(np.arange(200) % 4, features=9)).save(other)
    (tmp_path / "model.txt").write_bytes((other / "model.txt").read_bytes())
    with pytest.raises(UserError, match="does not fit member.json"): LgbmMember.load(tmp_path)


def worn_differently(n=240, people=6, **kw):
    "People whose mean of acc.x differs, which hides the label; with the shifts that bring them together."
    b = batch_of(np.arange(n) % 4, people=people, **kw)
    own = np.linspace(-20, 20, people)[np.arange(n) % people].astype("f4")
    x, names = b.summaries[0].copy(), ("acc.x:mean", *b.summaries[1][1:])
    x[:, 0] = 3 * (b.y == 0) + own
    return replace(b, summaries=Summaries(x, names), shifts=-own[:, None])


def test_the_twin_learns_from_shifted_features(tmp_path):
    b = worn_differently()
    stranger = replace(worn_differently(seed=1), y=None, subjects=None)
    m = fitted(b)
    p = legal(m.predict_adapted(stranger).probs, stranger)
    told_apart = [(q.argmax(1) == 0) == (np.arange(240) % 4 == 0) for q in (p, m.predict_proba(stranger.shifted()))]
    assert np.mean(told_apart[0]) > np.mean(told_apart[1])
    m.save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["member.json", "model.txt", "twin.txt"]
    loaded = LgbmMember.load(tmp_path)
    assert np.array_equal(loaded.predict_adapted(stranger).probs, p)
    assert np.array_equal(loaded.predict_proba(stranger), m.predict_proba(stranger))
    labelled = replace(stranger, y=np.roll(b.y, 1), subjects=b.subjects)
    assert np.array_equal(m.predict_adapted(labelled).probs, p)   # labels of new people are not read
    assert m.predict_adapted(stranger.take(np.arange(0))).probs.shape == (0, 4)


def test_mirror_images_are_shifted_by_their_own_shifts():
    b = worn_differently()
    x = b.summary().values
    rows, images = gbdt.shifted_rows(replace(b, mirrored_shifts=2 * b.shifts), x, -x, b.summary().names)
    assert np.array_equal(rows[:, 0], x[:, 0] + b.shifts[:, 0])
    assert np.array_equal(images[:, 0], -x[:, 0] + 2 * b.shifts[:, 0])
    assert np.array_equal(rows[:, 1:], x[:, 1:]) and np.array_equal(images[:, 1:], -x[:, 1:])
    assert gbdt.shifted_rows(b, x, -x, b.summary().names)[1] is None


def test_without_adaptation_nothing_changes(tmp_path):
    b, found = worn_differently(), []
    for name, settings, train in (
        ("off", {"adapt": "off"}, b), ("unknown", {}, replace(b, shifts=None)), ("on", {}, b)
    ):
        m = LgbmMember(Settings(boosting_rounds=30, **settings), 1)
        m.fit(train, inner_split=split(b))
        (tmp_path / name).mkdir()
        m.save(tmp_path / name)
        found.append((m, {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}))
    (off, off_files), (unknown, unknown_files), (on, on_files) = found
    assert off_files == unknown_files and "twin.txt" not in off_files
    assert on_files["model.txt"] == off_files["model.txt"]
    assert off.predict_proba(b).tobytes() == on.predict_proba(b).tobytes()
    assert "twin" not in off.hyperparameters(b) and on.hyperparameters(b)["twin"]
    assert np.array_equal(off.predict_adapted(b).probs, off.predict_proba(b.shifted()))


def test_a_damaged_twin_is_named(tmp_path):
    fitted(worn_differently()).save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    fitted(worn_differently(features=9)).save(other)
    (tmp_path / "twin.txt").write_bytes((other / "twin.txt").read_bytes())
    with pytest.raises(UserError, match="does not fit member.json"): LgbmMember.load(tmp_path)
    (tmp_path / "twin.txt").unlink()
    with pytest.raises(UserError, match="twin.txt"): LgbmMember.load(tmp_path)


def test_exported_twins_answer_alike(tmp_path):
    from gesture_nb.serving.compiled import CompiledTrees
    from gesture_nb.serving.export import difference_of, export_trees
    b = worn_differently()
    members = {0: fitted(b), 2: fitted(b, fold=2)}
    entry = export_trees(members, b, "lgbm", tmp_path)
    compiled = CompiledTrees(tmp_path, entry, [0, 2])
    few = b.take(np.arange(9))
    assert entry["twins"] == [0, 2] and difference_of(compiled, [*members.values()], few) <= 1e-5
    members[0].twin = None
    assert difference_of(compiled, [*members.values()], few) > 1e-3
    entry = export_trees(members, b, "lgbm", tmp_path)
    assert entry["twins"] == [2]
    assert difference_of(CompiledTrees(tmp_path, entry, [0, 2]), [*members.values()], few) <= 1e-5
