"""Builds the folder for Kaggle and runs it as Kaggle would: once as the editor's run, once as the competition's rerun.

    python tools/rehearsal.py [--out RUN] [--competition FOLDER] [--mode serve|train] [--fresh] [--wheels FOLDER]
                              [--keep FOLDER]

RUN is a finished run; without one, a small one is trained on simulated recordings. FOLDER holds the competition's
test.csv and test_demographics.csv; without one, they are simulated in its schema. The notebook runs headless in an
environment of its own, in which the packages of this environment are linked (with --fresh: those of
requirements.kaggle.lock installed anew) but neither gesture_nb nor onnxruntime, on two cores, without any network, its
input read-only. A stand-in plays the competition's package, over gRPC, with one worker thread; where FOLDER has that
package, it is used, unchanged, for the first of the two runs.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from setup import ROOT, run, say  # noqa: E402

STAND_IN = ROOT / "tests" / "stand_in_grpc"
COMPETITION = "cmi-detect-behavior-with-sensor-data"
NOT_THERE = (
    "gesture_nb",
    "__editable__",
    "onnxruntime",
    "onnx",
)  # Kaggle's image has neither ours nor, perhaps, the runtime
SHORT = {"GESTURE_NB_EPOCHS": "2", "GESTURE_NB_BOOSTING_ROUNDS": "20"}  # for trainings on simulated recordings
# the loopback device comes up, the input becomes read-only, and the gateway of a rerun waits beside the notebook
INSIDE = """ip link set lo up
mount --bind "$KAGGLE_INPUT" "$KAGGLE_INPUT" && mount -o remount,bind,ro "$KAGGLE_INPUT" || exit 9
touch "$KAGGLE_INPUT/x" 2>/dev/null && exit 8
if [ -n "$KAGGLE_IS_COMPETITION_RERUN" ]; then
  PYTHONPATH="$STAND_IN" "$REHEARSAL_PYTHON" -m kaggle_evaluation.cmi_gateway "$TEST" "$PEOPLE" & gateway=$!
