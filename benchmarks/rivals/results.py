"""Kept results, one line of JSON for each set, model and fold, and the table made of them."""
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gesture_nb.evaluation.metric import (
    accuracy_of,
    bootstrap_interval,
    confusion_counts,
    f1_of,
    label_indices,
    macro_f1_of,
)
from gesture_nb.training.results import read_oof

# Macro F1 on the WISDM watch set, mean of ten groups of subjects: WHAR Arena, arXiv:2606.13194, figure 6; the numbers
# are those of the benchmark's repository (apps/web/src/generated/paper-benchmark.json). Best of its 17 models: DANA.
PUBLISHED = {"wisdm_arena": {"cnn_har": 0.688, "tinierhar": 0.686, "dana": 0.713}}


class Row(NamedTuple):
    "A line of the table. Where a figure is not known it is None."
    set: str
    model: str
    folds: str                    # "5/5"
    accuracy: float | None
    macro_f1: float | None
    low: float | None             # 95 % interval over people, of macro F1
    high: float | None
    seconds: float | None         # rivals: processor seconds of all folds; ours: seconds of all units
    fold_mean: float | None = None   # mean over the folds of macro F1 over all classes, as WHAR Arena reports
    fold_sd: float | None = None
    published: float | None = None


class Results:
    "The lines of a file; each line is a dict with set, model, fold, labels and more. Survives a kill."

    def __init__(self, folder: Path):
        self.path = Path(folder) / "results.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[tuple[str, str, int], dict]:
        "(set, model, fold) → line. A line that a kill cut off is left out: it is computed again."
        found = {}
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            found[line["set"], line["model"], line["fold"]] = line
        return found

    def add(self, line: dict) -> None:
        "Appends a line in one write, on the disk before this returns."
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        with open(self.path, "a") as file:
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def check_rule(line: dict, rule: dict, n: int, path: Path) -> None:
    "Exits with a sentence where a kept line was made with other options, or of other data."
    where = f"{path} holds {line['model']} on fold {line['fold'] + 1} of {line['set']}"
    if line["rule"] != rule:
        changed = [f"{key} {line['rule'].get(key)}, not {rule.get(key)}" for key in sorted({*rule, *line["rule"]})
                   if line["rule"].get(key) != rule.get(key)]
        sys.exit(f"{where} with {'; '.join(changed)}: use the same options again, or another --out.")
    if len(line["labels"]) != n:
        sys.exit(f"{where} with {len(line['labels'])} sequences, but there are {n}: use the same data, or another "
                 "--out.")


def _arena_scores(recordings, labels, done) -> np.ndarray:
    "float64 `[folds]`: mean F1 over all classes, a class that neither occurs nor is predicted counting as 0."
    found = []
    for k in done:
        here = recordings.fold == k
        found.append(float(f1_of(confusion_counts(recordings.y[here], labels[here], recordings.classes)).mean()))
    return np.array(found)


def score_row(recordings, model: str, labels, done, seconds=None) -> Row:
    "The row of these labels (int `[n]`, used where the fold is among `done`)."
    here = np.isin(recordings.fold, done)
    true, pred, classes = recordings.y[here], labels[here], recordings.classes
    counts = confusion_counts(true, pred, classes)
    interval = bootstrap_interval(true, pred, recordings.subjects[here], classes=classes)
    folds = _arena_scores(recordings, labels, done)
    published = PUBLISHED.get(recordings.name, {}).get(model)
    return Row(recordings.name, model, f"{len(done)}/{len(np.unique(recordings.fold))}", float(accuracy_of(counts)),
               float(macro_f1_of(counts)), interval["low"], interval["high"], seconds, float(folds.mean()),
               float(folds.std()), published)


def rival_rows(recordings, lines: dict) -> list[Row]:
    "The rows of all models that have kept results on this set, in the order in which they were computed first."
    models = dict.fromkeys(model for name, model, _ in lines if name == recordings.name)
    rows = []
    for model in models:
        labels, done, seconds = np.full(len(recordings.y), -1), [], 0.0
        for k in np.unique(recordings.fold):
            line = lines.get((recordings.name, model, int(k)))
            if line:
                labels[recordings.fold == k] = line["labels"]
                done.append(int(k))
                seconds += line["processor_seconds"]
        rows.append(score_row(recordings, model, labels, done, seconds))
    return rows


