"""The command line of `benchmarks/rivals.py`."""
import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gesture_nb.artifacts import write_json
from gesture_nb.data.convert import write_tidy
from gesture_nb.errors import UserError

from .data import SETS, SHARED, FoldArrays, Recordings, fold_arrays, is_set, read_set
from .results import Results, check_rule, rival_rows, run_rows, table_text

ROOT = Path(__file__).resolve().parents[2]
AEON = ("minirocket", "multirocket_hydra", "quant")
NETS = ("cnn_har", "tinierhar", "dana")
NO_AEON = ("{python} lacks aeon or torch, which {models} need: make an environment for them (python -m venv VENV, then "
           "VENV/bin/pip install aeon torch) and name it with --python VENV/bin/python.")


def arguments(argv=None):
    "The options as they stand on the command line."
    p = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sets", default="spar", help="comma-separated, among " + ", ".join(SETS) + ", or tidy files; "
                   "default: spar")
    p.add_argument("--models", help="comma-separated, among " + ", ".join(AEON + NETS) + ", none; default: all that "
                   "can run here")
    p.add_argument("--out", type=Path, default=Path("out/rivals"), help="folder of the results; default: out/rivals")
    p.add_argument("--python", default=sys.executable, help="a Python that has aeon and torch")
    p.add_argument("--shared", type=Path, default=SHARED, help="folder of the shared recordings")
    p.add_argument("--folds", help="only these folds, comma-separated, counted from 1")
    p.add_argument("--run", action="append", default=[], metavar="SET=FOLDER", help="a finished run of ours on a set")
    p.add_argument("--ours", action="store_true", help="trains ours on each set, below --out")
    p.add_argument("--ours-options", default="", help="options for `gesture-nb train`, in quotes")
    p.add_argument("--export", action="append", default=[], metavar="SET=FILE",
                   help="writes a set with its folds as a tidy file, and nothing else")
    p.add_argument("--epochs", type=int, default=100, help="the nets' longest training; default: 100")
    p.add_argument("--patience", type=int, default=10, help="epochs without a better check; default: 10")
    p.add_argument("--refit", action="store_true", help="nets are trained anew on all training people, as long as was "
                   "best")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1, help="threads of a model; default: 1")
    p.add_argument("--limit", type=int, help="only so many sequences of each person and class (to try it out)")
    return p.parse_args(argv)


def listed(text: str, known, what: str, is_known=None) -> list[str]:
    "The names of a comma-separated list; exits with a sentence where one is not known."
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not (is_known or known.__contains__)(name):
            sys.exit(f"There is no {what} '{name}'; there are {', '.join(known)}.")
    return names


def assigned(pairs: list[str], option: str) -> dict[str, Path]:
    "SET → path, of options SET=PATH."
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not is_set(name):
            sys.exit(f"{option} {pair}: write it as SET=PATH, the set among {', '.join(SETS)}, or a tidy file.")
        found[name] = Path(path)
    return found


def has_aeon(python: str) -> bool:
    "Whether an interpreter has aeon and torch, without importing them (which takes seconds)."
    code = "import importlib.util as u, sys; sys.exit(not (u.find_spec('aeon') and u.find_spec('torch')))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def chosen_models(args) -> list[str]:
    "The models to run; those of aeon are refused if named and left out if not, where aeon is not installed."
    if args.models is None:
        if has_aeon(args.python):
            return [*AEON, *NETS]
        print("Left out: " + NO_AEON.format(python=args.python, models=", ".join(AEON)), flush=True)
        return [*NETS]
    models = [name for name in listed(args.models, [*AEON, *NETS, "none"], "model") if name != "none"]
    needing = [name for name in models if name in AEON]
    if needing and not has_aeon(args.python):
        sys.exit(NO_AEON.format(python=args.python, models=", ".join(needing)))
    return models


def rule_of(args, model: str) -> dict:
    "What a result of `model` depends on besides data and fold."
    rule = {"seed": args.seed, "limit": args.limit}
    if model in NETS:
        rule |= {"epochs": args.epochs, "patience": args.patience, "refit": args.refit}
    return rule


