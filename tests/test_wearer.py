"""Getting to know the wearer: the shift, the protocols, what they may know of whom, and runs with and without them."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gesture_nb.artifacts import MANIFEST, atomic_folder, check_manifest, copy_file, read_arrays, write_arrays
from gesture_nb.config import UserError, read_settings
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.features.wearer import (
    Reference,
    WearerHistory,
    reference_of,
    shift_frames,
    shifts_all_at_once,
    shifts_as_they_come,
)
from gesture_nb.files import DamagedError
from gesture_nb.models.base import Batch, Member, Outputs
from gesture_nb.progress import Quiet, Reporter
from gesture_nb.sinks import Sink
from gesture_nb.training.adaptation import answers_of, find_share, run_protocol, run_protocols
from gesture_nb.training.blend import blend, blend_adapted, check_blend, mixed
from gesture_nb.training.out_of_fold import UnitOutputs
from gesture_nb.training.results import read_oof, read_unit_outputs
from gesture_nb.training.run import train
from gesture_nb.training.units import units_of
from gesture_nb.training.wearers import adapted_arrays, arrival_orders, order_within, shifted_batches

def some_frames(lengths=(3, 5, 2, 4, 6), thm=(1, 0, 1, 1, 1), seed=0):
    """Sequences of two features, the second of a thermopile that not all of them have."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = rng.normal(size=(offsets[-1], 2)).astype(np.float32)
    present = np.array(thm, bool)
    values[~np.repeat(present, lengths), 1] = 0
    masks = {"has_acc": np.ones(len(lengths), bool), "has_thm_1": present}
    return FrameFeatures(values, ("acc.x", "thm.1"), offsets, masks, np.full(len(lengths), 10, np.float32))


def rows(frames, i):
    return frames.values[frames.offsets[i] : frames.offsets[i + 1]].astype(float)


# ---- the formula


def test_the_shift_is_a_part_of_the_difference_that_grows_with_the_recordings():
    frames = some_frames()
    reference = Reference(frames.names, np.float32([1.5, -2]))
    found = shifts_all_at_once(frames, np.arange(3), np.array(["a", "a", "a"]), reference, strength=4)
    acc = np.concatenate([rows(frames, i)[:, 0] for i in (0, 1, 2)]).mean()
    thm = np.concatenate([rows(frames, i)[:, 1] for i in (0, 2)]).mean()  # the second has no thermopile
    expected = [3 / (3 + 4) * (1.5 - acc), 2 / (2 + 4) * (-2 - thm)]
    assert np.allclose(found, [expected] * 3, atol=1e-6) and found.dtype == np.float32


def test_the_reference_counts_rows_and_leaves_out_absent_sensors():
    frames = some_frames()
    reference = reference_of(frames, np.arange(5))
    assert np.isclose(reference.mean[0], frames.values[:, 0].astype(float).mean(), atol=1e-6)
    thm = np.concatenate([rows(frames, i)[:, 1] for i in (0, 2, 3, 4)])
    assert np.isclose(reference.mean[1], thm.mean(), atol=1e-6)
    never = reference_of(some_frames(thm=(0,) * 5), np.arange(5))
    assert np.isnan(never.mean[1])
    history = WearerHistory(frames.names)
    history.add(frames, np.arange(5))
    assert history.shift(never)[1] == 0 and history.shift(never)[0] != 0


def test_features_of_absent_sensors_stay_and_the_original_is_not_touched():
    frames = some_frames()
    before = frames.values.copy()
    moved = shift_frames(frames, np.array([1, 3]), np.float32([[1, 10], [2, 20]]))
    assert np.allclose(moved.values[:5], before[3:8] + [1, 0])  # no thermopile
    assert np.allclose(moved.values[5:], before[10:14] + [2, 20])
    assert np.array_equal(frames.values, before) and moved.masks["has_thm_1"].tolist() == [False, True]


