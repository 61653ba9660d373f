"""Nets trained by several processes, and in other precisions: what one notebook cell cannot show."""
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from test_cnn import SMALL, Quiet, problem, trained, with_starts

from gesture_nb.config import Settings, UserError
from gesture_nb.control import StopSignal
from gesture_nb.models import devices
from gesture_nb.models.cnn import TorchMember

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_thread():
    import torch
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


class Kept:
    """A checkpoint in memory."""
    def __init__(self, state=None): self.state = state
    def load(self): return self.state
    def save(self, arrays, metadata): self.state = arrays, metadata


def until(epoch, step):
    """(stop, reporter): the training is asked to stop at this step."""
    stop = StopSignal()
    def at(*now):
        if now == (epoch, step): assert stop.request()
    return stop, Quiet(at)


def differences(losses, reference):
    return np.abs(np.array(losses) - np.array(reference[:len(losses)]))


def test_two_processes_take_up_where_one_stopped_and_one_where_they_did(monkeypatch):
    """Odd batches, two nets, masks, unknown labels and phases: the loss curve is that of one process."""
    pytest.importorskip("lightning_fabric")
    b, kept = with_starts(problem(n=61, aux=True)), Kept()
    how = {"epochs": 4, "preset": replace(SMALL, seeds=2), "checkpoint": kept}
    whole = Quiet()
    reference = trained(b, **how | {"checkpoint": None, "reporter": whole})
    stop, first = until(1, 2)
    with pytest.raises(KeyboardInterrupt): trained(b, reporter=first, stop=stop, **how)
    stop, second = until(3, 1)
    with pytest.raises(KeyboardInterrupt): trained(b, reporter=second, stop=stop, devices=2, **how)
    assert kept.state[1]["devices"]["1"] == 2 and kept.state[1]["done"] == 2 + len(second.losses) >= 9
    third = Quiet()
    m = TorchMember(Settings(epochs=4, batch_size=16), 1, 0, how["preset"])
    history = m.fit(b, reporter=third, checkpoint=kept)
    assert history["devices"] == {"1": 2 + len(third.losses), "2": len(second.losses)}
    losses = first.losses + second.losses + third.losses
    assert len(losses) == len(whole.losses) == 16
    assert differences(losses, whole.losses).max() < 1e-5
    assert np.abs(m.predict_proba(b) - reference.predict_proba(b)).max() < 1e-4
    assert m.hyperparameters(b) == reference.hyperparameters(b)


def test_what_cannot_work_is_refused_before_anything_starts(monkeypatch):
    with pytest.raises(UserError, match="needs a GPU"): TorchMember(Settings(precision="16"))
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="batches of 15 sequences: set --devices 15"): trained(problem(), devices=16)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install gesture-nb\[devices\]"): trained(problem(), devices=2)
    assert trained(problem(), epochs=1, precision="bf16").net is not None     # needs nothing that may be missing


def test_half_precision_learns_as_well_and_is_another_training():
    b, single, half = problem(), Quiet(), Quiet()
    trained(b, epochs=8, reporter=single)
    m = trained(b, epochs=8, reporter=half, precision="bf16")
    assert single.losses != half.losses and differences(half.losses, single.losses).mean() < 0.05
    assert np.mean(half.losses[-4:]) < np.mean(half.losses[:4]) - 0.1
    ordinary = TorchMember(Settings(epochs=8, batch_size=16, precision="32"), 1, 0, SMALL).hyperparameters(b)
    assert m.hyperparameters(b) == ordinary | {"precision": "bf16"}
    assert {v.dtype for v in m.net.state_dict().values() if v.is_floating_point()} == {m.net.each[0].mean.dtype}


RANKS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_devices import Quiet, problem, ranks, trained
def at(epoch, step):
    if (epoch, step) == (2, 1): print(*ranks(), flush=True)
if __name__ == "__main__": trained(problem(), epochs=500, devices=2, reporter=Quiet(at))
"""


def ranks():
    """The process numbers of the processes that train together here."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "rank_main" in " ".join(child.cmdline())]


def left():
    return sorted(Path(tempfile.gettempdir()).glob("gesture-nb-*"))


@pytest.mark.soak
@pytest.mark.parametrize("signal_number, sentence", [(signal.SIGKILL, r"process 2 of 2 was killed \(SIGKILL\)"),
                                                     (signal.SIGSTOP, "has been silent for 8 s")])
def test_a_lost_process_ends_the_training_with_a_sentence_and_leaves_nothing(monkeypatch, signal_number, sentence):
    monkeypatch.setattr(devices, "PATIENCE", 8.0)
    before, kept = left(), Kept()
    def at(epoch, step):
        if (epoch, step) == (2, 2): os.kill(ranks()[1], signal_number)
    with pytest.raises(UserError, match=sentence):
        trained(problem(), devices=2, checkpoint=kept, reporter=Quiet(at))
    assert ranks() == [] and left() == before and len(kept.state[1]["history"]["loss"]) == 1


@pytest.mark.soak
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script, before = tmp_path / "trains.py", left()
    script.write_text(RANKS)
    process = subprocess.Popen([sys.executable, str(script), str(ROOT / "tests")], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    found = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    process.kill()
    assert len(found) == 2 and psutil.wait_procs(found, timeout=30)[1] == []
    assert left() == before
