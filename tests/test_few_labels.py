"""A few labelled recordings of one person: what they change, what they may not know, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from gesture_nb.config import UserError
from gesture_nb.features.summary import Summaries
from gesture_nb.files import DamagedError
from gesture_nb.serving import few_labels as kept
from gesture_nb.training import few_labels as few

NAMES = tuple(f"s{i}" for i in range(12))


def people(seed=0, persons=6, per_class=6, classes=3, wrong=True):
    """Recordings whose summaries tell the class within a person; members that take one class of each person for
    another, or (`wrong=False`) are always right."""
    rng, rows = np.random.default_rng(seed), persons * per_class * classes
    y = np.tile(np.repeat(np.arange(classes), per_class), persons)
    person = np.repeat(np.arange(persons), per_class * classes)
    centres = rng.normal(size=(persons, classes, len(NAMES)))
    x = 3 * centres[person, y] + rng.normal(size=(rows, len(NAMES)))
    said = np.where(wrong & (y == person % classes), (y + 1) % classes, y)
    probs = 0.7 * np.eye(classes)[said] + 0.3 / classes
    names = np.array([f"p{i}" for i in range(persons)])[person]
    return few.KnownPeople(probs, y, names, person % 3, Summaries(x.astype(np.float32), NAMES))


def test_without_a_correction_the_numbers_are_the_same():
    known = people()
    nothing = few.fit_correction(few.NO_CORRECTION, known.probs[:4], known.y[:4])
    assert np.array_equal(nothing.corrected(known.probs), known.probs)


@pytest.mark.parametrize("penalty", [3.0, 0.1, 0.01])
def test_the_correction_is_the_optimum(penalty):
    known, strength = people(), few.Strength(1, 1, penalty)
    points = few.fit_whitening(known.summaries, known.y, known.subjects).points(known.summaries)[:18]
    alike = few.likeness(points, points, strength)
    dual = few.fit_dual(alike, known.probs[:18], known.y[:18], penalty, 5000, 1e-9)

    def probs(dual):
        scores = np.log(known.probs[:18]) + alike @ dual
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    assert np.abs(np.eye(3)[known.y[:18]] - probs(dual) - penalty * dual).max() < 1e-6
    quick = few.fit_dual(alike, known.probs[:18], known.y[:18], penalty)
    assert np.abs(probs(quick) - probs(dual)).max() < 0.02


def test_whatever_is_special_about_a_person_cancels():
    "Summaries that are moved by a constant for all recordings of a person give the same answers."
    known = people()
    whitening = few.fit_whitening(known.summaries, known.y, known.subjects)
    answers = []
    for moved in (0, 0.4):
        values = Summaries(known.summaries.values[:18] + np.float32(moved), NAMES)
        own = few.fit_correction(few.Strength(0, 1, 0.1), known.probs[:9], known.y[:9],
                                 Summaries(values.values[:9], NAMES), whitening)
        answers.append(own.corrected(known.probs[9:18], Summaries(values.values[9:18], NAMES)))
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
    assert np.abs(answers[0] - known.probs[9:18]).max() > 0.01


def test_summaries_may_be_missing_or_in_another_order():
    known = people()
    whitening = few.fit_whitening(known.summaries, known.y, known.subjects)
    mixed = np.random.default_rng(1).permutation(12)
    again = Summaries(known.summaries.values[:, mixed], tuple(NAMES[i] for i in mixed))
    assert np.allclose(whitening.points(again), whitening.points(known.summaries))
    holes = known.summaries.values.copy()
    holes[:, 0] = np.nan
    fewer = Summaries(known.summaries.values[:, 1:], NAMES[1:])
    assert np.allclose(whitening.points(Summaries(holes, NAMES)), whitening.points(fewer))
    with pytest.raises(UserError, match="same sensors"): whitening.points(Summaries(holes[:, :1], ("other",)))


def test_labels_help_where_members_are_wrong_and_do_no_harm_where_they_are_right():
    tried = few.rehearse(people(), np.full(3, 2), draws=3)
    assert tried.scores().max() > tried.scores()[0] + 0.1
    right = few.rehearse(people(wrong=False), np.full(3, 2), draws=3)
    assert right.best() == few.NO_CORRECTION and right.scores()[0] == 1


def test_more_labels_help_more():
    one, four = (few.rehearse(people(persons=9), np.full(3, k), draws=3).scores().max() for k in (1, 4))
    assert four > one


def test_what_is_tested_was_not_labelled():
    rng, y = np.random.default_rng(0), np.array([0] * 5 + [1] * 2 + [2])
    for _ in range(20):
        labelled = few.draw_labelled(y, np.array([3, 3, 3]), rng)
        assert np.bincount(y[labelled], minlength=3).tolist() == [3, 1, 0]
    assert not few.draw_labelled(y, np.array([0, 0, 0]), rng).any()


def test_a_person_is_measured_by_what_other_folds_say():
    "Planted: labels and summaries of one fold's people are nonsense; how they are compared does not depend on it."
    known = people()
    mine = known.fold == 1
    y, values = known.y.copy(), known.summaries.values.copy()
    y[mine], values[mine] = (y[mine] + 1) % 3, np.random.default_rng(5).normal(size=values[mine].shape) * 9
    harmed = few.KnownPeople(known.probs, y, known.subjects, known.fold, Summaries(values, NAMES))
    before, after = few._whitened_by_fold(known), few._whitened_by_fold(harmed)
    assert np.array_equal(before[1][~mine], after[1][~mine]) and not np.allclose(before[0][~mine], after[0][~mine])


class Members:
    "Stands in for a predictor: recordings are rows of `people`, which a table's values count."
    classes = ("a", "b", "c")

    def __init__(self, known): self.known = known
    def rows(self, table): return table.values[0, table.offsets[:-1]].astype(int)
    def predict_outputs(self, table): return kept.Predictions(self.known.probs[self.rows(table)], {})
    def upright_batch(self, table): return self
    def summary(self): return Summaries(self.known.summaries.values[self.asked], NAMES)


def table_of(known, rows, subject="anna", labels=True):
    from gesture_nb.data.sequences import SequenceTable

    gestures = np.array(Members.classes)[known.y[rows]] if labels else np.full(len(rows), "")
    meta = {"subject": np.full(len(rows), subject), "gesture": gestures, "sequence_id": np.array(rows).astype(str)}
    return SequenceTable(np.array(rows, np.float32)[None], ("acc_x",), np.arange(len(rows) + 1), meta)


@pytest.fixture
def found():
    known, members = people(), Members(people())
    rows = np.flatnonzero(known.subjects == "p1")[::2]
    members.asked = rows
    table, y = kept.labelled_recordings(table_of(known, rows), "anna", Members.classes)
    return members, known, table, y


def test_nothing_of_the_person_chooses_the_strength(found):
    "Planted: the person is also among the run's people, where their answers are all wrong."
    members, known, table, y = found
    names = np.where(known.subjects == "p1", "anna", known.subjects)
    probs = known.probs.copy()
    probs[names == "anna"] = 1 - np.eye(3)[known.y[names == "anna"]]
    records = [kept.find_few_labels(members, few.KnownPeople(p, known.y, names, known.fold, known.summaries), table, y,
                                    "anna") for p in (known.probs, probs)]
    assert records[0].correction.strength == records[1].correction.strength
    assert np.array_equal(records[0].correction.dual, records[1].correction.dual)
    assert records[0].before == records[1].before


def test_kept_and_read_again(found, tmp_path):
    members, known, table, y = found
    (tmp_path / "ensemble.json").write_text(json.dumps({"digest": "of these members"}))
    record = kept.find_few_labels(members, known, table, y, "anna/../é")
    folder = kept.write_few_labels(tmp_path, record)
    assert folder.parent == tmp_path / "wearers" and folder.is_dir()
    again = kept.read_few_labels(tmp_path, "anna/../é")
    assert np.array_equal(again.corrected(known.probs, known.summaries), record.corrected(known.probs, known.summaries))
    assert repr(again) == repr(record) and again.counts.tolist() == np.bincount(y).tolist()


def test_damaged_foreign_and_outdated_records_are_refused(found, tmp_path):
    members, known, table, y = found
    (tmp_path / "ensemble.json").write_text(json.dumps({"digest": "one"}))
    folder = kept.write_few_labels(tmp_path, kept.find_few_labels(members, known, table, y, "anna"))
    with pytest.raises(UserError, match="no labelled recordings of 'ana'.*Did you mean"):
        kept.read_few_labels(tmp_path, "ana")
    shutil.copytree(folder, tmp_path / "wearers" / "ben")
    with pytest.raises(DamagedError, match="is of 'anna', not of 'ben'"): kept.read_few_labels(tmp_path, "ben")
    (tmp_path / "ensemble.json").write_text(json.dumps({"digest": "another"}))
    with pytest.raises(UserError, match="other members.*adapt again"): kept.read_few_labels(tmp_path, "anna")
    (tmp_path / "ensemble.json").write_text(json.dumps({"digest": "one"}))
    path = folder / "correction.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="correction.safetensors"): kept.read_few_labels(tmp_path, "anna")


@pytest.mark.parametrize("harm", ["dual", "counts", "points", "nan", "mean"])
def test_arrays_that_do_not_fit_are_refused(harm, found, tmp_path):
    "With manifests that fit them, as someone else could write them."
    from gesture_nb.artifacts import read_arrays, read_manifest, write_arrays, write_manifest

    members, known, table, y = found
    (tmp_path / "ensemble.json").write_text(json.dumps({"digest": "one"}))
    folder = kept.write_few_labels(tmp_path, kept.find_few_labels(members, known, table, y, "anna"))
    facts, arrays = read_manifest(folder)["facts"], read_arrays(folder / "correction.safetensors")
    if harm == "nan": arrays["dual"][0, 0] = np.nan
    elif harm == "mean": arrays.pop("mean")
    else: arrays[harm] = arrays[harm][:-1]
    write_arrays(folder / "correction.safetensors", arrays)
    write_manifest(folder, **facts)
    with pytest.raises(DamagedError, match="does not hold a correction"): kept.read_few_labels(tmp_path, "anna")


@pytest.mark.parametrize("name", ["", "  ", "unknown", "x" * 300])
def test_a_person_needs_a_name(name, tmp_path):
    with pytest.raises(UserError, match="must have a name"): kept.wearer_folder(tmp_path, name)


def test_a_run_of_one_person_is_refused(found):
    members, known, table, y = found
    alone = few.KnownPeople(known.probs, known.y, np.where(known.subjects == "p0", "p0", "anna"), known.fold)
    with pytest.raises(UserError, match="fewer than two"): kept.find_few_labels(members, alone, table, y, "anna")


# ---- the command, on a run of a few seconds


@pytest.fixture(scope="module")
def files(toy, tmp_path_factory):
    "A run of five of the toy's people, and recordings of the sixth: `few` labelled ones, and the `rest`."
    import pandas as pd

    import gesture_nb as gn

    folder, frame = tmp_path_factory.mktemp("few"), pd.read_parquet(toy)
    swapped = frame.gesture.map({"hold": "wave", "wave": "hold", "shake": "shake"})
    theirs = frame.subject.isin([*"bdf"])
    frame["gesture"] = frame.gesture.where(~theirs, swapped)   # half of the people do it another way
    last = frame[frame.subject == "f"].assign(subject="anna")
    ids = sorted(last.sequence_id.unique())
    last[last.sequence_id.isin(ids[:6])].to_parquet(folder / "few.parquet")
    last[last.sequence_id.isin(ids[6:])].to_parquet(folder / "rest.parquet")
    frame[frame.subject != "f"].to_parquet(folder / "train.parquet")
    gn.train(folder / "train.parquet", out=folder / "run", members="lgbm", folds=2, boosting_rounds=5, progress="lines")
    return folder


def command(*arguments):
    from gesture_nb.cli import main

    return main([*map(str, arguments)])


def predictions(files, *arguments):
    import pandas as pd

    to = files / "p.csv"
    assert command("predict", "--data", files / "rest.parquet", "--out", files / "run", "--to", to, *arguments) == 0
    return pd.read_csv(to)


def test_adapt_then_predict(files, capsys):
    import gesture_nb as gn

    plain = predictions(files)
    assert command("predict", "--data", files / "rest.parquet", "--out", files / "run", "--subject", "anna") == 2
    assert "no labelled recordings of 'anna'" in capsys.readouterr().err
    assert command("adapt", "--data", files / "few.parquet", "--out", files / "run", "--subject", "anna") == 0
    record = kept.read_few_labels(files / "run", "anna")
    assert "6 labelled recordings of anna" in capsys.readouterr().out and record.counts.tolist() == [2, 2, 2]
    assert predictions(files).equals(plain), "it is used where it is asked for only"

    table = gn.read_recordings(files / "rest.parquet")
    person, columns = gn.load(files / "run", subject="anna"), [f"p_{name}" for name in record.classes]
    own = predictions(files, "--subject", "anna")
    assert np.allclose(own[columns], person.predict_outputs(table).probs, atol=1e-6)
    truth = [f"p_{name}" for name in table.meta["gesture"]]
    after, before = (np.mean([frame[name][i] for i, name in enumerate(truth)]) for frame in (own, plain))
    assert record.pays and after > before
    one = {name: table.channel(name)[:40] for name in table.names}
    assert person(one) in record.classes and person.proba(one).shape == (3,)


def test_gestures_that_are_not_labelled_and_recordings_without_a_name(files, capsys):
    import pandas as pd

    import gesture_nb as gn

    frame = pd.read_parquet(files / "few.parquet")
    some = frame[frame.gesture == "hold"]
    person = gn.adapt(some.drop(columns="subject"), files / "run", subject="ben")
    assert person.record.counts.tolist() == [2, 0, 0]
    rest = pd.read_parquet(files / "rest.parquet")
    named = person.predict_outputs(gn.read_recordings(rest.assign(subject="ben"))).probs
    nameless = gn.read_recordings(rest.drop(columns="subject"), to_predict=True)
    assert np.allclose(person.predict_outputs(nameless).probs, named)
    others = gn.read_recordings(rest)   # anna's are not ben's
    assert np.array_equal(person.predict_outputs(others).probs, gn.load(files / "run").predict_outputs(others).probs)


@pytest.mark.parametrize("change, said", [
    (lambda frame: frame.assign(gesture="clap"), "'clap', which the run does not know; it knows hold, shake, wave"),
    (lambda frame: frame.drop(columns="gesture"), "no column 'gesture'"),
    (lambda frame: frame.assign(subject="carl"), "no recording of 'anna'; it has carl"),
], ids=["unknown", "unlabelled", "another person"])
def test_what_cannot_be_learnt_from_is_refused(change, said, files, tmp_path, capsys):
    import pandas as pd

    change(pd.read_parquet(files / "few.parquet")).to_parquet(tmp_path / "new.parquet")
    shutil.copytree(files / "run", tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").glob("wearers/*"))
    code = command("adapt", "--data", tmp_path / "new.parquet", "--out", tmp_path / "run", "--subject", "anna")
    assert code == 2 and said in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").glob("wearers/*")) == before


def test_without_the_recordings_of_the_training_whole_gestures_are_shifted(files, tmp_path, capsys):
    shutil.copytree(files / "run", tmp_path / "run")
    moved = files / "train.parquet"
    moved.rename(files / "away.parquet")
    try:
        code = command("adapt", "--data", files / "few.parquet", "--out", tmp_path / "run", "--subject", "anna")
    finally: (files / "away.parquet").rename(moved)
    assert code == 0 and "labels shift whole gestures only" in capsys.readouterr().out
    assert kept.read_few_labels(tmp_path / "run", "anna").correction.whitening is None
