"""Macro F1 on people that were never seen, with default settings, beside other people's classifiers in the same folds.

    python benchmarks/accuracy.py                                  # the embedded set
    python benchmarks/accuracy.py --all                            # every set below (hours on two cores)
    python benchmarks/accuracy.py uhh_gestures --references --python OTHER/bin/python   # … beside aeon's classifiers
    python benchmarks/accuracy.py sim --ablate                     # every scenario, and what each component is worth
    python benchmarks/accuracy.py spar --keep DIR --epochs 2       # keeps and continues the runs

Options that are not listed below go to `gesture-nb train`. aeon needs other versions of shared libraries than ours:
install it into an environment of its own (`pip install aeon torch`) and name its interpreter.

Protocol: the distinct subject names sorted as strings, subject i in fold i mod 5; train on four folds, predict the
fifth, pool. Nothing is chosen on the fold that is predicted. The references (MiniRocket + ridge, MultiRocket+Hydra) get
the raw channels, every sequence resampled to one length.
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
SETS = {
    "spar": "aim: 0.95",
    "uhh_gestures": "aim: 0.985",
    "wisdm_watch": "aim: 0.03 above the best reference",
    "spsw_har_watch": "aim: 0.99",
    "bfrb_watch": "rare classes: most people did only a few of them",
    "sim": "score of the competition, every scenario",
}
REFERENCE = """
import json, sys, time, numpy as np
from sklearn.metrics import accuracy_score, f1_score
from aeon.classification.convolution_based import MiniRocketClassifier, MultiRocketHydraClassifier
d = np.load(sys.argv[1])
for name, make in (("MiniRocket + ridge", MiniRocketClassifier), ("MultiRocket+Hydra", MultiRocketHydraClassifier)):
    start, pred = time.time(), np.empty_like(d["y"])
    for k in np.unique(d["fold"]):
        train = d["fold"] != k
        model = make(random_state=0, n_jobs=int(sys.argv[2])).fit(d["x"][train], d["y"][train])
        pred[~train] = model.predict(d["x"][~train])
        print(f"{name}: fold {k + 1} predicted after {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    scores = accuracy_score(d["y"], pred), f1_score(d["y"], pred, average="macro")
    print(json.dumps([name, *scores, time.time() - start]), flush=True)
"""


def with_protocol_folds(name, folder):
    """A copy of a shared set with the protocol's fold column."""
    import numpy as np
    import pandas as pd

    source = SHARED / f"{name}.parquet"
    if not source.exists():
        sys.exit(f"There is no {source}: put the shared recordings there, or choose among spar and sim.")
    frame = pd.read_parquet(source)
    people = sorted(frame.subject.astype(str).unique())
    frame["fold"] = frame.subject.astype(str).map({s: i % 5 for i, s in enumerate(people)}).astype(np.int64)
    meta = json.loads((SHARED / f"{name}.meta.json").read_text())
    rate = meta["sample_rate_hz"]
    if isinstance(rate, (int, float)):
        frame["sample_rate_hz"] = float(rate)
    frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder / f"{name}.parquet"


def program(*arguments):
    subprocess.run([sys.executable, "-m", "gesture_nb", *map(str, arguments)], cwd=ROOT, check=True)


def ours(data, out, extra, ablate):
    """(name, accuracy, macro F1, competition's score or None, seconds) of all members; what `evaluate` found."""
    fold, start = ["--fold-column", "fold"] if Path(data).suffix else [], time.time()
    program("train", "--data", data, "--out", out, *fold, *extra)
    seconds = time.time() - start
    program("evaluate", "--out", out, *(["--ablate"] if ablate else []))
    metrics, found = (json.loads((out / f"{n}.json").read_text()) for n in ("metrics", "evaluation"))
    rows = [(m, v["accuracy"], v["macro_f1"], v.get("score"), v["seconds"]) for m, v in metrics["members"].items()]
    e = metrics["ensemble"]
    return [*rows, ("ensemble", e["accuracy"], e["macro_f1"], e.get("score"), seconds)], found["found"]


def has_references(python):
    return subprocess.run([python, "-c", "import aeon, torch"], capture_output=True).returncode == 0


def resampled(channels, length):
    """Channels `[C, rows]` as `[C, length]`, by linear interpolation; missing readings are 0."""
    import numpy as np

    rows = channels.shape[1]
    steps = np.linspace(0, rows - 1, length)
    return np.stack([np.interp(steps, np.arange(rows), np.nan_to_num(channel)) for channel in channels])


def references(data, folder, python, jobs):
    """aeon's classifiers in the same folds."""
    import numpy as np

    from gesture_nb.data.readers import read_table

    table = read_table(str(data))
    length = int(min(np.median(table.lengths), 200))
    x = np.stack([resampled(table.values[:, a:b], length) for a, b in zip(table.offsets[:-1], table.offsets[1:])])
    y = np.unique(table.meta["gesture"], return_inverse=True)[1]
    np.savez(folder / "x.npz", x=x.astype("f4"), y=y, fold=table.meta["fold"].astype(int))
    command = [python, "-c", REFERENCE, str(folder / "x.npz"), str(jobs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [(r[0], r[1], r[2], None, r[3]) for r in map(json.loads, done.stdout.splitlines())]


def show(name, rows, found):
    kind = name.split(":")[0]
    cell = lambda v: f"{v:>10.3f}" if v is not None else f"{'':>10}"
    size = f"{found['sequences']:,} sequences, {found['subjects']} people, {len(found['classes'])} classes"
    print(f"\n{name} ({SETS[kind]}): {size}", flush=True)
    print(f"{'':<20}{'accuracy':>10}{'macro F1':>10}{'score':>10}{'seconds':>9}")
    for n, *values, seconds in rows:
        print(f"{n:<20}{''.join(map(cell, values))}{seconds:>9.0f}", flush=True)
    i = found["scenarios"]["all"]["ensemble"]["macro_f1"]
    print(f"ensemble, 95 % over people: macro F1 {i['low']:.3f} – {i['high']:.3f}", flush=True)
    best = max((r for r in rows[-2:] if r[0].startswith("M")), key=lambda r: r[2], default=None)
    if best:
        ensemble = next(r for r in rows if r[0] == "ensemble")
        print(f"ensemble against {best[0]}: {ensemble[2] - best[2]:+.3f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sets", nargs="*",
                   help="among " + ", ".join(SETS) + " (sim:2040 for so many sequences); default: spar")
    p.add_argument("--all", action="store_true", help="all sets")
    p.add_argument("--references", action="store_true",
                   help="also aeon's MiniRocket + ridge and MultiRocket+Hydra, where the channels are few")
    p.add_argument("--python", default=sys.executable, help="a Python that has aeon and torch")
    p.add_argument("--jobs", type=int, default=1, help="threads of the references")
    p.add_argument("--ablate", action="store_true", help="also what each component is worth")
    p.add_argument("--keep", type=Path, help="where the runs are kept, one folder a set; default: nowhere")
    args, extra = p.parse_known_args()
    sets = [*SETS] if args.all else args.sets or ["spar"]
    for name in sets:
        if name.split(":")[0] not in SETS:
            sys.exit(f"There is no set '{name}'; there are {', '.join(SETS)}.")
    if args.references and not has_references(args.python):
        sys.exit(f"{args.python} lacks aeon or torch, which the references need: make an environment "
                 "(python -m venv DIR, then DIR/bin/pip install aeon torch) and name it with --python DIR/bin/python.")
    for name in sets:
        with tempfile.TemporaryDirectory() as folder:
            folder, kind = args.keep or Path(folder), name.split(":")[0]
            folder.mkdir(parents=True, exist_ok=True)
            data = name if kind in ("spar", "sim") else with_protocol_folds(name, folder)
            rows, found = ours(data, folder / name.replace(":", "-"), extra, args.ablate)
            if args.references and kind != "sim":
                rows += references(data, folder, args.python, args.jobs)
        show(name, rows, found)


if __name__ == "__main__":
    main()
