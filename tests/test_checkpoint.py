"""What a notebook cannot show of checkpoints: processes that die while writing, and damage anywhere."""
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gesture_nb.training.checkpoint import FolderCheckpoint

ROOT = Path(__file__).resolve().parent.parent


def state(k):
    return {"w": np.full((3, 4), k, "f4"), "step": np.int64(k)}, {"epoch": k, "loss": [1 / 3, 0.1 * k, math.inf], "lr": np.float64(1e-3 / 7)}


def test_facts_and_arrays_come_back_exactly(tmp_path):
    c = FolderCheckpoint(tmp_path / "c")
    arrays, facts = state(3)
    c.save(arrays, facts)
    back, told = c.load()
    assert told == {k: v if not hasattr(v, "tolist") else v.tolist() for k, v in facts.items()}
    assert back["step"].dtype == np.int64 and back["step"].shape == () and np.array_equal(back["w"], arrays["w"])


def test_nan_survives(tmp_path):
    c = FolderCheckpoint(tmp_path)
    c.save({}, {"loss": [float("nan")]})
    assert math.isnan(c.load()[1]["loss"][0])


def test_two_states_are_kept_and_no_more(tmp_path):
    c = FolderCheckpoint(tmp_path)
    for k in range(6):
        c.save(*state(k))
        assert len(c.states()) <= 2
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["arrays.safetensors", "facts.json", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    c = FolderCheckpoint(tmp_path)
    c.save(*state(1)), c.save(*state(2))
    path = c.states()[0] / name
    good = path.read_bytes()
    for at in range(0, len(good), max(1, len(good) // 40)):
        bad = bytearray(good)
        bad[at] ^= 0x41
        path.write_bytes(bad)
        assert c.load()[1]["epoch"] == 1 and str(path.parent) in c.warning, at
    path.unlink()
    assert c.load()[1]["epoch"] == 1
    path.write_bytes(good)
    assert FolderCheckpoint(tmp_path).load()[1]["epoch"] == 2


def test_a_damaged_state_is_not_kept_as_the_reserve(tmp_path):
    c = FolderCheckpoint(tmp_path)
    c.save(*state(1)), c.save(*state(2))
    (c.states()[0] / "facts.json").write_text("{}")
    c.load()
    c.save(*state(3))
    (c.states()[0] / "facts.json").write_text("{}")
    assert c.load()[1]["epoch"] == 1


def test_nothing_whole_is_nothing(tmp_path):
    c = FolderCheckpoint(tmp_path)
    c.save(*state(1))
    (c.states()[0] / "manifest.json").write_text("")
    assert c.load() is None and "starts again" in c.warning


KILLED = """
import os, signal, sys
import numpy as np
import gesture_nb.artifacts as artifacts
from gesture_nb.training.checkpoint import FolderCheckpoint
c, point, old = FolderCheckpoint(sys.argv[1]), sys.argv[2], os.replace
for k in (1, 2):
    c.save({"w": np.full(50_000, k, "f4")}, {"epoch": k})
def replace(a, b):
    name = os.path.basename(b)
    if name == point or (point == "state" and name.startswith("state-")): os.kill(os.getpid(), signal.SIGKILL)
    old(a, b)
artifacts.os.replace = replace
c.save({"w": np.full(50_000, 3, "f4")}, {"epoch": 3})
"""


@pytest.mark.parametrize("point", ["arrays.safetensors", "facts.json", "manifest.json", "state"])
def test_killed_while_writing(tmp_path, point):
    p = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c"), point], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert p.returncode == -signal.SIGKILL
    c = FolderCheckpoint(tmp_path / "c")
    arrays, facts = c.load()
    assert facts["epoch"] == 2 and (arrays["w"] == 2).all() and c.warning is None
    c.save({"w": np.zeros(3, "f4")}, {"epoch": 3})
    assert not list((tmp_path / "c").glob(".*")) and c.load()[1]["epoch"] == 3


def test_seconds_of_all_processes_are_counted(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from gesture_nb.training import checkpoint

    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    def after(c, seconds): clock.now += seconds; return c.seconds
    c = FolderCheckpoint(tmp_path)
    assert after(c, 30) == 30
    c.save(*state(1))
    assert after(c, 5) == 35   # these five die with the process
    clock.now = 7.0            # another process, another clock
    again = FolderCheckpoint(tmp_path)
    assert again.load()[1] == state(1)[1] | {"lr": 1e-3 / 7} and after(again, 2) == 32
    again.save(*state(2))
    (again.states()[0] / "facts.json").write_text("{}")
    last = FolderCheckpoint(tmp_path)
    assert last.load()[1]["epoch"] == 1 and last.seconds == 30   # as much as led to the state that is used
