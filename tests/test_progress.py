"""The reporter: exact lines at exact steps, no long silence, mute workers, a log that survives, errors once."""
import json
import os
import re
import select
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from gesture_nb.config import Settings, with_settings
from gesture_nb.control import StopSignal
from gesture_nb.errors import UserError
from gesture_nb.progress import Quiet, Reporter
from gesture_nb.registry import SINKS
from gesture_nb.remaining import Remaining
from gesture_nb.session import cancel_by
from gesture_nb.sinks import (
    Bar,
    JsonlSink,
    LineSink,
    Sink,
    TqdmSink,
    WidgetSink,
    choose_sinks,
    register_sink,
    wants_widgets,
)
from gesture_nb.tasks import format_eta, peak_memory, resident_memory

STEP = re.compile(r"\[Torch\] fold=(\d+) epoch=(\d+)/20 step=(\d+)/412 "
                  r"loss=(\d\.\d{4}) lr=(\d\.\d\de[+-]\d\d) max_mem=(\d+\.\d\d)GB")
ETA = r"ETA (?:\d\d? s|\d+\.\d min)"
COUNT = re.compile(r"Processing sequence (\d+)/(\d+)  \d+\.\d/s  " + ETA)


class Recorder(Sink):
    """Remembers all events and bars."""
    def __init__(self):
        self.events, self.bars, self.closed = [], [], []

    def on_event(self, event):
        self.events.append(event)

    def draw(self, bars):
        self.bars.append(bars)

    def close(self, failed):
        self.closed.append(failed)

    def kinds(self):
        return [e["kind"] for e in self.events]


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def log_of(folder):
    return [json.loads(s) for s in (folder / "logs" / "run.jsonl").read_text().splitlines()]


def python(code, env=None, **popen):
    """A Python that buffers its output as it does by default."""
    env = {k: v for k, v in (os.environ | (env or {})).items() if k != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, **pipes, **popen)


# ------------------------------------------------------------------ lines

def test_step_lines_come_at_one_at_every_hundred_and_at_the_last(capsys):
    with Reporter(sinks=[LineSink()]).training("Torch", fold=2, epochs=20, steps=412) as t:
        for epoch in (1, 2):
            t.start_epoch(epoch)
            for _ in range(412):
                t.step(0.5, 8e-4)
            t.end_epoch(check_acc=0.1)
    found = [STEP.fullmatch(s) for s in lines(capsys)]
    assert all(found)
    expected = [(2, e, s) for e in (1, 2) for s in (1, 100, 200, 300, 400, 412)]
    assert [(int(m[1]), int(m[2]), int(m[3])) for m in found] == expected
    assert all(0 < float(m[6]) < 100 for m in found)


def test_the_line_is_exactly_this(capsys, monkeypatch):
    monkeypatch.setattr("gesture_nb.tasks.peak_memory", lambda: 0.0)
    with Reporter(sinks=[LineSink()]).training("Torch", fold=1, epochs=20, steps=412) as t:
        t.start_epoch(2)
        for _ in range(100):
            t.step(0.51234, 8e-4)
    assert lines(capsys)[1] == "[Torch] fold=1 epoch=2/20 step=100/412 loss=0.5123 lr=8.00e-04 max_mem=0.00GB"


def test_loss_is_the_running_mean_of_the_epoch(capsys):
    reporter = Reporter(with_settings(Settings(), print_every_steps=1), sinks=[LineSink()])
    with reporter.training("Torch", epochs=20, steps=412) as t:
        t.start_epoch(1)
        for loss in (1.0, 2.0, 6.0):
            t.step(loss, 1e-3)
        t.start_epoch(2)
        t.step(4.0, 1e-3)
    assert [float(STEP.fullmatch(s)[4]) for s in lines(capsys)] == [1.0, 1.5, 3.0, 4.0]


def test_training_may_start_in_the_middle(capsys):
    recorder = Recorder()
    with Reporter(sinks=[LineSink(), recorder]).training("Torch", fold=1, epochs=20, steps=412) as t:
        t.start_epoch(7, done=398, loss=0.25)
        for _ in range(14):
            t.step(0.25, 1e-3)
        t.end_epoch()
    found = [(int(m[2]), int(m[3]), m[4]) for m in map(STEP.fullmatch, lines(capsys))]
    assert found == [(7, 399, "0.2500"), (7, 400, "0.2500"), (7, 412, "0.2500")]
    assert recorder.bars[-2]["fold"][1:3] == (7 * 412, 20 * 412)


def test_an_epoch_that_stops_early_still_says_its_last_step(capsys):
    with Reporter(sinks=[LineSink()]).training("LightGBM", epochs=1, steps=300) as t:
        t.start_epoch(1)
        for _ in range(142):
            t.step(0.5, 0.05)
        t.end_epoch(check_loss=0.4)
    assert [s.split("step=")[1].split()[0] for s in lines(capsys)] == ["1/300", "100/300", "142/300"]


def test_boosting_counts_rounds_but_its_line_keeps_its_form(capsys):
    recorder = Recorder()
    r = Reporter(sinks=[LineSink(), recorder])
    with r.training("LightGBM", fold=1, epochs=1, steps=500, unit="round") as t:
        t.start_epoch(1)
        for _ in range(100):
            t.step(0.5, 0.05)
        assert r.activity[0].startswith("LightGBM fold 1, round 100/500, loss 0.5000, ")
    assert lines(capsys)[-1].startswith("[LightGBM] fold=1 epoch=1/1 step=100/500 loss=0.5000 lr=5.00e-02 max_mem=")
    assert recorder.bars[-1]["epoch"] == ("round", 100, 500, "loss 0.5000 lr 5.00e-02")


