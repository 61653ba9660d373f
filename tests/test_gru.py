"What the notebook on the recurrent member cannot show: silence, kill and resume, shapes, damaged files."
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from gesture_nb.config import Settings, UserError
from gesture_nb.control import StopSignal
from gesture_nb.data.sequences import offsets_of
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.models import training_loop
from gesture_nb.models.base import Batch, Member
from gesture_nb.models.gru import KerasMember, SequenceRecipe, make_schedule, one_cycle
from gesture_nb.models.quiet_tensorflow import load_tensorflow, quiet_stderr
from gesture_nb.models.training_loop import Schedule, check_part
from gesture_nb.training.checkpoint import FolderCheckpoint

SMALL = SequenceRecipe(width=8, patches=8, heads=2, epochs=(3, 3), batch_size=16)

# The same data and member in every process of these tests.
COMMON = """
import sys
import numpy as np
from gesture_nb.config import Settings
from gesture_nb.features.frames import FrameFeatures
from gesture_nb.models.gru import KerasMember, SequenceRecipe
from gesture_nb.models.base import Batch
from gesture_nb.training.checkpoint import FolderCheckpoint

def train():
    rng, n, steps = np.random.default_rng(0), 40, 24
    values, names = rng.normal(size=(n * steps, 3)).astype('f4'), ('acc.x', 'acc.y', 'acc.z')
    masks, rate = {'has_acc': np.ones(n, bool)}, np.full(n, 20, 'f4')
    frames = FrameFeatures(values, names, np.arange(n + 1) * steps, masks, rate)
    return Batch(frames, np.arange(n), ('a', 'b'), np.arange(n) % 2, (np.arange(n) % 4).astype(str))

def member(**settings):
    recipe = SequenceRecipe(width=8, patches=8, heads=2, epochs=(6, 6), batch_size=16)
    return KerasMember(Settings(**settings), 1, 0, recipe)
"""


def run(code, *args, **kw):
    "A clean process with `COMMON` and `code`."
    command = [sys.executable, "-c", COMMON + textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kw)


def ragged(lengths, classes=3, features=4, seed=0):
    rng, n = np.random.default_rng(seed), len(lengths)
    values, names = rng.normal(size=(sum(lengths), features)).astype("f4"), tuple(f"acc.{i}" for i in range(features))
    masks, rate = {"has_acc": np.ones(n, bool)}, np.full(n, 20, "f4")
    frames = FrameFeatures(values, names, offsets_of(lengths), masks, rate)
    y, subjects = np.arange(n) % classes, (np.arange(n) % 4).astype(str)
    return Batch(frames, np.arange(n), tuple("abcdefgh"[:classes]), y, subjects)


@pytest.fixture(scope="module")
def fitted():
    b = ragged([20 + i % 7 for i in range(45)])
    m = KerasMember(Settings(), 1, 0, SMALL)
    m.fit(b)
    return m, b


def test_is_a_member():
    assert isinstance(KerasMember(), Member)


def test_import_brings_neither_tensorflow_nor_torch():
    heavy = ("tensorflow", "keras", "torch", "lightgbm", "pandas", "matplotlib")
    code = f"import gesture_nb.models.gru, sys; print(sorted(set({heavy!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("where", ["main thread", pytest.param("another thread", marks=pytest.mark.soak)])
def test_loads_fits_and_answers_without_a_word(where, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = run("""
        import threading
        def work():
            m = member(epochs=1)
            m.fit(train())
            m.predict_proba(train())
            m.predict_proba(train().take([0]))
        if sys.argv[1] == 'main thread': work()
        else:
            t = threading.Thread(target=work)
            t.start()
            t.join()
    """, where, env=env)
    assert done.returncode == 0 and done.stderr == "" and done.stdout == ""


def test_oneDNN_stays_on():
    code = """if True:
        import os, gesture_nb.models.quiet_tensorflow as k
        k.load_tensorflow()
        print(os.environ.get('TF_ENABLE_ONEDNN_OPTS', 'unset'))
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "unset"


def test_a_failing_load_is_replayed():
    code = """
        import os, sys
        sys.modules['tensorflow'] = None
        import gesture_nb.models.quiet_tensorflow as k
        class Finder:
            def find_spec(self, name, path=None, target=None):
                note = b'2026-01-01 00:00:00.000000: I tensorflow/x.cc:1] the library is broken\\n'
                if name == 'keras': os.write(2, note)
        sys.meta_path.insert(0, Finder())
        k.load_tensorflow()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 1 and "the library is broken" in done.stderr and "Traceback" in done.stderr


def test_other_words_than_tensorflows_come_through(capfd):
    with quiet_stderr():
        os.write(2, b"I0000 00:00:1795398260.354819   21006 device_compiler.h:196] Compiled cluster using XLA!\n")
        os.write(2, b"somebody else's words\n")
        with quiet_stderr(): os.write(2, b"inner\n")
    assert capfd.readouterr().err == "somebody else's words\ninner\n"


def test_a_process_without_stderr():
    code = """if True:
        import os
        os.close(2)
        from gesture_nb.models.quiet_tensorflow import quiet_stderr
        with quiet_stderr(): print('went on')
    """
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout == "went on\n"


def test_many_threads_may_ask_for_tensorflow_at_once():
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_tensorflow())) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1


