"""What 1, 3 and 5 labelled recordings of each gesture of a person are worth, on the people of finished runs.

python benchmarks/few_labels.py RUN [RUN …] [--draws 20]

Each person in turn is the stranger: their answers are out of fold, some of their recordings are labelled, the others
are tested. How strongly labels correct is found on the people of the other folds. "Gestures" shifts whole gestures
only, as where the recordings of the training are not there any more.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gesture_nb.analysis.evaluate import run_settings
from gesture_nb.config import read_settings
from gesture_nb.evaluation.metric import confusion_counts, macro_f1_of
from gesture_nb.progress import Quiet
from gesture_nb.serving.few_labels import people_of_run
from gesture_nb.serving.loading import read_blend
from gesture_nb.training.dataset import load_dataset
from gesture_nb.training.few_labels import rehearse

def nested(tried, classes):
    "(macro F1 without labels, with labels, where each fold follows what the others' people found; share of folds)."
    labels, corrected = tried.labels[0].copy(), 0
    for k in np.unique(tried.fold):
        strength = tried.best(tried.fold != k)
        labels[tried.fold == k] = tried.labels[tried.candidates.index(strength)][tried.fold == k]
        corrected += strength != tried.candidates[0]
    scores = [macro_f1_of(confusion_counts(tried.y, found, range(classes))) for found in (tried.labels[0], labels)]
    return *scores, corrected / len(np.unique(tried.fold))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    if not options.runs:
        parser.exit(0, "few_labels.py: nothing was measured, name the folders of finished runs\n")
    print("run           labels  without gestures     with   corrected  seconds")
    for run in options.runs:
        classes = tuple(read_blend(run)["classes"])
        people = people_of_run(run, classes, load_dataset(read_settings(**run_settings(run)), Quiet()))
        for k in (1, 3, 5):
            counts, start = np.full(len(classes), k), time.process_time()
            _, shifted, _ = nested(rehearse(replace(people, summaries=None), counts, options.draws), len(classes))
            before, after, share = nested(rehearse(people, counts, options.draws), len(classes))
            seconds = time.process_time() - start
            numbers = f"{before:8.4f} {shifted:8.4f} {after:8.4f} {share:11.0%} {seconds:8.1f}"
            print(f"{run.name:12} {k:7} {numbers}", flush=True)


if __name__ == "__main__":
    main()
