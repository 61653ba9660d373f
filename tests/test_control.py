"""Stopping in order: requests, deadlines and signals end a training between two steps, after it saved its state."""
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from gesture_nb.control import NOTHING_LEFT, StopSignal, TimeUp

class Training:
    """Takes `steps` steps; `at` maps steps to what happens during them."""
    def __init__(self, stop, steps=5):
        self.stop, self.steps, self.done, self.saved = stop, steps, 0, []

    def save(self):
        self.saved.append(self.done)

    def run(self, at=None):
        with self.stop.polled():
            for step in range(1, self.steps + 1):
                if at and step in at:
                    at[step]()
                self.done = step
                if step < self.steps:
                    self.stop.check(self.save)
        return self.done


# ------------------------------------------------------------------ requests

def test_nothing_asked_nothing_happens():
    training = Training(StopSignal())
    assert training.run() == 5 and training.saved == []


def test_a_request_saves_after_its_step_and_interrupts():
    stop = StopSignal()
    training = Training(stop)
    with pytest.raises(KeyboardInterrupt):
        training.run({3: stop.request})
    assert training.done == 3 and training.saved == [3]


def test_a_request_is_cleared_once_it_is_met():
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt):
        Training(stop).run({1: stop.request})
    assert not stop.requested
    assert Training(stop).run() == 5


def test_a_request_is_refused_where_nothing_polls_and_the_second_time():
    stop, answers = StopSignal(), []
    assert stop.request() is False and not stop.requested
    with pytest.raises(KeyboardInterrupt):
        Training(stop).run({2: lambda: answers.extend([stop.request(), stop.requested, stop.request()])})
    assert answers == [True, True, False]
    assert stop.request() is False


def test_a_request_while_it_saves_is_met_at_once():
    stop = StopSignal(deadline=time.monotonic() - 1)
    with pytest.raises(KeyboardInterrupt), stop.polled():
        stop.check(save=stop.request)


def test_a_request_in_the_last_step_is_met_when_the_training_is_over():
    stop = StopSignal()
    training = Training(stop)
    with pytest.raises(KeyboardInterrupt):
        training.run({5: stop.request})
    assert training.done == 5 and training.saved == [] and not stop.requested


def test_an_error_of_the_training_is_not_masked():
    stop = StopSignal()

    def fail():
        stop.request()
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        Training(stop).run({2: fail})
    assert stop.request() is False, "nothing polls any more"


def test_trainings_may_nest_and_run_in_threads():
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop.polled():
        with stop.polled():
            pass
        assert stop.request()
        stop.check()
    threads = [threading.Thread(target=Training(stop, steps=300).run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stop.request() is False


def test_any_thread_may_ask():
    stop = StopSignal()
    training = Training(stop, steps=10**9)
    threading.Timer(0.05, stop.request).start()
    with pytest.raises(KeyboardInterrupt):
        training.run({n: lambda: time.sleep(0.01) for n in range(1, 1000)})
    assert training.saved == [training.done]


# ------------------------------------------------------------------ the clock

def test_the_deadline_saves_and_says_that_the_time_is_up():
    stop = StopSignal()
    training = Training(stop)

    def pass_deadline():
        stop.deadline = time.monotonic() - 1
        assert stop.requested
    with pytest.raises(TimeUp):
        training.run({2: pass_deadline})
    assert training.done == 2 and training.saved == [2]


def test_the_last_step_of_all_is_no_reason_to_stop():
    assert Training(StopSignal(deadline=time.monotonic() - 1), steps=1).run() == 1


def test_what_cannot_save_is_ended_by_the_clock_too():
    with pytest.raises(TimeUp):
        StopSignal(deadline=time.monotonic() - 1).check()


def test_who_asks_when_the_time_is_up_gets_the_interrupt():
    stop = StopSignal(deadline=time.monotonic() - 1)
    with pytest.raises(KeyboardInterrupt):
        Training(stop).run({1: stop.request})


# ------------------------------------------------------------------ signals

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_wait_for_the_end_of_a_step(number):
    stop, printed = StopSignal(), []
    training = Training(stop)
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(KeyboardInterrupt), stop.on_signals(printed.append):
        training.run({3: lambda: os.kill(os.getpid(), number)})
    assert training.saved == [3]
    assert len(printed) == 1 and "goes on from the last checkpoint" in printed[0]
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_interrupt_at_once_where_nothing_polls(number):
    stop, printed = StopSignal(), []
    with pytest.raises(KeyboardInterrupt), stop.on_signals(printed.append):
        os.kill(os.getpid(), number)
        pytest.fail("went on")
    assert len(printed) == 1


def test_a_block_in_a_block_says_its_line_once():
    printed = []
    with pytest.raises(KeyboardInterrupt), StopSignal().on_signals(printed.append):
        with StopSignal().on_signals(printed.append, NOTHING_LEFT): os.kill(os.getpid(), signal.SIGTERM)
    assert printed == [NOTHING_LEFT]


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)   # as under nohup
    try:
        with StopSignal().on_signals(pytest.fail): os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, before)


def test_the_second_signal_interrupts_at_once():
    stop = StopSignal()
    training = Training(stop)

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop.on_signals(lambda text: None):
        training.run({3: twice})
    assert training.saved == [] and training.done == 2


def test_other_threads_leave_the_handlers_alone():
    stop, before, seen = StopSignal(), signal.getsignal(signal.SIGTERM), []

    def inside():
        with stop.on_signals(print):
            seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


SCRIPT = """
import time
from gesture_nb.control import StopSignal
stop = StopSignal()
with stop.on_signals(lambda text: print(text, flush=True)), stop.polled():
    print('ready', flush=True)
    for step in range(10**6):
        time.sleep(0.01)
        stop.check(lambda: print('saved', flush=True))
"""


def test_a_process_that_is_terminated_saves_and_ends():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    p = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, **pipes)
    assert p.stdout.readline() == "ready\n"
    p.terminate()
    out, err = p.communicate(timeout=60)
    assert out.splitlines()[0] == "saved" and "Interrupted" in out
    assert "Traceback" not in err and p.returncode == 130


# ------------------------------------------------------------------ where Python would lose what a handler raises

def test_a_signal_inside_an_import_is_met_after_it(tmp_path, monkeypatch):
    """Half a library, as of pandas or PyTorch, fails whoever imports it next."""
    (tmp_path / "interrupted_library.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interrupted_library", raising=False)
    printed = []
    with pytest.raises(KeyboardInterrupt), StopSignal().on_signals(printed.append, NOTHING_LEFT):
        import interrupted_library
        time.sleep(20)
        pytest.fail("the signal was lost")
    assert interrupted_library.whole and printed == [NOTHING_LEFT]


def test_a_signal_inside_a_deletion_is_met_after_it():
    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), StopSignal().on_signals(lambda line: None):
        Deleted()
        time.sleep(20)
        pytest.fail("the signal was lost")


def test_a_signal_to_a_script_that_is_itself_imported_is_met_at_once(tmp_path, monkeypatch):
    (tmp_path / "imported_script.py").write_text(
        "import os, signal\nfrom gesture_nb.control import StopSignal\nreached = False\n"
        "def go():\n    global reached\n    with StopSignal().on_signals(lambda line: None):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        sum(range(1000))\n        reached = True\n"
        "try: go()\nexcept KeyboardInterrupt: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_script", raising=False)
    import imported_script
    assert not imported_script.reached