@pytest.mark.soak   # `test_resume` kills the whole program inside an epoch of this net
def test_killed_in_an_epoch_and_resumed_ends_at_the_same_bytes(tmp_path):
    code = """
        import os, pathlib, signal
        folder, die_at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
        class Killer:
            "Kills this very process, as the system would, at a step of the whole training."
            steps = 0
            def training(self, *a, **kw): return self
            def __enter__(self): return self
            def __exit__(self, *e): pass
            def say(self, *a, **kw): pass
            def start_epoch(self, epoch, *done): print('epoch', epoch, flush=True)
            def step(self, loss, lr):
                self.steps += 1
                if self.steps == die_at: os.kill(os.getpid(), signal.SIGKILL)
            def end_epoch(self, **kw): pass
        m = member()
        m.fit(train(), reporter=Killer(), checkpoint=FolderCheckpoint(folder / 'checkpoint'))
        (folder / 'out').mkdir()
        m.save(folder / 'out')
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert run(code, whole, -1).returncode == 0
    for die_at in (8, 4): assert run(code, broken, die_at).returncode == -signal.SIGKILL
    last = run(code, broken, -1)
    assert last.returncode == 0 and "epoch 1\n" not in last.stdout and "epoch 6\n" in last.stdout
    for name in ("weights.safetensors", "member.json"):
        assert (whole / "out" / name).read_bytes() == (broken / "out" / name).read_bytes()


def test_a_request_to_stop_saves_the_step_and_the_rest_is_the_same(fitted, tmp_path):
    m, b = fitted
    checkpoint, stop = FolderCheckpoint(tmp_path), StopSignal()
    class Asking:
        def training(self, *a, **k): return self
        def __enter__(self): return self
        def __exit__(self, *e): return False
        def say(self, text): pass
        def start_epoch(self, epoch, *done): self.epoch, self.count = epoch, 0
        def step(self, loss, lr):
            self.count += 1
            if (self.epoch, self.count) == (2, 2): assert stop.request()
        def end_epoch(self, **metrics): pass
    with pytest.raises(KeyboardInterrupt):
        KerasMember(Settings(), 1, 0, SMALL).fit(b, reporter=Asking(), checkpoint=checkpoint, stop=stop)
    assert checkpoint.load()[1]["inside"][0] == 2 and not stop.requested
    again = KerasMember(Settings(), 1, 0, SMALL)
    history = again.fit(b, checkpoint=checkpoint, stop=stop)
    assert all(np.array_equal(x, y) for x, y in zip(again.weights["ema"], m.weights["ema"]))
    assert history["lr"] == [one_cycle(3 * epoch - 1, 9, SMALL.lr) for epoch in (1, 2, 3)]


@pytest.mark.soak   # loader and loop are those of the convolutional net, whose bytes are compared in `make test`
def test_workers_do_not_change_the_bytes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(COMMON + textwrap.dedent("""
        if __name__ == '__main__':
            from gesture_nb.artifacts import fingerprint
            m = member(epochs=2, dl_num_workers=int(sys.argv[1]))
            m.fit(train())
            print(fingerprint(*m.weights['ema']))
    """))
    commands = [[sys.executable, script, workers] for workers in "02"]
    prints = [subprocess.run(command, capture_output=True, text=True, timeout=600) for command in commands]
    assert [p.returncode for p in prints] == [0, 0], prints[1].stderr
    assert prints[0].stdout == prints[1].stdout != ""


def test_answers_do_not_depend_on_the_company(fitted):
    m, b = fitted
    p = m.predict_proba(b)
    assert p.shape == (45, 3) and p.dtype == np.float32 and np.allclose(p.sum(1), 1, atol=1e-6)
    alone = np.concatenate([m.predict_proba(b.take([i])) for i in (0, 7, 44)])
    assert np.allclose(alone, p[[0, 7, 44]], atol=1e-6)
    assert m.predict_proba(b.take(np.arange(0))).shape == (0, 3)


def test_any_length_is_answered(fitted):
    m, _ = fitted
    for lengths in ([1], [5000], [1, 2, 24, 400]):
        p = m.predict_proba(ragged(lengths))
        assert np.isfinite(p).all() and p.shape == (len(lengths), 3)


def test_gaps_in_labels_and_tiny_sets():
    b = ragged([30, 31, 32], classes=5)
    m = KerasMember(Settings(), 1, 0, SMALL)
    m.fit(b)
    assert np.allclose(m.predict_proba(b).sum(1), 1, atol=1e-6)


def test_folds_live_side_by_side(fitted, tmp_path):
    m, b = fitted
    before = m.predict_proba(b)
    other = KerasMember(Settings(), 1, 3, SMALL)
    other.fit(ragged([64] * 20, classes=4, features=6))
    m.save(tmp_path)
    assert np.array_equal(m.predict_proba(b), before)
    assert np.array_equal(KerasMember.load(tmp_path).predict_proba(b), before)


def test_learning_curves_are_losses_of_the_answers(monkeypatch):
    monkeypatch.setattr(training_loop, "MOST_LEFT_OUT", 1 / 6)
    b = ragged(np.resize([20, 31, 25], 60))
    b = Batch(b.frames, b.index, b.classes, b.y, np.resize(list("abcdef"), 60))
    check = b.subjects == "a"
    m = KerasMember(Settings(epochs=4, batch_size=16), 1, 0, SMALL)
    history = m.fit(b, inner_split=(np.flatnonzero(~check), np.flatnonzero(check)))
    assert history["check"]["people"] == ["a"] and history["check_loss"][1:] == [None] * 3
    known = check_part(b, (np.flatnonzero(~check), np.flatnonzero(check)), 4, 0).known
    p = m.predict_proba(b)[known, b.y[known]].astype(float)
    assert np.isclose(history["fit_loss"][-1], -np.log(p).mean(), atol=1e-4)


def test_settings_come_first():
    schedule = make_schedule(SMALL, Settings(epochs=7, batch_size=10), 95)
    assert schedule == Schedule(epochs=7, batch_size=10, steps=10, total_steps=70)
    assert KerasMember(Settings(epochs=7), 0, 0, SMALL).hyperparameters(ragged([20] * 45))["total_steps"] == 21


def test_the_learning_rate_is_reported(fitted):
    seen = []
    class Spy:
        def training(self, label, fold, epochs, steps):
            seen.append((label, fold, epochs, steps))
            return self
        def __enter__(self): return self
        def __exit__(self, *e): pass
        def say(self, text): pass
        def start_epoch(self, epoch, *done): pass
        def step(self, loss, lr): seen.append((loss, lr))
        def end_epoch(self, **metrics): pass
    KerasMember(Settings(), 1, 1, SMALL).fit(fitted[1], reporter=Spy())
    assert seen[0] == ("Keras", 2, 3, 3)
    assert [lr for _, lr in seen[1:]] == [one_cycle(t, 9, SMALL.lr) for t in range(9)]


def test_threads_of_pytorch_are_given_back(fitted):
    import torch
    before = torch.get_num_threads()
    KerasMember(Settings(epochs=1), 1, 1, SMALL).fit(fitted[1])
    assert torch.get_num_threads() == before


def test_damage_is_named(fitted, tmp_path):
    fitted[0].save(tmp_path)
    (tmp_path / "member.json").write_text('{"seed": 1, "fold": 0}')
    with pytest.raises(UserError, match="member.json"): KerasMember.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="weights.safetensors"): KerasMember.load(tmp_path)


def test_an_error_while_training_reaches_the_caller(fitted):
    class Broken:
        def training(self, *a, **k): return self
        def __enter__(self): return self
        def __exit__(self, *e): return False
        def say(self, text): pass
        def start_epoch(self, epoch, *done): pass
        def step(self, loss, lr): raise RuntimeError("the bar fell over")
    with pytest.raises(RuntimeError, match="the bar fell over"):
        KerasMember(Settings(), 1, 1, SMALL).fit(fitted[1], reporter=Broken())
