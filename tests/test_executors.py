"""Units in several processes: the same bytes as in one, whatever is lost on the way."""

import os
import signal
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import wait
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest
from test_resume import content, finish, start

from gesture_nb import machine
from gesture_nb.artifacts import MANIFEST, read_arrays, write_arrays, write_sealed
from gesture_nb.config import read_settings
from gesture_nb.errors import UserError
from gesture_nb.executors import base
from gesture_nb.executors.base import Job, JobError, LostUnitError, Signals, pack, perform, result_of
from gesture_nb.executors.local import InProcess, Processes, worker_environment
from gesture_nb.executors.plan import Machine, Need, make_plan, shares_of_cores, threads_of_unit
from gesture_nb.executors.relay import CLOCK, Relay, UnitAtWork
from gesture_nb.models.base import Member, Outputs
from gesture_nb.models.registry import register_member
from gesture_nb.progress import Quiet, Reporter
from gesture_nb.registry import MEMBERS
from gesture_nb.remaining import Remaining
from gesture_nb.sinks import JsonlSink, Sink
from gesture_nb.training import gather
from gesture_nb.training.budget import make_plan as make_time_plan
from gesture_nb.training.budget import units_that_fit
from gesture_nb.training.forecast import seconds_at_once
from gesture_nb.training.gather import is_of_cluster, open_executor
from gesture_nb.training.run import train
from gesture_nb.training.units import Unit

SMALL = Need(threads=1, memory=1 << 20)
TWO = make_plan(SMALL, Machine(cores=2, memory=1 << 30), units=4, separate=True)
HERE = __name__


class Ear(Sink):
    def __init__(self):
        self.lines, self.kinds = [], Counter()

    def on_event(self, event):
        self.kinds[event["kind"]] += 1
        if event.get("text"):
            self.lines.append(event["text"])


# --- the plan


@pytest.mark.parametrize(
    ("need", "machine", "wanted", "width"),
    [
        (Need(2, 1 << 30), Machine(8, 64 << 30), None, 8),  # half of a unit's threads are busy
        (Need(2, 1 << 30), Machine(8, 3 << 30), None, 3),
        (Need(2, 1 << 30, processes=4), Machine(8, 64 << 30), None, 2),
        (Need(8, 1 << 30), Machine(8, 64 << 30), 5, 2),
        (Need(1, 1 << 30, gpus=0.5), Machine(8, 64 << 30, gpus=1), None, 2),
        (Need(1, 1 << 30, gpus=0.4), Machine(8, 64 << 30, gpus=3), None, 6),  # two on each
        (Need(16, 9 << 30), Machine(1, 1 << 30), 3, 1),  # one unit is always trained
    ],
)
def test_no_more_at_once_than_there_is_room_for(need, machine, wanted, width):
    plan = make_plan(need, machine, 20, wanted, separate=True)
    assert plan.width == width and plan.line().startswith(f"Training {width} unit")
    assert (f"{wanted} were asked for" in plan.line()) == (wanted is not None and width < wanted)
    assert make_plan(need, machine, 20, wanted).width == 1  # in this process


def test_threads_do_not_follow_from_where_a_unit_is_trained():
    assert threads_of_unit(8) == 8 and threads_of_unit(8, wanted=3) == 3 and threads_of_unit(96) == 16
    assert worker_environment(TWO, 0)["OMP_NUM_THREADS"] == "1"


def test_no_core_and_no_gpu_is_given_twice(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6, 7, 8}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    assert shares_of_cores(7, 3) == [(0, 1), (2, 3), (6, 7, 8)]
    assert shares_of_cores(7, 1) == [()]
    assert shares_of_cores(4, 2) == [(), ()]  # a quota, or OMP_NUM_THREADS, says fewer: others may use the rest
    for gpus, there, expected in ((0.4, 3, [0, 0, 1, 1, 2, 2]), (1.0, 2, [0, 1]), (1.5, 5, [0, 1, 2, 3])):
        need = Need(1, 1, gpus=gpus)
        assert [k for number in range(need.units_on(there)) for k in need.gpus_of(number)] == expected


