"""Scores, folds, blending, decisions and the report: compared with scikit-learn, by hand, with planted leaks."""
import json
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gesture_nb.config import UserError
from gesture_nb.evaluation.decode import (
    SubjectDecoder,
    composite_design,
    composite_proba,
    decode_labels,
    find_rule,
    follows_design,
    gesture_design,
    nested_predictions,
    posterior,
    random_orders,
    read_rule,
    slot_proba,
)
from gesture_nb.evaluation.flip import (
    FlipWatch,
    fit_flip_detector,
    flip_signs,
    is_flipped,
    person_log_odds,
    read_detector,
)
from gesture_nb.evaluation.folds import (
    LeakError,
    assert_disjoint,
    check_folds,
    fold_groups,
    fold_warnings,
    given_folds,
    inner_split,
    make_folds,
    protocol_folds,
    scope_note,
)
from gesture_nb.evaluation.metric import (
    bootstrap_interval,
    competition_score,
    confusion_counts,
    score_of,
    score_submission,
    scores,
    subject_counts,
)
from gesture_nb.schema import GESTURES, LEGAL_PAIRS, NON_TARGETS, OPENINGS, ORIENTATIONS, TARGETS
from gesture_nb.training.blend import (
    blend,
    find_recipe,
    find_temperature,
    find_weights,
    nested_blend,
    tempered,
    with_fixed,
)

def label_pairs(classes, n=40):
    "Lists of (true, predicted) labels."
    return st.lists(st.tuples(st.sampled_from(classes), st.sampled_from(classes)), min_size=1, max_size=n)


# ---------------------------------------------------------------- the metric

def by_sklearn(truth, predicted):
    from sklearn.metrics import f1_score
    target = lambda a: [g in TARGETS for g in a]
    merged = lambda a: [g if g in TARGETS else "non_target" for g in a]
    binary = f1_score(target(truth), target(predicted), zero_division=0)
    return (binary + f1_score(merged(truth), merged(predicted), average="macro", zero_division=0)) / 2


