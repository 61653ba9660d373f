"A file read block by block is the file, and memory does not grow with it."

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from gesture_nb.config import UserError
from gesture_nb.data.sequences import concat
from gesture_nb.data.stream import stream_sequences
from gesture_nb.data.tidy import read_tidy

def write(path, sequences, length=25, ids=None, spoil=()):
    n = np.repeat(np.arange(sequences), length)
    f = pd.DataFrame(
        {
            "sequence_id": (np.arange(sequences) if ids is None else np.array(ids))[n],
            "subject": n // 7,
            "sequence_counter": np.tile(np.arange(length), sequences),
            **{f"acc_{a}": np.random.default_rng(k).normal(size=len(n)).astype("f4") for k, a in enumerate("xyz")},
        }
    )
    for row, column, value in spoil:
        f[column] = f[column].astype(object)
        f.loc[row, column] = value
    f.to_csv(path, index=False) if path.suffix == ".csv" else f.to_parquet(path, index=False, row_group_size=1 << 20)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("rows", [1, 16_500, 10**9])
def test_blocks_are_the_file(tmp_path, name, rows):
    path = write(tmp_path / name, 2000)
    parts = list(stream_sequences(path, rows=rows))
    whole, joined = read_tidy(path), concat(parts)
    assert np.array_equal(joined.values, whole.values) and all(
        np.array_equal(joined.meta[k], whole.meta[k], equal_nan=k == "sample_rate_hz")
        for k in ("sequence_id", "subject", "sample_rate_hz")
    )
    assert np.array_equal(joined.offsets, whole.offsets)
    if name == "a.parquet":
        assert (len(parts) > 2) == (rows < 10**9)


def test_mistakes_in_later_blocks_are_found_where_they_are(tmp_path):
    same = np.arange(2000)
    same[1900] = 3
    with pytest.raises(
        UserError, match=rf"row {1900 * 25 + 1}, column 'sequence_id': sequence '3' begins a second time"
    ):
        list(stream_sequences(write(tmp_path / "a.parquet", 2000, ids=same), rows=16_000))
    with pytest.raises(UserError, match=rf"row {1900 * 25 + 6}, column 'sequence_counter'"):
        list(
            stream_sequences(
                write(tmp_path / "b.parquet", 2000, spoil=[(1900 * 25 + 5, "sequence_counter", 4)]), rows=16_000
            )
        )


@pytest.mark.soak
def test_memory_is_bounded(tmp_path, toy, program):
    "Ten times the rows: not even half as much again."
    out = tmp_path / "out"
    assert (
        program(
            "train", "--data", toy, "--out", out, "--members", "lgbm", "--folds", "2", "--boosting-rounds", "5"
        ).returncode
        == 0
    )
    code = """
import resource, sys
from pathlib import Path
from gesture_nb.commands import predict_file
predict_file(Path(sys.argv[2]), data=sys.argv[1], output_path=sys.argv[3], progress="lines")
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""
    peak = []
    for k in (4_000, 40_000):
        path = write(tmp_path / f"{k}.parquet", k, 50)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(tmp_path / "p.parquet"), str(out)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and f"{k:,} predictions are in" in done.stdout, done.stderr
        peak.append(int(done.stdout.split("peak")[1]))
    assert peak[1] < 1.5 * peak[0]
