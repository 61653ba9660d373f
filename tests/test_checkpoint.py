"""What a notebook cannot show of checkpoints: processes that die while writing, and damage anywhere."""
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gesture_nb.training import checkpoint as checkpoint_module
from gesture_nb.training.checkpoint import FolderCheckpoint

ROOT = Path(__file__).resolve().parent.parent


def state(k):
    arrays = {"w": np.full((3, 4), k, "f4"), "step": np.int64(k)}
    metadata = {"epoch": k, "loss": [1 / 3, 0.1 * k, math.inf], "lr": np.float64(1e-3 / 7)}
    return arrays, metadata


def test_metadata_and_arrays_come_back_exactly(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path / "c")
    arrays, metadata = state(3)
    checkpoint.save(arrays, metadata)
    loaded_arrays, loaded = checkpoint.load()
    assert loaded == {k: v if not hasattr(v, "tolist") else v.tolist() for k, v in metadata.items()}
    assert loaded_arrays["step"].dtype == np.int64 and loaded_arrays["step"].shape == ()
    assert np.array_equal(loaded_arrays["w"], arrays["w"])


def test_nan_survives(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path)
    checkpoint.save({}, {"loss": [float("nan")]})
    assert math.isnan(checkpoint.load()[1]["loss"][0])


def test_two_states_are_kept_and_no_more(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path)
    for k in range(6):
        checkpoint.save(*state(k))
        assert len(checkpoint.states()) <= 2
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["arrays.safetensors", "facts.json", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    checkpoint = FolderCheckpoint(tmp_path)
    checkpoint.save(*state(1))
    checkpoint.save(*state(2))
    path = checkpoint.states()[0] / name
    good = path.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 40)):
        bad = bytearray(good)
        bad[position] ^= 0x41
        path.write_bytes(bad)
        assert checkpoint.load()[1]["epoch"] == 1 and str(path.parent) in checkpoint.warning, position
    path.unlink()
    assert checkpoint.load()[1]["epoch"] == 1
    path.write_bytes(good)
    assert FolderCheckpoint(tmp_path).load()[1]["epoch"] == 2


def test_a_damaged_state_is_not_kept_as_the_reserve(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path)
    checkpoint.save(*state(1))
    checkpoint.save(*state(2))
    (checkpoint.states()[0] / "facts.json").write_text("{}")
    checkpoint.load()
    checkpoint.save(*state(3))
    (checkpoint.states()[0] / "facts.json").write_text("{}")
    assert checkpoint.load()[1]["epoch"] == 1


def test_nothing_whole_is_nothing(tmp_path):
    checkpoint = FolderCheckpoint(tmp_path)
    checkpoint.save(*state(1))
    (checkpoint.states()[0] / "manifest.json").write_text("")
    assert checkpoint.load() is None and "starts again" in checkpoint.warning


KILLED = """
import os, signal, sys
import numpy as np
import gesture_nb.artifacts as artifacts
from gesture_nb.training.checkpoint import FolderCheckpoint

checkpoint, point, old = FolderCheckpoint(sys.argv[1]), sys.argv[2], os.replace
for k in (1, 2):
    checkpoint.save({"w": np.full(50_000, k, "f4")}, {"epoch": k})

def replace(a, b):
    name = os.path.basename(b)
    if name == point or (point == "state" and name.startswith("state-")): os.kill(os.getpid(), signal.SIGKILL)
    old(a, b)

artifacts.os.replace = replace
checkpoint.save({"w": np.full(50_000, 3, "f4")}, {"epoch": 3})
"""


@pytest.mark.parametrize("point", ["arrays.safetensors", "facts.json", "manifest.json", "state"])
def test_killed_while_writing(tmp_path, point):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "c"), point]
    process = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.returncode == -signal.SIGKILL
    checkpoint = FolderCheckpoint(tmp_path / "c")
    arrays, metadata = checkpoint.load()
    assert metadata["epoch"] == 2 and (arrays["w"] == 2).all() and checkpoint.warning is None
    checkpoint.save({"w": np.zeros(3, "f4")}, {"epoch": 3})
    assert not list((tmp_path / "c").glob(".*")) and checkpoint.load()[1]["epoch"] == 3


def test_seconds_of_all_processes_are_counted(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(checkpoint_module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def after(checkpoint, seconds):
        clock.now += seconds
        return checkpoint.seconds

    first = FolderCheckpoint(tmp_path)
    assert after(first, 30) == 30
    first.save(*state(1))
    assert after(first, 5) == 35   # these five die with the process
    clock.now = 7.0                # another process, another clock
    again = FolderCheckpoint(tmp_path)
    assert again.load()[1] == state(1)[1] | {"lr": 1e-3 / 7} and after(again, 2) == 32
    again.save(*state(2))
    (again.states()[0] / "facts.json").write_text("{}")
    last = FolderCheckpoint(tmp_path)
    assert last.load()[1]["epoch"] == 1 and last.seconds == 30   # as much as led to the state that is used