@settings(max_examples=150, deadline=None)
@given(label_pairs(GESTURES))
def test_competition_score_equals_sklearn(pairs):
    truth, predicted = map(list, zip(*pairs))
    assert competition_score(truth, predicted)["score"] == pytest.approx(by_sklearn(truth, predicted), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(label_pairs(list("abcde")))
def test_other_labels_equal_sklearn(pairs):
    from sklearn.metrics import accuracy_score, f1_score
    truth, predicted = map(list, zip(*pairs))
    s = scores(np.array(truth), np.array(predicted), list("abcde"))
    assert s["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert s["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    f1 = f1_score(truth, predicted, labels=list("abcde"), average=None, zero_division=0)
    assert [s["per_class"][c]["f1"] for c in "abcde"] == pytest.approx(list(f1)) and "score" not in s


HAIR, CHEEK, NECK = "Above ear - pull hair", "Cheek - pinch skin", "Neck - scratch"
PHONE, WAVE = "Text on phone", "Wave hello"


@pytest.mark.parametrize("truth, predicted, binary, macro", [
    (GESTURES, GESTURES, 1, 1),               # all right: nine classes, each 1
    ([HAIR, CHEEK], [CHEEK, HAIR], 1, 0),     # every target taken for a wrong target
    (TARGETS, [PHONE] * 8, 0, 0),             # every target taken for a phone
    (NON_TARGETS, [PHONE] * 10, 0, 1),        # no target at all: the binary F1 has nothing to find
    # one hit of 2 true and 2 predicted, both for targets and for the rest
    ([HAIR, HAIR, PHONE, WAVE], [HAIR, PHONE, PHONE, HAIR], 1 / 2, 1 / 2),
    ([HAIR, CHEEK, PHONE], [HAIR, PHONE, PHONE], 2 / 3, (1 + 0 + 2 / 3) / 3),  # hair 1, cheek missed, rest 2/3
    ([HAIR, PHONE], [HAIR, NECK], 2 / 3, (1 + 0 + 0) / 3),  # `Neck - scratch` is only predicted: it occurs, and is 0
])
def test_cases_worked_by_hand(truth, predicted, binary, macro):
    s = competition_score(np.array(truth), np.array(predicted))
    assert (s["f1_binary"], s["f1_macro"], s["score"]) == pytest.approx((binary, macro, (binary + macro) / 2))
    assert scores(truth, predicted, GESTURES)["score"] == pytest.approx(s["score"])


@pytest.mark.parametrize("truth, predicted, word", [
    ([HAIR], [HAIR, HAIR], "1 true labels but 2"),
    ([HAIR], ["Neck - scratc"], "Did you mean 'Neck - scratch'"),
    (["nap"], [HAIR], "true label of entry 0 is 'nap'"),
    ([], [], "nothing to score"),
    ([[HAIR]], [[HAIR]], "shape"),
])
def test_bad_input_is_an_error_and_not_a_score(truth, predicted, word):
    with pytest.raises(UserError, match=word.replace("(", r"\(")): competition_score(truth, predicted)


def test_submission_is_matched_by_sequence():
    truth = {"sequence_id": ["a", "b", "c"], "gesture": [HAIR, PHONE, CHEEK]}
    assert score_submission(truth, {"sequence_id": ["c", "a", "b"], "gesture": [CHEEK, HAIR, WAVE]})["score"] == 1
    for ids, column, word in (("ab", "gesture", "c is missing from the submission"),
                              ("abcc", "gesture", "more than once"),
                              ("abcd", "gesture", "d is not in the solution"), ("abc", "label", "no column 'gesture'")):
        wrong = {"sequence_id": list(ids), column: [HAIR] * len(ids)}
        with pytest.raises(UserError, match=word): score_submission(truth, wrong)


def test_bootstrap_equals_drawing_the_sequences_one_round_at_a_time():
    rng = np.random.default_rng(3)
    who, truth, predicted = rng.integers(6, size=90), rng.choice(GESTURES, 90), rng.choice(GESTURES[:9], 90)
    people = subject_counts(truth, predicted, who, GESTURES)
    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=20)
    for times in drawn:
        rows = np.concatenate([np.flatnonzero(who == s).repeat(t) for s, t in enumerate(times)])
        counts = np.tensordot(times, people, 1)
        assert np.array_equal(counts, confusion_counts(truth[rows], predicted[rows], GESTURES))
        assert score_of(counts, GESTURES) == pytest.approx(by_sklearn(truth[rows], predicted[rows]))
    i = bootstrap_interval(truth, predicted, who, "score", rounds=200, classes=GESTURES)
    assert i["low"] <= i["value"] <= i["high"] and i["value"] == pytest.approx(by_sklearn(truth, predicted))
    assert i == bootstrap_interval(truth, predicted, who, "score", rounds=200, classes=GESTURES)


# ---------------------------------------------------------------- folds

person_and_label = st.tuples(st.sampled_from([f"p{i}" for i in range(9)]), st.integers(0, 3))
people_and_labels = st.lists(person_and_label, min_size=1, max_size=60)


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
    for bad, word in (([0, 1, 0, 0, 2], "Subject s10 is in the folds 1 and 2"), ([1] * 5, "a single value"),
                      ([0, 1, 0, 0, np.nan], "no value for 1"), ([1, 2], "2 values for 5"),
                      (["a", "b", "", "a", "b"], "of subject s1")):
        with pytest.raises(UserError, match=word): make_folds(who, who, given=bad)


def test_one_person_is_held_out_by_session_or_by_recording():
    meta = {"subject": ["me"] * 8, "sequence_id": [f"s{i}" for i in range(8)], "session": list("aabbccdd")}
    y = list("xyxyxyxy")
    groups = fold_groups(meta, "session", y)
    fold = make_folds(groups.values, y, 2, kind=groups.kind)
    check_folds(groups.values, fold)
    assert "this person only" in scope_note(meta["subject"], groups, fold)
    groups = fold_groups(meta, None, y)
    assert groups.kind == "recording" and groups.values.tolist() == meta["sequence_id"]
    note = scope_note(meta["subject"], groups, make_folds(groups.values, y, 4))
    assert "optimistic" in note and "'{session}/…'" in note and "This file has" not in note
    fold = make_folds(groups.values, y, 4)
    assert "--group-column session." in scope_note(meta["subject"], groups, fold, tuple(meta))
    nobody = scope_note(["unknown"] * 8, groups, fold)
    assert "only if all are of one person" in nobody and "--set subject=NAME" in nobody
    pieces = fold_groups(meta | {"recording": list("aabbaabb")}, None, y)   # of two recordings, each gesture in both
    assert pieces.values.tolist() == list("aabbaabb")
    one_each = fold_groups(meta | {"recording": list("xyxyxyxy")}, None, y)   # a file a gesture says nothing
    assert one_each.values.tolist() == meta["sequence_id"]
    for column, word in (("sesion", "'session'"), ("subject", "only one subject")):
        with pytest.raises(UserError, match=word): make_folds(fold_groups(meta, column, y).values, y, 2)
    with pytest.raises(UserError, match="no value for 1"):
        fold_groups(meta | {"session": [*"aabbccd", ""]}, "session")


def test_people_on_both_sides_are_said():
    who, group = np.repeat(["ann", "bob", "cid"], 4), np.tile(list("abcd"), 3)
    meta = {"subject": who, "day": group, "sequence_id": np.arange(12).astype(str)}
    groups = fold_groups(meta, "day")
    fold = make_folds(groups.values, np.arange(12) % 2, 2)
    assert "3 of 3 people" in scope_note(who, groups, fold)
    own = fold_groups(meta)
    assert own.kind == "subject" and scope_note(who, own, make_folds(own.values, np.arange(12) % 2, 3)) is None
    nested = fold_groups(meta | {"home": np.repeat(list("xxy"), 4)}, "home")
    assert scope_note(who, nested, make_folds(nested.values, np.arange(12) % 2, 2)) is None


def test_a_class_of_one_subject_is_a_warning_and_no_error():
    who, y = np.repeat(["ann", "bob", "cid"], 4), np.array(list("aabb" "aabc" "aabb"))
    warnings = fold_warnings(who, y, [0] * 4 + [1] * 4 + [2] * 4)
    assert len(warnings) == 1 and "c (bob)" in warnings[0]
    assert fold_warnings(who, np.searchsorted(list("abc"), y), [0] * 4 + [1] * 4 + [2] * 4, classes="abc") == warnings
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
    who, y = np.repeat([f"p{i}" for i in range(10)], 6), np.tile(np.arange(3), 20)
    fold = make_folds(who, y, 5)
    train, held = np.flatnonzero(fold != 2), np.flatnonzero(fold == 2)
    assert_disjoint(who, train, held)
    leaked = np.append(train, held[0])
    with pytest.raises(LeakError, match=who[held[0]]): assert_disjoint(who, leaked, held)
    with pytest.raises(LeakError): assert_disjoint(who, fold != 2, np.isin(np.arange(60), [*held, train[0]]))
    fold[held[0]] = 0
    with pytest.raises(UserError, match=f"Subject {who[held[0]]} is in the folds"): check_folds(who, fold)


# ---------------------------------------------------------------- the blend

def made_up(seed=0, n=300, classes=4, folds=5, skills=(1.5, 1.0, 0.2)):
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    z = rng.normal(size=(len(skills), n, classes))
    z[:, np.arange(n), y] += np.array(skills)[:, None]
    p = np.exp(z)
    p /= p.sum(-1, keepdims=True)
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
    probs, y, _ = made_up(n=500, skills=(1.5, 1.0))
    one, two = (p[np.arange(500), y] for p in probs.values())
    loss = lambda w: -np.log(w * one + (1 - w) * two).sum()
    best = minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-8}).x
    assert find_weights(probs, y, prior=0)["torch"] == pytest.approx(best, abs=1e-3)


