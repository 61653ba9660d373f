"""What a notebook cannot show of the convolutional member: real kills, killed workers, and every set of sensors."""
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from gesture_nb.config import Settings
from gesture_nb.control import StopSignal, TimeUp
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures, take_frames
from gesture_nb.models import training_loop
from gesture_nb.models.base import Batch, FoldOptions, Member
from gesture_nb.models.cnn import TorchMember
from gesture_nb.models.cnn_layers import FAST, stem_of
from gesture_nb.models.training_loop import check_part
from gesture_nb.training.checkpoint import FolderCheckpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = replace(FAST, widths=(8, 12), stem=4)
ALL = ("acc.x", "acc.y", "acc.z", "gyr.x", "gyr.y", "gyr.z", "motion.lin_x", "motion.lin_y", "motion.lin_z",
       "rot.w", "rot.x", "rot.y", "rot.z", "thm.1", "thm.2", "tof.1_mean", "tof.2_mean")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets this small are quickest on one thread."""
    import torch
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


def problem(names=ALL, n=60, grids=0, seed=0, aux=False, lengths=None, classes=3):
    """Three rhythms in noise, some sensors absent here and there."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(17, 60, n) if lengths is None else np.asarray(lengths)
    y = np.arange(n) % classes
    t = np.concatenate([np.arange(k) for k in lengths])
    x = rng.normal(size=(len(t), len(names))) + 3 * np.sin(t * np.repeat(0.2 + 0.35 * y, lengths))[:, None]
    devices = dict.fromkeys(name if name.startswith("thm") else stem_of(name) for name in names)
    flags = [f"has_{device.replace('.', '_')}" for device in devices if device != "motion"]
    masks = {flag: rng.random(n) < 0.8 if flag != "has_acc" else np.ones(n, bool) for flag in flags}
    tof = rng.integers(-2, 250, (len(t), grids, 8, 8)).astype("i2") if grids else None
    f = FrameFeatures(x.astype("f4"), tuple(names), offsets_of(lengths), masks, np.full(n, 20, "f4"), tof)
    extra = {"orientation": rng.integers(-1, 4, n), "opening": np.full(n, -1)} if aux else {}
    subjects = np.array([f"p{i % 6}" for i in range(n)])
    return Batch(f, np.arange(n), tuple("abcdefg"[:classes]), y, subjects, aux=extra)


class Quiet:
    """The part of a reporter that training needs; `at` is called with (epoch, step)."""
    def __init__(self, at=lambda epoch, step: None): self.at, self.said, self.losses = at, [], []
    def say(self, text, **_): self.said.append(text)
    def training(self, *_, **__): return self
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def start_epoch(self, epoch, *done): self.epoch, self.n = epoch, 0
    def step(self, loss, lr):
        self.n += 1
        self.losses.append(loss)
        self.at(self.epoch, self.n)
    def end_epoch(self, **_): pass


def trained(batch, epochs=3, reporter=None, checkpoint=None, preset=SMALL, seed=1, save_every=300.0, stop=None,
            **settings):
    m = TorchMember(Settings(epochs=epochs, batch_size=16, **settings), seed, 0, preset)
    m.save_every = save_every
    m.fit(batch, reporter=reporter or Quiet(), checkpoint=checkpoint, stop=stop)
    return m


def weights(m): return {k: v.numpy().tobytes() for k, v in m.net.state_dict().items()}


@pytest.mark.parametrize("names,grids,aux", [(ALL[:3], 0, False), (ALL[:6], 0, False), (ALL[:9], 0, True),
                                             (ALL, 2, True), (ALL[6:7], 0, False)])