@pytest.mark.parametrize("seconds, expected", [
    (None, ""), (0.2, "ETA 0 s"), (59.4, "ETA 59 s"), (59.6, "ETA 1.0 min"), (5400, "ETA 90.0 min")])
def test_eta_is_in_seconds_below_a_minute(seconds, expected):
    assert format_eta(seconds) == expected


def test_without_a_gpu_memory_is_that_of_the_process():
    before = peak_memory()
    block = b"x" * (300 * 2**20)
    assert resident_memory() > 0.3 and peak_memory() >= before
    assert peak_memory() > 0.3 and len(block)
    del block
    assert peak_memory() > 0.3   # a peak stays


@pytest.mark.parametrize("block, expected", [
    (1, [1, 200, 400, 500]), (64, [1, 200, 400, 500]), (500, [1, 200, 400, 500]), (499, [1, 200, 400, 500])])
def test_counted_tasks_speak_first_at_multiples_and_last(capsys, block, expected):
    with Reporter(sinks=[LineSink()]).task("Frame features", total=500) as t:
        for a in range(0, 500, block):
            t.advance(min(block, 500 - a))
    title, *rest = lines(capsys)
    assert title == "Frame features"
    assert [(int(m[1]), int(m[2])) for m in map(COUNT.fullmatch, rest)] == [(n, 500) for n in expected]


def test_a_task_that_ends_short_says_how_far_it_came(capsys):
    with Reporter(sinks=[LineSink()]).task("", total=500) as t:
        t.advance(1)
        t.advance(30)
    assert [COUNT.fullmatch(s)[1] for s in lines(capsys)] == ["1", "31"]


def test_stdout_is_looked_up_each_time(monkeypatch, capsys):
    import io
    r = Reporter(sinks=[LineSink()])
    r.say("before")
    with monkeypatch.context() as m:
        other = io.StringIO()
        m.setattr(sys, "stdout", other)
        r.say("inside")
        m.setattr(sys, "stdout", None)
        r.say("nowhere")
    r.say("after")
    assert other.getvalue() == "inside\n" and lines(capsys) == ["before", "after"]


def test_lines_arrive_at_once_through_a_pipe():
    p = python("import sys\nfrom gesture_nb.progress import *\nReporter().say('Loading')\nsys.stdin.readline()",
               stdin=subprocess.PIPE)
    try:
        assert select.select([p.stdout], [], [], 60)[0], "the line was kept back"
        assert p.stdout.readline() == "Loading\n" and p.poll() is None
    finally:
        p.communicate("\n")


def test_a_reader_that_leaves_does_not_stop_the_run(tmp_path):
    p = python("import sys\nfrom gesture_nb.progress import *\n"
               f"r = Reporter(folder={str(tmp_path)!r})\nr.say('one')\nsys.stdin.readline()\n"
               "for i in range(5): r.say('more')\nprint('by hand')\nr.event('end')", stdin=subprocess.PIPE)
    p.stdout.readline()
    p.stdout.close()
    p.stdin.write("\n")
    p.stdin.close()
    assert p.wait(60) == 0 and p.stderr.read() == ""
    p.stderr.close()
    assert [e["kind"] for e in log_of(tmp_path)] == ["say", "say", "warning", *["say"] * 4, "end"]


def test_a_terminal_without_the_letters_gets_question_marks():
    p = python("from gesture_nb.progress import *\nReporter().say('40 °C …')", env={"PYTHONIOENCODING": "ascii"})
    assert p.communicate(timeout=60) == ("40 ?C ?\n", "")


# ------------------------------------------------------------------ heartbeat

def arrivals(p):
    """(seconds, line) as they come."""
    return [(time.monotonic(), s.rstrip("\n")) for s in p.stdout]


@pytest.mark.parametrize("work", ["time.sleep(5)", "while time.monotonic() < end: sum(range(1000))"])
def test_no_silence_is_longer_than_the_heartbeat(work):
    p = python("import time\nend = time.monotonic() + 5\n"
               "from gesture_nb.progress import *\nfrom gesture_nb.config import read_settings\n"
               "with Reporter(read_settings({'HEARTBEAT_SECONDS': '2'})) as r:\n"
               " r.say('begin')\n"
               " with r.task('Parsing', total=9, unit='file') as t:\n"
               f"  t.advance(3)\n  {work}\n"
               "print('end')")
    seen = arrivals(p)
    p.communicate()
    start = next(i for i, (_, s) in enumerate(seen) if s == "begin")
    gaps = [b[0] - a[0] for a, b in zip(seen[start:], seen[start + 1:])]
    beats = [s for _, s in seen if s.startswith("Still running")]
    assert max(gaps) < 4.5 and len(beats) >= 2, seen   # without a heartbeat it is 5 s; a loaded machine is late
    expected = r"Still running: Parsing, file 3/9, \d+\.\d/s, " + ETA + r", for \d\.\d s, memory \d\.\d\d GB"
    assert re.fullmatch(expected, beats[0])


def beats_of(monkeypatch, do, seconds=0.05):
    recorder = Recorder()
    r = Reporter(with_settings(Settings(), heartbeat_seconds=seconds), sinks=[recorder])
    with r:
        do(r, lambda: wait_for(recorder, recorder.kinds().count("heartbeat") + 1))
    return [e["text"] for e in recorder.events if e["kind"] == "heartbeat"]


