"""What a score is, who is held out, how members are blended: compared with scikit-learn, with cases worked by hand, and with planted leaks."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesture_nb.config import UserError
from gesture_nb.evaluation.folds import LeakError, assert_disjoint, check_folds, fold_warnings, given_folds, inner_split, make_folds, protocol_folds
from gesture_nb.evaluation.metric import (bootstrap_interval, competition_score, confusion_counts, score_of, score_submission, scores,
                                          subject_counts)
from gesture_nb.schema import GESTURES, NON_TARGETS, TARGETS
from gesture_nb.training.ensemble import blend, find_recipe, find_temperature, find_weights, nested_blend, tempered, with_fixed

labels = lambda classes, n=40: st.lists(st.tuples(st.sampled_from(classes), st.sampled_from(classes)), min_size=1, max_size=n)


# ---------------------------------------------------------------- the metric

def by_sklearn(truth, said):
    from sklearn.metrics import f1_score
    target = lambda a: [g in TARGETS for g in a]
    merged = lambda a: [g if g in TARGETS else "non_target" for g in a]
    return (f1_score(target(truth), target(said), zero_division=0) + f1_score(merged(truth), merged(said), average="macro", zero_division=0)) / 2


@settings(max_examples=150, deadline=None)
@given(labels(GESTURES))
def test_competition_score_equals_sklearn(pairs):
    truth, said = map(list, zip(*pairs))
    assert competition_score(truth, said)["score"] == pytest.approx(by_sklearn(truth, said), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(labels(list("abcde")))
def test_other_labels_equal_sklearn(pairs):
    from sklearn.metrics import accuracy_score, f1_score
    truth, said = map(list, zip(*pairs))
    s = scores(np.array(truth), np.array(said), list("abcde"))
    assert s["accuracy"] == pytest.approx(accuracy_score(truth, said)) and s["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))
    each = f1_score(truth, said, labels=list("abcde"), average=None, zero_division=0)
    assert [s["per_class"][c]["f1"] for c in "abcde"] == pytest.approx(list(each)) and "score" not in s


HAIR, CHEEK, NECK, PHONE, WAVE = "Above ear - pull hair", "Cheek - pinch skin", "Neck - scratch", "Text on phone", "Wave hello"


@pytest.mark.parametrize("truth, said, binary, macro", [
    (GESTURES, GESTURES, 1, 1),                                              # all right: nine classes, each 1
    ([HAIR, CHEEK], [CHEEK, HAIR], 1, 0),                                    # every target taken for a wrong target
    (TARGETS, [PHONE] * 8, 0, 0),                                            # every target taken for a phone
    (NON_TARGETS, [PHONE] * 10, 0, 1),                                       # no target at all: the binary F1 has nothing to find
    ([HAIR, HAIR, PHONE, WAVE], [HAIR, PHONE, PHONE, HAIR], 1 / 2, 1 / 2),   # one hit of 2 true, 2 said, both for targets and for the rest
    ([HAIR, CHEEK, PHONE], [HAIR, PHONE, PHONE], 2 / 3, (1 + 0 + 2 / 3) / 3),  # a missed target: hair 1, cheek 0, rest 2/3
    ([HAIR, PHONE], [HAIR, NECK], 2 / 3, (1 + 0 + 0) / 3),                   # `Neck - scratch` is only said: it is seen, and 0
])
def test_cases_worked_by_hand(truth, said, binary, macro):
    s = competition_score(np.array(truth), np.array(said))
    assert (s["f1_binary"], s["f1_macro"], s["score"]) == pytest.approx((binary, macro, (binary + macro) / 2))
    assert scores(truth, said, GESTURES)["score"] == pytest.approx(s["score"])


@pytest.mark.parametrize("truth, said, word", [([HAIR], [HAIR, HAIR], "1 true labels but 2"), ([HAIR], ["Neck - scratc"], "Did you mean 'Neck - scratch'"),
                                               (["nap"], [HAIR], "true label of entry 0 is 'nap'"), ([], [], "nothing to score"), ([[HAIR]], [[HAIR]], "shape")])
def test_bad_input_is_an_error_and_not_a_score(truth, said, word):
    with pytest.raises(UserError, match=word.replace("(", r"\(")): competition_score(truth, said)


def test_submission_is_matched_by_sequence():
    truth = {"sequence_id": ["a", "b", "c"], "gesture": [HAIR, PHONE, CHEEK]}
    assert score_submission(truth, {"sequence_id": ["c", "a", "b"], "gesture": [CHEEK, HAIR, WAVE]})["score"] == 1
    for wrong, word in (({"sequence_id": ["a", "b"], "gesture": [HAIR, HAIR]}, "c is not answered"), ({"sequence_id": list("abcc"), "gesture": [HAIR] * 4}, "more than once"),
                        ({"sequence_id": list("abcd"), "gesture": [HAIR] * 4}, "d is answered but"), ({"sequence_id": list("abc"), "label": [HAIR] * 3}, "no column 'gesture'")):
        with pytest.raises(UserError, match=word): score_submission(truth, wrong)


def test_bootstrap_equals_drawing_the_sequences_one_round_at_a_time():
    rng = np.random.default_rng(3)
    who, truth, said = rng.integers(6, size=90), rng.choice(GESTURES, 90), rng.choice(GESTURES[:9], 90)
    people = subject_counts(truth, said, who, GESTURES)
    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=20)
    for times in drawn:
        rows = np.concatenate([np.flatnonzero(who == s).repeat(t) for s, t in enumerate(times)])
        assert np.array_equal(np.tensordot(times, people, 1), confusion_counts(truth[rows], said[rows], GESTURES))
        assert score_of(np.tensordot(times, people, 1), GESTURES) == pytest.approx(by_sklearn(truth[rows], said[rows]))
    i = bootstrap_interval(truth, said, who, "score", rounds=200, classes=GESTURES)
    assert i["low"] <= i["value"] <= i["high"] and i["value"] == pytest.approx(by_sklearn(truth, said))
    assert i == bootstrap_interval(truth, said, who, "score", rounds=200, classes=GESTURES)


# ---------------------------------------------------------------- folds

people_and_labels = st.lists(st.tuples(st.sampled_from([f"p{i}" for i in range(9)]), st.integers(0, 3)), min_size=1, max_size=60)


@settings(max_examples=120, deadline=None)
@given(people_and_labels, st.integers(2, 5), st.integers(0, 3), st.randoms())
def test_folds_hold_whole_people_and_do_not_depend_on_the_order(pairs, n, seed, random):
    who, y = np.array([p for p, _ in pairs]), np.array([c for _, c in pairs])
    if len(set(who)) < n:
        with pytest.raises(UserError, match="--folds|one more person"): make_folds(who, y, n, seed)
        return
    fold = make_folds(who, y, n, seed)
    assert fold.dtype == np.int64 and set(fold) == set(range(n))
    check_folds(who, fold)
    order = np.array(random.sample(range(len(who)), len(who)))
    assert np.array_equal(make_folds(who[order], y[order], n, seed), fold[order])


def test_the_protocol_and_given_folds():
    who = np.array(["s2", "s10", "s1", "s3", "s10"])
    assert protocol_folds(who, 2).tolist() == [0, 1, 0, 1, 1]
    fold, values = given_folds(who, np.array([3, 10, 1, 3, 10]))
    assert fold.tolist() == [1, 2, 0, 1, 2] and values.tolist() == ["1", "3", "10"]
    assert make_folds(who, who, given=["x", "y", "x", "x", "y"]).tolist() == [0, 1, 0, 0, 1]
    for bad, word in (([0, 1, 0, 0, 2], "Subject s10 stands in the folds 1 and 2"), ([0, 1, 0, 0, np.nan], "no value for 1"), ([1] * 5, "one value only"), ([1, 2], "2 values for 5"),
                      (["a", "b", "", "a", "b"], "of subject s1")):
        with pytest.raises(UserError, match=word): make_folds(who, who, given=bad)


def test_a_class_of_one_subject_is_said_not_refused():
    who, y = np.repeat(["ann", "bob", "cid"], 4), np.array(list("aabb" "aabc" "aabb"))
    said = fold_warnings(who, y, [0] * 4 + [1] * 4 + [2] * 4)
    assert len(said) == 1 and "c (bob)" in said[0]
    assert fold_warnings(who, np.searchsorted(list("abc"), y), [0] * 4 + [1] * 4 + [2] * 4, classes="abc") == said
    assert fold_warnings(who, np.tile(list("ab"), 6), [0] * 4 + [1] * 4 + [2] * 4) == []


@settings(max_examples=120, deadline=None)
@given(people_and_labels, st.integers(0, 5))
def test_inner_split_is_disjoint_and_keeps_every_class_it_can(pairs, seed):
    who, y = np.array([p for p, _ in pairs]), np.array([c for _, c in pairs])
    if len(y) < 2:
        with pytest.raises(UserError, match="not enough"): inner_split(who, y, seed)
        return
    fit, check = inner_split(who, y, seed)
    assert len(fit) and len(check) and sorted([*fit, *check]) == list(range(len(y)))
    if len(set(who)) > 1: assert_disjoint(who, fit, check)
    others = [s for s in set(who) if set(y[who != s]) == set(y)]  # people without whom no class is lost
    if len(set(who)) > 1 and others: assert set(y[fit]) == set(y)


def test_planted_leak_is_caught():
    who = np.repeat([f"p{i}" for i in range(10)], 6); y = np.tile(np.arange(3), 20)
    fold = make_folds(who, y, 5)
    train, held = np.flatnonzero(fold != 2), np.flatnonzero(fold == 2)
    assert_disjoint(who, train, held)
    leaked = np.append(train, held[0])
    with pytest.raises(LeakError, match=who[held[0]]): assert_disjoint(who, leaked, held)
    with pytest.raises(LeakError): assert_disjoint(who, fold != 2, np.isin(np.arange(60), [*held, train[0]]))
    fold[held[0]] = 0
    with pytest.raises(UserError, match=f"Subject {who[held[0]]} stands"): check_folds(who, fold)


# ---------------------------------------------------------------- the blend

def made_up(seed=0, n=300, classes=4, folds=5, skills=(1.5, 1.0, 0.2)):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    z = rng.normal(size=(len(skills), n, classes)); z[:, np.arange(n), y] += np.array(skills)[:, None]
    p = np.exp(z); p /= p.sum(-1, keepdims=True)
    return dict(zip(("torch", "lgbm", "keras"), p)), y, rng.integers(folds, size=n)


def test_nested_blending_cannot_see_the_held_out_fold():
    probs, y, fold = made_up()
    p, per_fold, final = nested_blend(probs, y, fold)
    for k in range(5):
        lies = np.where(fold == k, (y + 1) % 4, y)
        q, other, changed = nested_blend(probs, lies, fold)
        assert other[k] == per_fold[k] and np.array_equal(q[fold == k], p[fold == k])
        assert changed != final and all(other[j] != per_fold[j] for j in range(5) if j != k)


def test_weights_prefer_the_better_and_help():
    probs, y, fold = made_up(n=2000)
    w = find_weights(probs, y)
    assert w["torch"] > w["lgbm"] > w["keras"] and sum(w.values()) == pytest.approx(1)
    hits = lambda q: (q.argmax(1) == y).mean()
    assert hits(nested_blend(probs, y, fold)[0]) > max(map(hits, probs.values()))


def test_weights_are_the_greatest_likelihood_of_the_mixture():
    from scipy.optimize import minimize_scalar
    probs, y, _ = made_up(n=500, skills=(1.5, 1.0)); two = list(probs.values())
    best = minimize_scalar(lambda w: -np.log((w * two[0] + (1 - w) * two[1])[np.arange(500), y]).sum(), bounds=(0, 1), method="bounded", options={"xatol": 1e-8}).x
    assert find_weights(probs, y, prior=0)["torch"] == pytest.approx(best, abs=1e-3)


def test_few_data_stay_near_equal():
    probs, y, _ = made_up(n=4)
    assert max(find_weights(probs, y).values()) - min(find_weights(probs, y).values()) < 0.2


def test_temperature_is_recovered():
    probs, y, _ = made_up(n=5000)
    calm = find_temperature(probs["torch"], y)
    assert find_temperature(tempered(probs["torch"], 1 / 2.5), y) == pytest.approx(2.5 * calm, rel=0.02)


@pytest.mark.parametrize("fixed, want", [({"torch": 2, "lgbm": 1, "keras": 1}, (.5, .25, .25)), ({"keras": 0, "lgbm": 0}, (1, 0, 0)), ({"torch": 0.7}, (.7, None, None)),
                                         ({"torch": 1, "lgbm": 1}, (1 / 3, 1 / 3, 1 / 3)), ({"torch": 1, "lgbm": 3, "keras": 0}, (.25, .75, 0))])
def test_set_weights_are_kept(fixed, want):
    probs, y, fold = made_up()
    _, per_fold, final = nested_blend(probs, y, fold, fixed)
    for recipe in [*per_fold, final]:
        got = recipe["weights"]
        assert sum(got.values()) == pytest.approx(1)
        for m, v in zip(("torch", "lgbm", "keras"), want):
            if v is not None: assert got.get(m, 0) == pytest.approx(v) and (v > 0) == (m in got)


def test_a_member_of_weight_0_need_not_be_there():
    probs, y, fold = made_up()
    assert np.allclose(blend({"torch": probs["torch"]}, {"torch": 1, "keras": 0}), probs["torch"])
    with pytest.raises(UserError, match="needs 'keras'"): blend({"torch": probs["torch"]}, {"torch": 1, "keras": 1})
    with pytest.raises(UserError, match="finite"): blend(probs, {"torch": float("nan"), "lgbm": 1})
    with pytest.raises(UserError, match="is 0"): blend(probs, {"torch": 0})
    with pytest.raises(UserError, match="shapes"): blend({"torch": probs["torch"], "lgbm": probs["lgbm"][:5]}, {"torch": 1, "lgbm": 1})


def test_a_dropped_unit_is_carried_by_the_others():
    probs, y, fold = made_up()
    probs["keras"][fold == 3] = np.nan
    p, per_fold, final = nested_blend(probs, y, fold)
    assert np.allclose(p.sum(1), 1)
    others = {m: per_fold[3]["weights"][m] for m in ("torch", "lgbm")}
    assert np.allclose(p[fold == 3], blend({m: probs[m][fold == 3] for m in others}, others, per_fold[3]["temperatures"]))
    for m in ("torch", "lgbm"): probs[m][fold == 3] = np.nan
    p, *_ = nested_blend(probs, y, fold)
    assert np.isnan(p[fold == 3]).all() and np.isfinite(p[fold != 3]).all()
    probs["keras"][:] = np.nan
    assert find_recipe(probs, y)["weights"]["keras"] == 0 and np.isfinite(nested_blend(probs, y, fold)[0][fold != 3]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(any), st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0, 9), max_size=3))
def test_with_fixed_always_adds_up(found, fixed):
    found = dict(zip("abc", found)); total = sum(found.values()); found = {m: w / total for m, w in found.items()}
    free = [m for m in found if m not in fixed]
    if not any(fixed.values()) and not any(found[m] for m in free): return
    w = with_fixed(found, fixed)
    assert sum(w.values()) == pytest.approx(1) and min(w.values()) >= 0 and not any(fixed.get(m) == 0 for m in w)


def test_recipes_survive_json():
    probs, y, fold = made_up()
    _, per_fold, final = nested_blend(probs, y, fold)
    kept = json.loads(json.dumps({"final": final, "per_fold": per_fold}))
    assert kept["final"] == final and np.array_equal(blend(probs, **kept["per_fold"][2]), blend(probs, **per_fold[2]))
