"""How fast features are made, side by side with other ways, on simulated recordings in the competition's schema.

    python benchmarks/features.py                      the whole: 8,151 sequences, a few minutes
    python benchmarks/features.py --sequences 800      a tenth
    python benchmarks/features.py --csv                also CSV → Parquet against the bare reader (1.1 GB of CSV is written first)

Every figure is printed with what it was compared with; the row-wise loop runs on a sample and is extrapolated, and its numbers must agree with ours.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gesture_nb.data.sequences import span, take  # noqa: E402
from gesture_nb.features.frames import frame_features  # noqa: E402
from gesture_nb.schema import ACC, GRAVITY, ROT, TOF  # noqa: E402


def timed(f, times=3):
    "(seconds of processor time of the best of some runs, what it returned): on a machine with other work to do the clock says little."
    best, out = np.inf, None
    for _ in range(times):
        out = None
        start = time.process_time()
        out = f()
        best = min(best, time.process_time() - start)
    return best, out


def clocked(f, times=3):
    "Seconds on the clock, the best of some runs."
    best = np.inf
    for _ in range(times):
        start = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - start)
    return best


def say(what, seconds, rows, note=""): print(f"{what:<62}{seconds:9.3f} s {rows / seconds / 1e6:9.3f} M rows/s   {note}", flush=True)


# ---- (b) a loop over rows with one rotation object each, as most public notebooks have it

def by_rows(table):
    "Gravity-free acceleration, angular velocity and distance, and ToF statistics, row by row; one dictionary a sequence."
    from scipy.spatial.transform import Rotation
    out = []
    for i in range(len(table)):
        part = table.values[:, table.offsets[i]:table.offsets[i + 1]]
        acc, q = (part[[table.names.index(c) for c in names]].T.astype(float) for names in (ACC, ROT))
        n = len(acc)
        linear, omega, distance = np.zeros((n, 3)), np.zeros((n, 3)), np.zeros(n)
        for r in range(n):
            if np.isnan(q[r]).any(): continue
            rotation = Rotation.from_quat(q[r], scalar_first=True)
            linear[r] = acc[r] - rotation.apply([0, 0, GRAVITY], inverse=True)
            if r == 0 or np.isnan(q[r - 1]).any(): continue
            turn = Rotation.from_quat(q[r - 1], scalar_first=True).inv() * rotation
            omega[r] = turn.as_rotvec() * 10
            distance[r] = np.linalg.norm(turn.as_rotvec())
        d = {"motion.lin_x": linear[:, 0], "motion.ang_x": omega[:, 0], "motion.angle": distance}
        for k in range(1, 6):
            rows = []
            for r in range(n):
                g = part[table.names.index(f"tof_{k}_v0"):table.names.index(f"tof_{k}_v63") + 1, r]
                g = np.where(g == -1, 255, g)
                grid = g.reshape(8, 8)
                rows.append([g.mean(), g.std(), g.min(), g.max(), *(grid[a:a + 4, b:b + 4].mean() for a in (0, 4) for b in (0, 4)),
                             *(grid[a:b, c:e].mean() for a, b in ((0, 3), (3, 5), (5, 8)) for c, e in ((0, 3), (3, 5), (5, 8)))])
            d |= dict(zip((f"tof.{k}_{n}" for n in ("mean", "std", "min", "max")), np.array(rows).T[:4]))
        out.append(d)
    return out


# ---- (c) plain vectorised NumPy over the whole table: what one would write first

def plain(table):
    "The heavy parts on whole columns in double precision: no blocks, no integers, boundaries by a mask."
    at = lambda names: table.values[[table.names.index(c) for c in names]].astype(float)
    acc, (w, x, y, z) = at(ACC), at(ROT)
    up = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])
    linear = acc - GRAVITY * up
    first = np.zeros(table.rows, bool)
    first[table.offsets[:-1]] = True
    a, b, c, d = (np.roll(v, 1) for v in (w, x, y, z))
    v = np.stack([a * x - b * w - c * z + d * y, a * y + b * z - c * w - d * x, a * z - b * y + c * x - d * w])
    s = np.linalg.norm(v, axis=0)
    angle = np.where(first, 0, 2 * np.arctan2(s, np.abs(a * w + b * x + c * y + d * z)))
    out = {"motion.lin_x": linear[0], "motion.lin_mag": np.linalg.norm(linear, axis=0), "motion.angle": angle}
    for k in range(1, 6):
        g = at(TOF[64 * (k - 1):64 * k])
        far = np.where(g == -1, 255.0, g)
        cube = far.reshape(8, 8, -1)
        out |= {f"tof.{k}_mean": np.nanmean(far, axis=0), f"tof.{k}_std": np.nanstd(far, axis=0), f"tof.{k}_min": np.nanmin(far, axis=0), f"tof.{k}_max": np.nanmax(far, axis=0),
                f"tof.{k}_share": (g >= 0).mean(axis=0), f"tof.{k}_change": np.where(first, 0, np.abs(far - np.roll(far, 1, axis=1)).mean(axis=0) * 10)}
        for i in (0, 4):
            for j in (0, 4): out[f"tof.{k}_q{i // 4 + 1}{j // 4 + 1}"] = np.nanmean(cube[i:i + 4, j:j + 4], axis=(0, 1))
        for i, (p, q) in enumerate(((0, 3), (3, 5), (5, 8))):
            for j, (r, t) in enumerate(((0, 3), (3, 5), (5, 8))): out[f"tof.{k}_n{i + 1}{j + 1}"] = np.nanmean(cube[p:q, r:t], axis=(0, 1))
        near = 255 - cube
        mass = near.sum(axis=(0, 1))
        out[f"tof.{k}_cx"] = np.where(mass > 0, ((near.sum(axis=0).T @ np.arange(8)) / np.maximum(mass, 1) - 3.5) / 3.5, 0)
        out[f"tof.{k}_cy"] = np.where(mass > 0, ((near.sum(axis=1).T @ np.arange(8)) / np.maximum(mass, 1) - 3.5) / 3.5, 0)
    return out


def same(f, other, rows):
    "The largest difference between our features and another's, on rows without nulls."
    return max(float(np.nanmax(np.abs(f.values[rows, f.names.index(k)] - v[rows]) / np.maximum(1, np.abs(v[rows])))) for k, v in other.items())


def side_by_side(table, sample):
    import warnings
    warnings.simplefilter("ignore", RuntimeWarning)
    print(f"\nFrame features of {len(table):,} sequences, {table.rows:,} rows, {len(table.names)} channels ({table.values.nbytes / 1e6:,.0f} MB in)")
    copy, _ = timed(lambda: table.values.copy())
    ours, f = timed(lambda: frame_features(table, threads=1))
    wall, two = (clocked(lambda n=n: frame_features(table, threads=n)) for n in (1, 2))
    alone, g = timed(lambda: plain(table), 1)
    say("(a) gesture_nb, one thread", ours, table.rows, f"{len(f.names)} features + grids ({(f.values.nbytes + f.grids.nbytes) / 1e6:,.0f} MB out)")
    say("    on the clock, one thread", wall, table.rows)
    say("    on the clock, two threads", two, table.rows)
    few = take(table, np.linspace(0, len(table) - 1, sample).astype(int))
    slow, loop = timed(lambda: by_rows(few), 1)
    h = frame_features(few)
    ok = ~np.isnan(few.channel("rot_w")) & ~np.isnan(np.roll(few.channel("rot_w"), 1)) & ~np.isnan(few.values).any(axis=0)
    joined = {k: np.concatenate([d[k] for d in loop]) for k in loop[0]}
    say(f"(b) one rotation object a row, {sample} sequences", slow, few.rows, f"whole set {slow / few.rows * table.rows:,.0f} s: {slow / few.rows * table.rows / ours:,.0f} × ours; differs by {same(h, joined, ok):.1e}")
    ok = ~np.isnan(table.values).any(axis=0) & ~np.isnan(np.roll(table.channel("rot_w"), 1))
    say(f"(c) plain NumPy, {len(g)} of the features", alone, table.rows, f"{alone / ours:.1f} × ours; differs by {same(f, g, ok):.1e}")
    share = (f.values.nbytes + f.grids.nbytes + table.values.nbytes) / 2 / table.values.nbytes
    say("(d) copying as many bytes in memory", copy * share, table.rows, f"ours takes {ours / copy / share:.1f} ×")
    return f


def linear(table):
    print("\nTime is linear in rows")
    for n in (len(table) // 10, 3 * len(table) // 10, len(table)):
        part = span(table, 0, n)
        seconds, _ = timed(lambda p=part: frame_features(p, threads=1))
        say(f"    {n:,} sequences", seconds, part.rows, f"{seconds / part.rows * 1e6:.2f} µs a row")


def one_sequence(table):
    from gesture_nb.features.summary import summarise
    one = take(table, [len(table) // 2])
    def often(f): f(); return timed(lambda: [f() for _ in range(20)])[0] / 20 * 1e3
    f = frame_features(one)
    print(f"\nOne sequence of {one.rows} rows: frame features {often(lambda: frame_features(one)):.1f} ms, summary {often(lambda: summarise(f)):.1f} ms")


def store(table, folder):
    from gesture_nb.data.frames import FrameFeatures
    from gesture_nb.features import store as S
    print("\nThe store")
    build, f = timed(lambda: S.load_or_build(table, folder, source="benchmark"), 1)
    size = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    say("    first time: computed, Parquet and arrays written, checked", build, table.rows, f"{size:,.0f} MB on disk")
    warm, f = timed(lambda: S.load_or_build(table, folder, source="benchmark"))
    say("    warm start: sizes and fingerprint checked, arrays mapped", warm, table.rows)
    full, _ = timed(lambda: S.load_or_build(table, folder, source="benchmark", verify=True), 1)
    say("    warm start with full checksums", full, table.rows)
    for p in folder.glob("*.raw"): p.unlink()
    again, f = timed(lambda: S.load_or_build(table, folder, source="benchmark"), 1)
    say("    arrays laid out again from the Parquet record", again, table.rows)
    seconds, (x, names) = timed(lambda: S.load_or_build_summaries(f, folder), 1)
    say("    summaries, first time", seconds, table.rows, f"{x.shape[1]} a sequence")
    seconds, _ = timed(lambda: S.load_or_build_summaries(f, folder))
    say("    summaries, kept", seconds, table.rows)
    assert isinstance(f, FrameFeatures)


CHILD = """
import json, sys, tempfile
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
from gesture_nb.data.sequences import table_from_arrays
from gesture_nb.features import store as S
from gesture_nb.schema import ACC, ROT, THM, TOF
rng = np.random.default_rng(0)
table = table_from_arrays([rng.integers(-1, 250, (332, 70)) for _ in range(200)], ACC + ROT + THM + TOF, rate_hz=10)
peak = lambda: int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))) / 1024
import pyarrow.parquet
before = peak()
with tempfile.TemporaryDirectory() as folder:
    f = S.load_or_build(lambda: (table for _ in range({times})), Path(folder), source="x")
    print(json.dumps([len(f), f.rows, before, peak()]))