def wait_for(recorder, n):
    end = time.monotonic() + 30
    while recorder.kinds().count("heartbeat") < n:
        assert time.monotonic() < end, "the heart stands still"
        time.sleep(0.01)


def test_the_heartbeat_says_what_is_going_on(monkeypatch):
    def do(r, beat):
        beat()
        r.say("Loading training data")
        beat()
        r.plan(15)
        r.unit_done("LightGBM fold 1")
        with r.training("Torch", fold=2, epochs=3, steps=4) as t:
            beat()
            t.start_epoch(2)
            t.step(0.5, 1e-3)
            beat()
    printed = beats_of(monkeypatch, do)
    for part in ("at work", "Loading training data", "Torch fold 2",
                 "Torch fold 2, epoch 2/3, step 1/4, loss 0.5000, ", "1 of 15 units done"):
        assert any(part in s for s in printed), printed


def test_the_heartbeat_rests_while_lines_flow_and_stops_at_the_end():
    recorder = Recorder()
    with Reporter(with_settings(Settings(), heartbeat_seconds=20), sinks=[recorder]) as r:
        with r:  # entering twice is fine
            r.say("a")
        assert r.heartbeat.thread.is_alive()
    assert "heartbeat" not in recorder.kinds() and recorder.kinds() == ["open", "say", "close"]
    assert recorder.closed == [False]
    assert not [t for t in threading.enumerate() if t.name == "heartbeat"]


def test_a_heart_that_fails_is_heard_of(monkeypatch):
    def arrhythmia(heart):
        raise RuntimeError("arrhythmia")
    seen, hook = [], threading.excepthook
    threading.excepthook = lambda a: seen.append(a.exc_value)
    monkeypatch.setattr("gesture_nb.progress.Heartbeat._beat", arrhythmia)
    settings = with_settings(Settings(), heartbeat_seconds=0.05)

    def wait_for_failure(n):
        end = time.monotonic() + 30
        while len(seen) < n:
            assert time.monotonic() < end, "the heart beats on"
            time.sleep(0.01)
    try:
        with pytest.raises(RuntimeError, match="arrhythmia"), Reporter(settings, sinks=[Recorder()]):
            wait_for_failure(1)
        with pytest.raises(KeyError) as caught, Reporter(settings, sinks=[Recorder()]):
            wait_for_failure(2)
            raise KeyError("work")  # the error of the work itself is not masked
    finally:
        threading.excepthook = hook
    assert [str(e) for e in seen] == ["arrhythmia"] * 2 and "arrhythmia" in caught.value.__notes__[0]


def test_a_reporter_left_open_lets_the_process_end():
    p = python("import time\nfrom gesture_nb.progress import *\nfrom gesture_nb.config import read_settings\n"
               "r = Reporter(read_settings({'HEARTBEAT_SECONDS': '0.01'}))\nr.__enter__()\ntime.sleep(0.3)")
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0 and err == "" and "Still running" in out


# ------------------------------------------------------------------ processes

