"""Serving with what is known of a person: who is remembered, what is the same twice, what fails without harm.

One small run of three members on three folds serves the whole file."""

import pickle
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from gesture_nb.app import train_only
from gesture_nb.artifacts import fingerprint, write_json
from gesture_nb.config import UserError
from gesture_nb.data.readers import read_table
from gesture_nb.data.sequences import slice_sequences, take, with_meta
from gesture_nb.data.simulate import simulate
from gesture_nb.features.compute import frame_features
from gesture_nb.features.frames import take_frames
from gesture_nb.features.wearer import Reference, reference_of, shifts_as_they_come
from gesture_nb.files import DamagedError
from gesture_nb.progress import Reporter
from gesture_nb.serving.arrays import plan_folds
from gesture_nb.serving.batch import people_of, predict_blocks
from gesture_nb.serving.export import export_run
from gesture_nb.serving.fallback import listen
from gesture_nb.serving.gateway import local_gateway
from gesture_nb.serving.predictor import load, read_blend
from gesture_nb.serving.running import Predictions
from gesture_nb.serving.wearers import MAX_ANSWERS, Adaptation, Wearers, is_known
from gesture_nb.training.blend import blend_adapted
from gesture_nb.training.results import read_oof, read_unit_outputs
from gesture_nb.training.wearers import arrival_orders, order_within

CHANNELS = ("acc_x", "acc_y", "acc_z")
SHARES = (0.0, 0.5, 1.0)


def with_shares(run, to, shares):
    "A copy of a run in which the shifted answers of each member count that much, and all members the same."
    shutil.copytree(run, to)
    record = read_blend(to)
    for protocol in ("as_they_come", "all_at_once"):
        part = record["adaptation"][protocol]
        for recipe in (part["final"], *part["per_fold"]):
            recipe["weights"] = dict.fromkeys(shares, 1 / len(shares))
            recipe["temperatures"], recipe["shares"] = dict.fromkeys(shares, 1.0), dict(shares)
    write_json(to / "ensemble.json", record | {"digest": fingerprint(record)})
    return to


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("wearers") / "trained"
    settings = {"folds": 3, "epochs": 2, "boosting_rounds": 10, "decision": "argmax", "progress": "lines"}
    train_only(data=str(toy), members="lgbm,torch,rocket", output_path=out, **settings)
    with Reporter(sinks=[]) as reporter:
        assert sorted(export_run(out, reporter)) == ["lgbm", "rocket", "torch"]
    return out


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    "The run, with a member of each share."
    shares = dict(zip(("lgbm", "torch", "rocket"), (1.0, 0.5, 0.5)))
    return with_shares(trained, tmp_path_factory.mktemp("wearers") / "run", shares)


@pytest.fixture(scope="module")
def table(toy):
    return read_table(str(toy))


def apart(a, b):
    return float(np.abs(np.asarray(a) - b).max())


def one(table, i):
    return slice_sequences(table, i, i + 1)


def sequence_of(table, i, **columns):
    "Recording i as a dict of columns, without the names of subject and sequence."
    return {name: one(table, i).channel(name) for name in CHANNELS} | columns


def as_they_come(predictor, table, order):
    "float64 `[n, C]`, asked for in that order."
    probs = np.full((len(table), len(predictor.classes)), np.nan)
    for i in order:
        probs[i] = predictor.predict_next(one(table, i)).probs[0]
    return probs


def spoken(predictor):
    "A list that fills with what the predictor says."
    lines = []

    class Sink:
        def on_event(self, event):
            if event.get("text"):
                lines.append(event["text"])

        def close(self, failed):
            pass

    predictor.reporter = Reporter(sinks=[Sink()])
    return lines


@pytest.mark.parametrize("share", SHARES)
def test_exported_members_adapt_as_they_were_trained(trained, table, tmp_path, share):
    out = with_shares(trained, tmp_path / "run", dict.fromkeys(("lgbm", "torch", "rocket"), share))
    fast, own, some = load(out), load(out, exported=False), slice_sequences(table, 0, 24)
    assert apart(fast.table_proba(some), own.table_proba(some)) < 1e-5
    order = np.random.default_rng(0).permutation(len(some))
    assert apart(as_they_come(fast, some, order), as_they_come(own, some, order)) < 1e-5
    assert not fast.failures and not own.failures