def test_as_they_come_only_earlier_recordings_count():
    frames, people = some_frames(), np.array(["a", "b", "a", "a", "b"])
    reference, order = reference_of(some_frames(seed=1), np.arange(5)), np.array([2, 1, 3, 4, 0])
    found = shifts_as_they_come(frames, np.arange(5), people, order, reference)
    histories = {"a": WearerHistory(frames.names), "b": WearerHistory(frames.names)}
    for i in order:  # as serving does it
        assert np.allclose(found[i], histories[people[i]].shift(reference), atol=1e-6)
        histories[people[i]].add(frames, [i])
    assert not found[2].any() and not found[1].any() and found[3].any()  # the first of each has no past
    later = replace(frames, values=frames.values.copy())
    later.values[frames.offsets[3] :] += 7  # recordings that come after 3, and 3 itself
    again = shifts_as_they_come(later, np.arange(5), people, order, reference)
    assert np.array_equal(again[[0, 1, 2, 3]][[1, 2, 3]], found[[1, 2, 3]]) and not np.array_equal(again[0], found[0])


def test_nobody_is_shifted_by_another_person_or_without_a_name():
    frames, people = some_frames(), np.array(["a", "b", "a", "", ""])
    reference = Reference(frames.names, np.float32([1, 1]))
    other = replace(frames, values=frames.values.copy())
    other.values[frames.offsets[1] : frames.offsets[2]] += 100  # b
    for shifts in (shifts_all_at_once, lambda *a: shifts_as_they_come(*a[:3], np.arange(5), a[3])):
        one, two = (shifts(f, np.arange(5), people, reference) for f in (frames, other))
        assert np.array_equal(one[[0, 2]], two[[0, 2]]) and not one[3:].any()
    assert not np.array_equal(two[1], shifts_all_at_once(other, np.arange(5), people, reference)[1])


def test_a_history_is_kept_and_given_back_and_refuses_others():
    frames = some_frames()
    history = WearerHistory(frames.names)
    history.add(frames, [0, 1, 4])
    again = WearerHistory.from_arrays(frames.names, history.as_arrays())
    reference = Reference(frames.names, np.float32([1, 1]))
    assert again.n == 3 and np.array_equal(again.shift(reference), history.shift(reference))
    size = sum(a.nbytes for a in history.as_arrays().values())
    for _ in range(50):
        again.add(frames, np.arange(5))
    assert again.n == 253 and sum(a.nbytes for a in again.as_arrays().values()) == size  # bounded
    for name, value in (("rows", np.zeros(3)), ("total", np.full(2, np.nan)), ("n", None)):
        with pytest.raises(UserError, match=name):
            WearerHistory.from_arrays(frames.names, history.as_arrays() | {name: value})
    with pytest.raises(UserError, match="features"):
        history.add(replace(frames, names=("acc.x", "acc.y")), [0])


def test_a_batch_is_shifted_once_and_its_summary_with_it():
    frames = some_frames(lengths=(40, 50, 30, 40, 60))
    batch = Batch(frames, np.array([4, 0]), ("p", "q"), shifts=np.float32([[1, 0], [5, 0]]))
    assert np.array_equal(batch.take(np.array([1])).shifts, [[5, 0]])
    moved = batch.shifted()
    assert moved.shifts is None and len(moved) == 2
    column = batch.summary().names.index("acc.x:mean")
    assert np.allclose(moved.summary().values[:, column] - batch.summary().values[:, column], [1, 5], atol=1e-5)


# ---- a fold: what the answers may depend on


class Level(Member):
    """Answers by how high one feature lies, so that every shift shows."""

    name, title, version = "level", "level", 1

    def hyperparameters(self, train):
        return {}

    def fit(self, train, **options):
        return {}

    def predict_outputs(self, batch):
        x, names = batch.summary()
        p = 1 / (1 + np.exp(-x[:, names.index("acc.x:mean")]))
        return Outputs(np.stack([p, 1 - p], 1).astype(np.float32))

    def save(self, folder):
        pass

    @classmethod
    def load(cls, folder):
        return cls()


