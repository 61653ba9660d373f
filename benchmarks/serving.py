"""How long one answer takes, against the plain way, and how soon a server is ready.

python benchmarks/serving.py [RUN] [answers=60] [plain answers=4] [sequences through the gateway=3500]

RUN is a finished run of all members on five folds; without one, one is trained on simulated recordings (one epoch; the nets have the size of the preset, the
trees 300 rounds). The plain way is what one would write first: for each member and fold in turn, Keras' `predict`, torch as it is, LightGBM's `predict` with
its own number of threads, the random convolutions as trained, features for each of them. Both answer the same sequences in turn in one process.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gesture_nb.data.simulate import simulate
from gesture_nb.progress import Reporter
from gesture_nb.serving.gateway import local_gateway, questions
from gesture_nb.serving.predictor import load


class Plain:
    "The plain way."
    def __init__(self, run):
        from gesture_nb.models.keras_net import build_net, load_tensorflow
        load_tensorflow()
        self.own, self.nets = load(run, exported=False), []
        for m in self.own.members.get("keras", []):
            net = build_net(m.shape)
            for v, a in zip(net.trainable_variables, m.weights["ema"]): v.assign(a)
            self.nets.append(net)

    def keras(self, k, m, batch):
        from gesture_nb.data.loaders import SequenceDataset
        from gesture_nb.models.keras_net import ready
        z = self.nets[k].predict(list(ready(SequenceDataset(batch.frames, batch.index, m.view)[np.arange(len(batch))], m.scale, len(batch))), verbose=0)
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def lgbm(self, k, m, batch):
        from gesture_nb.models.lgbm import aligned
        return m.booster.predict(aligned(*batch.summary(), m.names))

    def __call__(self, sequence, person):
        from gesture_nb.data.incoming import from_frame
        from gesture_nb.training.ensemble import blend
        table, probs = from_frame(sequence, person, self.own.channels, one=True, rate_hz=self.own.rate_hz or float("nan")), {}
        for name, units in self.own.members.items():
            ask = getattr(self, name, lambda k, m, batch: m.predict_proba(batch))
            probs[name] = np.mean([ask(k, m, self.own.batch(table)) for k, m in enumerate(units)], axis=0)
        return blend(probs, **self.own.blend)[0]


def peak():
    "MB of this process at most."
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024


def timed(f, *arguments):
    start, busy = time.perf_counter(), time.process_time()
    result = f(*arguments)
    return result, 1000 * (time.perf_counter() - start), 1000 * (time.process_time() - busy)


START = """
import sys, time
from gesture_nb.serving.gateway import listen
from gesture_nb.schema import GESTURES
def go():
    from gesture_nb.serving.predictor import load
    return load(sys.argv[1])
predict = listen(go, GESTURES)
print("listening", time.time(), flush=True)
from gesture_nb.data.simulate import simulate
from gesture_nb.serving.gateway import questions
q = questions(simulate(4))[0]
began = time.time()
predict(*q)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))   # of this program; getrusage also knows the one that started it
print("answered", time.time() - began, peak / 1024, predict.listener.failed, flush=True)
"""


def start_of(run):
    "(seconds to listening, seconds of the first answer, peak MB)"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", START, str(run)], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[5] == "0", done.stdout
    return float(words[1]) - began, float(words[3]), float(words[4])


def main(run=None, answers=60, plain_answers=4, sequences=3500):
    from gesture_nb.app import train_only
    from gesture_nb.serving.export import export_run
    with tempfile.TemporaryDirectory() as folder:
        run = Path(run or folder + "/run")
        if not (run / "ensemble.json").exists():
            train_only(data="sim", members="lgbm,torch,keras,rocket", epochs=1, boosting_rounds=300, output_path=run, progress="lines")
        if not (run / "serving").exists():
            with Reporter() as reporter: export_run(run, reporter)
        begun = [start_of(run) for _ in range(3)]
        fast, plain, t = load(run), Plain(run), simulate(int(answers), seed=3)
        q = {"all sensors": questions(t), "IMU only": questions(simulate(int(answers), seed=3, imu_only=1.0))}
        print(f"members: {', '.join(f'{m} ({type(u[0]).__name__})' for m, u in fast.members.items())}; load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
        print(f"{'':12} {'p50':>9} {'p99':>9} {'processor':>10} {'plain p50':>10} {'processor':>10} {'ratio':>7} {'processor':>10} {'apart':>8}")
        for name, asked in q.items():
            fast.proba(*asked[0]); plain(*asked[0])
            told, slow, apart, every = [], [], 0.0, max(1, int(answers) // int(plain_answers))
            for i in range(int(answers)):
                p, *ms = timed(fast.proba, *asked[i]); told.append(ms)
                if i % every == 0: r, *ms = timed(plain, *asked[i]); slow.append(ms); apart = max(apart, float(np.abs(p - r).max()))
            (w50, c50), (w99, _), (s50, sc50) = np.median(told, 0), np.percentile(told, 99, 0), np.median(slow, 0)
            print(f"{name:12} {w50:6.1f} ms {w99:6.1f} ms {c50:7.1f} ms {s50:7.0f} ms {sc50:7.0f} ms {s50 / w50:6.0f}× {sc50 / c50:9.0f}× {apart:8.0e}")
        listening, first, memory = np.median(begun, 0)
        print(f"process start to listening {listening:.1f} s, first answer {first:.1f} s, memory {memory:.0f} MB")
        many = simulate(int(sequences), seed=4)
        answered, wall, _ = timed(lambda: local_gateway(fast, many, out=folder + "/s.parquet", labels=fast.classes))
        print(f"gateway: {len(answered['sequence_id']):,} sequences in {wall / 1000:.0f} s, {fast.failures.total()} failures; memory at most {peak():.0f} MB, sequences and plain nets included")


if __name__ == "__main__":
    main(*sys.argv[1:])