WORKERS = """
import multiprocessing as mp, os, sys, time
sys.path.insert(0, {root!r})
from gesture_nb.progress import Reporter
from gesture_nb.config import read_settings

def work(r):
    with r, r.task('in a worker', total=2) as t:
        r.say('worker speaks')
        t.advance(1)
        time.sleep(0.3)
        t.advance(1)
    with r.training('W', 1, 1, 1) as t:
        t.start_epoch(1)
        t.step(1.0, 1.0)

if __name__ == '__main__':
    r = Reporter(read_settings({{'HEARTBEAT_SECONDS': '0.02'}}), {out!r})
    with r:
        for _ in range(5):
            p = mp.get_context({method!r}).Process(target=work, args=(r,))
            p.start()
            p.join(60)
            assert p.exitcode == 0, p.exitcode
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_are_mute_and_never_hang(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(WORKERS.format(root=str(ROOT), out=str(tmp_path), method=method))
    p = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    assert p.stderr == "" and "worker" not in p.stdout and "Still running" in p.stdout
    events = log_of(tmp_path)
    assert len({e["pid"] for e in events}) == 1 and {e["kind"] for e in events} == {"open", "heartbeat", "close"}
    assert p.stdout.count("\n") == sum("text" in e for e in events)


FORKS = """
import os, signal
from gesture_nb.progress import Reporter
from gesture_nb.config import read_settings
with Reporter(read_settings({'HEARTBEAT_SECONDS': '0.01'})) as r:
    r.heartbeat.patience = 0  # the heart races
    for i in range(200):
        child = os.fork()
        if not child:
            signal.alarm(5)
            print('child', flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, 'a child inherited a locked stdout'
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_never_inherits_a_locked_stdout():
    p = python(FORKS)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    assert out.count("child") == 200


def test_two_processes_share_a_log(tmp_path):
    code = (f"from gesture_nb.progress import *\nr = Reporter(folder={str(tmp_path)!r})\n"
            "for i in range(500): r.event('tick', i=i, pad='x' * 300)")
    both = [python(code), python(code)]
    assert [p.wait(60) for p in both] == [0, 0]
    for p in both:
        p.communicate()
    events = log_of(tmp_path)
    for p in both:
        assert [e["i"] for e in events if e["pid"] == p.pid] == list(range(500))


# ------------------------------------------------------------------ the log

def test_an_event_has_its_head_and_all_its_fields(tmp_path):
    import numpy as np
    r = Reporter(sinks=[JsonlSink(tmp_path / "logs" / "run.jsonl")])
    before = time.time()
    r.event("epoch", loss=float("nan"), acc=np.float32(0.5), y=np.arange(2), when=tmp_path, kind_=1, pid=7,
            odd="\udc80", n=np.int64(3))
    e, = log_of(tmp_path)
    assert before <= e["time"] <= time.time() and 0 <= e["t"] < 60
    assert e["pid"] == os.getpid() and e["kind"] == "epoch"
    assert (e["loss"], e["acc"], e["y"], e["when"], e["pid_"], e["n"]) == ("nan", 0.5, [0, 1], str(tmp_path), 7, 3)


def test_the_log_keeps_steps_between_the_lines(tmp_path, capsys):
    r = Reporter(with_settings(Settings(), progress="lines"), tmp_path)
    with r.training("Torch", fold=1, epochs=20, steps=412) as t:
        t.start_epoch(1)
        for _ in range(412):
            t.step(0.5, 1e-3)
        t.end_epoch(check_loss=0.4, check_acc=0.9)
    events = log_of(tmp_path)
    assert [e["step"] for e in events if e["kind"] == "step"] == [1, 50, 100, 150, 200, 250, 300, 350, 400, 412]
    assert [e["text"] for e in events if "text" in e] == lines(capsys)
    epoch, = [e for e in events if e["kind"] == "epoch"]
    assert (epoch["epoch"], epoch["loss"], epoch["check_loss"], epoch["check_acc"]) == (1, 0.5, 0.4, 0.9)


@pytest.mark.parametrize("torn", ['{"kind": "st', '{"kind": "step"}', "\n\n{", "{\xff"])
def test_a_torn_last_line_does_not_spoil_the_next(tmp_path, torn):
    path = tmp_path / "logs" / "run.jsonl"
    path.parent.mkdir()
    path.write_text('{"kind": "say"}\n' + torn)
    r = Reporter(sinks=[JsonlSink(path)])
    r.event("one")
    r.event("two")
    written = path.read_text().splitlines()
    assert [json.loads(s)["kind"] for s in written[-2:]] == ["one", "two"] and written[-3] == torn.splitlines()[-1]


def test_a_log_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(UserError, match="run.jsonl.*--out.*SAVE_JSONL=0"):
        Reporter(folder=tmp_path).event("x")


def test_a_full_disk_is_told_once_and_the_run_goes_on(capsys, tmp_path, monkeypatch):
    import errno
    log = JsonlSink(tmp_path / "run.jsonl")
    r = Reporter(sinks=[log, LineSink()])
    r.say("line 0")

    def full(self, data): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(JsonlSink, "_append", full)
    for i in (1, 2):
        r.say(f"line {i}")
    printed = lines(capsys)
    assert [s for s in printed if s.startswith("line")] == ["line 0", "line 1", "line 2"]
    assert [s for s in printed if not s.startswith("line")] == [
        f"Cannot write the log {log.path}: No space left on device. The run goes on, but its log has a gap."]


def link_to(path):
    path.with_name("other").write_text("")
    path.symlink_to(path.with_name("other"))


IN_THE_WAY = {"link": link_to, "pipe": os.mkfifo, "folder": os.mkdir,
              "dangling link": lambda path: path.symlink_to("/nowhere"),
              "device": lambda path: path.symlink_to("/dev/null")}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_log_is_a_regular_file_or_the_run_is_refused(tmp_path, kind):
    (tmp_path / "logs").mkdir()
    IN_THE_WAY[kind](tmp_path / "logs" / "run.jsonl")
    with pytest.raises(UserError, match="Cannot write the log .*run.jsonl: it is a (link|pipe|folder).*SAVE_JSONL=0"):
        Reporter(folder=tmp_path).event("x")
    assert not any(p.is_file() and p.stat().st_size for p in tmp_path.rglob("*"))


def test_a_linked_folder_of_logs_is_refused_and_a_linked_run_folder_is_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    Reporter(folder=tmp_path / "run", sinks=None).event("x")
    assert len(log_of(tmp_path / "elsewhere")) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "logs").symlink_to(tmp_path / "elsewhere" / "logs")
    with pytest.raises(UserError, match="other/logs is a link"):
        Reporter(folder=tmp_path / "other").event("x")
    assert len(log_of(tmp_path / "elsewhere")) == 1


