"MiniRocket on odd data, on any number of sequences at once, and with damaged files."
import subprocess
import sys

import numpy as np
import pytest

from gesture_nb.config import Settings, UserError
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.models.base import Batch, FoldOptions, Member, Outputs, training_size
from gesture_nb.models.minirocket import RocketMember, RocketRecipe, mirrored_sample
from gesture_nb.registry import MEMBERS

SMALL = RocketRecipe(dilations=3, draws=1, biases=2, sample=8)


def batch_of(lengths, y, classes=4, seed=0):
    "Noise whose strength depends on the label."
    rng, n, y = np.random.default_rng(seed), len(lengths), np.asarray(y)
    x = rng.normal(size=(sum(lengths), 3)).astype("f4") * np.float32(1 + np.repeat(y, lengths))[:, None]
    frames = FrameFeatures(x, ("acc.x", "acc.y", "acc.z"), offsets_of(lengths), {"has_acc": np.ones(n, bool)},
                           np.full(n, 20, "f4"))
    return Batch(frames, np.arange(n), tuple("abcd"[:classes]), y, (np.arange(n) % 3).astype(str))


def fitted(batch, inner=None):
    member = RocketMember(Settings(), 1, 0, SMALL)
    inner = inner or (np.flatnonzero(batch.subjects != "0"), np.flatnonzero(batch.subjects == "0"))
    member.fit(batch, inner_split=inner)
    return member


def test_import_brings_nothing_heavy():
    heavy = {"torch", "tensorflow", "sklearn", "scipy", "lightgbm", "pandas"}
    code = f"import gesture_nb.models.minirocket, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_import_brings_no_other_member():
    code = "import gesture_nb.models.minirocket, sys; print([m for m in sys.modules if 'models' in m])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "minirocket" in loaded and not any(name in loaded for name in ("gru", "cnn", "gbdt"))


def labels_name(y): return f"{len(y)}of{len(set(np.asarray(y).tolist()))}"


LABELS = [np.arange(48) % 4, np.array([1, 3])[np.arange(40) % 2], np.full(12, 2), [0, 3], [1]]


@pytest.mark.parametrize("y", LABELS, ids=labels_name)
def test_any_labels(y):
    b = batch_of([40 + i % 9 for i in range(len(y))], y)
    p = fitted(b).predict_proba(b)
    assert isinstance(RocketMember(), Member) and p.dtype == np.float32 and p.shape == (len(y), 4)
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    assert (p[:, [c for c in range(4) if c not in b.y]] == 0).all()


def test_without_a_check_part():
    b = batch_of([40] * 30, np.arange(30) % 2)
    assert (fitted(b, (np.arange(30), [])).predict_proba(b).argmax(1) == b.y).mean() > 0.9


def test_same_bytes_again_and_loaded(tmp_path):
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fitted(b).save(tmp_path / name)
    for f in ("arrays.safetensors", "member.json"):
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes()
    assert np.array_equal(RocketMember.load(tmp_path / "one").predict_proba(b), fitted(b).predict_proba(b))
    assert RocketMember.load(tmp_path / "one").recipe == SMALL


def test_predictions_do_not_depend_on_the_other_sequences_and_any_length_is_predicted():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    m = fitted(b)
    single = np.concatenate([m.predict_proba(b.take([i])) for i in (0, 47)])
    assert np.allclose(single, m.predict_proba(b)[[0, 47]], atol=1e-5)
    p = m.predict_proba(batch_of([1, 2, 3000], [0, 1, 2]))
    assert np.isfinite(p).all() and np.allclose(p.sum(1), 1, atol=1e-6)
    assert m.predict_proba(b.take(np.arange(0))).shape == (0, 4)


def test_the_contract_of_a_member():
    b = batch_of([40 + i % 9 for i in range(48)], np.arange(48) % 4)
    m, entry = fitted(b), MEMBERS.entry("rocket")
    assert MEMBERS.get("rocket") is RocketMember
    assert (entry.title, entry.libraries, entry.components) == (m.title, m.libraries, m.components)
    outputs = m.predict_outputs(b)
    assert isinstance(outputs, Outputs) and outputs.heads == {} and np.array_equal(outputs.probs, m.predict_proba(b))
    fresh = RocketMember(Settings(), 1, 0, SMALL)
    assert fresh.hyperparameters(b) == m.hyperparameters(b) and fresh.hyperparameters(b)["biases"] == 2
    assert 0 < m.seconds(m.hyperparameters(b), training_size(b), "fast") < 60


def test_mirror_images_fill_the_rows_that_are_left():
    from dataclasses import replace
    b = batch_of([40] * 48, np.arange(48) % 4)
    mirrored = replace(b, options=FoldOptions(mirror="x"))
    assert len(mirrored_sample(b, 100)) == 0 and len(mirrored_sample(mirrored, 48)) == 0
    assert mirrored_sample(mirrored, 100).tolist() == list(range(48))
    assert mirrored_sample(mirrored, 60).tolist() == list(range(0, 48, 4))
    assert fitted(mirrored).hyperparameters(mirrored)["mirror_axis"] == "x"


def test_damage_is_named(tmp_path):
    fitted(batch_of([40] * 12, np.arange(12) % 4)).save(tmp_path)
    (tmp_path / "member.json").write_text("{}")
    with pytest.raises(UserError, match="member.json"): RocketMember.load(tmp_path)