def test_the_mixture_is_neither_timid_nor_boastful():
    probs, y, fold = made_up(n=6000)
    probs["torch"] = tempered(probs["torch"], 0.3)
    p, *_ = nested_blend(probs, y, fold)
    assert p.max(1).mean() == pytest.approx((p.argmax(1) == y).mean(), abs=0.02)


def test_few_data_stay_near_equal():
    probs, y, _ = made_up(n=4)
    assert max(find_weights(probs, y).values()) - min(find_weights(probs, y).values()) < 0.2


def test_temperature_is_recovered():
    probs, y, _ = made_up(n=5000)
    calm = find_temperature(probs["torch"], y)
    assert find_temperature(tempered(probs["torch"], 1 / 2.5), y) == pytest.approx(2.5 * calm, rel=0.02)


@pytest.mark.parametrize("fixed, want", [
    ({"torch": 2, "lgbm": 1, "keras": 1}, (.5, .25, .25)),
    ({"keras": 0, "lgbm": 0}, (1, 0, 0)),
    ({"torch": 0.7}, (.7, None, None)),
    ({"torch": 1, "lgbm": 1}, (1 / 3, 1 / 3, 1 / 3)),
    ({"torch": 1, "lgbm": 3, "keras": 0}, (.25, .75, 0)),
])
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
    short = {"torch": probs["torch"], "lgbm": probs["lgbm"][:5]}
    with pytest.raises(UserError, match="shapes"): blend(short, {"torch": 1, "lgbm": 1})


