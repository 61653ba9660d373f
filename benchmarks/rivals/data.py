"""The sets of the comparison: recordings, folds by subject, and arrays of equal length for classifiers that need them.

Protocol: the distinct subject names sorted as strings, subject i in fold i mod k; fit on the other folds, predict the
fold, pool the predictions. k is 5; 10 for `wisdm_arena`.

`wisdm_arena` is the WISDM watch set in the protocol of WHAR Arena (Burzer et al. 2026, arXiv:2606.13194, section 5.1):
windows of 3 s with half overlap at the native 20 Hz, 10 groups of subjects, dealt to the groups in turn in the order
of their sorted numbers (the benchmark's code does so; it is the protocol above with k = 10), macro F1 over all classes
of each group, mean over the groups. One difference: the benchmark cuts whole recordings of about 3 minutes, the shared
file holds six windows of 10 s of each, so that about a quarter of the benchmark's windows are there. A folder with
whole recordings under the same name (`--shared`) removes the difference.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gesture_nb.data.readers import read_table
from gesture_nb.data.sequences import SequenceTable, check_table, offsets_of, take, with_meta
from gesture_nb.evaluation.folds import assert_disjoint, protocol_folds

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LONGEST = 200   # rows: longer sequences are shortened to this many


class SetInfo(NamedTuple):
    "Where a set comes from and how it is cut."
    source: str          # `spar`, or the name of a file in the folder of shared recordings
    folds: int = 5
    window: int = 0      # rows a window; 0: sequences as they are
    hop: int = 0         # rows from one window to the next


SETS = {
    "spar": SetInfo("spar"),
    "wisdm_watch": SetInfo("wisdm_watch"),
    "uhh_gestures": SetInfo("uhh_gestures"),
    "spsw_har_watch": SetInfo("spsw_har_watch"),
    "bfrb_watch": SetInfo("bfrb_watch"),
    "wisdm_arena": SetInfo("wisdm_watch", folds=10, window=60, hop=30),
}


@dataclass(frozen=True)
class Recordings:
    "Labelled sequences with their folds."
    name: str
    table: SequenceTable       # its metadata have `fold`
    classes: tuple[str, ...]   # sorted names
    y: np.ndarray              # int64 [n], positions in `classes`
    subjects: np.ndarray       # str [n]
    fold: np.ndarray           # int64 [n]


class FoldArrays(NamedTuple):
    "All sequences at one length, and who is learned from."
    x: np.ndarray       # float32 [n, channels, length]
    train: np.ndarray   # bool [n]: not in the fold


def sliding_windows(table: SequenceTable, steps: int, hop: int) -> SequenceTable:
    "Windows of `steps` rows, every `hop` rows, within each sequence; their metadata are the sequence's."
    count = np.maximum((table.lengths - steps) // hop + 1, 0)
    parent = np.repeat(np.arange(len(table)), count)
    position = np.arange(count.sum()) - np.repeat(offsets_of(count)[:-1], count)
    start = table.offsets[parent] + hop * position
    rows = (start[:, None] + np.arange(steps)).ravel()
    metadata = {key: values[parent] for key, values in table.meta.items()}
    metadata["sequence_id"] = np.array([f"window_{i:06d}" for i in range(len(parent))])
    offsets = offsets_of(np.full(len(parent), steps))
    return check_table(SequenceTable(table.values[:, rows], table.names, offsets, metadata))


def first_of_each(subjects: np.ndarray, gestures: np.ndarray, limit: int) -> np.ndarray:
    "int64: positions of the first `limit` sequences of each person and class, in the order of the data."
    seen, chosen = {}, []
    for i, pair in enumerate(zip(subjects, gestures)):
        seen[pair] = seen.get(pair, 0) + 1
        if seen[pair] <= limit:
            chosen.append(i)
    return np.array(chosen, np.int64)


def is_set(name: str) -> bool:
    "Whether `name` is a set's, or that of a tidy file."
    return name in SETS or Path(name).is_file()


def read_set(
    name: str,                    # a name of `SETS`, or a tidy file
    shared: Path = SHARED,        # folder of the shared recordings
    limit: int | None = None,     # keeps only the `first_of_each`
) -> Recordings:
    "A set with its folds. Exits with a sentence if its file is not there; `UserError` if it cannot be read."
    info = SETS.get(name, SetInfo(name))
    path = Path(shared) / f"{info.source}.parquet" if name in SETS else Path(name)
    if info.source != "spar" and not path.exists():
        sys.exit(f"There is no {path}: name the folder of the shared recordings with --shared, or choose --sets spar.")
    table = read_table("spar" if info.source == "spar" else str(path))
    if info.window:
        table = sliding_windows(table, info.window, info.hop)
    fold = protocol_folds(table.meta["subject"], info.folds)
    table = with_meta(table, fold=fold)
    if limit:
        table = take(table, first_of_each(table.meta["subject"], table.meta["gesture"], limit))
    classes, y = np.unique(table.meta["gesture"].astype(str), return_inverse=True)
    subjects = table.meta["subject"].astype(str)
    return Recordings(name, table, tuple(map(str, classes)), y.astype(np.int64), subjects, table.meta["fold"])


def resample(values: np.ndarray, length: int) -> np.ndarray:
    "Channels `[C, rows]` as float32 `[C, length]`, by linear interpolation; missing readings are 0."
    rows = values.shape[1]
    values = np.nan_to_num(values)
    if rows == length:
        return values
    steps = np.linspace(0, rows - 1, length)
    return np.stack([np.interp(steps, np.arange(rows), channel) for channel in values]).astype(np.float32)


def fold_arrays(recordings: Recordings, k: int) -> FoldArrays:
    "Everything at the median length of the sequences that are learned from, at most `LONGEST` rows."
    table, train = recordings.table, recordings.fold != k
    assert_disjoint(recordings.subjects, train, ~train, f"fold {k + 1} of {recordings.name}")
    length = int(min(np.median(table.lengths[train]), LONGEST))
    pairs = zip(table.offsets[:-1], table.offsets[1:])
    return FoldArrays(np.stack([resample(table.values[:, a:b], length) for a, b in pairs]), train)