def test_a_cluster_is_asked_for_what_a_unit_uses():
    settings = read_settings({}, executor="ray:10.0.0.5:6379")
    assert is_of_cluster(settings) and not is_of_cluster(read_settings({}, executor="submitit:local"))
    plan = replace(make_plan(Need(8, 1 << 30, 2), Machine(64, 64 << 30), 2, separate=True), elsewhere=True)
    assert (plan.cores_each, plan.at_once) == (4, None)  # here they would get 16 each
    assert [plan.job("a", "b", {}, short).memory for short in (0, 1, 2)] == [1 << 30, 2 << 30, 4 << 30]


@pytest.mark.parametrize("width", [1, 2, 3, None])
def test_a_time_limit_holds_as_many_units_as_are_trained_at_once(width):
    seconds, left = {"torch": 100.0, "lgbm": 1.0, "keras": 50.0}, 205
    units = units_that_fit(seconds, 3, left, width)
    assert len(units) == {1: 6, 2: 8, 3: 9, None: 9}[width]
    assert seconds_at_once((seconds[member] for member, _ in units), width) <= left


def test_a_plan_of_an_older_version_is_kept(tmp_path):
    made = make_time_plan(tmp_path / "plan.json", 1.0, 2, {"lgbm": 10.0}, 100, print, width=2)
    body = {name: value for name, value in vars(made).items() if name != "at_once"}
    write_sealed(tmp_path / "plan.json", body)
    again = make_time_plan(tmp_path / "plan.json", 1.0, 2, {"lgbm": 99.0}, 100, print, width=2)
    assert again == replace(made, at_once=1)


