"""Macro F1 on people that were never seen, on several sets of recordings, with default settings.

    python benchmarks/accuracy.py                      # the embedded set
    python benchmarks/accuracy.py uhh_gestures wisdm_watch
    python benchmarks/accuracy.py spar --reference     # beside aeon's classifiers (needs `pip install aeon` in another environment: --python)

Protocol: the distinct subject names sorted as strings, subject i in fold i mod 5; train on four folds, answer the fifth, pool.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
REFERENCE = """
import json, sys, time, numpy as np
from sklearn.metrics import accuracy_score, f1_score
from aeon.classification.convolution_based import MiniRocketClassifier, MultiRocketHydraClassifier
d = np.load(sys.argv[1])
for name, make in (("MiniRocket + ridge", MiniRocketClassifier), ("MultiRocket+Hydra", MultiRocketHydraClassifier)):
    start, answer = time.time(), np.empty_like(d["y"])
    for k in np.unique(d["fold"]):
        t = d["fold"] != k
        answer[~t] = make(random_state=0, n_jobs=2).fit(d["x"][t], d["y"][t]).predict(d["x"][~t])
    print(json.dumps([name, accuracy_score(d["y"], answer), f1_score(d["y"], answer, average="macro"), time.time() - start]), flush=True)
"""


def with_protocol_folds(name, folder):
    """A copy of a shared set with the protocol's fold column."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(SHARED / f"{name}.parquet")
    people = sorted(frame.subject.astype(str).unique())
    frame["fold"] = frame.subject.astype(str).map({s: i % 5 for i, s in enumerate(people)}).astype(np.int64)
    meta = json.loads((SHARED / f"{name}.meta.json").read_text())
    rate = meta["sample_rate_hz"]
    if isinstance(rate, (int, float)):
        frame["sample_rate_hz"] = float(rate)
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder / f"{name}.parquet"


def ours(data, out, extra):
    start = time.time()
    fold = [] if data == "spar" else ["--fold-column", "fold"]
    subprocess.run([sys.executable, "-m", "gesture_nb", "train", "--data", str(data), "--out", str(out), *fold, *extra], cwd=ROOT, check=True)
    metrics = json.loads((out / "metrics.json").read_text())
    rows = [(m, v["accuracy"], v["macro_f1"], v["seconds"]) for m, v in metrics["members"].items()]
    return [*rows, ("ensemble", metrics["ensemble"]["accuracy"], metrics["ensemble"]["macro_f1"], time.time() - start)]


def reference(data, folder, python):
    """aeon's classifiers on the raw channels, resampled to one length, in the same folds."""
    import numpy as np

    from gesture_nb.data.readers import read_table

    table = read_table(str(data))
    length = int(min(np.median(table.lengths), 200))
    x = np.stack([np.stack([np.interp(np.linspace(0, b - a - 1, length), np.arange(b - a), c[a:b]) for c in table.values])
                  for a, b in zip(table.offsets[:-1], table.offsets[1:])])
    np.savez(folder / "x.npz", x=x.astype("f4"), y=np.unique(table.meta["gesture"], return_inverse=True)[1], fold=table.meta["fold"].astype(int))
    done = subprocess.run([python, "-c", REFERENCE, str(folder / "x.npz")], check=True, stdout=subprocess.PIPE, text=True)
    return [tuple(json.loads(s)) for s in done.stdout.splitlines()]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("sets", nargs="*", default=["spar"])
    p.add_argument("--reference", action="store_true", help="also aeon's MiniRocket and MultiRocket+Hydra")
    p.add_argument("--python", default=sys.executable, help="a Python that has aeon")
    args, extra = p.parse_known_args()
    for name in args.sets or ["spar"]:
        with tempfile.TemporaryDirectory() as folder:
            data = "spar" if name == "spar" else with_protocol_folds(name, Path(folder))
            rows = ours(data, Path(folder) / "out", extra)
            if args.reference:
                rows += reference(data, Path(folder), args.python)
        print(f"\n{name}\n{'':<20}{'accuracy':>10}{'macro F1':>10}{'seconds':>9}")
        for row in rows:
            print(f"{row[0]:<20}{row[1]:>10.3f}{row[2]:>10.3f}{row[3]:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
