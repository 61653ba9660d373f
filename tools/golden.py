"""The golden results: what is computed, with every byte on record, under the versions that it was computed with.

    python tools/golden.py check    # computes everything again and compares; `make test` does the same
    python tools/golden.py record   # after a version was raised on purpose, or in an environment that is not on record

Parts: what is read, simulated, the frame features and the summaries. Runs: all members on a third of the real
recordings, each sequence alone, and on simulated ones with what is known of the wearer, small. A result that changed
while its version did not is a fault: raise the version (`READER_VERSION`, `SIMULATOR_VERSION`,
`FRAMES_VERSION`, `SUMMARIES_VERSION`, `Member.version`), then record.

Bytes depend on the libraries and on the model of the processor, so the record in tests/golden has a section for each
environment that was seen. In one that has no section, out-of-fold scores are compared within a tolerance instead.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "tests" / "golden"
LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "torch", "lightgbm", "tensorflow", "keras")
RUNS = {
    "spar": ["--folds", "2", "--epochs", "2", "--adapt", "off"],
    "sim": ["--data", "sim:120", "--folds", "2", "--epochs", "2", "--boosting-rounds", "40"],
}


def environment():
    "What the bytes of a result depend on besides data, settings and seed."
    import torch

    versions = {name: metadata.version(name) for name in LIBRARIES}
    processor = {
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processor": processor_name(),
    }
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions, **processor}


def processor_name():
    "Vendor, family and model: libraries choose their kernels by them, and not by the instructions alone."
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or "unknown"
    found = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    return " ".join(found.get(name, "?") for name in ("vendor_id", "cpu family", "model"))


def environment_key(about):
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def write_spar(path, every=1):
    "Each `every`th of the embedded recordings as a tidy file that does not name folds, so that two folds can be cut."
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gesture_nb.data.bundled import spar
    from gesture_nb.data.sequences import take

    table = spar()
    table = take(table, np.arange(0, len(table), every))
    rows = np.repeat(np.arange(len(table)), table.lengths)
    columns = {name: table.meta[name][rows] for name in ("sequence_id", "subject", "gesture", "sample_rate_hz")}
    columns["sequence_counter"] = np.arange(table.rows) - table.offsets[rows]
    columns |= {name: table.channel(name) for name in table.names}
    pq.write_table(pa.table(columns), path)


def train(name, folder, python=sys.executable, **environ):
    "Runs the whole program on one of the golden data sets; returns the run folder."
    out, arguments = Path(folder) / name, list(RUNS[name])
    if name == "spar":
        data = Path(folder) / "spar.parquet"
        if not data.exists():
            write_spar(data, every=3)
        arguments = ["--data", str(data), *arguments]
    command = [python, "-m", "gesture_nb", "run", "--out", str(out), "--progress", "lines", *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the golden run '{name}' failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    return out


def versions():
    "Name → the version constant of each thing that shapes numbers."
    from gesture_nb.data.readers import READER_VERSION
    from gesture_nb.data.simulate import SIMULATOR_VERSION
    from gesture_nb.features.compute import FRAMES_VERSION
    from gesture_nb.features.summary import SUMMARIES_VERSION
    from gesture_nb.models.registry import member_class
    from gesture_nb.registry import DEFAULT_MEMBERS

    members = {name: member_class(name).version for name in DEFAULT_MEMBERS}
    parts = {"reader": READER_VERSION, "simulator": SIMULATOR_VERSION}
    return parts | {"frames": FRAMES_VERSION, "summaries": SUMMARIES_VERSION} | members


def parts():
    "Name → arrays that a version stands for, from small fixed inputs."
    from gesture_nb.data.bundled import spar
    from gesture_nb.data.readers import read_recordings
    from gesture_nb.data.sequences import slice_sequences
    from gesture_nb.data.simulate import simulate
    from gesture_nb.features.compute import frame_features
    from gesture_nb.features.summary import summarise

    watch, competition = slice_sequences(spar(), 0, 20), simulate(30, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        write_spar(Path(folder) / "spar.parquet")
        read = slice_sequences(read_recordings(Path(folder) / "spar.parquet"), 0, 20)
    frames = [frame_features(table) for table in (watch, competition)]
    summaries = [summarise(f) for f in frames]
    return {
        "reader": [
            read.values,
            read.offsets,
            *(np.char.encode(v, "utf-8") for v in read.meta.values() if v.dtype.kind == "U"),
        ],
        "simulator": [competition.values, competition.offsets],
        "frames": [a for f in frames for a in (f.values, f.offsets, *f.masks.values())] + [frames[1].grids],
        "summaries": [s.values for s in summaries],
    }


def array_digest(arrays):
    return sha256(*(b for a in arrays for b in (str(a.dtype).encode(), np.ascontiguousarray(a).tobytes())))


def sample(arrays, count=400):
    "Some of the numbers, to compare by where bytes cannot be expected to be the same."
    values = np.concatenate([np.asarray(a, float).ravel() for a in arrays if a.dtype.kind in "fiub"])
    values = np.nan_to_num(values[:: max(1, len(values) // count)])
    return [float(f"{v:.5g}") for v in values]


def part_differences(arrays_by_name=None):
    "Sentences for parts whose result changed although their version did not."
    kept, now, about = read_record("parts"), versions(), environment_key(environment())
    found = []
    for name, arrays in (arrays_by_name or parts()).items():
        if kept["versions"][name] != now[name]:
            continue
        known = kept["environments"].get(about)
        same = (
            known["digests"][name] == array_digest(arrays)
            if known
            else np.allclose(sample(arrays), kept["samples"][name], rtol=1e-3, atol=1e-3)
        )
        if not same:
            found.append(f"{name}: the result changed, but its version is still {now[name]}")
    return found


def record_parts():
    kept, about, arrays = read_record("parts"), environment(), parts()
    if kept.get("versions") != versions():
        kept["environments"] = {}  # digests of other versions say nothing
    kept["versions"] = versions()
    kept["samples"] = {name: sample(a) for name, a in arrays.items()}
    digests = {name: array_digest(a) for name, a in arrays.items()}
    kept["environments"][environment_key(about)] = {"about": about, "digests": digests}
    write_record("parts", kept)


def sha256(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def column_values(column):
    "A column of a Parquet file as bytes or plain values, whatever the file's own encoding."
    values = column.combine_chunks()
    if hasattr(values, "flatten") and "list" in str(values.type):
        return np.asarray(values.flatten()).tobytes()
    return values.to_pylist()


def digests(out):
    "Name → digest of what a run must give again: weights, out-of-fold values, blend, submission."
    import pyarrow.parquet as pq

    found = {}
    for path in sorted((out / "members").rglob("*")):
        if path.suffix == ".safetensors" or path.name == "model.txt":
            found[path.relative_to(out).as_posix()] = sha256(path.read_bytes())
    for name in ("oof.parquet", "submission.parquet"):
        table = pq.read_table(out / name)
        for column in table.column_names:
            found[f"{name}:{column}"] = sha256(column_values(table[column]))
    blend = json.loads((out / "ensemble.json").read_text(encoding="utf-8"))
    found |= {f"ensemble.json:{k}": sha256(v) for k, v in blend.items() if k != "digest"}
    return found


def out_of_fold_scores(out):
    "Column of probabilities → accuracy and mean log loss, out of fold."
    import pyarrow.parquet as pq

    table = pq.read_table(out / "oof.parquet")
    classes, y = np.unique(np.array(table["gesture"].to_pylist()), return_inverse=True)
    found = {}
    for column in (c for c in table.column_names if c.startswith("p_")):
        probs = np.asarray(table[column].combine_chunks().flatten(), float).reshape(len(y), len(classes))
        loss = -np.log(np.clip(probs[np.arange(len(y)), y], 1e-3, 1)).mean()
        found[column] = {"accuracy": round(float((probs.argmax(1) == y).mean()), 4), "log_loss": round(float(loss), 4)}
    return found


def read_record(name):
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"environments": {}}


def write_record(name, record):
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1, sort_keys=True)
    (RECORDS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def differences(name, out):
    "(what differs from the record, as sentences; whether bytes were compared)."
    about = environment()
    known = read_record(name)["environments"].get(environment_key(about))
    if known is not None:
        now = digests(out)
        keys = sorted(now.keys() | known["digests"].keys())
        return [f"{name}: {k} differs" for k in keys if now.get(k) != known["digests"].get(k)], True
    return score_differences(name, out_of_fold_scores(out)), False


def score_differences(name, now):
    "Sentences for members that score otherwise than on record; other arithmetic leads elsewhere, but not far."
    found = []
    for column, kept in read_record(name)["scores"].items():
        accuracy, loss = now[column]["accuracy"], now[column]["log_loss"]
        if abs(accuracy - kept["accuracy"]) > 0.1 or abs(loss / kept["log_loss"] - 1) > 0.25:
            found.append(f"{name}: {column} has accuracy {accuracy:.3f}, log loss {loss:.3f}, but on record are "
                         f"{kept['accuracy']:.3f} and {kept['log_loss']:.3f}")
    return found


def record(name, out):
    kept, about = read_record(name), environment()
    kept["environments"][environment_key(about)] = {"about": about, "digests": digests(out)}
    kept.setdefault("scores", out_of_fold_scores(out))
    write_record(name, kept)


def main(verb):
    if verb == "record":
        record_parts()
    failed = part_differences()
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            out = train(name, folder)
            if verb == "record":
                record(name, out)
            found, exact = differences(name, out)
            failed += found
            print(f"golden: {name}: {len(found)} differences, {'bytes' if exact else 'within a tolerance'}", flush=True)
    for line in failed:
        print(f"golden: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("check", "record"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
