"""How fast features are made, side by side with other ways, on simulated recordings in the competition's schema.

    python benchmarks/features.py                      the whole: 8,151 sequences, a few minutes
    python benchmarks/features.py --sequences 800      a tenth
    python benchmarks/features.py --csv                also CSV → Parquet against the bare reader (writes 1.1 GB of CSV)
    python benchmarks/features.py --only-csv --csv FOLDER    … of a competition folder that is there

Every figure is printed with what it was compared with. The row-wise loop runs on a sample and is extrapolated, and its
numbers must agree with ours.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gesture_nb.data.sequences import slice_sequences, take  # noqa: E402
from gesture_nb.features.compute import frame_features  # noqa: E402
from gesture_nb.schema import ACC, GRAVITY, ROT, TOF  # noqa: E402

def timed(f, times=3):
    "(processor seconds of the best of some runs, what it returned): on a busy machine the clock says little."
    best, out = np.inf, None
    for _ in range(times):
        out = None
        start = time.process_time()
        out = f()
        best = min(best, time.process_time() - start)
    return best, out


def in_turns(times=3, **work):
    """(name → processor seconds, name → what it returned): one after the other in several rounds, the best of each,
    so that all meet the same neighbours."""
    best, out = dict.fromkeys(work, np.inf), {}
    for _ in range(times):
        for k, f in work.items():
            out[k] = None
            seconds, out[k] = timed(f, 1)
            best[k] = min(best[k], seconds)
    return best, out


def clocked(f, times=3):
    "Seconds on the clock, the best of some runs."
    best = np.inf
    for _ in range(times):
        start = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - start)
    return best


def waiting(table):
    """Share of its time in which each of two threads waits for the other, neither running nor queueing for a core.
    The clock cannot tell this on a busy machine. Linux only."""
    halves = [slice_sequences(table, 0, len(table) // 2), slice_sequences(table, len(table) // 2, len(table))]
    def own():
        status = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
        return sum(int(v) for v in status.split()[:2]) / 1e9
    def work(part):
        start, before = time.perf_counter(), own()
        frame_features(part, threads=1)
        return 1 - (own() - before) / (time.perf_counter() - start)
    with ThreadPoolExecutor(2) as pool: return max(pool.map(work, halves))


def say(what, seconds, rows, note=""):
    print(f"{what:<62}{seconds:9.3f} s {rows / seconds / 1e6:9.3f} M rows/s   {note}", flush=True)


THIRDS = ((0, 3), (3, 5), (5, 8))     # of eight cells


# ---- (b) a loop over rows with one rotation object each, as most public notebooks have it

def by_rows(table):
    "Gravity-free acceleration, angular velocity and distance, ToF statistics, row by row: one dictionary a sequence."
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
                quarters = [grid[a:a + 4, b:b + 4].mean() for a in (0, 4) for b in (0, 4)]
                ninths = [grid[a:b, c:e].mean() for a, b in THIRDS for c, e in THIRDS]
                rows.append([g.mean(), g.std(), g.min(), g.max(), *quarters, *ninths])
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
        change = np.abs(far - np.roll(far, 1, axis=1)).mean(axis=0) * 10
        out |= {f"tof.{k}_mean": np.nanmean(far, axis=0), f"tof.{k}_std": np.nanstd(far, axis=0),
                f"tof.{k}_min": np.nanmin(far, axis=0), f"tof.{k}_max": np.nanmax(far, axis=0),
                f"tof.{k}_share": (g >= 0).mean(axis=0), f"tof.{k}_change": np.where(first, 0, change)}
        for i in (0, 1):
            for j in (0, 1):
                quarter = cube[4 * i:4 * i + 4, 4 * j:4 * j + 4]
                out[f"tof.{k}_q{i + 1}{j + 1}"] = np.nanmean(quarter, axis=(0, 1))
        for i, (p, q) in enumerate(THIRDS):
            for j, (r, t) in enumerate(THIRDS):
                out[f"tof.{k}_n{i + 1}{j + 1}"] = np.nanmean(cube[p:q, r:t], axis=(0, 1))
        near = 255 - cube
        mass = near.sum(axis=(0, 1))
        for name, sums in (("cx", near.sum(axis=0)), ("cy", near.sum(axis=1))):
            centre = (sums.T @ np.arange(8)) / np.maximum(mass, 1)
            out[f"tof.{k}_{name}"] = np.where(mass > 0, (centre - 3.5) / 3.5, 0)
    return out


def same(f, other, rows):
    "The largest difference between our features and another's, on rows without nulls."
    worst = 0.0
    for name, v in other.items():
        error = np.abs(f.values[rows, f.names.index(name)] - v[rows]) / np.maximum(1, np.abs(v[rows]))
        worst = max(worst, float(np.nanmax(error)))
    return worst


def side_by_side(table, sample):
    import warnings
    warnings.simplefilter("ignore", RuntimeWarning)
    size = f"{table.values.nbytes / 1e6:,.0f} MB in"
    print(f"\nFrame features of {len(table):,} sequences, {table.rows:,} rows, {len(table.names)} channels ({size})")
    few = take(table, np.linspace(0, len(table) - 1, sample).astype(int))
    best, made = in_turns(5, copy=lambda: len(table.values.copy()), ours=lambda: frame_features(table, threads=1),
                          loop=lambda: by_rows(few))
    copy, ours, slow, f, loop = best["copy"], best["ours"], best["loop"], made["ours"], made["loop"]
    wall, two = (clocked(lambda n=n: frame_features(table, threads=n)) for n in (1, 2))
    alone, g = timed(lambda: plain(table), 1)
    size = (f.values.nbytes + f.grids.nbytes) / 1e6
    say("(a) gesture_nb, one thread", ours, table.rows, f"{len(f.names)} features + grids ({size:,.0f} MB out)")
    say("    on the clock, one thread", wall, table.rows)
    say("    on the clock, two threads", two, table.rows, f"{wall / two:.2f} × one (load {os.getloadavg()[0]:.1f}), "
        f"each waits for the other {waiting(table):.0%} of its time")
    h = frame_features(few)
    w = few.channel("rot_w")
    ok = ~np.isnan(w) & ~np.isnan(np.roll(w, 1)) & ~np.isnan(few.values).any(axis=0)
    joined = {k: np.concatenate([d[k] for d in loop]) for k in loop[0]}
    whole = slow / few.rows * table.rows
    say(f"(b) one rotation object a row, {sample} sequences", slow, few.rows,
        f"whole set {whole:,.0f} s: {whole / ours:,.0f} × ours, differs by {same(h, joined, ok):.1e}")
    ok = ~np.isnan(table.values).any(axis=0) & ~np.isnan(np.roll(table.channel("rot_w"), 1))
    say(f"(c) plain NumPy, {len(g)} of the features", alone, table.rows,
        f"{alone / ours:.1f} × ours, differs by {same(f, g, ok):.1e}")
    share = (f.values.nbytes + f.grids.nbytes + table.values.nbytes) / 2 / table.values.nbytes
    say("(d) copying as many bytes in memory", copy * share, table.rows, f"ours takes {ours / copy / share:.1f} ×")
    return f


def linear(table):
    print("\nTime is linear in rows")
    for n in (len(table) // 10, 3 * len(table) // 10, len(table)):
        part = slice_sequences(table, 0, n)
        seconds, _ = timed(lambda p=part: frame_features(p, threads=1))
        say(f"    {n:,} sequences", seconds, part.rows, f"{seconds / part.rows * 1e6:.2f} µs a row")


def one_sequence(table):
    from gesture_nb.features.summary import summarise
    one = take(table, [len(table) // 2])
    def milliseconds(work):
        work()
        return timed(lambda: [work() for _ in range(20)])[0] / 20 * 1e3
    f = frame_features(one)
    features, summary = milliseconds(lambda: frame_features(one)), milliseconds(lambda: summarise(f))
    print(f"\nOne sequence of {one.rows} rows: frame features {features:.1f} ms, summary {summary:.1f} ms")


def store(table, folder):
    from gesture_nb.features import store as S
    print("\nThe store")
    build, f = timed(lambda: S.load_or_build(table, folder, source="benchmark"), 1)
    size = sum(p.stat().st_size for p in folder.iterdir()) / 1e6
    say("    first time: computed, Parquet and arrays written, checked", build, table.rows, f"{size:,.0f} MB on disk")
    warm = clocked(lambda: S.load_or_build(table, folder, source="benchmark"))
    say("    warm start: sizes and fingerprint checked, arrays mapped", warm, table.rows, "on the clock")
    full, _ = timed(lambda: S.load_or_build(table, folder, source="benchmark", verify=True), 1)
    say("    warm start with full checksums", full, table.rows)
    for p in folder.glob("*.raw"): p.unlink()
    again, f = timed(lambda: S.load_or_build(table, folder, source="benchmark"), 1)
    say("    arrays laid out again from the Parquet record", again, table.rows)
    seconds, (x, names) = timed(lambda: S.load_or_build_summaries(f, folder), 1)
    say("    summaries, first time", seconds, table.rows, f"{x.shape[1]} a sequence")
    seconds, _ = timed(lambda: S.load_or_build_summaries(f, folder))
    say("    summaries, kept", seconds, table.rows)
    return f


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
        command = [sys.executable, "-c", CHILD.format(root=sys.path[0], times=times)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        n, rows, before, peak = json.loads(done.stdout)
        print(f"    {n:,} sequences, {rows:,} rows: peak {peak:,.0f} MB ({before:,.0f} MB before it began)", flush=True)


def sharing(f):
    "A whole epoch through the loader that the nets use; memory of its processes afterwards."
    import psutil

    from gesture_nb.features.loaders import SequenceDataset, end_workers, make_loader
    from gesture_nb.features.views import View
    size = (f.values.nbytes + f.grids.nbytes) / 1e6
    print(f"\nDataLoader workers map the arrays ({size:,.0f} MB). After an epoch, MB:")
    print(f"    {'workers':<10}{'arrays, all processes':>24}{'private copies':>16}{'of a worker, private':>24}")
    for n in (0, 2, 4):
        loader = make_loader(SequenceDataset(f, np.arange(len(f)), View("tail", 128)), 64, shuffle=True, workers=n,
                             persistent=True)
        for _ in loader: pass
        workers = [psutil.Process(w.pid) for w in loader.processes]
        maps = [m for p in (psutil.Process(), *workers) for m in p.memory_maps() if m.path.endswith(".raw")]
        own = [p.memory_full_info().uss / 1e6 for p in workers]
        shared, private = (sum(getattr(m, kind) for m in maps) / 1e6 for kind in ("pss", "private_dirty"))
        of_worker = f"{min(own):,.0f} – {max(own):,.0f}" if own else "–"
        print(f"    {n:<10}{shared:>24,.0f}{private:>16,.0f}{of_worker:>24}", flush=True)
        if n: end_workers(loader)


READ = """
import json, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import pyarrow.csv, pyarrow.parquet
import gesture_nb.data.readers as R
peak = lambda: int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))) / 1024
def bare(folder, cache): return pyarrow.csv.read_csv(folder / "train.csv").num_rows
def convert(folder, cache):
    location, header = R.open_file(folder / "train.csv")
    return R.parquet_rows(R.convert_to_parquet(location.path, cache, header, R.check_header(location, header)))
