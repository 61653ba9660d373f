"""Fits classifiers of aeon and predicts; run by the interpreter that has aeon.

Each line of standard input is a job, JSON with model, path and seed; path is an npz file with x float32
`[n, channels, length]`, y int64 `[n]` and train bool `[n]`. Each job is answered by a line of JSON. One process does
all jobs of a benchmark, since compiling aeon's functions takes longer than fitting a small set.
"""
import importlib.metadata
import json
import platform
import sys
import time

import numpy as np

def make(model, seed):
    "The classifier with aeon's default parameters."
    if model == "minirocket":
        from aeon.classification.convolution_based import MiniRocketClassifier
        return MiniRocketClassifier(random_state=seed, n_jobs=1)
    if model == "multirocket_hydra":
        from aeon.classification.convolution_based import MultiRocketHydraClassifier
        return MultiRocketHydraClassifier(random_state=seed, n_jobs=1)
    from aeon.classification.interval_based import QUANTClassifier
    return QUANTClassifier(random_state=seed)


def versions():
    "What a result depends on."
    libraries = ("aeon", "numba", "numpy", "scikit-learn", "torch")
    return {name: importlib.metadata.version(name) for name in libraries} | {"python": platform.python_version()}


def run(model, path, seed):
    "Labels of the sequences that are not learned from, and the seconds of fitting and predicting."
    job = np.load(path)
    start, processor = time.perf_counter(), time.process_time()
    classifier = make(model, seed).fit(job["x"][job["train"]], job["y"][job["train"]])
    labels = classifier.predict(job["x"][~job["train"]]).astype(int)
    return {"labels": labels.tolist(), "seconds": time.perf_counter() - start, "versions": versions(),
            "processor_seconds": time.process_time() - processor}


def main():
    for text in sys.stdin:
        print(json.dumps(run(**json.loads(text))), flush=True)


if __name__ == "__main__":
    main()