def test_a_dropped_unit_is_carried_by_the_others():
    probs, y, fold = made_up()
    probs["keras"][fold == 3] = np.nan
    p, per_fold, final = nested_blend(probs, y, fold)
    assert np.allclose(p.sum(1), 1)
    others = {m: per_fold[3]["weights"][m] for m in ("torch", "lgbm")}
    recipe, held_out = per_fold[3], {m: probs[m][fold == 3] for m in others}
    assert np.allclose(p[fold == 3], blend(held_out, others, recipe["temperatures"], recipe["temperature"]))
    for m in ("torch", "lgbm"): probs[m][fold == 3] = np.nan
    p, *_ = nested_blend(probs, y, fold)
    assert np.isnan(p[fold == 3]).all() and np.isfinite(p[fold != 3]).all()
    probs["keras"][:] = np.nan
    assert find_recipe(probs, y)["weights"]["keras"] == 0
    assert np.isfinite(nested_blend(probs, y, fold)[0][fold != 3]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=3, max_size=3).filter(any),
       st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(0, 9), max_size=3))
def test_with_fixed_always_adds_up(found, fixed):
    total = sum(dict(zip("abc", found)).values())
    found = {m: w / total for m, w in zip("abc", found)}
    free = [m for m in found if m not in fixed]
    if not any(fixed.values()) and not any(found[m] for m in free): return
    w = with_fixed(found, fixed)
    assert sum(w.values()) == pytest.approx(1) and min(w.values()) >= 0 and not any(fixed.get(m) == 0 for m in w)


def test_recipes_survive_json():
    probs, y, fold = made_up()
    _, per_fold, final = nested_blend(probs, y, fold)
    kept = json.loads(json.dumps({"final": final, "per_fold": per_fold}))
    assert kept["final"] == final and np.array_equal(blend(probs, **kept["per_fold"][2]), blend(probs, **per_fold[2]))


# ---------------------------------------------------------------- decisions

KINDS = [(o, g, b) for o, g in LEGAL_PAIRS for b in OPENINGS]


def programme(people=3, skill=2.4, seed=0):
    "(subjects, labels, probabilities of kinds) of people who go through the whole design, middling recognised."
    rng, n = np.random.default_rng(seed), 102 * people
    who, kind = np.repeat([f"p{i}" for i in range(people)], 102), np.tile(np.arange(102), people)
    z = 0
    for part, names, s in ((0, ORIENTATIONS, 4), (1, GESTURES, skill), (2, OPENINGS, 0.8)):
        index = np.array([names.index(k[part]) for k in KINDS])
        z = z + (s * (rng.normal(size=(n, len(names))) + s * np.eye(len(names))[index[kind]]))[:, index]
    p = np.exp(z - z.max(1, keepdims=True))
    return who, composite_design(GESTURES).label[kind], p / p.sum(1, keepdims=True)