def later(folder, cache): return R.read_competition(folder, "train", cache).rows
before, clock, cpu = peak(), time.perf_counter(), time.process_time()
rows = {what}(Path({folder!r}), Path({cache!r}))
print(json.dumps([rows, time.perf_counter() - clock, time.process_time() - cpu, peak() - before]))
"""


def csv_to_parquet(folder, tenth, cache):
    def child(what, where=folder):
        if what == "convert":
            for p in cache.glob("*.parquet"): p.unlink()
        code = READ.format(root=sys.path[0], what=what, folder=str(where), cache=str(cache))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    size = (folder / "train.csv").stat().st_size / 1e6
    print(f"\nCSV of {size:,.0f} MB: each in a process of its own, in turns, the best of three")
    runs = {what: [] for what in ("bare", "convert")}
    for _ in range(3):
        for what in runs: runs[what].append(child(what))
    best = {what: np.min([r[1:] for r in rs], axis=0) for what, rs in runs.items()}
    rows = runs["bare"][0][0]
    (bare, bare_cpu, bare_memory), (ours, ours_cpu, ours_memory) = best["bare"], best["convert"]
    say("    PyArrow's bare reader", bare, rows, f"{bare_cpu:.1f} s of processor time, {bare_memory:,.0f} MB")
    say("    read, checked and converted to Parquet", ours, rows,
        f"{ours_cpu:.1f} s of processor time, {ours_memory:,.0f} MB: "
        f"{ours / bare:.2f} × the bare reader, {ours_cpu / bare_cpu:.2f} × its processor time")
    _, wall, cpu, more = child("later")
    say("    later runs: the table from Parquet", wall, rows, f"{cpu:.1f} s of processor time, {more:,.0f} MB "
        f"(the table itself is {rows * 332 * 4 / 1e6:,.0f} MB)")
    small = child("convert", tenth)
    say("    a tenth of the rows converted", small[1], small[0], f"{small[3]:,.0f} MB")


def frames(a):
    from gesture_nb.data.simulate import simulate
    seconds, table = timed(lambda: simulate(a.sequences, seed=0), 1)
    say("simulated", seconds, table.rows)
    side_by_side(table, min(a.sample, a.sequences))
    linear(table)
    one_sequence(table)
    with tempfile.TemporaryDirectory() as tmp:
        f = store(table, Path(tmp))
        del table
        sharing(f)
    memory()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sequences", type=int, default=8151)
    p.add_argument("--sample", type=int, default=60, help="sequences for the row-wise loop")
    p.add_argument("--csv", nargs="?", const="", metavar="FOLDER",
                   help="also CSV to Parquet, of a competition folder or of one simulated now")
    p.add_argument("--only-csv", action="store_true")
    a = p.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; NumPy {np.__version__}")
    if not a.only_csv: frames(a)
    if a.csv is None: return
    from gesture_nb.data.simulate import write_competition
    with tempfile.TemporaryDirectory() as tmp:
        folder, tenth = Path(a.csv or f"{tmp}/whole"), Path(tmp) / "tenth"
        if not a.csv: write_competition(folder, a.sequences, seed=0)
        write_competition(tenth, a.sequences // 10, seed=0)
        csv_to_parquet(folder, tenth, Path(tmp))


if __name__ == "__main__": main()