fi
"$@"; code=$?
if [ -n "$gateway" ]; then if [ $code -ne 0 ]; then kill $gateway; fi; wait $gateway || exit 7; fi
exit $code"""


def python_of(venv):
    return venv / "bin" / "python"


def environment(folder, fresh):
    "An environment with the packages of the lock file and nothing of ours."
    log = folder.with_suffix(".log")
    run(
        "environment of the rehearsal",
        [sys.executable, "-m", "venv", *([] if fresh else ["--without-pip"]), str(folder)],
        log,
    )
    if fresh:
        lock = [s for s in (ROOT / "requirements.kaggle.lock").read_text().splitlines() if not s.startswith(NOT_THERE)]
        (folder / "lock.txt").write_text("\n".join(lock))
        run(
            "packages of requirements.kaggle.lock, anew",
            [str(python_of(folder)), "-m", "pip", "install", "--progress-bar", "off", "-r", str(folder / "lock.txt")],
            log,
        )
        return folder
    here = Path(next(p for p in sys.path if p.endswith("site-packages")))
    there = next((folder / "lib").glob("python*/site-packages"))
    for p in here.iterdir():
        if not p.name.startswith(NOT_THERE) and p.suffix != ".egg-link" and not (there / p.name).exists():
            (there / p.name).symlink_to(p)
    return folder


def kaggle_client(push, attached):
    "Lets the Kaggle client's own code check the folder and lays out what it would upload."
    venv = ROOT / ".venv-kaggle"
    if not python_of(venv).exists():
        run("environment of the Kaggle client", [sys.executable, "-m", "venv", str(venv)], ROOT / ".venv-kaggle.log")
    run(
        "the Kaggle client",
        [str(python_of(venv)), "-m", "pip", "install", "--quiet", "kaggle", "six"],
        ROOT / ".venv-kaggle.log",
    )
    subprocess.run(
        [str(python_of(venv)), str(ROOT / "tools" / "kaggle_client.py"), str(push), str(attached)], check=True
    )


def competition(folder, given, stand_in):
    "The competition's data in `folder`, with the stand-in's package unless the given folder's own is wanted."
    from gesture_nb.data.simulate import write_competition

    if given is None:
        write_competition(folder, sequences=300, test_sequences=40, seed=1, imu_only_share=0.5)
    else:
        shutil.copytree(given, folder, ignore=shutil.ignore_patterns(*([] if not stand_in else ["kaggle_evaluation"])))
    if not (folder / "kaggle_evaluation").exists():
        shutil.copytree(STAND_IN / "kaggle_evaluation", folder / "kaggle_evaluation")
    return folder


def as_kaggle_would(venv, push, inputs, work, rerun, more):
    "Runs the notebook, with `more` in its environment; returns the seconds it took."
    data = next(inputs.rglob("test.csv")).parent
    work.mkdir(parents=True)
    shutil.copy(push / "notebook" / "submission.ipynb", work)
    environ = {
        "PATH": f"{venv / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(work),
        "LANG": "C.UTF-8",
        "KAGGLE_INPUT": str(inputs),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "REHEARSAL_PYTHON": str(python_of(venv)),
        "STAND_IN": str(STAND_IN),
        "TEST": str(data / "test.csv"),
        "PEOPLE": str(data / "test_demographics.csv"),
        "STAND_IN_ORDER": "rehearsal",
    }  # one order for both runs: deciding by person depends on it
    environ |= more | ({"KAGGLE_IS_COMPETITION_RERUN": "1"} if rerun else {})
    alone = (
        ["unshare", "--net", "--mount"]
        if os.geteuid() == 0
        else ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    )
    notebook = [
        str(python_of(venv)),
        "-m",
        "papermill",
        "submission.ipynb",
        "done.ipynb",
        "--kernel",
        "python3",
        "--log-output",
        "--no-progress-bar",
    ]
    start, done = time.monotonic(), threading.Event()
    cores = sorted(os.sched_getaffinity(0))[:2]
    with open(work / "output.txt", "wb") as out:
        process = subprocess.Popen(
            [*alone, "sh", "-c", INSIDE, "sh", *notebook],
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        beat = lambda: [
            say(f"  still running, {time.monotonic() - start:.0f} s") for _ in iter(lambda: done.wait(9), True)
        ]
        threading.Thread(target=beat, daemon=True).start()
        code = process.wait()
        done.set()
    if code:
        print((work / "output.txt").read_text(errors="replace")[-4000:])
        sys.exit(
            f"rehearsal: the notebook ended with code {code}"
            + {
                9: " (the input could not be made read-only)",
                8: " (the input was not read-only)",
                7: " (the gateway failed)",
            }.get(code, "")
        )
    return time.monotonic() - start


def checked(work, data):
    "The answers of a submission that is as the competition wants it."
    import csv

    from gesture_nb.serving.gateway import check_submission

    with open(data / "test.csv", newline="") as f:
        ids = list(dict.fromkeys(row["sequence_id"] for row in csv.DictReader(f)))
    return dict(zip(*check_submission(work / "submission.parquet", ids).values()))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--out", "--competition", "--wheels", "--keep"):
        p.add_argument(name, type=Path)
    p.add_argument("--mode", choices=("serve", "train"), default="serve")
    p.add_argument("--fresh", action="store_true")
    a = p.parse_args()
    here = (a.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))).resolve()
    here.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "gesture_nb"]
    out = a.out
    if out is None and a.mode == "serve":
        out = here / "run"
        run(
            "a small run of all members",
            [
                *program,
                "train",
                "--data",
                "sim:240",
                "--members",
                "lgbm,torch,keras,rocket",
                "--folds",
                "2",
                "--epochs",
                "1",
                "--boosting-rounds",
                "20",
                "--out",
                str(out),
            ],
            here / "train.log",
        )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = [*(["--out", str(out)] if out else []), *(["--wheels", str(a.wheels)] if a.wheels else [])]
    run(
        "the folder for Kaggle",
        [
            *program,
            "kaggle",
            "--to",
            str(here / "push"),
            "--user",
            "rehearsal",
            "--mode",
            a.mode,
            "--python",
            python,
            *options,
        ],
        here / "kaggle.log",
    )
    kaggle_client(here / "push", here / "attached")
    venv, answers, own = (
        environment(here / "venv", a.fresh),
        {},
        a.competition is not None and (a.competition / "kaggle_evaluation").is_dir(),
    )
    for name, rerun in (("editor", False), ("rerun", True)):
        inputs = here / name / "input"
        data = competition(inputs / COMPETITION, a.competition, stand_in=rerun or not own)
        shutil.copytree(here / "attached", inputs / "gesture-nb-submission-data")
        say(
            f"{name}: the notebook, without network, input read-only, two cores"
            + (", the rerun variable set" if rerun else "")
        )
        seconds = as_kaggle_would(
            venv, here / "push", inputs, here / name / "working", rerun, SHORT if a.competition is None else {}
        )
        answers[name] = checked(here / name / "working", data)
        told = [
            s
            for s in (here / name / "working" / "output.txt").read_text(errors="replace").splitlines()
            if "gateway:" in s or "fold by fold" in s or "was answered with" in s
        ]
        say(
            f"{name}: submission.parquet answers {len(answers[name])} sequences with labels, "
            f"{len(set(answers[name].values()))} different ones; {seconds:.0f} s"
            + "".join(f"\n  {s.strip()[-160:]}" for s in told)
        )
    if a.competition is None and a.mode == "serve" and answers["editor"] != answers["rerun"]:
        sys.exit("rehearsal: the two runs answered differently")
    say(f"rehearsal done{'' if a.keep is None else f'; everything is in {here}'}")
    if a.keep is None:
        shutil.rmtree(here, ignore_errors=True)


if __name__ == "__main__":
    main()