@pytest.fixture(scope="module")
def people12():
    """A dataset-like of twelve people in four folds, with a device that each of them wears otherwise."""
    rng, n = np.random.default_rng(3), 96
    lengths = rng.integers(30, 50, size=n)
    person = np.arange(n) % 12
    frames = some_frames(tuple(lengths), (1,) * n, seed=4)
    frames.values[:, 0] += np.repeat(rng.normal(size=12)[person], lengths)
    return dataset_of(frames, rng.integers(2, size=n), person)


def dataset_of(frames, y, person, fold=None):
    from gesture_nb.training.dataset import Dataset

    people = np.array([f"p{k:02d}" for k in person])
    table = SimpleNamespace(meta={"subject": people})
    fold = person % 4 if fold is None else fold
    return Dataset(table, frames, None, ("hold", "wave"), np.asarray(y), np.asarray(fold), "test")


def answers(dataset, fold, seed=0):
    return adapted_arrays(dataset, Level(), fold, arrival_orders(len(dataset.y), seed)[:3])


def test_answers_need_no_labels_and_no_other_held_out_person(people12):
    p = people12
    honest = answers(p, 1)
    permuted = dataset_of(p.frames, np.random.default_rng(0).permutation(p.y), np.arange(len(p.y)) % 12)
    assert all(np.array_equal(a, answers(permuted, 1)[k]) for k, a in honest.items())

    strange = replace(p.frames, values=p.frames.values.copy())
    moved = np.flatnonzero(p.people == "p05")  # held out in fold 1
    for i in moved:
        strange.values[strange.offsets[i] : strange.offsets[i + 1]] += 50
    other = answers(dataset_of(strange, p.y, np.arange(len(p.y)) % 12), 1)
    held_out = np.flatnonzero(p.fold == 1)
    of_others = ~np.isin(held_out, moved)
    for name, values in honest.items():
        assert np.array_equal(values[..., of_others, :], other[name][..., of_others, :])
        assert not np.array_equal(values[..., ~of_others, :], other[name][..., ~of_others, :])


def test_the_check_sees_a_planted_leak(people12, monkeypatch):
    """If the reference came from all people, what a held-out person does would reach the others."""
    from gesture_nb.training import wearers

    p = people12
    strange = replace(p.frames, values=p.frames.values.copy())
    for i in np.flatnonzero(p.people == "p05"):
        strange.values[strange.offsets[i] : strange.offsets[i + 1]] += 50
    leaking = lambda dataset, fold=None: reference_of(dataset.frames, np.arange(len(dataset.y)))
    monkeypatch.setattr(wearers, "reference_for", leaking)
    one, two = (answers(dataset_of(f, p.y, np.arange(len(p.y)) % 12), 1) for f in (p.frames, strange))
    others = p.people[p.fold == 1] != "p05"
    assert not np.array_equal(one["all_at_once.proba"][others], two["all_at_once.proba"][others])


def test_each_order_uses_the_past_only_and_ends_near_all_at_once(people12):
    held_out = np.flatnonzero(people12.fold == 2)
    batch, people = Batch(people12.frames, held_out, people12.classes), people12.people[held_out]
    reference, orders = reference_of(people12.frames, np.flatnonzero(people12.fold != 2)), [np.arange(len(held_out))]
    found = dict(shifted_batches(batch, people, reference, orders))
    first = [np.flatnonzero(people == name)[0] for name in np.unique(people)]
    assert not found["as_they_come"].shifts[first].any()
    size = np.abs(found["as_they_come"].shifts[:, 0])
    last = [np.flatnonzero(people == name)[-1] for name in np.unique(people)]
    assert size[last].mean() > size[first].mean()
    assert np.array_equal(order_within(np.array([5, 0, 3, 4, 1, 2]), np.array([1, 3, 5])), [2, 1, 0])