def test_the_plans_of_folds_weigh_both_answers_as_the_share_says():
    for folds in (1, 2, 3, 5):
        for share in (0.0, 0.3, 0.5, 1.0):
            plans = plan_folds(folds, share)
            shifted = sum(plan.weight[plan.shifted].sum() for plan in plans)
            assert shifted == pytest.approx(share) and sum(p.weight.sum() for p in plans) == pytest.approx(1)
            assert len(plans) == (2 if folds == 1 and 0 < share < 1 else 1)


@pytest.mark.parametrize("fold", [0, 2])
def test_one_fold_answers_a_table_as_out_of_fold(trained, table, fold):
    oof = read_oof(trained)
    rows, held_out = np.flatnonzero(oof["fold"] == fold), take(table, oof["fold"] == fold)
    predictor = load(trained, fold)
    assert apart(predictor.table_proba(held_out), oof["p_ensemble_all_at_once"][rows]) < 1e-5
    labels = [predictor.classes[k] for k in predictor.decide_labels(held_out)]
    assert labels == oof["pred_all_at_once"][rows].tolist()


def test_one_fold_answers_in_order_as_out_of_fold(trained, run, table):
    oof, fold = read_oof(trained), 1
    rows = np.flatnonzero(oof["fold"] == fold)
    units = [SimpleNamespace(member=m, folder=trained / f"members/{m}/fold{fold}") for m in ("lgbm", "torch", "rocket")]
    arrays = {outputs.member: outputs.arrays for outputs in read_unit_outputs(units)}
    recipe = read_blend(run)["adaptation"]["as_they_come"]["per_fold"][fold]
    orders = arrival_orders(len(table), 42)
    for j in (0, len(orders) - 1):
        plain = {name: own["proba"] for name, own in arrays.items()}
        adapted = {name: own["as_they_come.proba"][j] for name, own in arrays.items()}
        index = arrays["lgbm"]["index"]
        assert np.array_equal(index, rows)
        expected = blend_adapted(plain, adapted, recipe)
        for exported in (True, False):
            predictor = load(run, fold, exported=exported)
            found = as_they_come(predictor, take(table, rows), order_within(orders[j], rows))
            assert apart(found, expected) < 1e-5


def test_switched_off_it_is_as_without(trained, table, tmp_path):
    "Byte for byte the answers of a run that has no adaptation."
    before = shutil.copytree(trained, tmp_path / "before")
    record = read_blend(before)
    del record["adaptation"]
    write_json(before / "ensemble.json", record | {"digest": fingerprint(record)})
    off, old = load(trained, adapt=False), load(before)
    assert off.adaptation is None and old.adaptation is None
    assert np.array_equal(off.table_proba(table), old.table_proba(table))
    for i in (3, 17):
        sequence = sequence_of(table, i, subject=["anna"] * 40)
        assert np.array_equal(off.proba(sequence), old.proba(sequence))
    for predictor in (off, old):
        with pytest.raises(UserError, match="answers each recording alone"):
            predictor.wearer("anna")


def test_a_repeated_question_changes_nothing(run, table):
    wearer = load(run).wearer("anna")
    first = [wearer.proba(sequence_of(table, i, sequence_id=[f"q{i}"] * 40)) for i in range(6)]
    assert wearer.n == 6 and repr(wearer) == "Wearer anna: 6 recordings known"
    again = [wearer.proba(sequence_of(table, i, sequence_id=[f"q{i}"] * 40)) for i in range(6)]
    assert wearer.n == 6 and np.array_equal(first, again)
    other = wearer.proba(sequence_of(table, 7, sequence_id=["q5"] * 40))  # the same name, other readings
    assert wearer.n == 7 and not np.array_equal(other, first[5])
    wearer.predictor.forget("anna")
    assert wearer.n == 0 and np.array_equal(wearer.proba(sequence_of(table, 0, sequence_id=["q0"] * 40)), first[0])