def _labels_of(column: np.ndarray, classes: tuple[str, ...], columns: list[str]) -> np.ndarray:
    """int64 `[n]`: positions in `classes` of a column of names, or of the argmax of probabilities `[n, C]`.

    `columns`: the names of the C probabilities.
    """
    names = column if column.ndim == 1 else np.asarray(columns)[column.argmax(1)]
    return label_indices(names.astype(str), classes, "prediction of the run")


def _order_in(oof, recordings, folder) -> np.ndarray:
    "int64 `[n]`: the row of each sequence in a run's predictions; exits if the run is of other sequences or folds."
    row = {name: i for i, name in enumerate(oof["sequence_id"].astype(str))}
    names = recordings.table.meta["sequence_id"].astype(str)
    missing = [name for name in names if name not in row]
    if missing:
        sys.exit(f"{folder} has no prediction for {missing[0]} of {recordings.name}: name a run on that set.")
    order = np.array([row[name] for name in names])
    pairs = np.unique(np.stack([oof["fold"][order], recordings.fold]), axis=1)   # each of its folds is one of ours
    if not pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1])):
        sys.exit(f"{folder} was trained on other folds than the protocol's: train it with --ours, or on the file that "
                 f"--export {recordings.name}=FILE writes, with --fold-column fold.")
    return order


def run_rows(recordings, folder: Path) -> list[Row]:
    "The rows of a finished run of ours on the same folds: members, ensemble, and the ensemble with adaptation."
    oof, metrics = read_oof(folder), json.loads((Path(folder) / "metrics.json").read_text())
    order, done = _order_in(oof, recordings, folder), np.unique(recordings.fold).tolist()
    total = metrics["ensemble"]["seconds"]
    columns = {f"ours: {name}": (f"p_{name}", entry["seconds"]) for name, entry in metrics["members"].items()}
    columns["ours: ensemble, alone"] = ("pred", total)
    columns["ours: ensemble, all at once"] = ("pred_all_at_once", total)
    rows = []
    for title, (column, seconds) in columns.items():
        if column in oof:
            labels = _labels_of(oof[column][order], recordings.classes, metrics["classes"])
            rows.append(score_row(recordings, title, labels, done, seconds))
    return rows + _adapted_rows(recordings.name, metrics, f"{len(done)}/{len(done)}")


def _adapted_rows(name: str, metrics: dict, folds: str) -> list[Row]:
    "What a run that adapts to the wearer says of itself: members and ensemble; no interval but over random orders."
    entries = {f"ours: {member}": entry for member, entry in metrics["members"].items()}
    entries["ours: ensemble"] = metrics["ensemble"]
    rows = []
    for title, entry in entries.items():
        for protocol in ("as_they_come", "all_at_once"):
            found = entry.get(protocol)
            if found and (title, protocol) != ("ours: ensemble", "all_at_once"):   # that one is scored above
                orders = " (lowest – highest order)" if "orders" in found else ""
                rows.append(Row(name, f"{title}, {protocol.replace('_', ' ')}{orders}", folds, found["accuracy"],
                                found["macro_f1"], found.get("low"), found.get("high"), entry.get("seconds")))
    return rows


def _cell(value, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def table_text(rows: list[Row]) -> str:
    "A Markdown table; the columns of WHAR Arena's metric only where a set has published figures."
    arena = any(row.set in PUBLISHED for row in rows)
    head = ["set", "model", "folds", "accuracy", "macro F1", "95 % over people", "seconds"]
    head += ["macro F1, mean of folds", "published"] if arena else []
    lines = [head, ["---"] * len(head)]
    for row in rows:
        interval = "–" if row.low is None else f"{_cell(row.low)} – {_cell(row.high)}"
        cells = [f"`{Path(row.set).stem}`", row.model, row.folds, _cell(row.accuracy), _cell(row.macro_f1), interval,
                 _cell(row.seconds, 0)]
        if arena:
            cells += [f"{_cell(row.fold_mean)} ± {_cell(row.fold_sd)}", _cell(row.published)]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
