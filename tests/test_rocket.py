"What the notebook on random convolutions cannot show: odd data, the company of other sequences, damage."
import subprocess
import sys

import numpy as np
import pytest

from gesture_nb.config import Settings, UserError
from gesture_nb.data.frames import FrameFeatures
from gesture_nb.data.sequences import offsets_of
from gesture_nb.models.member import Batch, Member
from gesture_nb.models.rocket import RocketMember, RocketRecipe

SMALL = RocketRecipe(dilations=3, draws=1, thresholds=2, sample=8)


def batch_of(lengths, y, classes=4, seed=0):
    "Noise whose strength tells the label."
    rng, n, y = np.random.default_rng(seed), len(lengths), np.asarray(y)
    x = rng.normal(size=(sum(lengths), 3)).astype("f4") * np.float32(1 + np.repeat(y, lengths))[:, None]
    frames = FrameFeatures(x, ("acc.x", "acc.y", "acc.z"), offsets_of(lengths), {"has_acc": np.ones(n, bool)}, np.full(n, 20, "f4"))
    return Batch(frames, np.arange(n), tuple("abcd"[:classes]), y, (np.arange(n) % 3).astype(str))


def fitted(b, inner=None):
    m = RocketMember(Settings(), 1, 0, SMALL)
    m.fit(b, inner_split=inner or (np.flatnonzero(b.subjects != "0"), np.flatnonzero(b.subjects == "0")))
    return m


def test_import_brings_nothing_heavy():
    code = "import gesture_nb.models.rocket, sys; print(sorted({'torch', 'tensorflow', 'sklearn', 'scipy', 'lightgbm', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("y", [np.arange(48) % 4, np.array([1, 3])[np.arange(40) % 2], np.full(12, 2), [0, 3], [1]], ids=lambda y: f"{len(y)}of{len(set(np.asarray(y).tolist()))}")
def test_any_labels(y):
    b = batch_of([40 + i % 9 for i in range(len(y))], y)
    p = fitted(b).predict_proba(b)
    assert isinstance(RocketMember(), Member) and p.dtype == np.float32 and p.shape == (len(y), 4) and np.allclose(p.sum(1), 1, atol=1e-6)
    assert (p[:, [c for c in range(4) if c not in b.y]] == 0).all()


def test_without_a_check_part():
    b = batch_of([40] * 30, np.arange(30) % 2)
    assert (fitted(b, (np.arange(30), [])).predict_proba(b).argmax(1) == b.y).mean() > 0.9


def test_same_bytes_again_and_loaded(tmp_path):
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    for name in ("one", "two"): (tmp_path / name).mkdir(); fitted(b).save(tmp_path / name)
    for f in ("arrays.safetensors", "member.json"): assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes()
    assert np.array_equal(RocketMember.load(tmp_path / "one").predict_proba(b), fitted(b).predict_proba(b))


def test_answers_do_not_depend_on_the_company_and_any_length_is_answered():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    m = fitted(b)
    assert np.allclose(np.concatenate([m.predict_proba(b.take([i])) for i in (0, 47)]), m.predict_proba(b)[[0, 47]], atol=1e-5)
    p = m.predict_proba(batch_of([1, 2, 3000], [0, 1, 2]))
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-6)
    assert m.predict_proba(b.take(np.arange(0))).shape == (0, 4)


def test_damage_is_named(tmp_path):
    fitted(batch_of([40] * 12, np.arange(12) % 4)).save(tmp_path)
    (tmp_path / "member.json").write_text("{}")
    with pytest.raises(UserError, match="member.json"): RocketMember.load(tmp_path)