@pytest.mark.parametrize("nobody", [None, "", " ", float("nan"), "unknown"])
def test_recordings_of_nobody_are_answered_alone(run, table, nobody):
    pd = pytest.importorskip("pandas")
    predictor, plain = load(run), load(run, adapt=False)
    for i in (0, 9, 30):
        frame = pd.DataFrame(sequence_of(table, i)).assign(subject=nobody)
        assert np.array_equal(predictor.proba(frame), plain.proba(frame))
    nameless = with_meta(table, subject=np.full(len(table), "" if nobody is None else str(nobody)))
    assert np.array_equal(predictor.table_proba(nameless), plain.table_proba(nameless))
    assert len(predictor.wearers) == 0 and not is_known(str(nobody))
    with pytest.raises(UserError, match="names no person"):
        predictor.wearer(str(nobody))


def test_people_and_strangers_in_one_table(run, table):
    "Those without a name are answered alone, in their places; those with one as if they were alone in the table."
    predictor, subjects = load(run), np.asarray(table.meta["subject"]).astype(str)
    mixed = with_meta(table, subject=np.where(np.arange(len(table)) % 2, subjects, ""))
    probs, odd = predictor.table_proba(mixed), np.arange(len(table)) % 2 == 1
    assert apart(probs[~odd], load(run, adapt=False).table_proba(take(table, ~odd))) < 1e-6
    assert apart(probs[odd], predictor.table_proba(take(mixed, odd))) < 1e-6
    one_person = subjects == subjects[0]
    assert apart(predictor.table_proba(take(table, one_person)), predictor.table_proba(table)[one_person]) < 1e-6


def test_a_recording_of_somebody_else_is_refused(run, table):
    wearer = load(run).wearer("anna")
    with pytest.raises(UserError, match="names the subject 'bob'"):
        wearer(sequence_of(table, 0, subject=["bob"] * 40))
    assert wearer.n == 0 and wearer(sequence_of(table, 0, subject=["anna"] * 40)) in wearer.predictor.classes
    assert wearer.n == 1


def test_a_history_is_saved_and_loaded(run, table, tmp_path):
    path, first = tmp_path / "anna.json", load(run)
    wearer = first.wearer("anna")
    known = [wearer.proba(sequence_of(table, i)) for i in range(5)]
    wearer.save(path)
    second = load(run).wearer("anna", path)
    assert second.n == 5 and np.array_equal(second.proba(sequence_of(table, 2)), known[2]) and second.n == 5
    assert np.array_equal(second.proba(sequence_of(table, 8)), wearer.proba(sequence_of(table, 8)))
    first.wearer("new").save(tmp_path / "new.json")
    assert load(run).wearer("new", tmp_path / "new.json").n == 0