def test_no_file_handle_is_left(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("there is no /proc")
    for _ in range(50):
        with Reporter(with_settings(Settings(), progress="lines"), tmp_path) as r:
            r.event("x")
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert sum(e["kind"] == "x" for e in log_of(tmp_path)) == 50


# ------------------------------------------------------------------ errors

def test_an_error_leaves_its_traceback_once_and_goes_on(tmp_path):
    r = Reporter(sinks=[JsonlSink(tmp_path / "logs" / "run.jsonl")])
    with pytest.raises(ZeroDivisionError), r, r.task("outer"), r.training("Torch", 1, 2, 3) as t:
        t.start_epoch(1)
        t.step(1 / 0, 1.0)
    events = log_of(tmp_path)
    error, = [e for e in events if e["kind"] == "error"]
    assert error["type"] == "ZeroDivisionError" and error["title"] == "Torch fold 1"
    assert "t.step(1 / 0, 1.0)" in error["traceback"]
    ends = [(e["kind"], e["failed"]) for e in events if "failed" in e]
    assert ends == [("training_end", True), ("task_end", True), ("close", True)]
    assert r.stack == []


def test_threads_may_speak_together():
    class Alone(Recorder):
        inside = clashes = 0

        def on_event(self, event):
            self.clashes += self.inside
            self.inside = 1
            time.sleep(0.0005)
            super().on_event(event)
            self.inside = 0
    recorder = Alone()
    r = Reporter(with_settings(Settings(), print_every_steps=1), sinks=[recorder])

    def train(fold):
        with r.training("T", fold=fold, epochs=1, steps=200) as t:
            t.start_epoch(1)
            for i in range(200):
                t.step(float(i), 1.0)
    threads = [threading.Thread(target=train, args=(k,)) for k in (1, 2, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for fold in (1, 2, 3):
        steps = [e["step"] for e in recorder.events if e["kind"] == "step" and e["fold"] == fold]
        assert steps == list(range(1, 201))
    assert recorder.clashes == 0


def test_quiet_is_quiet(capsys):
    with Quiet() as r:
        r.plan(2)
        r.say("hush")
        with r.task("x", 3) as t:
            t.advance(3)
        with r.training("T", 1, 1, 1) as t:
            t.start_epoch(1)
            t.step(1.0, 1.0)
            t.end_epoch()
        r.unit_done("x")
        assert r.heartbeat.thread is None
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------ sinks

@pytest.mark.parametrize("progress, environ, kernel, expected", [
    ("auto", {}, True, True), ("auto", {}, False, False), ("auto", {"IN_TEST": "1"}, True, False),
    ("auto", {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, True, False),
    ("auto", {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, True, True),
    ("lines", {}, True, False), ("widgets", {"IN_TEST": "1"}, True, True),
    ("widgets", {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, True, True), ("widgets", {}, False, False)])
def test_when_bars_are_widgets(progress, environ, kernel, expected):
    assert wants_widgets(progress, environ, kernel) is expected


def test_settings_choose_the_sinks(tmp_path, monkeypatch):
    def names(folder=None, **changes):
        return [type(s).__name__ for s in choose_sinks(with_settings(Settings(), **changes), folder)]
    assert names() == ["LineSink"] and names(tmp_path) == ["LineSink", "JsonlSink"]
    assert names(tmp_path, save_jsonl=False) == ["LineSink"]
    assert names(use_tqdm=True) == ["TqdmSink", "LineSink"]
    monkeypatch.setattr("gesture_nb.sinks.in_kernel", lambda: True)
    monkeypatch.delenv("IN_TEST", raising=False)
    assert names() == ["WidgetSink"] and names(progress="lines") == ["LineSink"]
    assert names(use_tqdm=True) == ["TqdmSink", "LineSink"]
    monkeypatch.setattr("gesture_nb.sinks.in_kernel", lambda: False)
    monkeypatch.setattr("gesture_nb.sinks.is_terminal", lambda: True)
    assert names(tmp_path) == ["TerminalSink", "JsonlSink"] and names(progress="lines") == ["LineSink"]
    assert names(use_tqdm=True) == ["TqdmSink", "LineSink"]
    assert not (tmp_path / "logs").exists()


def test_a_registered_sink_comes_last_in_every_run(tmp_path):
    class Mine(Recorder):
        pass
    made, known = [], SINKS.names()

    def factory(settings, folder):
        made.append((settings, folder))
        return Mine() if settings.save_jsonl else None
    register_sink("mine", factory, "a test")
    try:
        sinks = Reporter(folder=tmp_path).sinks
        assert [type(s).__name__ for s in sinks] == ["LineSink", "JsonlSink", "Mine"]
        assert [type(s).__name__ for s in choose_sinks(with_settings(Settings(), save_jsonl=False))] == ["LineSink"]
        assert made == [(Settings(), tmp_path), (with_settings(Settings(), save_jsonl=False), None)]
        with pytest.raises(UserError, match="sink 'mine' already"):
            register_sink("mine", LineSink)
        with pytest.raises(UserError, match="must be given as a function"):
            register_sink("other", LineSink())
    finally:
        SINKS.unregister("mine")
    assert SINKS.names() == known == ("bars", "lines", "log", "tensorboard", "mlflow", "wandb")


def test_extra_sinks_hear_everything_too(capsys):
    recorder, extra = Recorder(), Recorder()
    with Reporter(sinks=[recorder], extra_sinks=[extra]) as r:
        r.say("hello")
    assert recorder.kinds() == extra.kinds() == ["open", "say", "close"]
    assert [type(s).__name__ for s in Reporter(extra_sinks=[extra]).sinks] == ["LineSink", "Recorder"]


class Faulty(Recorder):
    """Raises in one of its methods, from the second call on."""
    def __init__(self, method, error=RuntimeError("the tape\nis torn")):
        super().__init__()
        self.method, self.error, self.calls = method, error, 0

    def _call(self, method):
        if method != self.method: return
        self.calls += 1
        if self.calls > (method != "close"): raise self.error

    def on_event(self, event):
        self._call("on_event")

    def draw(self, bars):
        self._call("draw")

    def close(self, failed):
        self._call("close")


@pytest.mark.parametrize("method", ["on_event", "draw", "close"])
@pytest.mark.parametrize("error", [RuntimeError("the tape\nis torn"), UserError("no"), OSError(28, "full"),
                                   MemoryError()], ids=lambda e: type(e).__name__)
def test_a_sink_that_fails_is_left_out_and_the_run_goes_on(tmp_path, capsys, method, error):
    recorder, faulty = Recorder(), Faulty(method, error)
    r = Reporter(with_settings(Settings(), progress="lines"), tmp_path, extra_sinks=[faulty, recorder])
    run_all(r)
    line, = [s for s in lines(capsys) if "Faulty" in s]
    assert line.startswith(f"The sink Faulty failed and is left out from now on: {type(error).__name__}: ")
    assert sum(e.get("text") == line for e in log_of(tmp_path)) == 1
    assert recorder.kinds()[-1] == "close" or method == "close"
    assert recorder.closed == [False] and faulty not in r.sinks and recorder in r.sinks
    spoken = faulty.calls
    r.say("more")
    assert faulty.calls == spoken


def test_a_sink_may_refuse_a_run_at_its_first_event():
    class Strict(Sink):
        def on_event(self, event): raise UserError("not with me")
    with pytest.raises(UserError, match="not with me"), Reporter(sinks=[Strict()]): pass


ERRORS = {"OSError": OSError(28, "full"), "ValueError": ValueError("closed"), "pipe": BrokenPipeError(),
          "SystemError": SystemError()}


class Stream:
    """A stream of somebody's own: what is missing or raises is told by its flaw."""
    def __init__(self, flaw):
        self.flaw, self.text = flaw, ""
        if flaw == "no encoding": self.write = lambda text: text.encode("ascii") and None
        if flaw.startswith("flush "): self.flush = self._fail

    def write(self, text):
        if self.flaw.startswith("write "): self._fail()
        self.text += text

    def _fail(self): raise ERRORS[self.flaw.split()[1]]


FLAWS = ["no flush", "no encoding"] + [f"{method} {error}" for method in ("write", "flush") for error in ERRORS]


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_no_stream_ends_a_run(tmp_path, monkeypatch, flaw, name):
    stream = Stream(flaw)
    r = Reporter(with_settings(Settings(), use_tqdm=True), tmp_path)
    with monkeypatch.context() as m:
        m.setattr(sys, name, stream)
        r.say("40 °C")
        run_all(r)
    events = log_of(tmp_path)
    assert [e["kind"] for e in events].count("unit") == 2
    told = [e["text"] for e in events if e["kind"] == "warning" and "Standard output" in e["text"]]
    assert len(told) == (name == "stdout" and not flaw.startswith("no "))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("out", [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&- <&-"])
@pytest.mark.parametrize("tqdm", [False, True])
def test_no_descriptor_ends_a_run_or_changes_its_exit_code(tmp_path, out, tqdm):
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom test_progress import *\n"
            f"run_all(Reporter(with_settings(Settings(), use_tqdm={tqdm}), {str(tmp_path)!r}))")
    p = subprocess.run(["bash", "-c", f'"$@" {out}', "_", sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                       text=True)
    assert p.returncode == 0 and "Exception ignored" not in p.stderr and "Traceback" not in p.stderr, p.stderr
    events = log_of(tmp_path)
    assert events[-1]["kind"] == "close"
    told = [e["text"] for e in events if "Standard output takes no lines (No space left" in e.get("text", "")]
    assert len(told) == out.startswith(">/dev/full")


def run_all(r):
    r.plan(2)
    with r:
        for fold in (1, 2):
            with r.task("Reading", total=4) as t:
                t.advance(4)
            with r.training("Torch", fold=fold, epochs=2, steps=3) as t:
                for epoch in (1, 2):
                    t.start_epoch(epoch)
                    for _ in range(3):
                        t.step(0.5, 1e-3)
                    t.end_epoch(check_acc=0.75)
            r.unit_done(f"Torch fold {fold}")


def test_widgets_show_where_the_run_is():
    shown = []
    sink = WidgetSink(show=shown.append)
    run_all(Reporter(with_settings(Settings(), log_every_steps=1), sinks=[sink]))
    box, card = shown
    rows = [list(r.children) for r in box.children[0].children]
    bars = [(b.description, b.value, b.max) for b, _ in rows]
    assert bars == [("overall", 2, 2), ("Torch fold 2", 6, 6), ("epoch 2/2", 3, 3)]
    assert rows[0][1].value == "2/2 Torch fold 2" and "check_acc 0.7500" in rows[1][1].value
    assert rows[2][1].value == "3/3 loss 0.5000 lr 1.00e-03"
    assert {b.bar_style for b, _ in rows} == {"success"}
    assert "check_acc 0.7500 (fold 1, epoch 1)" in box.children[1].value
    assert box.children[2].value.count("<polyline") == 4 and "fold 2" in box.children[2].value
    assert "[Torch] fold=2 epoch=2/2 step=3/3 loss=0.5000" in card.value and "<details>" in card.value


def test_nothing_remains_at_the_end():
    shown = []
    with Reporter(sinks=[WidgetSink(show=shown.append)]) as r:
        r.plan(1, {"Torch fold 1": 90.0}, after=60)
        assert shown[0].children[0].children[0].children[1].value == "0/1 ETA 2.5 min"
        r.unit_done("Torch fold 1")
    assert shown[0].children[0].children[0].children[1].value == "1/1 Torch fold 1"


def test_lines_before_the_plan_are_printed_and_later_ones_are_folded(capsys):
    shown = []
    with Reporter(with_settings(Settings(), log_every_steps=1), sinks=[WidgetSink(show=shown.append)]) as r:
        r.say("Gestures: 18")
        assert lines(capsys) == ["Gestures: 18"] and shown == []
        r.plan(1)
        r.say("Training <b>now</b>")
    assert lines(capsys) == [] and "Training &lt;b&gt;now&lt;/b&gt;" in shown[1].value


def test_a_panel_that_fails_gives_its_place_to_lines(capsys):
    def show(shown):
        raise RuntimeError("no front end")
    r = Reporter(sinks=[WidgetSink(show=show)])
    run_all(r)
    printed = lines(capsys)
    assert [type(s).__name__ for s in r.sinks] == ["LineSink"]
    assert any(s.startswith("The sink WidgetSink failed") for s in printed)
    assert "[Torch] fold=2 epoch=2/2 step=3/3" in printed[-1]


def test_the_button_of_the_panel_ends_a_training_with_its_state_saved():
    shown, saved, stop = [], [], StopSignal()
    r = Reporter(sinks=[WidgetSink(show=shown.append)])
    r.cancellable(cancel_by(stop))
    with pytest.raises(KeyboardInterrupt), r, r.training("Torch", 1, 1, 9) as t, stop.polled():
        r.plan(1)
        t.start_epoch(1)
        for step in range(9):
            t.step(0.5, 1e-3)
            if step == 3:
                button, = [w for w in shown[0].children if w.__class__.__name__ == "Button"]
                button.click()
            stop.check(lambda: saved.append(t.done))
    assert saved == [4] and button.disabled and len(shown[0].children) == 3
    assert "ended before it was finished" in shown[1].value
    button.disabled = False
    button.click()   # comes too late: nothing happens


def test_the_button_interrupts_what_is_no_training():
    done = subprocess.run([sys.executable, "-c", f'''
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from gesture_nb.control import StopSignal
from gesture_nb.session import cancel_by
stop = StopSignal()
try:
    with stop.on_signals(print):
        threading.Timer(.1, cancel_by(stop)).start()
        time.sleep(60)
except KeyboardInterrupt: print("ended")
'''], capture_output=True, text=True, timeout=50)
    assert done.stdout.splitlines()[-1] == "ended", done.stderr


def test_a_panel_draws_at_intervals_and_always_at_the_end(monkeypatch):
    drawn = []
    monkeypatch.setattr("gesture_nb.panel.status", lambda story: drawn.append(story.heard) or str(len(drawn)))
    run_all(Reporter(with_settings(Settings(), log_every_steps=1), sinks=[WidgetSink(show=lambda shown: None)]))
    assert drawn[-1] == 14 and len(drawn) < 10   # of some forty times that a bar or a line changed


def test_a_timer_draws_what_came_too_early():
    shown = []
    sink = WidgetSink(show=shown.append)
    for done in (1, 2):
        sink.draw({"epoch": Bar("Reading", done, 4, "")})
    bar = shown[0].children[0].children[2].children[0]
    end = time.monotonic() + 20
    while bar.value < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert bar.value == 2


# ------------------------------------------------------------------ the time that remains

def heard(*events):
    remaining = Remaining()
    for event in events:
        remaining.hear(event)
    return remaining


def plan(**more):
    return {"kind": "plan", "time": 0.0, "units": 4} | more


def unit(label, t, done, **more):
    return {"kind": "unit", "time": t, "label": label, "done": done} | more


EXPECTED = {"lgbm fold 1": 10.0, "lgbm fold 2": 10.0, "torch fold 1": 100.0, "torch fold 2": 100.0}


def test_the_time_that_remains_counts_every_stage():
    assert heard(plan(expected=EXPECTED, after=5)).seconds(4.0) == 6 + 10 + 200 + 5
    r = heard(plan(expected=EXPECTED, after=5), unit("lgbm fold 1", 20.0, 1))
    assert r.seconds(20.0) == 2 * (10 + 200) + 5
    r = heard(plan(expected=EXPECTED, after=5), *(unit(name, 10.0, k + 1) for k, name in enumerate(EXPECTED)))
    assert r.seconds(11.0) == 4 and r.seconds(99.0) is None
    r.hear({"kind": "close", "time": 12.0})
    assert r.seconds(12.0) is None


def test_units_that_were_finished_before_say_nothing_of_the_pace():
    r = heard(plan(expected={"torch fold 2": 100.0}), unit("torch fold 1", 0.1, 1, trained=False))
    assert r.seconds(0.1) == 100


def test_without_a_forecast_units_count_as_their_mean():
    assert heard(plan()).seconds(3.0) is None
    assert heard(plan(), unit("a fold 1", 10.0, 1), unit("a fold 2", 30.0, 2)).seconds(30.0) == 30


def test_the_pace_of_a_net_counts_from_where_it_was_resumed():
    r = heard(plan(units=1, expected={"torch fold 1": 1000.0}),
              {"kind": "training", "time": 0.0, "epochs": 10, "steps": 10})
    for step in (1, 10):
        r.hear({"kind": "step", "time": step, "epoch": 6, "epochs": 10, "step": step, "steps": 10})
    assert r.seconds(10.0) == 40
    r = heard(plan(units=2, expected={"torch fold 1": 1000.0, "torch fold 2": 500.0}),
              {"kind": "training", "time": 0.0, "epochs": 2, "steps": 5},
              {"kind": "step", "time": 10.0, "epoch": 1, "epochs": 2, "step": 1, "steps": 5})
    assert r.seconds(10.0) == 90 + 50


@pytest.mark.parametrize("value", [None, "x", [], {}, True, -1, float("nan"), {"a": "b"}, {"a": {}}])
def test_odd_forecasts_of_a_log_are_harmless(value):
    r = heard(plan(expected=value, after=value, units=10**12), unit("a", 1.0, 1))
    assert r.seconds(2.0) is None or r.seconds(2.0) >= 0


# ------------------------------------------------------------------ in a terminal

def test_a_terminal_has_lines_above_bars_and_nothing_global_is_touched(tmp_path):
    import pty
    code = f'''
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_progress import *
out = sys.stdout
r = Reporter(with_settings(Settings(), log_every_steps=1), {str(tmp_path)!r})
assert [type(s).__name__ for s in r.sinks] == ["TerminalSink", "JsonlSink"] and not r.say("40 °C [bold]x[/]")
run_all(r)
assert sys.stdout is out
'''
    ours, theirs = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k != "PROGRESS"} | {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}
    p = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.STDOUT, env=environ, cwd=ROOT)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:   # the other end is closed
        pass
    os.close(ours)
    assert p.wait(timeout=60) == 0, text.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    assert "40 ?C [bold]x[/]" in plain and "[Torch] fold=2 epoch=2/2 step=3/3 loss=0.5000 lr=1.00e-03 max_mem" in plain
    assert "overall" in plain and "2/2" in plain and "Torch fold 2" in plain
    assert text.rfind(b"\x1b[?25h") >= text.rfind(b"\x1b[?25l")   # the cursor is left visible


def test_tqdm_takes_the_widgets_place(capsys):
    run_all(Reporter(sinks=[TqdmSink(), LineSink()]))
    out, err = capsys.readouterr()
    assert "overall" in err and "Torch fold 2" in err and "loss 0.5000 lr 1.00e-03" in err
    assert "\r" not in out and "Processing sequence 4/4" in out


@pytest.mark.parametrize("stream", ["sys.stdout = Tee()", "sys.stdout = open('/dev/null', 'w'); sys.stdout.close()",
                                    "sys.stdout = None", "sys.stderr = Tee()", "sys.stdout = open('/dev/full', 'w')"])
def test_the_exit_is_quiet_whatever_the_streams_are(stream):
    p = python("import sys\nfrom gesture_nb.progress import *\n"
               f"class Tee:\n def write(self, text): return len(text)\n{stream}\n"
               "with Reporter() as r: r.say('one')")
    assert "Exception" not in p.communicate(timeout=60)[1] and p.returncode == 0


# ------------------------------------------------------------------ in a real kernel

def run_cells(tmp_path, *cells, expect_error=False, **environ):
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = NotebookClient(nb, kernel_name="python3", timeout=120, allow_errors=expect_error,
                            resources={"metadata": {"path": str(tmp_path)}})
    inherited = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "KAGGLE_KERNEL_RUN_TYPE")}
    client.execute(env=inherited | {"PYTHONPATH": str(ROOT)} | environ)
    return nb


def text_of(cell):
    return "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


MAKE = "import time\nfrom gesture_nb.progress import Reporter\nfrom gesture_nb.config import read_settings\n"


def test_in_a_kernel_lines_of_the_heart_land_in_the_running_cell(tmp_path):
    begin = "r = Reporter(read_settings({'HEARTBEAT_SECONDS': '0.2'}))\nr.__enter__()\nr.say('first')\ntime.sleep(1.5)"
    cells = [MAKE + begin, "r.say('second')\ntime.sleep(1.5)", "r.__exit__(None, None, None)\nprint('third')",
             "time.sleep(0.6)"]
    nb = run_cells(tmp_path, *cells, PROGRESS="lines", IN_TEST="1")
    texts = [text_of(c) for c in nb.cells]
    assert "first" in texts[0] and "Still running: first" in texts[0] and "second" not in texts[0]
    assert "Still running: second" in texts[1] and "Still running: first" not in texts[1]
    assert "third" in texts[2] and texts[3] == ""


TRAIN = MAKE + """with Reporter(read_settings()) as r:
    r.plan(1)
    with r.training('Torch', fold=1, epochs=2, steps=3) as t:
        for epoch in (1, 2):
            t.start_epoch(epoch)
            for _ in range(3): t.step(0.5, 1e-3)
            t.end_epoch()
    r.unit_done('Torch fold 1')
"""


def bars_of(nb):
    state = nb.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    bars = [v["state"] for v in state.values() if v["model_name"] == "FloatProgressModel"]
    return sorted((bar["description"], bar["value"]) for bar in bars)


def test_in_a_live_kernel_there_are_widgets_and_lines(tmp_path):
    nb = run_cells(tmp_path, TRAIN)
    assert bars_of(nb) == [("Torch fold 1", 6), ("epoch 2/2", 3), ("overall", 1)]
    panel, card = nb.cells[0].outputs   # the lines are kept in the notebook, folded away
    assert "application/vnd.jupyter.widget-view+json" in panel.data
    last = r"\[Torch\] fold=1 epoch=2/2 step=3/3 loss=0\.5000 lr=1\.00e-03 max_mem=\d+\.\d\dGB"
    assert re.search(last, card.data["text/html"]) and re.search(last, card.data["text/plain"])


@pytest.mark.parametrize("environ", [{"IN_TEST": "1"}, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, {"PROGRESS": "lines"}])
def test_headless_notebooks_have_lines_only(tmp_path, environ):
    loaded = "import sys\nprint([m for m in ('ipywidgets', 'tqdm', 'torch') if m in sys.modules])"
    nb = run_cells(tmp_path, TRAIN, loaded, **environ)
    assert bars_of(nb) == [] and all(o.output_type == "stream" for o in nb.cells[0].outputs)
    assert text_of(nb.cells[0]).count("[Torch] fold=1") == 4 and text_of(nb.cells[1]) == "[]\n"


def test_an_error_beside_widgets_fails_the_cell(tmp_path):
    nb = run_cells(tmp_path, TRAIN.replace("t.end_epoch()", "raise RuntimeError('diverged')"), expect_error=True)
    assert [o.evalue for o in nb.cells[0].outputs if o.output_type == "error"] == ["diverged"]
