"""How long one answer takes, against the plain way, and how soon a server is ready.

python benchmarks/serving.py [RUN] [answers=60] [plain answers=4] [sequences through the gateway=3500]

RUN is a finished run of all members on five folds. Without one, one is trained on simulated recordings: one epoch, nets
of the preset's size, trees of 300 rounds. The plain way is what one would write first: for each member and fold in
turn, Keras' `predict`, torch as it is, LightGBM's `predict` with its own number of threads, the random convolutions as
trained, and features computed for each of them. Both predict the same sequences in turn in one process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gesture_nb.data.simulate import simulate
from gesture_nb.progress import Reporter
from gesture_nb.serving.gateway import local_gateway, read_test_sequences
from gesture_nb.serving.predictor import load

class Plain:
    "The plain way."

    def __init__(self, run):
        from gesture_nb.models.gru import build_net
        from gesture_nb.models.quiet_tensorflow import load_tensorflow

        load_tensorflow()
        self.own, self.nets = load(run, exported=False), []
        for member in self.own.members.get("keras", []):
            net = build_net(member.shape)
            for variable, array in zip(net.trainable_variables, member.weights["ema"]):
                variable.assign(array)
            self.nets.append(net)

    def keras(self, fold, member, batch):
        from gesture_nb.features.loaders import SequenceDataset
        from gesture_nb.models.gru import prepare_batch

        windows = SequenceDataset(batch.frames, batch.index, member.view)[np.arange(len(batch))]
        inputs = prepare_batch(windows, member.scale, len(batch))
        logits = self.nets[fold].predict(list(inputs), verbose=0)
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def lgbm(self, fold, member, batch):
        from gesture_nb.models.gbdt import align_columns

        return member.booster.predict(align_columns(*batch.summary(), member.names))

    def other(self, fold, member, batch):
        return member.predict_proba(batch)

    def __call__(self, sequence, person):
        from gesture_nb.training.blend import blend

        table, probs = self.own.table(sequence, person), {}
        for name, units in self.own.members.items():
            predict = getattr(self, name, self.other)
            folds = [predict(fold, member, self.own.batch(table)) for fold, member in enumerate(units)]
            probs[name] = np.mean(folds, axis=0)
        return blend(probs, **self.own.blend)[0]


def peak_memory():
    "The largest resident memory of this process so far, MB."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Timed(NamedTuple):
    result: object
    wall: float  # ms
    processor: float  # ms, of all threads


def timed(function, *arguments):
    start, busy = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return Timed(result, 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - busy))


# The peak is that of this program: getrusage would also know that of the one that started it.
START = """
import sys, time
from pathlib import Path
from gesture_nb.serving.gateway import listen
from gesture_nb.schema import GESTURES
def load_run():
    from gesture_nb.serving.predictor import load
    return load(sys.argv[1])
