"""Units one at a time and two at once, in one go on the same machine, and what a job costs besides its work.

python benchmarks/executors.py [--data spar] [--folds 2] [--epochs 3] [--rounds 30] [--members lgbm,torch] [--jobs 4]
                               [--executors processes:2,ray,submitit:local]

Each run is a process of its own, in an empty folder, with one thread a unit. Memory is the kernel's VmHWM, what a
process had resident at most, read from /proc while it lives: of the run itself, and of the largest process below it.
Runs must leave the same bytes as the first one. A job's cost is the time of jobs that do nothing, one after another.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil

from gesture_nb.executors.base import Job, make_executor
from gesture_nb.executors.plan import Need, make_plan, this_machine

NEEDS = {"ray": "ray", "submitit": "submitit"}


def peaks(process, known):
    """Adds to `known` (pid → GB) what the kernel says of a process and all below it."""
    try: family = [process, *process.children(recursive=True)]
    except psutil.Error: return
    for member in family:
        try: lines = Path(f"/proc/{member.pid}/status").read_text().splitlines()
        except OSError: continue
        found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
        if found: known[member.pid] = found[0] / 2**20


def digest(run):
    """Of everything that a result consists of: files of members, out-of-fold predictions and blend; no times."""
    total = hashlib.sha256()
    names = [path for path in sorted((run / "members").rglob("*")) if path.is_file() and path.name != "manifest.json"]
    for path in [*names, run / "oof.parquet", run / "ensemble.json"]:
        if ".lock" in path.name: continue
        total.update(str(path.relative_to(run)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def train(executor, options, folder):
    """(wall seconds, GB of the run's process, GB of the largest one below it, digest) of a run."""
    out = folder / executor.replace(":", "-")
    command = [sys.executable, "-m", "gesture_nb", "train", "--data", options.data, "--out", str(out),
               "--folds", str(options.folds), "--epochs", str(options.epochs), "--boosting-rounds", str(options.rounds),
               "--members", options.members, "--unit-threads", "1", "--executor", executor]
    start, known = time.monotonic(), {}
    with open(folder / f"{out.name}.log", "w") as log: child = subprocess.Popen(command, stdout=log, stderr=log)
    process = psutil.Process(child.pid)
    while child.poll() is None:
        peaks(process, known)
        time.sleep(0.1)
    seconds = time.monotonic() - start
    if child.returncode: sys.exit(f"{executor} failed:\n{(folder / f'{out.name}.log').read_text()[-2000:]}")
    own = known.pop(child.pid, 0.0)
    return seconds, own, max(known.values(), default=0.0), digest(out)


def cost_of_jobs(executor, jobs, folder):
    """(seconds until the first job is done, mean seconds of each further one) of jobs that do nothing."""
    need, machine = Need(threads=1, memory=1 << 28), this_machine()
    plan = make_plan(need, machine, jobs, separate=True)
    start, times = time.monotonic(), []
    with make_executor(SimpleNamespace(executor=executor), plan, folder / f"jobs-{executor.replace(':', '-')}") as made:
        made.share(1)
        for k in range(jobs):
            made.submit(Job(f"job {k}", "builtins:pow", {"exp": k})).result()
            times.append(time.monotonic() - start)
    return times[0], (times[-1] - times[0]) / max(jobs - 1, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="spar")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--members", default="lgbm,torch")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--executors", default="processes:2")
    options = parser.parse_args()
    chosen = [e for e in options.executors.split(",") if find_spec(NEEDS.get(e.split(":")[0], "json"))]
    folder = Path(tempfile.mkdtemp(prefix="executors-"))
    try:
        print("executor          seconds   of one at a time   GB run   GB unit   same bytes", flush=True)
        first = None
        for executor in ["processes:1", *chosen]:
            seconds, own, unit, bytes_ = train(executor, options, folder)
            first = first or (seconds, bytes_)
            print(f"{executor:16} {seconds:8.1f} {seconds / first[0]:18.2f} {own:8.2f} {unit:9.2f}   "
                  f"{'yes' if bytes_ == first[1] else 'NO'}", flush=True)
        print("\nexecutor          first job   each further one, seconds", flush=True)
        for executor in chosen:
            begin, each = cost_of_jobs(executor, options.jobs, folder)
            print(f"{executor:16} {begin:10.1f} {each:26.2f}", flush=True)
    finally: shutil.rmtree(folder)


if __name__ == "__main__":
    main()