def test_damaged_and_foreign_histories_are_refused(run, trained, table, tmp_path):
    path, predictor = tmp_path / "anna.json", load(run)
    wearer = predictor.wearer("anna")
    wearer(sequence_of(table, 0))
    wearer.save(path)
    text = path.read_text()
    broken = tmp_path / "broken.json"
    for damage in (text.replace('"n": 1', '"n": 2'), text[:-40], "", "[]", "{}", '{"digest": "0"}'):
        broken.write_text(damage)
        with pytest.raises(UserError, match="broken.json"):
            predictor.wearer("anna", broken)
    write_json(tmp_path / "other.json", {"a": 1})
    for wrong, message in (
        (tmp_path / "none.json", "no file"),
        (tmp_path / "other.json", "other.json"),
        (run / "config.json", "holds no history|damaged"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.wearer("anna", wrong)
    with pytest.raises(UserError, match="history of 'anna', and not of 'bob'"):
        predictor.wearer("bob", path)
    for other in (load(trained), load(run, 1)):
        with pytest.raises(UserError, match="another run"):
            other.wearer("anna", path)
    assert wearer.n == 1


def test_impossible_numbers_in_a_history_are_damage(run, table, tmp_path):
    from gesture_nb.artifacts import read_sealed, write_sealed

    predictor, path = load(run), tmp_path / "anna.json"
    wearer = predictor.wearer("anna")
    wearer(sequence_of(table, 0))
    wearer.save(path)
    record = read_sealed(path)
    columns = len(record["names"])
    for change in ({"n": -1}, {"rows": [-1.0] * columns}, {"total": [0.0]}, {"recordings": [9.0] * columns}):
        write_sealed(path, record | {"history": record["history"] | change})
        with pytest.raises(UserError):
            predictor.wearer("anna", path)
    write_sealed(path, record | {"answers": [record["answers"][0] | {"probs": [1.0]}]})
    with pytest.raises(DamagedError, match="do not fit together"):
        predictor.wearer("anna", path)
    write_sealed(path, record | {"format": 99})
    with pytest.raises(UserError, match="another version"):
        predictor.wearer("anna", path)


def test_nothing_of_the_people_travels_with_a_pickle(run, table):
    predictor = load(run)
    fresh = predictor.wearer("anna").proba(sequence_of(table, 0))
    predictor.wearer("anna")(sequence_of(table, 1))
    other = pickle.loads(pickle.dumps(predictor))
    assert len(other.wearers) == 0 and other.adaptation.run == predictor.adaptation.run
    assert np.array_equal(other.wearer("anna").proba(sequence_of(table, 0)), fresh)
    assert pickle.loads(pickle.dumps(load(run, adapt=False))).adaptation is None
    with pytest.raises(UserError, match="save it to a file"):
        pickle.dumps(predictor.wearer("anna"))


def test_a_blend_or_a_decision_in_place_of_the_runs_holds_for_all(run, table):
    predictor = load(run)
    predictor.decide = lambda probs, heads, subject, name: 2
    assert set(predictor.decide_labels(table)) == {2}
    assert predictor(sequence_of(table, 0, subject=["anna"] * 40)) == predictor.classes[2]
    only = load(run, fixed={"torch": 0, "rocket": 0})
    replaced = load(run)
    replaced.blend = only.adaptation.protocols["all_at_once"].blend
    assert [*only.members] == ["lgbm"] and apart(replaced.table_proba(table), only.table_proba(table)) < 1e-6


def test_threads_of_one_and_of_many_people(run, table):
    "Each person's recordings in order on one thread: answers as without the others. All at once: each counted once."
    predictor = load(run)
    subjects = np.asarray(table.meta["subject"]).astype(str)
    found, errors = {}, []

    def ask(subject):
        try:
            for i in np.flatnonzero(subjects == subject):
                found[i] = predictor.wearer(subject).proba(sequence_of(table, i))
                predictor.wearer("everybody").proba(sequence_of(table, i))
        except Exception as e:
            errors.append(e)

    people = np.unique(subjects)
    threads = [threading.Thread(target=ask, args=(subject,)) for subject in (*people, *people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not predictor.failures
    assert predictor.wearers.count("everybody") == len(table)
    assert [predictor.wearers.count(who) for who in people] == [int((subjects == who).sum()) for who in people]
    one_by_one = load(run)
    for who in people[:2]:
        for i in np.flatnonzero(subjects == who):
            assert apart(found[i], one_by_one.wearer(who).proba(sequence_of(table, i))) < 1e-6


def test_memory_is_bounded_by_people_and_answers(run, table):
    predictor = load(run)
    lines = spoken(predictor)
    predictor.wearers = Wearers(limit=3)
    for who in ("a", "b", "c", "a", "d", "e"):
        predictor.wearer(who)(sequence_of(table, 0))
        predictor.wearer(who)(sequence_of(table, 1))
    assert len(predictor.wearers) == 3 and predictor.wearers.forgotten == 2
    assert [predictor.wearers.count(who) for who in "abcde"] == [2, 0, 0, 2, 2]
    assert len([line for line in lines if "more than 3 people" in line]) == 1


def test_a_thousand_people_stay_within_their_room():
    import tracemalloc

    frames = frame_features(simulate(1))
    answer = Predictions(np.ones((1, 18)), {"orientation": np.ones((1, 4), np.float32)})
    wearers = Wearers(limit=1000)
    tracemalloc.start()
    for person in range(1100):
        for recording in range(MAX_ANSWERS + 20 if person < 3 else 2):
            own = Predictions(answer.probs.copy(), {"orientation": answer.heads["orientation"].copy()})
            wearers.add(f"p{person}", f"{person}-{recording}", frames, own)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(wearers) == 1000 and wearers.forgotten == 100 and used < 20 << 20
    wearers.add("full", "first", frames, answer)
    for recording in range(MAX_ANSWERS):
        wearers.add("full", str(recording), frames, answer)
    assert wearers.answer("full", "first") is None and wearers.answer("full", "1") is answer
    assert wearers.count("full") == MAX_ANSWERS + 1


def test_histories_with_sensors_missing_half_of_the_time():
    "As in training: a sensor counts from the recordings that have it."
    table = simulate(24, imu_only=0.5, seed=5)
    frames, subjects = frame_features(table), np.full(len(table), "anna")
    reference = reference_of(frame_features(simulate(30, seed=1)), np.arange(30))
    adaptation, wearers = Adaptation(reference, 10.0, {}, "run"), Wearers()
    order = np.random.default_rng(0).permutation(len(table))
    expected = shifts_as_they_come(frames, np.arange(len(table)), subjects, order, reference, 10.0)
    answer = Predictions(np.ones((1, 18)), {})
    assert 0 < frames.masks["has_tof_1"].mean() < 1
    for i in order:
        assert apart(wearers.shift("anna", adaptation), expected[i]) < 1e-5
        wearers.add("anna", str(i), take_frames(frames, [i]), answer)
    unknown = Reference(reference.names, np.full(len(reference.names), np.nan, np.float32))
    assert not wearers.shift("anna", Adaptation(unknown, 10.0, {}, "run")).any()


def test_a_failure_leaves_the_plain_answer_and_is_said(run, table, monkeypatch):
    predictor, plain = load(run), load(run, adapt=False)
    lines = spoken(predictor)

    def broken(*arguments):
        raise ZeroDivisionError("no shift")

    monkeypatch.setattr(predictor.wearers, "shift", broken)
    for i in range(3):
        sequence = sequence_of(table, i, subject=["anna"] * 40)
        assert np.array_equal(predictor.proba(sequence), plain.proba(sequence))
    assert predictor.failures.total() == 3 and "answered alone: ZeroDivisionError: no shift" in lines[0]
    assert len(lines) == 1 and len(predictor.wearers) == 0


def test_a_member_that_fails_with_shifts_predicts_without_them(run, table, monkeypatch):
    predictor = load(run, exported=False)
    lines = spoken(predictor)

    def broken(batch):
        raise ZeroDivisionError("no adapted answer")

    for unit in predictor.members["lgbm"]:
        monkeypatch.setattr(unit, "predict_adapted", broken)
    assert predictor(sequence_of(table, 0, subject=["anna"] * 40)) in predictor.classes
    assert predictor.wearers.count("anna") == 1 and predictor.failures.total() == 1
    assert "lgbm failed with what is known of the person, and predicts without it" in lines[0]


def test_the_gateway_knows_who_came_before(run, table, tmp_path):
    "In the gateway's order, and a failure in between ends nothing."
    predictor, some = load(run, on_error="label"), slice_sequences(table, 5, 25)
    predict = listen(lambda: predictor, predictor.classes)
    served = local_gateway(predict, some, out=tmp_path / "s.parquet", labels=predictor.classes, seed=3)
    order = np.random.default_rng(3).permutation(len(some))
    expected = as_they_come(load(run), some, order)
    assert served["gesture"].tolist() == [predictor.classes[k] for k in expected.argmax(1)]
    assert predictor.wearers.count("a") + predictor.wearers.count("b") + predictor.wearers.count("c") == len(some)
    assert not predictor.failures and predict.lazy.failed == 0


def test_a_failing_adaptation_does_not_end_a_submission(run, table, tmp_path, monkeypatch):
    predictor, some = load(run, on_error="label"), slice_sequences(table, 5, 25)
    monkeypatch.setattr(predictor.wearers, "shift", lambda subject, adaptation: 1 / 0)
    predict = listen(lambda: predictor, predictor.classes)
    served = local_gateway(predict, some, out=tmp_path / "s.parquet", labels=predictor.classes, seed=3)
    plain = load(run, adapt=False).table_proba(some)
    assert served["gesture"].tolist() == [predictor.classes[k] for k in plain.argmax(1)]
    assert predictor.failures.total() == len(some) and predict.lazy.failed == 0 and predictor.guesses == 0


def test_a_file_is_answered_by_person_wherever_its_recordings_stand(run, table):
    "Blocks of few rows, people interleaved: as in one table. Labels in the data change nothing."
    predictor, order = load(run), np.random.default_rng(1).permutation(len(table))
    shuffled = take(table, order)
    whole = predictor.table_proba(shuffled)
    people = people_of(predictor, [shuffled], rows=150)
    assert sum(history.n for history in people.values()) == len(table) and sorted(people) == [*"abcdef"]
    found = np.concatenate([b.probs for b in predict_blocks(predictor, [shuffled], 150, people)])
    assert apart(found, whole) < 1e-5
    assert people_of(predictor, [shuffled]) is None and people_of(load(run, adapt=False), [shuffled], 150) is None
    lying = with_meta(shuffled, gesture=np.roll(shuffled.meta["gesture"], 7))
    assert np.array_equal(predictor.table_proba(lying), whole)


def test_the_command_predicts_by_person_or_alone(run, table, toy, tmp_path, program):
    import pandas as pd

    nameless = tmp_path / "nameless.parquet"
    pd.read_parquet(toy).drop(columns=["subject"]).to_parquet(nameless)
    answers = {}
    for name, data, more in (("by person", toy, []), ("off", toy, ["--adapt", "off"]), ("nameless", nameless, [])):
        to = tmp_path / f"{name}.csv"
        done = program("predict", "--data", data, "--out", run, "--to", to, *more)
        assert done.returncode == 0, done.stderr
        answers[name] = pd.read_csv(to).filter(like="p_").to_numpy()
    assert apart(answers["by person"], load(run).table_proba(table)) < 1e-5
    assert apart(answers["off"], load(run, adapt=False).table_proba(table)) < 1e-5
    assert np.array_equal(answers["off"], answers["nameless"])
    assert "nothing is concluded from other sequences of the same person" in done.stdout


def test_the_classifier_uses_groups_where_they_are_given(table):
    sklearn = pytest.importorskip("sklearn")
    from gesture_nb.serving.classifier import GestureClassifier

    subjects = np.asarray(table.meta["subject"]).astype(str)
    fitted = GestureClassifier(members=("lgbm",), boosting_rounds=10).fit(take(table, subjects < "e"))
    others = take(table, subjects >= "e")
    alone, groups = fitted.predict_proba(others), np.asarray(others.meta["subject"])
    known = fitted.predict_proba(others, groups=groups)
    assert not np.array_equal(known, alone) and np.allclose(known.sum(1), 1)
    assert np.array_equal(fitted.predict_proba(others, groups=[""] * len(others)), alone)
    rows = groups == groups[0]
    assert np.allclose(fitted.predict_proba(take(others, rows), groups=groups[rows]), known[rows])
    with sklearn.config_context(enable_metadata_routing=True):
        routed = GestureClassifier().set_predict_request(groups=True).get_metadata_routing()
        assert routed.predict.requests == {"groups": True}


def test_adapt_travels_to_kaggle():
    from gesture_nb.config import Settings
    from gesture_nb.serving.kernel import settings_cell, travelling

    assert travelling("serve", ["adapt", "decision"]) == ["adapt"]
    assert "    adapt='off'," in settings_cell("serve", Settings(adapt="off"), ["adapt"])
    assert "    # adapt='auto'," in settings_cell("train", Settings(), [])