def test_designs_are_the_competitions():
    g, c = gesture_design(GESTURES), composite_design(GESTURES)
    assert g.copies.sum() == len(c) == 102 and np.array_equal(np.bincount(c.label), g.copies)
    assert [GESTURES[k] for k in c.label] == [k[1] for k in KINDS]
    with pytest.raises(UserError, match="not the competition's"): gesture_design(["wave", "drink"])
    assert follows_design(np.repeat(["a", "b"], 102), np.tile(c.label, 2), GESTURES)
    assert not follows_design(["a"] * 9, [0] * 9, GESTURES)


def test_predictions_do_not_depend_on_what_comes_later():
    who, _, p = programme()
    order, design = random_orders(len(who), 1)[0], composite_design(GESTURES)
    whole = decode_labels(who, p, GESTURES, order, design=design)
    half = decode_labels(who, p, GESTURES, order[:150], design=design)
    assert np.array_equal(whole[order[:150]], half[order[:150]])
    other = p.copy()
    other[order[150:]] = 1 / 102
    changed = decode_labels(who, other, GESTURES, order, design=design)
    assert np.array_equal(changed[order[:150]], half[order[:150]])


def test_people_do_not_influence_each_other():
    who, _, p = programme()
    alone = decode_labels(who[:102], p[:102], GESTURES, range(102))
    mixed = decode_labels(who, p, GESTURES, np.arange(306).reshape(3, 102).T.ravel())
    assert np.array_equal(mixed[:102], alone)


def test_labels_are_the_argmax_of_the_posterior():
    who, _, p = programme()
    order, design = random_orders(len(who), 1)[0], composite_design(GESTURES)
    labels = decode_labels(who, p, GESTURES, order, design=design)
    assert np.array_equal(posterior(who, p, GESTURES, order, design=design).argmax(1), labels)
    assert np.array_equal(posterior(who, p, GESTURES, order, soft=False, design=design), labels)


@pytest.mark.parametrize("design", [gesture_design, composite_design])
def test_strict_predictions_respect_the_design(design):
    who, _, p = programme(people=2, skill=0.5)
    if design is gesture_design: p = p @ np.eye(18)[composite_design(GESTURES).label]
    for order in random_orders(len(who), 2, seed=4):
        labels = decode_labels(who, p, GESTURES, order, design=design(GESTURES), strict=True)
        for person in np.unique(who):
            made = np.bincount(labels[who == person], minlength=18)
            assert np.array_equal(made, gesture_design(GESTURES).copies)


def test_the_joint_belief_fills_no_slot_twice():
    _, _, p = programme(people=1)
    for t in (1, 30, 101, 102):
        q = slot_proba(p[:t], np.ones(102))
        assert np.allclose(q.sum(1), 1) and q.sum(0).max() < 1.05


def test_decoding_helps_in_every_one_of_20_orders():
    who, y, p = programme(people=4)
    names, design = np.array(GESTURES), composite_design(GESTURES)
    plain = competition_score(names[y], names[(p @ np.eye(18)[design.label]).argmax(1)])["score"]
    decoded = [decode_labels(who, p, GESTURES, order, design=design) for order in random_orders(len(who))]
    found = [competition_score(names[y], names[labels])["score"] for labels in decoded]
    assert len(found) == 20 and np.mean(found) > plain and min(found) > plain - 0.02


def test_the_decoder_survives_anything():
    d = SubjectDecoder(GESTURES, strict=True)
    for p in [np.full(18, np.nan), np.zeros(18), np.eye(18)[3], np.full(18, np.inf)] * 40:
        assert 0 <= d.predict("ann", p) < 18
    assert 0 <= d.predict("ann", np.full(18, np.nan)) < 18


def test_the_decoder_works_from_threads():
    who, _, p = programme(people=4)
    d, out = SubjectDecoder(GESTURES, composite_design(GESTURES)), np.zeros(len(who), int)
    def one(person):
        for i in np.flatnonzero(who == person): out[i] = d.predict(person, p[i])
    threads = [threading.Thread(target=one, args=(person,)) for person in np.unique(who)]
    for t in threads: t.start()
    for t in threads: t.join()
    in_order = decode_labels(who, p, GESTURES, range(len(who)), design=composite_design(GESTURES))
    assert np.array_equal(out, in_order)