"""


def memory():
    print("\nMemory of a streaming build does not grow with the data")
    for times in (4, 40):
        done = subprocess.run([sys.executable, "-c", CHILD.format(root=sys.path[0], times=times)], capture_output=True, text=True, check=True)
        n, rows, before, peak = json.loads(done.stdout)
        print(f"    {n:,} sequences, {rows:,} rows: peak {peak:,.0f} MB ({before:,.0f} MB before it began)", flush=True)


WORKER = """
import sys, psutil
sys.path.insert(0, {root!r})
import numpy as np
from gesture_nb.data.frames import mapped
a = mapped({path!r}, np.float32, {shape})
before = psutil.Process().memory_full_info().pss
total = float(a[::7].sum())
print("read", flush=True); input()
print((psutil.Process().memory_full_info().pss - before) / 1e6, a.nbytes / 1e6, flush=True); input()
"""


def sharing(folder, f):
    print("\nProcesses that map the same arrays share their pages (proportional set size, added up)")
    for n in (1, 2, 4):
        code = WORKER.format(root=sys.path[0], path=str(next(folder.glob("frames*.values.raw"))), shape=f.values.shape)
        all_of = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
        for p in all_of: p.stdout.readline()
        for p in all_of: p.stdin.write("\n"); p.stdin.flush()
        own = [p.stdout.readline().split() for p in all_of]
        for p in all_of: p.communicate("\n")
        print(f"    {n} processes read an array of {float(own[0][1]):,.0f} MB: {sum(float(o[0]) for o in own):,.0f} MB more memory in use", flush=True)


def csv_to_parquet(folder, sequences):
    import pyarrow.csv

    from gesture_nb.data.readers import read_competition
    from gesture_nb.data.simulate import write_competition
    write_competition(folder, sequences, seed=0)
    path = folder / "train.csv"
    print(f"\nCSV of {path.stat().st_size / 1e6:,.0f} MB")
    bare, t = timed(lambda: pyarrow.csv.read_csv(path), 1)
    rows = t.num_rows
    del t
    say("    PyArrow's bare reader", bare, rows)
    first, _ = timed(lambda: read_competition(folder), 1)
    say("    read, checked and kept as Parquet", first, rows, f"{first / bare:.2f} × the bare reader")
    later, _ = timed(lambda: read_competition(folder), 1)
    say("    later runs", later, rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sequences", type=int, default=8151)
    p.add_argument("--sample", type=int, default=60, help="sequences for the row-wise loop")
    p.add_argument("--csv", action="store_true")
    a = p.parse_args()
    from gesture_nb.data.simulate import simulate
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; NumPy {np.__version__}")
    seconds, table = timed(lambda: simulate(a.sequences, seed=0), 1)
    say("simulated", seconds, table.rows)
    f = side_by_side(table, min(a.sample, a.sequences))
    linear(table)
    one_sequence(table)
    with tempfile.TemporaryDirectory() as tmp:
        store(table, Path(tmp))
        sharing(Path(tmp), f)
    del f, table
    memory()
    if a.csv:
        with tempfile.TemporaryDirectory() as tmp: csv_to_parquet(Path(tmp), a.sequences)


if __name__ == "__main__": main()