def test_orders_are_of_the_seed_and_fewer_for_many_recordings():
    counts = [len(arrival_orders(n, 0)) for n in (60, 1_500, 3_000, 50_000)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 20 and counts[-1] == 4
    assert np.array_equal(arrival_orders(60, 1)[3], arrival_orders(60, 1)[3])
    assert not np.array_equal(arrival_orders(60, 1)[0], arrival_orders(60, 2)[0])


# ---- how much the adapted answer counts


def two_members(better, n=600, people=12, seed=0):
    """Outputs of two members; `better`: member → skill of the adapted answer beside 1.5 of the plain one."""
    rng = np.random.default_rng(seed)
    person = np.arange(n) % people
    p = SimpleNamespace(
        y=rng.integers(3, size=n), fold=person % 4, folds=4, classes=("a", "b", "c"),
        subjects=np.array([f"p{k:02d}" for k in person]),
    )
    p.people = p.subjects

    def probs(skill):
        z = rng.normal(size=(n, 3)) + skill * np.eye(3)[p.y]
        return (np.exp(z) / np.exp(z).sum(1, keepdims=True)).astype(np.float32)

    outputs = []
    for member, skill in better.items():
        arrays = {"index": np.arange(n), "proba": probs(1.5), "all_at_once.proba": probs(skill)}
        arrays["as_they_come.proba"] = np.stack([probs(skill) for _ in range(4)])
        outputs.append(UnitOutputs(member, arrays))
    return p, outputs


def test_a_half_unless_the_people_say_clearly_otherwise():
    p, outputs = two_members({"torch": 6, "keras": -1, "lgbm": 1.5})
    a = answers_of(len(p.y), outputs, "all_at_once")
    share = {m: find_share(a.plain[m], a.adapted[0][m], p.y, p.people) for m in a.plain}
    assert share == {"torch": 1, "keras": 0, "lgbm": 0.5}
    one = np.flatnonzero(p.people == "p00")
    assert find_share(a.plain["torch"][one], a.adapted[0]["torch"][one], p.y[one], p.people[one]) == 0.5
    none = np.full_like(a.plain["torch"], np.nan)
    assert find_share(none, none, p.y, p.people) == 0.5


def test_what_a_fold_is_answered_by_never_saw_its_labels():
    p, outputs = two_members({"torch": 4, "keras": 0})
    s, k = read_settings({}), 1
    one = run_protocols(p, s, outputs)
    p.y = np.where(p.fold == k, (p.y + 1) % 3, p.y)
    two = run_protocols(p, s, outputs)
    for protocol in one:
        a, b = one[protocol], two[protocol]
        assert a.record["per_fold"][k] == b.record["per_fold"][k] and a.record["per_fold"][0] != b.record["per_fold"][0]
        assert a.record["decision"]["per_fold"][k] == b.record["decision"]["per_fold"][k]
        for x, z in zip(a.labels, b.labels):
            assert np.array_equal(x[p.fold == k], z[p.fold == k])
        assert a.record["final"] != b.record["final"]


def test_mixed_answers_are_the_plain_or_the_adapted_ones_themselves():
    p, outputs = two_members({"torch": 4, "keras": 0})
    plain, adapted = ({o.member: o.arrays[key] for o in outputs} for key in ("proba", "all_at_once.proba"))
    found = mixed(plain, {"torch": adapted["torch"]}, {"torch": 1})
    assert found["torch"] is adapted["torch"] and found["keras"] is plain["keras"]
    weights = {"torch": 1, "keras": 1}
    nothing = blend_adapted(plain, {}, {"weights": weights, "shares": {"torch": 0, "keras": 0}})
    assert np.array_equal(nothing, blend(plain, weights))
    half = blend_adapted(plain, adapted, {"weights": weights, "shares": {"torch": 0.5, "keras": 0.5}})
    assert np.allclose(half, sum(plain[m] + adapted[m] for m in plain) / 4, atol=1e-6)


def test_the_gain_is_found_where_there_is_one_and_nothing_is_lost_where_there_is_none():
    def accuracy(skills, protocol="as_they_come"):
        p, outputs = two_members(skills)
        a = answers_of(len(p.y), outputs, protocol)
        adapted = run_protocol(p, read_settings({}, decision="argmax"), a, arrival_orders(len(p.y), 0)[:4])
        plain = blend(a.plain, adapted.record["final"]["weights"]).argmax(1)
        return np.mean([(labels == p.y).mean() for labels in adapted.labels]), (plain == p.y).mean()

    better, plain = accuracy({"torch": 4, "keras": 3})
    assert better > plain + 0.1
    worse, plain = accuracy({"torch": -1, "keras": -1})
    assert worse > plain - 0.02


# ---- runs


class Lines(Sink):
    def __init__(self):
        self.texts = []

    def on_event(self, event):
        if event["kind"] in ("say", "task"):
            self.texts.append(event.get("text") or event.get("title", ""))

    def close(self, failed):
        pass


def small(out, **changes):
    return read_settings({}, data="sim:60", out=out, folds=2, members="lgbm", boosting_rounds=6, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same small run with adaptation and without, and what the first said."""
    folder, lines = tmp_path_factory.mktemp("wearer"), Lines()
    s = small(folder / "on")
    dataset, metrics = train(s, Reporter(s, sinks=[lines]))
    train(small(folder / "off", adapt="off"), Quiet())
    return SimpleNamespace(s=s, out=folder / "on", off=folder / "off", dataset=dataset, metrics=metrics, lines=lines)


def read(path):
    return json.loads(path.read_text())


def test_a_run_tells_the_three_protocols_of_the_ensemble_and_every_member(runs):
    m = read(runs.out / "metrics.json")
    for entry in (m["ensemble"], *m["members"].values()):
        for protocol in ("alone", "as_they_come", "all_at_once"):
            assert {"accuracy", "macro_f1", "score"} <= {*entry[protocol]}
        come = entry["as_they_come"]
        assert come["orders"] == 20 and come["low"] <= come["score"] <= come["high"] and come["low"] < come["high"]
        assert entry["alone"] == {key: entry[key] for key in ("accuracy", "macro_f1", "score")}
    said = "\n".join(runs.lines.texts)
    assert "alone" in said and "as they come" in said and "all at once" in said and "Shares of the adapted" in said


def test_the_files_of_a_run_with_adaptation(runs):
    record, n = read(runs.out / "ensemble.json"), len(runs.dataset.y)
    adaptation, features = record["adaptation"], len(runs.dataset.frames.names)
    check_blend(record, "ensemble.json")
    assert adaptation["strength"] == 10 and adaptation["names"] == list(runs.dataset.frames.names)
    means = [adaptation["reference"]["final"], *adaptation["reference"]["per_fold"]]
    assert {len(mean) for mean in means} == {features} and len(means) == 3
    assert {*adaptation["as_they_come"]["final"]["shares"]} == {"lgbm"}
    oof = read_oof(runs.out)
    assert oof["p_ensemble_all_at_once"].shape == oof["p_ensemble"].shape == (n, 18)
    assert np.allclose(oof["p_ensemble_all_at_once"].sum(1), 1, atol=1e-4)
    assert not np.array_equal(oof["p_ensemble_all_at_once"], oof["p_ensemble"]) and len(oof["pred_all_at_once"]) == n
    right = np.mean(oof["pred_all_at_once"] == oof["gesture"])
    assert np.isclose(right, runs.metrics["ensemble"]["all_at_once"]["accuracy"])
    arrays = read_unit_outputs(units_of(runs.s, 2, runs.out / "members"))[0].arrays
    m = len(arrays["index"])
    assert arrays["all_at_once.proba"].shape == (m, 18) and arrays["as_they_come.proba"].shape == (20, m, 18)


def test_off_is_as_it_was_before(runs):
    """No new keys, and the same answers alone, byte for byte."""
    record, metrics = read(runs.off / "ensemble.json"), read(runs.off / "metrics.json")
    assert "adaptation" not in record and "alone" not in metrics["ensemble"] | metrics["members"]["lgbm"]
    oof, on = read_oof(runs.off), read_oof(runs.out)
    assert not any("all_at_once" in name for name in oof)
    assert all(np.array_equal(on[name], values) for name, values in oof.items())
    with_it = read(runs.out / "ensemble.json")
    assert all(with_it[key] == record[key] for key in ("final", "per_fold", "decision", "classes"))
    unit = "members/lgbm/fold0"
    plain, both = (read_arrays(out / unit / "oof.safetensors") for out in (runs.off, runs.out))
    assert {*plain} == {key for key in both if "_at_once" not in key and "they_come" not in key}
    assert all(np.array_equal(values, both[key]) for key, values in plain.items())


def copy_of(run, to):
    shutil.copytree(run, to)
    return to


def files_of(out):
    """All files of the units; manifests also tell how many seconds a training took."""
    paths = [p for p in sorted((out / "members").rglob("*")) if p.is_file() and p.name != MANIFEST]
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in paths}


def without_adapted(unit):
    """The unit's folder as it was before its answers with other recordings were added."""
    arrays, facts = read_arrays(unit.folder / "oof.safetensors"), check_manifest(unit.folder)
    rewrite(unit, facts, {k: v for k, v in arrays.items() if not k.startswith(("all_at_once.", "as_they_come."))})


def rewrite(unit, facts, arrays):
    with atomic_folder(unit.folder, facts) as tmp:
        for path in unit.folder.iterdir():
            if path.name not in (MANIFEST, "oof.safetensors"):
                copy_file(path, tmp / path.name)
        write_arrays(tmp / "oof.safetensors", arrays)


def test_a_folder_from_before_is_completed_without_training(runs, tmp_path, monkeypatch):
    """The saved member gives the same bytes as the one that was just trained."""
    from gesture_nb.training import units

    out = copy_of(runs.out, tmp_path / "older")
    for unit in units_of(replace(runs.s, output_path=out), 2, out / "members"):
        without_adapted(unit)
    assert files_of(out) != files_of(runs.out)
    monkeypatch.setattr(units, "train_unit", lambda *a: pytest.fail("trained again"))
    s, lines = small(out), Lines()
    _, metrics = train(s, Reporter(s, sinks=[lines]))
    assert files_of(out) == files_of(runs.out)
    assert metrics["ensemble"]["all_at_once"] == runs.metrics["ensemble"]["all_at_once"]
    assert sum("the wearer's other recordings" in text for text in lines.texts) >= 2
    before = files_of(out)
    train(s, Quiet())  # nothing is left to do
    assert files_of(out) == before


def test_a_run_that_is_killed_between_a_unit_and_its_completion_goes_on(runs, tmp_path, monkeypatch):
    from gesture_nb.training import units

    def killed(*a):
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(units, "complete_unit", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small(out), Quiet())
    assert "as_they_come.proba" not in read_arrays(out / "members/lgbm/fold0/oof.safetensors")
    train(small(out), Quiet())
    assert files_of(out) == files_of(runs.out)


@pytest.mark.parametrize("damage", [
    lambda a: a["all_at_once"]["per_fold"].pop(),
    lambda a: a["as_they_come"]["final"]["shares"].update(lgbm=1.5),
    lambda a: a["as_they_come"]["final"].pop("shares"),
    lambda a: a["reference"]["per_fold"].pop(),
    lambda a: a["reference"]["final"].pop(),
    lambda a: a.update(strength=0),
    lambda a: a["all_at_once"]["decision"]["per_fold"][0]["rule"]["bar"].pop(),
])
def test_a_damaged_part_about_wearers_is_refused(runs, damage):
    record = read(runs.out / "ensemble.json")
    damage(record["adaptation"])
    with pytest.raises(DamagedError, match="ensemble.json"):
        check_blend(record, "ensemble.json")


def test_adapted_outputs_of_the_wrong_form_are_refused(runs, tmp_path):
    out = copy_of(runs.out, tmp_path / "out")
    unit = units_of(replace(runs.s, output_path=out), 2, out / "members")[0]
    arrays = read_arrays(unit.folder / "oof.safetensors")
    arrays["as_they_come.proba"] = arrays["as_they_come.proba"][0]
    rewrite(unit, check_manifest(unit.folder), arrays)
    with pytest.raises(DamagedError, match="oof.safetensors"):
        read_unit_outputs([unit])


# ---- data of other kinds


def tidy(path, subject=None, n=24, per_person=4):
    import pandas as pd

    rng, frames = np.random.default_rng(0), []
    for i in range(n):
        wave = 3 * np.sin(np.arange(30) * (0.3 + 0.5 * (i % 2))) + rng.normal(size=30)
        columns = {"sequence_id": f"q{i:02d}", "gesture": ["hold", "wave"][i % 2], "acc_x": wave, "acc_y": 0.1 * wave,
                   "acc_z": 9.8 + rng.normal(size=30), "sample_rate_hz": 20.0}
        if subject:
            columns["subject"] = subject(i)
        if per_person:
            columns["session"] = f"s{i // per_person}"
        frames.append(pd.DataFrame(columns))
    pd.concat(frames).to_parquet(path, index=False)
    return path


def test_nobody_named_means_that_each_is_predicted_alone(tmp_path):
    s = read_settings({}, data=tidy(tmp_path / "a.parquet", lambda i: "unknown"), out=tmp_path / "out", members="lgbm",
                      folds=2, boosting_rounds=3)
    dataset, metrics = train(s, Quiet())
    assert (dataset.people == "").all() and "alone" not in metrics["ensemble"]
    assert "adaptation" not in read(tmp_path / "out" / "ensemble.json")


@pytest.mark.parametrize("subject, options", [
    (lambda i: "anna", {}),  # a single person: folds by recording
    (lambda i: f"p{i:02d}", {}),  # one recording each
    (lambda i: "anna" if i < 12 else "ben", {"group_column": "session"}),  # folds by session, the past by person
])
def test_other_kinds_of_people(tmp_path, subject, options):
    path = tidy(tmp_path / "a.parquet", subject)
    s = read_settings({}, data=path, out=tmp_path / "out", members="lgbm", folds=2, boosting_rounds=3, **options)
    dataset, metrics = train(s, Quiet())
    assert metrics["ensemble"]["as_they_come"]["orders"] == 20
    assert np.isfinite(list(metrics["ensemble"]["all_at_once"].values())).all()
    assert (dataset.people == np.array([subject(i) for i in range(24)])).all()


def test_evaluation_has_the_protocols_as_rows(runs):
    from gesture_nb.analysis.evaluate import evaluate, evaluation_lines
    from gesture_nb.serving.predictor import read_blend

    found = evaluate(runs.s, runs.dataset, read_blend(runs.out), Quiet(), orders=21)
    every = found["scenarios"]["all"]["adapted"]
    assert every["as_they_come"]["orders"]["n"] == 21 and every["all_at_once"]["orders"]["n"] == 1
    once = every["all_at_once"]["ensemble"]["score"]
    assert np.isclose(once["value"], runs.metrics["ensemble"]["all_at_once"]["score"]) and once["low"] <= once["value"]
    assert {*found["scenarios"]["half"]["adapted"]} == {"as_they_come", "all_at_once"}
    lines = evaluation_lines(found)
    assert sum(line.startswith("  all at once") for line in lines) == len(found["scenarios"])
    assert any("as they come (21 orders)" in line for line in lines)
