"""What repairing turned devices and decoding subject by subject are worth, on simulated people who were held out.

python benchmarks/decisions.py [sequences=2040] [orders=20]

Extra-trees on the summary features stand in for the ensemble, half of the recordings are IMU-only, folds are by
subject, and everything that is fitted (the detector, temperatures, the rule) is fitted on the other folds. About four
minutes.
"""
import sys

import numpy as np

from gesture_nb.data.simulate import simulate
from gesture_nb.evaluation.decode import (
    composite_design,
    composite_proba,
    decode_labels,
    nested_predictions,
    posterior,
    random_orders,
)
from gesture_nb.evaluation.flip import fit_flip_detector, flip_signs, is_flipped
from gesture_nb.evaluation.folds import protocol_folds
from gesture_nb.evaluation.metric import competition_score, label_indices
from gesture_nb.features.compute import flip_upside_down, frame_features
from gesture_nb.features.summary import summarise
from gesture_nb.schema import GESTURES, OPENINGS, ORIENTATIONS
from gesture_nb.training.blend import nested_blend

NAMES = np.array(GESTURES)


def out_of_fold(x, label, fold, classes):
    "Calibrated out-of-fold probabilities `[n, classes]`."
    from sklearn.ensemble import ExtraTreesClassifier
    p = np.zeros((len(label), classes))
    for k in np.unique(fold):
        trees = ExtraTreesClassifier(150, max_features=0.05, min_samples_leaf=2, random_state=0)
        trees.fit(x[fold != k], label[fold != k])
        p[np.ix_(fold == k, trees.classes_)] = trees.predict_proba(x[fold == k])
    return nested_blend({"trees": p}, label, fold)[0]


def flipped_sequences(table, fold):
    "bool `[n]`: sequences of people whose device was turned, by a detector that was fitted on the other folds."
    subjects, signs, flipped = table.meta["subject"], flip_signs(table), np.zeros(len(table), bool)
    for k in np.unique(fold):
        known, held_out = ({g: v[rows] for g, v in signs.items()} for rows in (fold != k, fold == k))
        detector = fit_flip_detector(known, subjects[fold != k])
        flipped[fold == k] = is_flipped(detector, held_out, subjects[fold == k])
    return flipped


def report(title, values):
    text = f"{title:44}{np.mean(values):.4f}"
    if len(values) > 1: text += f"   {min(values):.4f} … {max(values):.4f} in {len(values)} orders"
    print(text, flush=True)


def report_flipped(table, flipped):
    subjects, true = table.meta["subject"], table.meta["flipped"]
    turned, found, mistakes = (len(np.unique(subjects[rows])) for rows in (true, flipped & true, flipped & ~true))
    print(f"turned people: {turned}, found: {found}, found by mistake: {mistakes}")


def main(sequences=2040, orders=20):
    table = simulate(sequences, seed=11, imu_only=0.5)
    subjects, fold = table.meta["subject"], protocol_folds(table.meta["subject"])
    y, orientation, opening = (
        label_indices(table.meta[column], names)
        for column, names in (("gesture", GESTURES), ("orientation", ORIENTATIONS), ("opening", OPENINGS)))
    score = lambda labels: competition_score(NAMES[y], NAMES[labels])["score"]
    features = lambda t: np.nan_to_num(summarise(frame_features(t))[0])
    print(table, flush=True)
    flipped = flipped_sequences(table, fold)
    report_flipped(table, flipped)
    report("as worn", [score(out_of_fold(features(table), y, fold, 18).argmax(1))])
    x = features(flip_upside_down(table, flipped))
    p = out_of_fold(x, y, fold, 18)
    report("turned devices repaired", [score(p.argmax(1))])
    report("… rule for the score", [score(nested_predictions(p, y, fold, GESTURES)[0])])
    p_orientation, p_opening = out_of_fold(x, orientation, fold, 4), out_of_fold(x, opening, fold, 2)
    kinds = composite_proba(p, p_orientation, GESTURES, p_opening)
    design, arrivals = composite_design(GESTURES), random_orders(len(y), orders)
    report("… by person, gestures counted", [score(decode_labels(subjects, p, GESTURES, a)) for a in arrivals])
    posteriors = [posterior(subjects, kinds, GESTURES, a, design=design) for a in arrivals]
    report("… by person, kinds of recording", [score(q.argmax(1)) for q in posteriors])
    report("… by person, kinds, rule", [score(nested_predictions(q, y, fold, GESTURES)[0]) for q in posteriors])
    strict = [decode_labels(subjects, kinds, GESTURES, a, design=design, strict=True) for a in arrivals]
    report("… by person, kinds, strict", [score(labels) for labels in strict])


if __name__ == "__main__": main(*map(int, sys.argv[1:3]))