def test_heads_keep_the_gesture_probabilities():
    rng = np.random.default_rng(0)
    g, o, b = rng.dirichlet(np.ones(18), 5), rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(2), 5)
    p = composite_proba(g, o, GESTURES, b)
    assert p.shape == (5, 102) and np.allclose(p @ np.eye(18)[composite_design(GESTURES).label], g)


def test_the_rule_raises_the_expected_score_and_ignores_the_held_out_fold():
    rng = np.random.default_rng(1)
    rate = np.array([.6, .25, .1, .05])
    y = rng.choice(4, 6000, p=rate)
    z = rng.normal(size=(6000, 4))
    z[np.arange(6000), y] += 1.2
    p = rate * np.exp(1.2 * z)
    p /= p.sum(1, keepdims=True)
    fold = rng.integers(4, size=6000)
    labels, rule = nested_predictions(p, y, fold, "abcd")
    assert scores(y, labels, "abcd")["macro_f1"] > scores(y, p.argmax(1), "abcd")["macro_f1"] + 0.005
    lies = np.where(fold == 1, 3 - y, y)
    assert np.array_equal(nested_predictions(p, lies, fold, "abcd")[0][fold == 1], labels[fold == 1])
    assert np.array_equal(read_rule(json.loads(json.dumps(rule.as_json()))).decide(p), rule.decide(p))
    p[5] = np.nan
    assert nested_predictions(p, y, fold, "abcd")[0][5] == -1


def test_the_rule_of_the_competition_is_near_the_best_labels():
    who, y, p = programme(people=10, skill=1.6, seed=2)
    names, q = np.array(GESTURES), p @ np.eye(18)[composite_design(GESTURES).label]
    s = lambda a: competition_score(names[y], names[a])["score"]
    assert s(find_rule(q, y, GESTURES).decide(q)) > s(q.argmax(1)) - 0.002


# ---------------------------------------------------------------- worn upside down

@pytest.fixture(scope="module")
def worn():
    from gesture_nb.data.simulate import simulate
    return simulate(400, seed=5), simulate(400, seed=5, test=True, imu_only=0.5)


def test_signs_change_with_the_device_and_with_nothing_else(worn):
    from gesture_nb.data.sequences import with_meta
    from gesture_nb.features.compute import flip_upside_down, mirror_hands
    for t in worn:
        signs, turned = flip_signs(t), flip_signs(flip_upside_down(t))
        mirrored = flip_signs(with_meta(mirror_hands(t), handedness=1 - t.meta["handedness"]))
        for g in signs:
            assert np.allclose(signs[g], -turned[g], atol=1e-5, equal_nan=True)
            assert np.allclose(signs[g], mirrored[g], atol=1e-5, equal_nan=True)


def test_turned_people_are_found_whoever_they_are(worn):
    from gesture_nb.data.sequences import take
    from gesture_nb.features.compute import flip_upside_down
    train, new = worn
    detector = fit_flip_detector(flip_signs(train), train.meta["subject"])
    assert np.array_equal(is_flipped(detector, flip_signs(train), train.meta["subject"]), train.meta["flipped"])
    signs = flip_signs(new)
    assert np.array_equal(is_flipped(detector, signs, new.meta["subject"]), new.meta["flipped"])
    for person in np.unique(new.meta["subject"])[:4]:
        rows = new.meta["subject"] == person
        other = flip_signs(flip_upside_down(take(new, rows)))
        assert is_flipped(detector, other, new.meta["subject"][rows]).all() != new.meta["flipped"][rows][0]
    read = read_detector(json.loads(json.dumps(detector.as_json())))
    log_odds = [person_log_odds(d, signs, new.meta["subject"])[1] for d in (read, detector)]
    assert np.array_equal(*log_odds)
    watch, rows = FlipWatch(detector), np.flatnonzero(new.meta["subject"] == new.meta["subject"][0])
    last = [watch(take(new, [i])) for i in rows][-1]
    assert last == new.meta["flipped"][rows[0]]


