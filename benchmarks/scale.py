"""Time and memory of a whole run at 1, 3 and 10 times the competition's rows, within a limit of memory.

    python benchmarks/scale.py data FOLDER --times 1 3 10        # simulated recordings as tidy Parquet files
    python benchmarks/scale.py run FOLDER --times 1 3 10 --memory-gb 4 -- --members lgbm --folds 2 --boosting-rounds 30
    python benchmarks/scale.py units FOLDER --times 1 3 10 --members lgbm torch rocket --memory-gb 4   # units alone
    python benchmarks/scale.py table FOLDER                      # what was measured, as Markdown
    python benchmarks/scale.py shuffle                           # block shuffle against full shuffle

What stands behind `--` goes to `gesture-nb train`. `units` trains one fold of each member (a short training: 10 rounds
of boosting, 200 steps of a net) on features of one data set that are repeated on the disk, which needs no hours. Each
run is a process of its own in a control group with that limit, if one can be made below the group of this process: the
kernel then ends a run that needs more. Without one, the run is ended here as soon as the anonymous memory of its
processes together exceeds the limit. Memory is the kernel's own figure: `total_rss` or `anon` of the group (what cannot
be given back: the page cache of mapped files is not in it), and `VmHWM` of the training process, which has the mapped
pages in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEQUENCES = 8151   # of the competition
EVERY = 0.1        # seconds between two looks at the memory


def coded(codes, words):
    "An Arrow column of words."
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array([str(word) for word in words]))


def arrow_table(table, copy):
    "A block of simulated sequences as columns; ids and subjects of each copy are its own."
    import pyarrow as pa

    from gesture_nb.data.sequences import sequence_of_row

    owner = sequence_of_row(table.offsets)
    step = np.arange(table.rows) - table.offsets[owner]
    meta = table.meta | {k: np.char.add(f"R{copy:04d}_", table.meta[k]) for k in ("sequence_id", "subject")}
    columns = {}
    for name in ("sequence_id", "subject", "gesture", "orientation"):
        words, codes = np.unique(meta[name], return_inverse=True)
        columns[name] = coded(codes[owner], words)
    columns["sequence_counter"] = pa.array(step.astype(np.int32))
    columns["phase"] = coded((step >= meta["gesture_start"][owner]).astype(int), ["Transition", "Gesture"])
    columns["handedness"] = pa.array(np.asarray(meta["handedness"])[owner].astype(np.int8))
    columns["sample_rate_hz"] = pa.array(np.asarray(meta["sample_rate_hz"], np.float32)[owner])
    channels = {name: pa.array(x, mask=np.isnan(x)) for name, x in zip(table.names, table.values)}
    return pa.table(columns | channels)


def write_data(path, times):
    "Simulates `times` data sets of the competition's size, of different people, into one tidy file."
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gesture_nb.artifacts import atomic_path
    from gesture_nb.data.sequences import blocks, slice_sequences
    from gesture_nb.data.simulate import simulate

    writer = None
    with atomic_path(path) as tmp:
        for copy in range(times):
            whole = simulate(SEQUENCES, seed=100 + copy)
            for a, b in blocks(whole.offsets, 1 << 14):
                block = arrow_table(slice_sequences(whole, a, b), copy)
                if writer is None:
                    words = [f.name for f in block.schema if pa.types.is_dictionary(f.type) or f.name[:3] == "tof"]
                    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": words}
                    writer = pq.ParquetWriter(tmp, block.schema, **options)
                writer.write_table(block)
            print(f"{path.name}: {copy + 1} of {times} × {SEQUENCES:,} sequences", flush=True)
        writer.close()


class Group:
    "A control group with a limit of memory, below that of this process; `None` in `folder` if there can be none."

    def __init__(self, limit):
        self.folder, self.is_first = None, False
        try:
            self.make(limit)
        except OSError as error:
            self.why = f"no control group can be made ({error.strerror})"
            self.remove()

    def make(self, limit):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        first = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
        self.is_first = bool(first)   # generation of control groups
        path = first[0] if first else next(path for number, _, path in lines if number == "0")
        root = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup")
        self.folder = root / path.lstrip("/") / f"gesture_scale_{os.getpid()}"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        self.why = f"a control group of generation {1 if first else 2}"

    def enter(self):
        "Called in the new process."
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def held(self):
        "Bytes that cannot be given back; None without a group."
        if not self.folder:
            return None
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(stat["total_rss" if self.is_first else "anon"])

    def peak(self):
        "The largest use, page cache included; None where the kernel does not keep it."
        try:
            return int((self.folder / ("memory.max_usage_in_bytes" if self.is_first else "memory.peak")).read_text())
        except (OSError, TypeError):
            return None

    def remove(self):
        for _ in range(100):
            try:
                return self.folder.rmdir() if self.folder and self.folder.exists() else None
            except OSError:
                time.sleep(0.1)


def status_of(pid):
    "Field → bytes of a process; {} when it is gone."
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
            if name in ("VmHWM", "RssAnon", "VmRSS")}


def family(pid):
    "The process and its descendants."
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(p for child in children for p in family(int(child)))]


def measure(command, limit, output=subprocess.DEVNULL):
    "Runs a command within a limit of memory: seconds, exit code and peaks in bytes."
    group = Group(limit)
    before, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    errors = tempfile.TemporaryFile()
    process = subprocess.Popen(command, preexec_fn=group.enter, stdout=output, stderr=errors)
    peaks, trace = {"anon": 0, "group": 0, "VmHWM": 0}, []
    try:
        while process.poll() is None:
            states = [status_of(pid) for pid in family(process.pid)]
            anon = sum(state.get("RssAnon", 0) for state in states)
            found = {"anon": anon, "group": group.held() or 0, "VmHWM": states[0].get("VmHWM", 0)}
            peaks = {name: max(peaks[name], value) for name, value in found.items()}
            if not trace or time.time() - trace[-1][0] > 5:
                trace.append((round(time.time(), 1), found["group"] or anon))
            if not group.folder and anon > limit:
                process.kill()
            time.sleep(EVERY)
        errors.seek(0)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        found = {"seconds": time.monotonic() - before, "rc": process.returncode, "enforced": group.why, "limit": limit,
                 "cpu": cpu}
        return {**found, "with_cache": group.peak(), "error": errors.read().decode()[-500:], "trace": trace, **peaks}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        group.remove()


def stages(out):
    "Task, training or 'all' → seconds, from the log of a run."
    found = {}
    for line in (out / "logs/run.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] in ("task_end", "training_end"):
            title = event["title"].split(":")[0]
            found[title] = found.get(title, 0) + event.get("seconds", 0)
    return {title: round(seconds, 1) for title, seconds in found.items()}


def run_one(folder, times, workers, memory_gb, arguments):
    "One training; what was measured is added to results.json in the folder."
    out = folder / f"run-{times}x-{workers}-{len(list(folder.glob('run-*')))}"
    command = [sys.executable, "-m", "gesture_nb", "train", "--data", str(folder / f"x{times}.parquet"),
               "--out", str(out), "--memory-gb", str(memory_gb), *arguments]
    if workers > 1:
        command += ["--executor", f"processes:{workers}"]
    record = {"times": times, "workers": workers, "arguments": arguments, **measure(command, int(memory_gb * 1e9))}
    if (out / "logs/run.jsonl").exists():
        record["stages"] = stages(out)
    keep(folder, record)


def keep(folder, record):
    "Adds a measurement to results.json, and prints it."
    path = folder / "results.json"
    records = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*records, record], indent=1))
    print(line_of(record), flush=True)
    if record["rc"]:
        print(record["error"], flush=True)


def repeated(path, array, times):
    "The rows of an array, repeated in a file that is mapped."
    from gesture_nb.features.frames import map_array

    with open(path, "ab") as file:
        for _ in range(0 if file.tell() == times * array.nbytes else times):
            for start in range(0, len(array), 1 << 15):
                file.write(np.ascontiguousarray(array[start:start + (1 << 15)]))
    return map_array(path, array.dtype, (len(array) * times, *array.shape[1:]))


def repeat(dataset, folder, times):
    "A data set that is repeated: features and summaries in files, every copy with people of its own."
    from dataclasses import replace

    from gesture_nb.data.sequences import offsets_of

    folder.mkdir(exist_ok=True)
    frames = dataset.frames
    masks = {name: np.tile(mask, times) for name, mask in frames.masks.items()}
    frames = replace(frames, values=repeated(folder / "values", frames.values, times),
                     grids=repeated(folder / "grids", frames.grids, times), masks=masks,
                     offsets=offsets_of(np.tile(frames.lengths, times)), rate_hz=np.tile(frames.rate_hz, times))
    copy = np.repeat(np.arange(times), len(dataset.y)).astype(str)
    people = np.char.add(np.char.add(copy, " "), np.tile(dataset.table.meta["subject"], times))
    table = replace(dataset.table, meta={"subject": people}, values=dataset.table.values[:, :0])
    summaries = dataset.summaries._replace(values=repeated(folder / "summaries", dataset.summaries.values, times))
    aux = {name: np.tile(labels, times) for name, labels in dataset.aux.items()}
    return replace(dataset, table=table, frames=frames, summaries=summaries, y=np.tile(dataset.y, times),
                   fold=np.tile(dataset.fold, times), starts=np.tile(dataset.starts, times), aux=aux)


def train_briefly(folder, times, member, memory_gb):
    "One unit, in this process: prints what it took."
    from dataclasses import replace

    from gesture_nb.config import read_settings
    from gesture_nb.control import StopSignal
    from gesture_nb.evaluation.folds import inner_split
    from gesture_nb.models.registry import member_class
    from gesture_nb.progress import Quiet
    from gesture_nb.training.dataset import load_dataset, make_batch
    from gesture_nb.training.wearers import reference_for, with_training_shifts

    class Steps(StopSignal):
        "Ends a training after some steps."
        left = 200

        def check(self, save=None):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    settings = read_settings({}, data=folder / "x1.parquet", out=folder / "unit", feature_store=folder / "features",
                             flip="off", epochs=1, boosting_rounds=10, memory_gb=memory_gb)
    dataset = load_dataset(settings, Quiet())
    if times:
        dataset = repeat(dataset, folder / f"features-{times}", times)
        others, own = np.flatnonzero(dataset.fold != 0), np.flatnonzero(dataset.fold == 0)
        train = make_batch(dataset, others)
        train = with_training_shifts(train, dataset.people[others], reference_for(dataset, 0))
        trained, began = member_class(member)(settings, 1, 0), time.process_time()
        try:
            trained.fit(train, inner_split=inner_split(train.subjects, train.y, 1), stop=Steps())
            fitted, began = time.process_time() - began, time.process_time()
            batch = make_batch(dataset, own, labelled=False)
            probs = trained.predict_outputs(batch).probs
            right = float((probs.argmax(1) == dataset.y[own]).mean())
            print(json.dumps({"fit": fitted, "predict": time.process_time() - began, "right": right}))
        except KeyboardInterrupt:
            print(json.dumps({"200 steps": time.process_time() - began}))
        known = trained.hyperparameters(replace(train, shifts=None))
        print(json.dumps({name: known[name] for name in ("shuffle", "columns", "batch_size") if name in known}))


def run_unit(folder, times, member, memory_gb):
    "A brief training in a process of its own."
    command = [sys.executable, __file__, "unit", str(folder), "--times", str(times), "--members", member,
               "--memory-gb", str(memory_gb)]
    with open(folder / "unit.txt", "w+") as said:
        record = measure(command, int(memory_gb * 1e9), said)
        said.seek(0)
        record["said"] = said.read().splitlines()[-2:]
    keep(folder, {"times": times, "workers": 1, "arguments": [f"unit {member}"], **record})


def gigabytes(size):
    return "–" if not size else f"{size / 1e9:.2f}"


def line_of(record):
    "A row of the table."
    cells = [f"{record['times']} ×", str(record["workers"]), " ".join(record["arguments"]), f"{record['seconds']:.0f}",
             f"{record['cpu']:.0f}", gigabytes(record["group"] or record["anon"]), gigabytes(record["VmHWM"]),
             gigabytes(record["with_cache"]),
             "yes" if record["rc"] == 0 else f"ended ({record['rc']})"]
    return f"| {' | '.join(cells)} |"


def show(folder):
    "Markdown of all that was measured, with efficiency against the ideal: time in proportion to rows over workers."
    records = json.loads((folder / "results.json").read_text())
    print("| rows | workers | arguments | s | CPU s | anonymous GB | VmHWM GB | with cache GB | finished |")
    print("|---|---|---|---|---|---|---|---|---|")
    for record in records:
        print(line_of(record))
    print("\n| rows | workers | arguments | efficiency |\n|---|---|---|---|")
    for record in records:
        same = [r for r in records if r["arguments"] == record["arguments"] and not r["rc"]]
        first = min(same, key=lambda r: (r["times"], r["workers"]), default=None)
        if first is None or record["rc"]:
            continue
        ideal = first["seconds"] * first["workers"] * record["times"] / first["times"] / record["workers"]
        print(f"| {record['times']} × | {record['workers']} | {' '.join(record['arguments'])} | "
              f"{ideal / record['seconds']:.2f} |")
    for record in records:
        words = " ".join(record["arguments"])
        print(f"\n{record['times']} ×, {record['workers']} workers, {words}, {record['enforced']}:")
        for title, seconds in record.get("stages", {}).items():
            print(f"  {seconds:8.1f} s  {title}")


def show_shuffle():
    "What is left of the order of the data in a block shuffle, of 65,000 sequences sorted by person."
    from gesture_nb.features.order import BlockShuffle, epoch_order, order_quality

    rng, n = np.random.default_rng(0), 65_208
    people, classes = np.arange(n) // 102, np.arange(n) % 102 // 2 % 18
    by_class = np.sort(rng.integers(18, size=n))
    kinds = {"as it stands": None, "2 blocks of 16": BlockShuffle(16, 2), "20 blocks of 16": BlockShuffle(16, 20),
             "180 blocks of 16": BlockShuffle(16, 180), "all at once": "full"}
    print("| order | correlation | people a batch | gestures: bits a batch | sorted by gesture: bits a batch |")
    print("|---|---|---|---|---|")
    for title, mixing in kinds.items():
        orders = [np.arange(n) if mixing is None else epoch_order(n, 0, epoch, None if mixing == "full" else mixing)
                  for epoch in range(3)]
        cells = []
        for labels, field in ((people, "distinct"), (classes, "entropy"), (by_class, "entropy")):
            qualities = [order_quality(order, labels, 128) for order in orders]
            cells.append(f"{np.mean([getattr(quality, field) for quality in qualities]):.2f}")
        correlation = np.mean([abs(order_quality(order, people, 128).correlation) for order in orders])
        print(f"| {title} | {correlation:.3f} | {' | '.join(cells)} |")


def main():
    own = sys.argv[1:]
    arguments = own[own.index("--") + 1:] if "--" in own else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "run", "units", "unit", "table", "shuffle"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("scale"))
    parser.add_argument("--times", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--members", nargs="+", default=["lgbm", "torch", "rocket"])
    parser.add_argument("--memory-gb", type=float, default=4.0)
    options = parser.parse_args(own[:own.index("--")] if "--" in own else own)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        return show(options.folder)
    if options.what == "shuffle":
        return show_shuffle()
    if options.what == "units":   # features first, in a process of their own
        run_unit(options.folder, 0, "lgbm", options.memory_gb)
    for times in options.times:
        if options.what in ("unit", "units"):
            for member in options.members:
                task = train_briefly if options.what == "unit" else run_unit
                task(options.folder, times, member, options.memory_gb)
            continue
        if options.what == "data":
            write_data(options.folder / f"x{times}.parquet", times)
            continue
        for workers in options.workers:
            run_one(options.folder, times, workers, options.memory_gb, arguments)


if __name__ == "__main__":
    main()