predict = listen(load_run, GESTURES)
print("listening", time.time(), flush=True)
from gesture_nb.data.simulate import simulate
from gesture_nb.serving.gateway import read_test_sequences
sequence, demographics = read_test_sequences(simulate(4))[0]
start = time.time()
predict(sequence, demographics)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
print("answered", time.time() - start, peak, predict.lazy.failed, flush=True)
"""


def start_of_server(run):
    "(seconds to listening, seconds of the first answer, peak MB)"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", START, str(run)], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[5] == "0", done.stdout
    return float(words[1]) - began, float(words[3]), float(words[4])


def compare(name, fast, plain, test, answers, plain_answers):
    "One line: the times of both, and the largest difference between their probabilities."
    fast.proba(*test[0])
    plain(*test[0])
    times, plain_times, difference = [], [], 0.0
    every = max(1, answers // plain_answers)
    for i in range(answers):
        probs, *ms = timed(fast.proba, *test[i])
        times.append(ms)
        if i % every:
            continue
        plain_probs, *ms = timed(plain, *test[i])
        plain_times.append(ms)
        difference = max(difference, float(np.abs(probs - plain_probs).max()))
    (wall, processor), (plain_wall, plain_processor) = np.median(times, 0), np.median(plain_times, 0)
    slowest = np.percentile(times, 99, 0)[0]
    print(
        f"{name:12} {wall:6.1f} ms {slowest:6.1f} ms {processor:7.1f} ms "
        f"{plain_wall:7.0f} ms {plain_processor:7.0f} ms "
        f"{plain_wall / wall:6.0f}× {plain_processor / processor:9.0f}× {difference:8.0e}"
    )


def compare_adapted(name, adapted, alone, test, answers):
    "One line: answers that use the person's earlier recordings, and the same without, in turns."
    times, times_alone = [], []
    for i in range(answers):
        for predictor, kept in ((adapted, times), (alone, times_alone))[:: 1 if i % 2 else -1]:
            _, *ms = timed(predictor.proba, *test[i])
            kept.append(ms)
    (wall, processor), (wall_alone, processor_alone) = np.median(times, 0), np.median(times_alone, 0)
    shares = adapted.adaptation.protocols["as_they_come"].shares
    print(
        f"{name:12} as they come {wall:6.1f} ms, processor {processor:6.1f} ms; alone {wall_alone:6.1f} ms, processor "
        f"{processor_alone:6.1f} ms: {wall / wall_alone - 1:+.0%}, {processor / processor_alone - 1:+.0%}; "
        f"shares {', '.join(f'{member} {share:g}' for member, share in shares.items())}"
    )


def adapted_rows(run, answers):
    "With the shares that the run found, and with both answers of every member, the most that can be asked."
    for found in (True, False):
        adapted, alone = load(run), load(run, adapt=False)
        how = adapted.adaptation.protocols["as_they_come"]
        if not found:
            how.shares.update(dict.fromkeys(how.shares, 0.5))
            how.blend["weights"] = dict.fromkeys(how.shares, 1 / len(how.shares))
        for name, share in {"all sensors": 0.0, "IMU only": 1.0}.items():
            test = read_test_sequences(simulate(answers, seed=3, imu_only=share))
            compare_adapted(name, adapted, alone, test, answers)


HEADER = (
    f"{'':12} {'p50':>9} {'p99':>9} {'processor':>10} {'plain p50':>10} {'processor':>10} "
    f"{'ratio':>7} {'processor':>10} {'apart':>8}"
)


def main(run=None, answers=60, plain_answers=4, sequences=3500):
    from gesture_nb.app import train_only
    from gesture_nb.serving.export import export_run

    answers, plain_answers = int(answers), int(plain_answers)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(run or folder + "/run")
        if not (run / "ensemble.json").exists():
            members = "lgbm,torch,keras,rocket"
            train_only(
                data="sim", members=members, epochs=1, boosting_rounds=300, output_path=run, progress="lines"
            )
        if not (run / "serving").exists():
            with Reporter() as reporter:
                export_run(run, reporter)
        starts = [start_of_server(run) for _ in range(3)]
        fast, plain = load(run, adapt=False), Plain(run)
        members = ", ".join(f"{name} ({type(units[0]).__name__})" for name, units in fast.members.items())
        cores = len(os.sched_getaffinity(0))
        print(f"members: {members}; load {os.getloadavg()[0]:.1f} on {cores} cores")
        print(HEADER)
        for name, share in {"all sensors": 0.0, "IMU only": 1.0}.items():
            test = read_test_sequences(simulate(answers, seed=3, imu_only=share))
            compare(name, fast, plain, test, answers, plain_answers)
        if load(run).adaptation is not None:
            adapted_rows(run, answers)
        listening, first, memory = np.median(starts, 0)
        print(f"process start to listening {listening:.1f} s, first answer {first:.1f} s, memory {memory:.0f} MB")
        many = simulate(int(sequences), seed=4)
        served = timed(lambda: local_gateway(fast, many, out=folder + "/s.parquet", labels=fast.classes))
        print(
            f"gateway: {len(served.result['sequence_id']):,} sequences in {served.wall / 1000:.0f} s, "
            f"{fast.failures.total()} failures; memory at most {peak_memory():.0f} MB, "
            "sequences and plain nets included"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