def test_too_few_people_for_a_habit(worn):
    few = worn[0].meta["subject"] == worn[0].meta["subject"][0]
    signs = {g: v[few] for g, v in flip_signs(worn[0]).items()}
    with pytest.raises(UserError, match="fewer than five"): fit_flip_detector(signs, worn[0].meta["subject"][few])


# ---------------------------------------------------------------- the report

def run_folder(out, n=200, classes=("drink", "<wave> & go"), unanswered=0, histories=True):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gesture_nb.artifacts import write_json
    from gesture_nb.config import Settings, as_json
    rng = np.random.default_rng(0)
    truth = rng.choice(classes, n)
    pred = np.where(rng.random(n) < .8, truth, rng.choice(classes, n))
    who = rng.choice([f"p{i}" for i in range(25)], n)
    fold = np.unique(who, return_inverse=True)[1] % 2
    per_fold = [{"accuracy": 0.9, "macro_f1": 0.9, "score": 0.9}, None]
    s = scores(truth, pred, classes) | {"per_fold": per_fold, "seconds": 3.0}
    write_json(out / "metrics.json", {"classes": classes, "members": {"lgbm": s}, "sequences": n, "subjects": 25,
                                      "ensemble": s | {"weights": {"lgbm": 1.0}}, "folds": 2})
    pred = pa.array([None] * unanswered + pred[unanswered:].tolist(), pa.string())
    ids = [f"s{i}" for i in range(n)]
    oof = {"sequence_id": ids, "subject": who, "fold": fold, "gesture": truth, "pred": pred,
           "p_ensemble": np.full((n, len(classes)), 1 / len(classes), np.float32).tolist()}
    pq.write_table(pa.table(oof), out / "oof.parquet")
    write_json(out / "config.json", {"settings": as_json(Settings(seed=3)), "versions": {"python": "3.11"},
                                     "identity": {"data": "", "folds": ""}, "plan": None})
    history = {"rounds": 3, "loss": [1.0, 0.5, 0.4], "check_loss": [1.1, 0.8, 0.7], "importance": {"a": 1}}
    if histories: write_json(out / "members/lgbm/fold0/history.json", history)


def test_report_stands_alone(tmp_path):
    from gesture_nb.report.report import write_report
    run_folder(tmp_path, unanswered=7)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "://" not in text and "<script" not in text and text.count("<svg") == 3   # confusion, curves, calibration
    assert "&lt;wave&gt; &amp; go" in text and "<wave>" not in text and "7 more sequences have no prediction" in text
    assert (tmp_path / "confusion.png").read_bytes()[:4] == (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert all(re.search(r'role="img" aria-label="[^"]+"', svg) for svg in re.findall("<svg [^>]*>", text))
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names)) and "currentColor" in text and "prefers-color-scheme:dark" in text
    assert text.count("<caption>") == text.count("<table>") and '<html lang="en">' in text
    before = (tmp_path / "report.html").read_bytes()
    assert write_report(tmp_path).read_bytes() == before


def test_report_of_a_bare_run(tmp_path):
    from gesture_nb.report.report import write_report
    run_folder(tmp_path, classes=GESTURES, histories=False)
    (tmp_path / "config.json").unlink()
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "competition score" in text and "Learning curves" not in text and not (tmp_path / "curves.png").exists()
    (tmp_path / "oof.parquet").unlink()
    with pytest.raises(UserError, match="no oof.parquet"): write_report(tmp_path)


def test_report_in_a_browser(tmp_path):
    import shutil

    from gesture_nb.report.report import write_report
    if not (chromium := shutil.which("chromium")): pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright
    run_folder(tmp_path, classes=GESTURES, n=600)
    path = write_report(tmp_path)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, requests = browser.new_page(viewport={"width": 390, "height": 800}), []
        page.on("request", lambda r: requests.append(r.url))
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        shown = page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        browser.close()
    assert wide <= 390 and shown and [u for u in requests if not u.startswith(("file:", "data:"))] == []