def test_limits_of_containers_are_read(tmp_path):
    here, group = (tmp_path, tmp_path), tmp_path / "fs" / "cgroup" / "box"
    group.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/box\n")
    assert machine.free_memory(*here) is None and machine.out_of_memory_kills(*here) == 0
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 10 kB\n")
    assert machine.free_memory(*here) == 10_240
    (group / "memory.max").write_text("max\n")
    assert machine.free_memory(*here) == 10_240
    (group / "memory.max").write_text("5000\n")
    (group / "memory.stat").write_text("anon 1500\nfile 2500\n")
    assert machine.free_memory(*here) == 3500
    cores = machine.usable_cores(*here)
    (group / "cpu.max").write_text("150000 100000\n")
    assert machine.usable_cores(*here) == min(cores, 2)
    (group / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores(*here) == cores
    (group / "memory.events").write_text("low 0\noom_kill 3\n")
    assert machine.out_of_memory_kills(*here) == 3


def test_limits_of_the_first_generation_are_read(tmp_path):
    memory, cpu = (tmp_path / "fs" / "cgroup" / name / "box" for name in ("memory", "cpu,cpuacct"))
    for folder in (memory, cpu, tmp_path / "self"): folder.mkdir(parents=True)
    (tmp_path / "self" / "cgroup").write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    (memory / "memory.limit_in_bytes").write_text("7000\n")
    (memory / "memory.stat").write_text("total_rss 3000\n")
    (cpu / "cpu.cfs_quota_us").write_text("100000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.free_memory(tmp_path, tmp_path) == 4000 and machine.usable_cores(tmp_path, tmp_path) == 1


# --- jobs


class SpeechlessError(Exception):
    def __str__(self):
        raise ValueError("no words")


def broken(shared, kind):
    raise {"user": UserError("a sentence"), "memory": MemoryError("all of it"), "other": KeyError("x"),
           "exit": SystemExit(3), "mute": SpeechlessError(threading.Lock())}[kind]


def process_and_cores(shared):
    threads = os.listdir("/proc/self/task") if hasattr(os, "sched_getaffinity") else ()
    return os.getpid(), {tuple(sorted(os.sched_getaffinity(int(thread)))) for thread in threads}


def ends(shared):
    os.kill(os.getpid(), signal.SIGKILL)


def waits_for_stop(shared, folder, token):
    signals = Signals(Path(folder), token)
    while not signals.stopped():
        time.sleep(0.02)
    return "saved"


def test_errors_come_back_as_what_they_are():
    for kind, error, text in (("user", UserError, "a sentence"), ("memory", LostUnitError, "all of it"),
                              ("other", JobError, "KeyError: 'x'\nTraceback"), ("exit", JobError, "SystemExit: 3"),
                              ("mute", JobError, "SpeechlessError: an error whose text cannot be made")):
        with pytest.raises(error, match=text):
            result_of(perform(f"{HERE}:broken", None, {"kind": kind}))
    with InProcess(Path("unused")) as executor:
        executor.share(None)
        assert isinstance(executor.submit(Job("j", f"{HERE}:broken", {"kind": "other"})).exception(), KeyError)
    with pytest.raises(UserError, match="cannot be sent"):
        pack(threading.Lock())


def test_a_worker_that_is_killed_costs_no_other_its_work(tmp_path):
    with Processes("processes:2", TWO, tmp_path) as executor:
        executor.share(3)
        signals = executor.signals
        arguments = {"folder": str(signals.folder), "token": signals.token}
        waits = executor.submit(Job("waits", f"{HERE}:waits_for_stop", arguments))
        lost = executor.submit(Job("ends", f"{HERE}:ends"))
        assert isinstance(lost.exception(60), LostUnitError)
        assert executor.submit(Job("next", "builtins:pow", {"exp": 2})).result(60) == 9
        assert not waits.done()
        queued = [executor.submit(Job("later", f"{HERE}:waits_for_stop", arguments)) for _ in range(3)]
        executor.cancel([waits, *queued])
        assert waits.result(0) == "saved" and all(future.done() for future in wait(queued, 0).done)
    assert not list(tmp_path.iterdir())
    assert not [p for p in psutil.Process().children() if "loky" in " ".join(p.cmdline()) and "tracker" not in
                " ".join(p.cmdline())]


def test_a_worker_that_dies_idle_costs_no_unit_and_keeps_to_its_cores(tmp_path):
    shares = shares_of_cores(2, 2)   # () each where this machine has another number of cores
    with Processes("processes:2", TWO, tmp_path) as executor:
        worker, job = executor.workers[0], Job("a look", f"{HERE}:process_and_cores")
        first, cores = worker.do(job, pack(None))
        assert cores == {shares[0]} or not shares[0]
        os.kill(first, signal.SIGKILL)
        # its own thread notices soon; who waits for the process here takes its exit from multiprocessing
        while worker.pool._flags.broken is None:
            time.sleep(0.01)
        assert worker.do(job, pack(None))[0] != first
        with pytest.raises(LostUnitError, match="all of it"):
            worker.do(Job("too large", f"{HERE}:broken", {"kind": "memory"}), pack(None))
        assert worker.pool is None   # what its process held is given back
    with pytest.raises(LostUnitError, match="closed"):
        worker.do(job, pack(None))


@dataclass(frozen=True)
class SharedThing:
    what: object
    cores: int = 1

    def lean(self, signals):
        return self.what


def test_what_another_process_cannot_make_is_trained_in_this_one(tmp_path, monkeypatch):
    module = ModuleType("only_here")
    exec("class Thing: pass", vars(module))
    module.Thing.__module__ = "only_here"
    monkeypatch.setitem(sys.modules, "only_here", module)
    monkeypatch.setattr(module, "__spec__", ModuleSpec("only_here", None))   # pickled by its name, as a file's would be
    settings, said = read_settings({}, executor="processes:2", out=tmp_path), []
    executor = open_executor(SharedThing(module.Thing()), TWO, settings, said.append)
    assert executor.in_process and executor.shared.cores == 2
    assert "lacks something that was defined elsewhere: No module named 'only_here'" in said[0]
    assert not list(tmp_path.rglob("*"))


def test_an_executor_that_is_not_opened_is_closed(tmp_path, monkeypatch):
    class Opened(InProcess):
        closed = False

        def share(self, value):
            raise KeyboardInterrupt

        def close(self):
            self.closed = True

    executor = Opened(tmp_path)
    monkeypatch.setattr(gather, "make_executor", lambda *args: executor)
    with pytest.raises(KeyboardInterrupt):
        open_executor(SharedThing(None), TWO, read_settings({}, out=tmp_path), print)
    assert executor.closed


def test_lack_of_memory_is_no_loss_while_fewer_can_be_trained_at_once(tmp_path):
    ear, unit = Ear(), Unit("torch", 0, tmp_path)
    executor = SimpleNamespace(width=1)
    gathering = gather.Gathering(executor, None, None, TWO, Relay(Reporter(sinks=[ear]), tmp_path), 0.0, deque())
    for narrowed in (True, True, True, False, False):
        error = LostUnitError("there was not enough memory", memory=True)
        error.narrowed = narrowed
        gathering._lost(unit, error)
        assert gathering.todo.pop() is unit and not gathering.errors
    assert gathering.short[unit] == 5 and "1 at once from now on" in ear.lines[0]
    gathering._lost(unit, LostUnitError("it was killed"))
    assert not gathering.todo and "was lost 6 times" in str(gathering.errors[0])


def test_a_later_run_ends_the_workers_of_an_earlier_one(tmp_path):
    first = Signals.begin(tmp_path)
    first.check()
    assert not first.stopped()
    second = Signals.begin(tmp_path)
    assert first.stopped() and not second.stopped()
    second.stop()
    assert second.stopped()
    second.clear()
    with pytest.raises(UserError, match="does not see the run folder"):
        second.check()


def test_workers_hear_of_a_stop_on_a_full_disk(tmp_path, monkeypatch):
    signals = Signals.begin(tmp_path)

    def full(path, text):
        raise UserError("the disk is full")

    monkeypatch.setattr(base, "write_text", full)
    signals.stop()
    assert signals.stopped()
    signals.check()   # a worker that begins now still sees the folder


def test_clocks_of_machines_may_differ(tmp_path, monkeypatch):
    signals, clock = Signals.begin(tmp_path), time.time
    assert abs(signals.clock_error()) < 1
    monkeypatch.setattr(base.time, "time", lambda: clock() + 600)   # as on another machine
    assert abs(signals.clock_error() - 600) < 1


# --- progress


def test_events_of_workers_meet_in_one_reporter(tmp_path):
    ear, log = Ear(), JsonlSink(tmp_path / "logs" / "run.jsonl")
    reporter = Reporter(sinks=[ear, log])
    relay = Relay(reporter, tmp_path)
    for k in (0, 1):
        relay.begin(f"torch fold {k + 1}", f"torch-fold{k}.jsonl")
        worker = Reporter(sinks=[JsonlSink(relay.path(f"torch-fold{k}.jsonl"))])
        worker._pid = os.getpid()
        training = worker.training("Torch", fold=k + 1, epochs=2, steps=4)
        training.__enter__()
        training.start_epoch(1)
        training.step(1.5, 1e-3)
        worker.say("one\ntwo")
    with relay.path("torch-fold0.jsonl").open("a") as file:
        file.write('{"kind": "step"}\nno event\n{"kind": "say", "time": 1.0, "text": "half a li')
    with relay.shown():
        relay.poll()
        assert [bar.done for bar in relay.bars().values()] == [1, 1] and len(relay.bars()) == 2
        assert "torch fold 1 (" in reporter.activity[0] and "torch fold 2 (" in reporter.activity[0]
    relay.end("torch fold 1")
    assert ear.kinds["step"] == ear.kinds["training"] == 2 and len(ear.lines) == 4
    assert ear.lines[1] == "torch fold 1: one\ntorch fold 1: two" and ear.lines[2].startswith("[Torch] fold=2 ")
    assert list(relay.bars()) == ["unit 2"] and not relay.path("torch-fold0.jsonl").exists()
    log.close(False)
    assert (tmp_path / "logs" / "run.jsonl").read_text().count('"kind": "step"') == 2


def test_a_line_of_a_trial_says_which_and_when(tmp_path):
    unit, now = UnitAtWork("lgbm-trial3 fold 1", None), 5000.0
    unit.hear({"kind": CLOCK, "time": now + 600, "ahead": 600.0})
    step = {"kind": "step", "time": now + 600, "label": "LightGBM", "fold": 1, "epoch": 1, "epochs": 1, "step": 2,
            "steps": 9, "loss": 0.5, "text": "[LightGBM] fold=1 step=2/9"}
    unit.hear(step)
    named = unit.named(step)
    assert (named["of"], named["time"]) == ("lgbm-trial3 fold 1", now)
    assert named["text"] == "lgbm-trial3 fold 1: [LightGBM] fold=1 step=2/9"
    assert unit.bar().label == "lgbm-trial3 fold 1: LightGBM fold 1" and unit.bar().done == 2
    unit.hear({"kind": "progress", "time": now, "title": "Kernels", "done": 1, "total": 21})
    assert unit.bar().label == "lgbm-trial3 fold 1: Kernels" and "1/21" in unit.status()


def test_what_remains_is_shared_out_among_units_at_work():
    remaining, names = Remaining(), [f"torch fold {k}" for k in (1, 2, 3, 4)]
    remaining.hear({"kind": "plan", "time": 0.0, "units": 4, "expected": dict.fromkeys(names, 100), "after": 10})
    assert remaining.seconds(0.0) == 410
    for name in names[:2]:
        remaining.hear({"kind": "unit_start", "time": 0.0, "label": name})
    assert remaining.seconds(0.0) == 210
    remaining.hear({"kind": "unit", "time": 200.0, "label": names[0], "done": 1, "seconds": 200.0})
    remaining.hear({"kind": "unit_start", "time": 200.0, "label": names[2]})
    assert remaining.seconds(200.0) == 210  # twice as slow as was forecast


# --- a run


class Frail(Member):
    "Nearest mean; its process is killed once in the first fold, and it fails in the second until it is mended."
    name, title, version = "frail", "Frail", 1

    def hyperparameters(self, train):
        return {}

    def fit(self, train, *, inner_split, reporter=None, checkpoint=None, stop=None):
        marks = Path(os.environ["FRAIL"])
        if self.fold == 0 and not (marks / "died").exists():
            (marks / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fold == 1 and not (marks / "mended").exists():
            raise KeyError("not mended")
        x = np.nan_to_num(train.summary()[0])
        self.means = np.stack([x[train.y == k].mean(0) for k in range(len(train.classes))])
        return {}

    def predict_outputs(self, batch):
        distance = np.linalg.norm(np.nan_to_num(batch.summary()[0])[:, None] - self.means, axis=2)
        weights = np.exp(-distance / distance.mean())
        return Outputs((weights / weights.sum(1, keepdims=True)).astype(np.float32))

    def save(self, folder):
        write_arrays(folder / "means.safetensors", {"means": self.means})

    @classmethod
    def load(cls, folder):
        member = cls()
        member.means = read_arrays(folder / "means.safetensors")["means"]
        return member


def test_a_run_in_two_processes_is_the_run_in_one(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("FRAIL", str(tmp_path))
    register_member(Frail)
    try:
        how = dict(data=toy, members="lgbm,frail", folds=2, boosting_rounds=5, feature_store=tmp_path / "store")
        two = read_settings({}, out=tmp_path / "two", executor="processes:2", **how)
        ear = Ear()
        with pytest.raises(JobError, match="not mended"):
            train(two, Reporter(two, sinks=[ear]))
        text = "\n".join(ear.lines)
        assert "frail fold 1: the process that trained it was lost" in text and "frail fold 2 failed: KeyError" in text
        assert "Finished units are kept: 3 of 4" in text and ear.kinds["unit"] == 3
        assert len(list((tmp_path / "two").rglob(f"fold*/{MANIFEST}"))) == 3
        assert not (tmp_path / "two" / "logs").exists()

        (tmp_path / "mended").touch()
        for out in ("two", "one"):  # what is left, and all of it
            train(read_settings({}, out=tmp_path / out, **how), Quiet())
        assert content(tmp_path / "two") == content(tmp_path / "one")
    finally:
        MEMBERS.unregister("frail")


# --- long proofs


def workers_of(process):
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "popen_loky" in " ".join(p.cmdline())]


def until_trained(process, out, seconds=300):
    "Waits until a checkpoint of the net is there."
    end = time.monotonic() + seconds
    while not list(out.glob("members/torch/fold*/checkpoint/state-*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_goes_on_to_the_same_bytes(toy, tmp_path, number):
    how = ("--members", "lgbm,torch", "--epochs", "40", "--executor", "processes:2")
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(start(toy, whole, *how[:-2]))
    process = start(toy, out, *how)
    until_trained(process, out)
    workers = workers_of(process)
    assert workers
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 130), output[-2000:]
    gone, alive = psutil.wait_procs(workers, timeout=90)
    assert not alive
    assert number == signal.SIGKILL or "Interrupted" in output
    finish(start(toy, out, *how))
    assert content(out) == content(whole)


@pytest.mark.soak
def test_all_members_in_two_processes(toy, tmp_path):
    for out, executor in (("one", "local"), ("two", "processes:2")):
        finish(start(toy, tmp_path / out, "--members", "lgbm,torch,keras,rocket", "--executor", executor))
    assert content(tmp_path / "one") == content(tmp_path / "two")