class AeonWorker:
    "A process of the interpreter that has aeon, started at the first job, ended at `close`."

    def __init__(self, python: str, threads: int):
        self.python, self.threads, self.process = python, threads, None

    def _start(self) -> None:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environ |= {f"{name}_NUM_THREADS": str(self.threads) for name in ("OMP", "NUMBA", "MKL", "OPENBLAS")}
        command = [self.python, str(Path(__file__).with_name("aeon_worker.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def run(self, model: str, arrays: FoldArrays, y: np.ndarray, seed: int) -> dict:
        "Labels, seconds and versions; see `aeon_worker.py`."
        if self.process is None:
            self._start()
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "job.npz")
            np.savez(path, x=arrays.x, y=y, train=arrays.train)
            self.process.stdin.write(json.dumps({"model": model, "path": path, "seed": seed}) + "\n")
            self.process.stdin.flush()
            text = self.process.stdout.readline()
        if not text:
            sys.exit(f"{model} failed in {self.python}; what went wrong stands above.")
        return json.loads(text)

    def close(self) -> None:
        "Ends the process."
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def run_net(model: str, arrays: FoldArrays, recordings: Recordings, args) -> dict:
    "Labels, seconds, versions and training of one of the nets."
    import torch

    from .nets import Rule, fit_predict
    torch.set_num_threads(args.threads)
    rule = Rule(epochs=args.epochs, patience=args.patience, refit=args.refit, seed=args.seed)
    start, processor = time.perf_counter(), time.process_time()
    def report(text): print(f"  {model}: {text}", flush=True)
    found = fit_predict(model, arrays, recordings.y, recordings.subjects, len(recordings.classes), rule, report)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {"labels": found.labels.tolist(), "about": found.about, "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor,
            "versions": versions | {"python": platform.python_version()}}


def missing_models(recordings: Recordings, k: int, models: list[str], results: Results, args) -> list[str]:
    "The models without a kept result on the fold; exits where one was made with other options."
    kept, n = results.read(), int((recordings.fold == k).sum())
    missing = []
    for model in models:
        line = kept.get((recordings.name, model, k))
        if line is None:
            missing.append(model)
        else:
            check_rule(line, rule_of(args, model), n, results.path)
    return missing


def run_fold(recordings: Recordings, k: int, models: list[str], results: Results, worker: AeonWorker, args) -> None:
    "All models on one fold; what is kept already is not computed again."
    missing = missing_models(recordings, k, models, results, args)
    if not missing:
        return
    arrays, true = fold_arrays(recordings, k), recordings.y[recordings.fold == k]
    for model in missing:
        title = f"{recordings.name}, fold {k + 1}: {model}"
        print(f"{title}, {int(arrays.train.sum())} to learn from, {len(true)} to predict", flush=True)
        if model in AEON:
            found = worker.run(model, arrays, recordings.y, args.seed)
        else:
            found = run_net(model, arrays, recordings, args)
        key = {"set": recordings.name, "model": model, "fold": k, "rule": rule_of(args, model)}
        results.add(key | {"length": arrays.x.shape[2]} | found)
        correct = float(np.mean(np.array(found["labels"]) == true))
        print(f"{title}, accuracy {correct:.3f}, {found['seconds']:.0f} s", flush=True)


def train_ours(recordings: Recordings, args) -> Path:
    "The folder of our run on the set's folds, trained or continued now."
    name = Path(recordings.name).stem
    out, file = args.out / "ours" / name, write_tidy(recordings.table, args.out / f"{name}.parquet")
    command = [sys.executable, "-m", "gesture_nb", "train", "--data", str(file.resolve()), "--fold-column", "fold",
               "--out", str(out.resolve()), *args.ours_options.split()]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit(f"Our training on {recordings.name} ended with an error; what it says stands above.")
    return out


def export(args) -> None:
    "Writes the sets of --export."
    for name, path in assigned(args.export, "--export").items():
        recordings = read_set(name, args.shared, args.limit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tidy(recordings.table, path)
        print(f"{path}: {recordings.table}; train with --fold-column fold", flush=True)


def run_missing(recordings: Recordings, models: list[str], results: Results, worker: AeonWorker, args) -> None:
    "Fold by fold, so that a benchmark that is cut short has the same folds of every model."
    folds = np.unique(recordings.fold).tolist()
    if args.folds:
        folds = [int(k) - 1 for k in listed(args.folds, [str(k + 1) for k in folds], "fold")]
    for k in folds:
        run_fold(recordings, k, models, results, worker, args)


def compare(args) -> None:
    "Runs what is missing of every set, then writes and prints the table."
    sets = listed(args.sets, SETS, "set", is_set)
    models, runs = chosen_models(args), assigned(args.run, "--run")
    results, worker, rows = Results(args.out), AeonWorker(args.python, args.threads), []
    for name in sets:
        recordings = read_set(name, args.shared, args.limit)
        run_missing(recordings, models, results, worker, args)
        if args.ours:
            runs[name] = train_ours(recordings, args)
        rows += rival_rows(recordings, results.read())
        rows += run_rows(recordings, runs[name]) if name in runs else []
    worker.close()
    write_json(args.out / "table.json", [row._asdict() for row in rows])
    (args.out / "table.md").write_text(table_text(rows) + "\n")
    print(f"\n{table_text(rows)}\n\nseconds: processor time of rivals, all folds; time of all units of ours",
          flush=True)


def main(argv=None) -> None:
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        if args.export:
            export(args)
        else:
            compare(args)
    except UserError as error:
        sys.exit(str(error))