def test_any_sensors_fit_save_load(tmp_path, names, grids, aux):
    b = problem(names, grids=grids, aux=aux)
    m = trained(b)
    assert isinstance(m, Member)
    p = m.predict_proba(b)
    assert p.shape == (60, 3) and p.dtype == np.float32 and np.allclose(p.sum(1), 1, atol=1e-5)
    m.save(tmp_path)
    assert sorted(f.suffix for f in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert TorchMember.load(tmp_path).predict_proba(b).tobytes() == p.tobytes()


def test_learns_and_does_not_look_at_names_of_people():
    m = trained(problem(n=150), epochs=25)
    b = problem(n=60, seed=9)
    assert (m.predict_proba(replace(b, y=None, subjects=None)).argmax(1) == b.y).mean() > 0.8


def with_starts(b, seed=3):
    """The same sequences as pauses that end at a random row, known for most of them."""
    rng, n = np.random.default_rng(seed), b.frames.lengths
    starts = rng.integers(5, n - 5)
    values = b.frames.values.copy()
    for a, s in zip(b.frames.offsets, starts): values[a:a + s] *= 0.05
    return replace(b, frames=replace(b.frames, values=values), starts=np.where(rng.random(len(n)) < 0.9, starts, -1))


def test_phases_are_learned_where_they_are_known(tmp_path):
    import torch

    from gesture_nb.features.loaders import SequenceDataset, View
    from gesture_nb.models.cnn import to_device

    b = with_starts(problem(n=90))
    m = trained(b, epochs=12)
    assert m.shape.phase and m.predict_outputs(b).heads == {}
    new = with_starts(problem(n=60, seed=8), seed=5)
    view = View(m.shape.kind, m.shape.length)
    batch = SequenceDataset(new.frames, new.index, view, starts=new.starts)[np.arange(60)]
    net = m.net.each[0]
    with torch.no_grad():
        predicted = net.train()(to_device(batch, "cpu"))["phase"].numpy() > 0
    known = batch["phase"] >= 0
    assert (predicted == (batch["phase"] == 1))[known].mean() > 0.85
    m.save(tmp_path)
    assert weights(TorchMember.load(tmp_path)) == weights(m)
    assert not trained(replace(b, starts=np.full(90, -1)), epochs=1).shape.phase


def test_mixing_lets_gestures_begin_together():
    import torch

    from gesture_nb.features.augment import blend

    n, steps, rng = 40, 64, np.random.default_rng(0)
    start, first = torch.tensor(rng.integers(20, 44, n)), torch.tensor(rng.integers(0, 10, n))
    t = torch.arange(steps)
    phase = torch.where(t < first[:, None], -1, (t >= start[:, None]).int()).to(torch.int8)
    phase[5] = -1
    b = {"x": (phase == 1).float()[:, None], "mask": t >= first[:, None], "y": torch.eye(n),
         "flags": torch.ones(n, 1), "phase": phase}
    out = blend(b, 1, 0, 0.4, True, torch.Generator().manual_seed(0))
    both = (out["partner"] != 5) & (torch.arange(n) != 5)
    onset = lambda x: (x > 1e-6).to(torch.uint8).argmax(1)
    assert torch.equal(onset(out["x"][both, 0]), start[both])
    assert torch.equal(onset(out["phase"][both].float()), start[both])
    plain = blend(b, 1, 0, 0.4, False, torch.Generator().manual_seed(0))
    assert torch.equal(onset(plain["x"][both, 0]), torch.minimum(start, start[out["partner"]])[both])
    cut = blend(b, 0, 1, 0.4, True, torch.Generator().manual_seed(0))
    unknown = (torch.arange(n) == 5)[:, None]
    assert torch.equal(cut["x"][:, 0] == 1, (cut["phase"] == 1) | (cut["x"][:, 0] == 1) & unknown)


def test_several_nets_answer_as_one_and_go_on_as_one(tmp_path):
    b, two = problem(), replace(SMALL, seeds=2)
    m = trained(b, preset=two)
    alone = weights(m)
    assert alone["each.0.stems.acc.0.weight"] != alone["each.1.stems.acc.0.weight"]

    class Stop(Exception): pass
    def at(epoch, step):
        if (epoch, step) == (2, 2): raise Stop

    checkpoint = FolderCheckpoint(tmp_path / "c")
    with pytest.raises(Stop):
        trained(b, preset=two, reporter=Quiet(at), checkpoint=checkpoint, save_every=0.0)
    assert weights(trained(b, preset=two, checkpoint=FolderCheckpoint(tmp_path / "c"))) == alone
    folder = tmp_path / "m"
    folder.mkdir()
    m.save(folder)
    assert TorchMember.load(folder).predict_proba(b).tobytes() == m.predict_proba(b).tobytes()


def test_answers_sequences_of_any_length():
    m = trained(problem(), epochs=1)
    odd = problem(lengths=[1, 2, 700, 16, 40], n=5)
    p = m.predict_proba(odd)
    assert np.isfinite(p).all()
    for i in range(5):
        alone = m.predict_proba(replace(odd, frames=take_frames(odd.frames, [i]), index=np.array([0])))
        assert np.allclose(p[[i]], alone, atol=1e-5)
    assert m.predict_proba(odd.take(np.arange(0))).shape == (0, 3)


def test_a_few_rows_are_seen_however_steps_are_left_out():
    """A sequence whose rows all lie between the remaining steps once looked like padding: the loss had spikes."""
    import torch

    from gesture_nb.features.loaders import SequenceDataset, View
    from gesture_nb.models.cnn import to_device

    m = trained(problem(lengths=[200] * 60), epochs=1)
    short = problem(lengths=np.arange(1, 25), n=24)
    assert m.net.each[0].stride > 1
    seen = {}
    m.net.each[0].drop.register_forward_pre_hook(lambda _, x: seen.update(pooled=x[0]))
    dataset = SequenceDataset(short.frames, short.index, View("tail", m.shape.length))
    m.net.eval()(to_device(dataset[np.arange(24)], "cpu"))
    assert float(seen["pooled"].abs().max()) < 1e3 and torch.isfinite(seen["pooled"]).all()


def test_the_process_is_left_as_it_was():
    import torch
    torch.manual_seed(5)
    want, threads = torch.get_rng_state(), torch.get_num_threads()
    a = weights(trained(problem()))
    assert torch.equal(torch.get_rng_state(), want) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(6)
    torch.rand(10)
    assert weights(trained(problem())) == a
    assert weights(trained(problem(), seed=2)) != a


def test_a_killed_worker_costs_nothing():
    b, hit = problem(), []
    def kill(epoch, step):
        if epoch == 2 and step == 1 and not hit:
            hit.extend(p.pid for p in multiprocessing.active_children())
            os.kill(hit[0], signal.SIGKILL)
            for _ in range(100_000_000):     # until the parent hears of it
                if not any(p.pid == hit[0] for p in multiprocessing.active_children()): break
    reporter = Quiet(kill)
    m = trained(b, reporter=reporter, dl_num_workers=2, dl_persistent_workers=True)   # so the loss must be noticed
    assert hit and any("starts again with 1 worker" in s for s in reporter.said)
    assert weights(m) == weights(trained(b)) and not multiprocessing.active_children()


def test_a_worker_killed_while_a_checkpoint_is_written_costs_nothing_either(tmp_path):
    class Killing(FolderCheckpoint):
        killed = 0
        def save(self, *state):
            for p in multiprocessing.active_children()[:1] if self.killed < 2 else []:
                os.kill(p.pid, signal.SIGKILL)
                while psutil.Process(p.pid).status() != psutil.STATUS_ZOMBIE: pass
                self.killed += 1
            super().save(*state)

    b, reporter, checkpoint = problem(), Quiet(), Killing(tmp_path)
    m = trained(b, epochs=5, reporter=reporter, checkpoint=checkpoint, dl_num_workers=2, dl_persistent_workers=True)
    assert checkpoint.killed == 2 and [s for s in reporter.said if "no worker" in s]
    assert weights(m) == weights(trained(b, epochs=5)) and not multiprocessing.active_children()


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_cnn import FolderCheckpoint, Quiet, problem, trained
folder, epoch, step, workers = sys.argv[2], *map(int, sys.argv[3:])
def kill(e, s):
    if (e, s) == (epoch, step): os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    checkpoint = FolderCheckpoint(folder + "/checkpoint")
    m = trained(problem(aux=True), 4, Quiet(kill), checkpoint, dl_num_workers=workers)
    m.save(folder)
"""


@pytest.mark.soak   # `test_resume` kills the whole program inside an epoch of this net
def test_killed_and_resumed_is_the_same_to_the_last_bit(tmp_path):
    script = tmp_path / "trains.py"
    script.write_text(INTERRUPTED)
    def run(folder, *at):
        (tmp_path / folder).mkdir(exist_ok=True)
        command = [sys.executable, str(script), str(ROOT / "tests"), str(tmp_path / folder), *map(str, at)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment).returncode
    assert run("whole", 0, 0, 0) == 0
    assert run("cut", 1, 2, 0) == run("cut", 3, 2, 1) == -signal.SIGKILL
    assert FolderCheckpoint(tmp_path / "cut/checkpoint").load()[1]["history"]["loss"].__len__() == 2
    assert run("cut", 0, 0, 0) == 0
    for name in ("weights.safetensors", "model.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_resumes_inside_an_epoch(tmp_path):
    b, c = problem(), FolderCheckpoint(tmp_path)
    class Stop(Exception): pass
    def stop(epoch, step):
        if (epoch, step) == (2, 4): raise Stop
    with pytest.raises(Stop): trained(b, reporter=Quiet(stop), checkpoint=c, save_every=0.0)
    assert c.load()[1]["inside"][0] == 3
    rest = Quiet()
    m = trained(b, reporter=rest, checkpoint=c)
    whole = Quiet()
    assert weights(m) == weights(trained(b, reporter=whole))
    assert rest.losses == whole.losses[-len(rest.losses):] and len(rest.losses) == 5


def test_a_request_to_stop_saves_the_step_and_the_rest_is_the_same(tmp_path):
    b, c, stop = problem(), FolderCheckpoint(tmp_path), StopSignal()
    def ask(epoch, step):
        if (epoch, step) == (2, 3): assert stop.request()
    with pytest.raises(KeyboardInterrupt): trained(b, reporter=Quiet(ask), checkpoint=c, stop=stop)
    assert c.load()[1]["inside"][0] == 3 and not stop.requested
    assert weights(trained(b, checkpoint=c, stop=stop)) == weights(trained(b))


def test_a_time_limit_saves_the_step_but_not_after_the_last_one(tmp_path):
    b, c, late = problem(), FolderCheckpoint(tmp_path), StopSignal(deadline=-float("inf"))
    for step in range(11):                 # three epochs of four steps: one step a start
        with pytest.raises(TimeUp): trained(b, checkpoint=c, stop=late)
        arrays, metadata = c.load()
        assert metadata["done"] == step + 1
    assert weights(trained(b, checkpoint=c, stop=late)) == weights(trained(b))


def test_a_request_at_the_last_step_comes_after_the_last_save(tmp_path):
    b, c, stop = problem(), FolderCheckpoint(tmp_path), StopSignal()
    def ask(epoch, step):
        if (epoch, step) == (3, 4): stop.request()
    with pytest.raises(KeyboardInterrupt): trained(b, reporter=Quiet(ask), checkpoint=c, stop=stop)
    assert len(c.load()[1]["history"]["loss"]) == 3
    assert weights(trained(b, checkpoint=c)) == weights(trained(b))


def test_hyperparameters_say_what_changes_the_weights():
    b = problem()
    a, c = (TorchMember(Settings(batch_size=size)).hyperparameters(b) for size in (16, 32))
    assert a["total_steps"] != c["total_steps"]
    assert a == TorchMember(Settings(batch_size=16, dl_num_workers=4)).hyperparameters(b)
    mirrored = TorchMember(Settings(batch_size=16)).hyperparameters(replace(b, options=FoldOptions(mirror="x")))
    assert a["preset"]["augment"]["mirror"] == 0 and mirrored["preset"]["augment"]["mirror"] == 0.5


def test_rare_classes_and_tiny_sets():
    b = problem(n=7, classes=5)
    b = replace(b, classes=tuple("abcdefg"), y=np.array([0, 0, 0, 0, 0, 0, 5]))
    assert trained(b, epochs=1).predict_proba(b).shape == (7, 7)
    one = b.take(np.array([0, 6]))
    assert trained(one, epochs=1).predict_proba(one).shape == (2, 7)


# ---------------------------------------------------------------- learning curves

def by_subject(b, checked):
    "(fit, check) positions: these people are the check part."
    check = np.isin(b.subjects, checked)
    return np.flatnonzero(~check), np.flatnonzero(check)


def watched(monkeypatch):
    "Epoch → positions that were read, of trainings from now on."
    from gesture_nb.models.cnn import CnnTrainer
    read, real = {}, CnnTrainer.step
    def step(self, batch, epoch):
        read.setdefault(epoch, []).extend(np.asarray(batch["pos"]).tolist())
        return real(self, batch, epoch)
    monkeypatch.setattr(CnnTrainer, "step", step)
    return read


@pytest.fixture
def one_of_six_may_be_left_out(monkeypatch):
    monkeypatch.setattr(training_loop, "MOST_LEFT_OUT", 1 / 6)


def test_a_few_people_join_later_and_the_net_is_checked_on_them_until_then(monkeypatch, one_of_six_may_be_left_out):
    b, read = problem(n=60), watched(monkeypatch)
    m = TorchMember(Settings(epochs=6, batch_size=16), 1, 0, SMALL)
    history = m.fit(b, inner_split=by_subject(b, ["p1", "p4"]), reporter=Quiet())
    late = set(np.flatnonzero(b.subjects == "p1").tolist())
    assert history["check"]["people"] == ["p1"] and history["check"]["epochs"] == 2
    for epoch, positions in read.items(): assert len(positions) == 60 and bool(late & set(positions)) == (epoch >= 2)
    assert all(v > 0 for v in history["check_loss"][:2]) and history["check_loss"][2:] == [None] * 4
    assert len(history["fit_loss"]) == 6 and all(np.isfinite(history["fit_loss"]))
    known = check_part(b, by_subject(b, ["p1", "p4"]), 6, 0).known
    p = m.predict_proba(b)[known, b.y[known]].astype(float)
    assert np.isclose(history["fit_loss"][-1], -np.log(p).mean(), atol=1e-5)


def test_the_checked_people_have_no_part_in_the_first_epochs(one_of_six_may_be_left_out):
    b = problem(n=60, lengths=[40] * 60)
    spoiled = b.frames.values.copy()
    for i in np.flatnonzero(b.subjects == "p1"):   # backwards, which leaves the scales of features as they are
        rows = slice(*b.frames.offsets[i:i + 2])
        spoiled[rows] = spoiled[rows][::-1]
    losses = []
    for batch in (b, replace(b, frames=replace(b.frames, values=spoiled))):
        r = Quiet()
        TorchMember(Settings(epochs=3, batch_size=16), 1, 0, SMALL).fit(
            batch, inner_split=by_subject(b, ["p1"]), reporter=r)
        losses.append(r.losses)
    assert np.allclose(losses[0][:4], losses[1][:4], atol=1e-4)
    assert not np.allclose(losses[0][4:], losses[1][4:], atol=1e-3)


def test_of_few_people_nobody_is_left_out():
    b = problem(n=60)
    assert check_part(b, by_subject(b, ["p0", "p1"]), 6, 0) is None
    many = replace(b, subjects=np.array([f"p{i // 2:02d}" for i in range(60)]))   # thirty people
    assert check_part(many, by_subject(many, ["p00", "p01"]), 6, 0).people == ("p00",)


def test_nobody_is_left_out_where_that_would_be_too_many_or_too_short(one_of_six_may_be_left_out):
    b = problem(n=60)
    def part(checked, epochs=6): return check_part(b, by_subject(b, checked), epochs, 0)
    assert part(["p0", "p1"]).people == ("p0",) and check_part(b, None, 6, 0) is None
    assert part(["p0"], epochs=2) is None and part([]) is None
    few = b.take(np.flatnonzero(np.isin(b.subjects, ["p0", "p1", "p2"])))
    assert check_part(few, by_subject(few, ["p0"]), 6, 0) is None
    alone = b.take(np.flatnonzero(b.subjects == "p0"))     # the only person is on both sides of the inner split
    assert check_part(alone, (np.arange(1, 10), np.array([0])), 6, 0) is None
    chosen = part(["p0"])
    late = np.flatnonzero(b.subjects == "p0")
    assert not np.isin(chosen.in_place, late).any() and np.array_equal(b.y[chosen.in_place], b.y)
    assert np.isin(chosen.checked, late).all() and not np.isin(chosen.known, late).any()
