"""What repairing turned devices and deciding person by person are worth, on simulated recordings of people who were held out.

python benchmarks/decisions.py [sequences=2040] [orders=20]

Extra-trees on the summary features stand in for the ensemble, half of the recordings are IMU-only, folds are by subject, and everything that is
found (the detector, temperatures, the rule) is found on the other folds. About four minutes.
"""
import sys

import numpy as np

from gesture_nb.data.simulate import simulate
from gesture_nb.evaluation.decode import composite_design, composite_proba, decoded, nested_answers, random_orders
from gesture_nb.evaluation.flip import fit_flip_detector, flip_signs, is_flipped
from gesture_nb.evaluation.folds import protocol_folds
from gesture_nb.evaluation.metric import competition_score, positions_of
from gesture_nb.features.frames import flip_upside_down, frame_features
from gesture_nb.features.summary import summarise
from gesture_nb.schema import GESTURES, OPENINGS, ORIENTATIONS
from gesture_nb.training.ensemble import nested_blend

NAMES = np.array(GESTURES)


def out_of_fold(x, label, fold, classes):
    "Calibrated out-of-fold probabilities `[n, classes]`."
    from sklearn.ensemble import ExtraTreesClassifier
    p = np.zeros((len(label), classes))
    for k in np.unique(fold):
        trees = ExtraTreesClassifier(150, max_features=0.05, min_samples_leaf=2, random_state=0).fit(x[fold != k], label[fold != k])
        p[np.ix_(fold == k, trees.classes_)] = trees.predict_proba(x[fold == k])
    return nested_blend({"trees": p}, label, fold)[0]


def turned_people(table, fold):
    "bool `[n]`: whose device was turned, said by a detector that was fitted on the other folds."
    who, signs, found = table.meta["subject"], flip_signs(table), np.zeros(len(table), bool)
    of = lambda rows: {g: v[rows] for g, v in signs.items()}
    for k in np.unique(fold): found[fold == k] = is_flipped(fit_flip_detector(of(fold != k), who[fold != k]), of(fold == k), who[fold == k])
    return found


def say(what, values):
    print(f"{what:44}{np.mean(values):.4f}" + (f"   {min(values):.4f} … {max(values):.4f} in {len(values)} orders" if len(values) > 1 else ""), flush=True)


def main(sequences=2040, orders=20):
    table = simulate(sequences, seed=11, imu_only=0.5)
    who, fold = table.meta["subject"], protocol_folds(table.meta["subject"])
    y, o, b = (positions_of(table.meta[c], names) for c, names in (("gesture", GESTURES), ("orientation", ORIENTATIONS), ("opening", OPENINGS)))
    score = lambda answers: competition_score(NAMES[y], NAMES[answers])["score"]
    features = lambda t: np.nan_to_num(summarise(frame_features(t))[0])
    print(table, flush=True)
    turned = turned_people(table, fold)
    print(f"turned people: {len(np.unique(who[table.meta['flipped']]))}, found: {len(np.unique(who[turned & table.meta['flipped']]))}, found by mistake: {len(np.unique(who[turned & ~table.meta['flipped']]))}")
    say("as worn", [score(out_of_fold(features(table), y, fold, 18).argmax(1))])
    x = features(flip_upside_down(table, turned))
    p = out_of_fold(x, y, fold, 18)
    say("turned devices repaired", [score(p.argmax(1))])
    say("… rule for the score", [score(nested_answers(p, y, fold, GESTURES)[0])])
    kinds, arrivals = composite_proba(p, out_of_fold(x, o, fold, 4), GESTURES, out_of_fold(x, b, fold, 2)), random_orders(len(y), orders)
    say("… by person, gestures counted", [score(decoded(who, p, GESTURES, a)) for a in arrivals])
    chances = [decoded(who, kinds, GESTURES, a, soft=True, design=composite_design(GESTURES)) for a in arrivals]
    say("… by person, kinds of recording", [score(q.argmax(1)) for q in chances])
    say("… by person, kinds, rule", [score(nested_answers(q, y, fold, GESTURES)[0]) for q in chances])
    say("… by person, kinds, strict", [score(decoded(who, kinds, GESTURES, a, design=composite_design(GESTURES), strict=True)) for a in arrivals])


if __name__ == "__main__": main(*map(int, sys.argv[1:3]))
