"""The embedded set: what it holds, and that its pickle is never trusted."""
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from gesture_nb.data import bundled
from gesture_nb.data.sequences import rows_of, table_from_arrays
from gesture_nb.errors import UserError

@pytest.fixture(scope="module")
def table():
    return bundled.spar()


def test_counts_and_units(table):
    assert (len(table), table.rows) == (1149, 229_800)
    assert table.names == ("acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z")
    assert set(table.lengths) == {200} and set(table.meta["sample_rate_hz"]) == {50}
    assert sorted(set(table.meta["gesture"])) == sorted(["PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"])
    assert set(table.meta["side"]) == {"left", "right"} and len(set(table.meta["recording"])) == 140
    assert table.meta["sequence_id"][123] == "spar_000123"
    still = np.median(np.linalg.norm(table.values[:3], axis=0))  # m/s², not g
    assert 9 < still < 12 and np.isfinite(table.values).all()


def test_protocol_folds(table):
    names = sorted(set(table.meta["subject"]))
    assert len(names) == 10
    for i, name in enumerate(names):
        assert set(table.meta["fold"][table.meta["subject"] == name]) == {i % 5}


def test_windows_are_the_recordings(table):
    raw = bundled.read_spar()
    start = 0
    for i, x in enumerate(raw.signals):
        n = len(x) // 200
        windows = table.values[:, rows_of(table.offsets, np.arange(start, start + n))]
        scale = np.array([9.80665] * 3 + [1] * 3)
        np.testing.assert_array_equal(windows.T, (x[:200 * n] * scale).astype(np.float32))
        assert set(table.meta["subject"][start:start + n]) == {str(raw.subject[i])}
        assert set(table.meta["gesture"][start:start + n]) == {raw.exercises[raw.exercise[i]]}
        start += n
    assert start == len(table)


def test_short_sequences_are_dropped():
    t = table_from_arrays([np.arange(k)[None] for k in (5, 1, 4)], ["acc_x"])
    w = bundled.cut_windows(t, 2, "w")
    assert w.values.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert list(w.meta["subject"]) == ["p000000"] * 2 + ["p000002"] * 2


@pytest.mark.parametrize("name", [
    "os.system", "builtins.eval", "builtins.getattr", "subprocess.Popen", "numpy.load", "numpy.f2py.compile",
    "numpy._core.multiarray.fromfile", "_codecs.lookup", "functools.partial"])
def test_a_pickle_may_only_hold_arrays(name):
    module, _, function = name.rpartition(".")
    hostile = b"c" + module.encode() + b"\n" + function.encode() + b"\n(S'x'\ntR."
    with pytest.raises(UserError, match="not an array"):
        bundled.ArraysOnly(io.BytesIO(hostile)).load()


def test_a_pickle_that_would_run_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/was_here",)

    a = np.empty((), object)
    a[()] = {"X": Evil()}
    path = tmp_path / "watch_dataset.npy"
    np.save(path, a, allow_pickle=True)
    with pytest.raises(UserError, match="checksum differs.*pip install"):
        bundled.spar(path=path)
    with pytest.raises(UserError, match="not an array"):
        bundled.ArraysOnly(io.BytesIO(pickle.dumps(a))).load()
    assert not (tmp_path / "was_here").exists()


def test_other_bytes_and_absent_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "watch_dataset.npy"
    raw = bytearray(bundled.spar_path().read_bytes())
    raw[1_000_000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="checksum differs"):
        bundled.spar(path=path)
    with pytest.raises(UserError, match="cannot be read"):
        bundled.spar(path=tmp_path / "no.npy")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"make setup.*seglearn==1\.2\.5"):
        bundled.spar()
    with pytest.raises(UserError, match="window"):
        bundled.spar(window=0)


def test_the_package_itself_is_never_imported():
    code = """
import sys
from gesture_nb.data.bundled import spar
spar()
sys.exit('seglearn' in sys.modules or 'sklearn' in sys.modules)
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0
