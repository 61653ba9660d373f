"""Units on other machines: what is asked of Ray and Slurm, what errors mean, and the same bytes as in one process.

Starting Ray takes 15 s of processor time, so real clusters are in `make soak`.
"""

import os
import secrets
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from test_resume import content, finish, start

from gesture_nb.errors import UserError
from gesture_nb.executors.base import Job, JobError, LostUnitError
from gesture_nb.executors.plan import Machine, Need, make_plan

PLAN = make_plan(Need(threads=1, memory=1 << 28), Machine(cores=2, memory=4 << 30), units=2, separate=True)
POWER = Job("2 to the 5", "builtins:pow", {"exp": 5})
SMALL = ("--members", "lgbm,torch", "--unit-threads", "1")

# --- submitit

SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" {folder}/script
echo Submitted batch job 4711
"""


def make_program(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def test_a_job_in_a_process_of_this_machine(tmp_path):
    pytest.importorskip("submitit")
    from gesture_nb.executors.submitit_jobs import make_submitit

    with make_submitit(None, PLAN, tmp_path / "run", "local") as executor:
        executor.share(2)
        assert stat.S_IMODE(os.stat(tmp_path / "run.jobs").st_mode) == 0o700
        assert executor.submit(POWER).result(timeout=120) == 32
    assert not (tmp_path / "run.jobs").exists()
    assert not [p for p in psutil.Process().children(recursive=True) if "submitit" in " ".join(p.cmdline())]


def test_what_is_asked_of_slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's programs: the script that is handed in, and what is cancelled."""
    pytest.importorskip("submitit")
    from gesture_nb.executors.submitit_jobs import make_submitit

    make_program(tmp_path, "sbatch", SBATCH.format(folder=tmp_path))
    make_program(tmp_path, "scancel", f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    for name in ("srun", "sacct"): make_program(tmp_path, name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with make_submitit(None, PLAN, tmp_path / "run", "night") as executor:
        executor.share(2)
        future = executor.submit(Job("torch fold 2", "builtins:pow", {"exp": 5}, threads=3, gpus=0.5, memory=5 << 29))
        assert executor.width is None
        assert not future.done()
    script = (tmp_path / "script").read_text()
    for line in ("--partition=night", "--cpus-per-task=3", "--gpus-per-node=1", "--mem=3GB", "--job-name=torch-fold-2"):
        assert f"#SBATCH {line}\n" in script
    assert (tmp_path / "cancelled").read_text().split() == ["4711"]
    assert isinstance(future.exception(), LostUnitError)


def test_a_partition_needs_slurm(monkeypatch, tmp_path):
    from gesture_nb.executors.submitit_jobs import cluster_of

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `sbatch` here"): cluster_of("night")
    assert cluster_of(None) == cluster_of("local") == "local"


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN], ids=["Ctrl-C", "ignored"])
def test_a_job_that_is_told_to_end_is_queued_again(tmp_path, monkeypatch, interrupt):
    """The unit is asked to stop as by Ctrl-C, also where a shell that began the job in the background has left that
    signal ignored; only if it stopped before its end, its job is queued again."""
    from gesture_nb.executors import submitit_jobs

    queued, folder = [], str(tmp_path)
    (tmp_path / "shared").write_bytes(b"")
    work = submitit_jobs.Work("builtins:pow", {"again": False}, str(tmp_path / "shared"), "", folder)

    def perform(stopped, call, shared, arguments):
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(20)
        except KeyboardInterrupt: return {"result": {"stopped": stopped}}
        return {"result": {"stopped": None}}

    before = signal.signal(signal.SIGUSR2, lambda *args: queued.append(args))
    before_interrupt = signal.signal(signal.SIGINT, interrupt)
    try:
        for stopped in (False, True):
            monkeypatch.setattr(submitit_jobs, "perform", lambda *args, stopped=stopped: perform(stopped, *args))
            monkeypatch.chdir(tmp_path)
            signal.signal(signal.SIGUSR2, lambda *args: queued.append(args))
            assert work() == {"result": {"stopped": stopped}}
            assert len(queued) == stopped
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGINT, before_interrupt)


# --- Ray

def test_ray_is_asked_for_no_more_than_there_is():
    from gesture_nb.executors.ray_cluster import Node, refusal

    nodes = [Node(cpus=1, memory=8 << 30, gpus=0), Node(cpus=8, memory=1 << 30, gpus=2)]
    assert refusal(Job("a", "", threads=8, gpus=2), nodes) == ""
    assert refusal(Job("a", "", memory=8 << 30), nodes) == ""
    for job in (Job("a", "", threads=9), Job("a", "", gpus=2.5), Job("a", "", threads=2, memory=2 << 30)):
        assert "no machine of the Ray cluster has as much" in refusal(job, nodes)
    assert "no machine is left" in refusal(Job("a", ""), [])


def test_a_task_says_that_it_has_begun_and_how_it_went():
    from gesture_nb.executors.base import pack, result_of
    from gesture_nb.executors.ray_cluster import make_task

    data, key = pack(2)
    begun, outcome = make_task()(data, key, POWER.call, POWER.arguments, ".")
    assert begun["begun"] == os.getpid()
    assert result_of(outcome) == 32


def test_a_machine_without_the_package_says_so(tmp_path):
    """The task travels by value, as Ray sends it."""
    import cloudpickle

    from gesture_nb.executors.ray_cluster import make_task

    (tmp_path / "task").write_bytes(cloudpickle.dumps(make_task()))
    script = ("import sys; sys.modules['gesture_nb'] = None; import cloudpickle; "
              "print(next(cloudpickle.load(open('task', 'rb'))(b'', '', '', {}, '.')))")
    said = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "missing" in said.stdout, said.stderr


def variable_of_worker(shared, name):
    """A job."""
    return os.environ.get(name)


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.2", 0))
        return s.getsockname()[1]


@pytest.fixture
def two_nodes(tmp_path_factory, monkeypatch):
    """(address, process of the second raylet) of a cluster of two machines, which have one CPU each."""
    pytest.importorskip("ray")
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
                        "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}.items():
        monkeypatch.setenv(name, value)
    folders = [Path(f"/tmp/gnb-{secrets.token_hex(4)}") for _ in range(2)]   # short: paths of sockets
    port = free_port()
    same = ["--num-cpus=1", "--object-store-memory=100000000", "--memory=6000000000", "--disable-usage-stats"]
    ray = str(Path(sys.executable).parent / "ray")
    head = [ray, "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.2", "--include-dashboard=false", *same]
    other = [ray, "start", f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3", *same]
    try:
        for command, folder in zip((head, other), folders, strict=True):
            subprocess.run([*command, f"--temp-dir={folder}"], check=True, capture_output=True, timeout=180)
        yield f"127.0.0.2:{port}", processes_of(folders[1], "raylet/raylet")[0]
    finally:
        for folder in folders:
            for process in processes_of(folder): process.kill()
            subprocess.run(["rm", "-rf", str(folder)], check=False)


def processes_of(folder, name=""):
    """Processes whose command names this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(folder) in command and name in command: found.append(process)
    return found


@pytest.mark.soak
def test_two_machines_of_ray_and_one_that_is_lost(toy, tmp_path, two_nodes):
    """The same bytes as from one process, also if a machine and all its processes are killed in the middle."""
    address, raylet = two_nodes
    finish(start(toy, tmp_path / "alone", *SMALL, "--executor", "processes:1"))
    run = start(toy, tmp_path / "ray", *SMALL, "--executor", f"ray:{address}")
    heard = []
    for line in run.stdout:
        heard.append(line)
        if not raylet.is_running() or "[Torch]" not in line: continue
        if not any("fold" in " ".join(child.cmdline()) for child in raylet.children()): continue   # nothing to lose
        for process in [raylet, *raylet.children(recursive=True)]: process.kill()
        raylet.wait(30)
    assert run.wait(400) == 0, "".join(heard)[-3000:]
    assert any("was lost" in line and "it goes on from its checkpoint" in line for line in heard)
    assert content(tmp_path / "ray") == content(tmp_path / "alone")


@pytest.mark.soak
def test_a_cluster_for_one_run(tmp_path, monkeypatch):
    """Ray is started and ended with the run: handlers and environment are as before, no process and no file is left."""
    pytest.importorskip("ray")
    from gesture_nb.executors.base import pack
    from gesture_nb.executors.join_ray import import_ray
    from gesture_nb.executors.ray_cluster import make_ray

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    import_ray()
    pack(0)   # joblib sets a variable when it is imported
    environ, folders = dict(os.environ), set(Path("/tmp").glob("gnb-*"))
    plan = replace(PLAN, need=replace(PLAN.need, threads=3))   # Ray itself would set 1, the CPUs of the task
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with make_ray(None, plan, tmp_path) as executor:
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
        connections = [c for p in psutil.Process().children(recursive=True) for c in p.net_connections("inet")]
        assert {c.laddr.ip.removeprefix("::ffff:") for c in connections} == {"127.0.0.1"}
        executor.share(2)
        futures = [executor.submit(POWER), executor.submit(Job("an end", "os:_exit")),
                   executor.submit(Job("wide", "builtins:pow", {"exp": 1}, threads=64)),
                   executor.submit(Job("wrong", "builtins:pow", {"exp": "x"}))]
        assert futures[0].result(timeout=120) == 32
        assert [type(f.exception(timeout=120)) for f in futures[1:]] == [LostUnitError, UserError, JobError]
        variable = executor.submit(Job("threads", "test_clusters:variable_of_worker", {"name": "OMP_NUM_THREADS"}))
        assert variable.result(timeout=120) == "3"
    assert dict(os.environ) == environ
    assert set(Path("/tmp").glob("gnb-*")) == folders
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]


@pytest.mark.soak
def test_jobs_that_are_told_to_end_give_the_same_bytes(toy, tmp_path):
    """The signal that Slurm sends before it ends a job: state is saved, the job is queued again and goes on."""
    pytest.importorskip("submitit")
    finish(start(toy, tmp_path / "alone", *SMALL, "--executor", "processes:1"))
    run = start(toy, tmp_path / "jobs", *SMALL, "--executor", "submitit:local")
    told, processes = False, {}   # process that submitit starts for a job → those in which the job is done
    for line in run.stdout:
        for process in psutil.Process(run.pid).children(recursive=True):
            if "submitit.core._submit" not in " ".join(process.cmdline()): continue
            processes.setdefault(process.ppid(), set()).add(process.pid)
            if "[Torch]" in line and not told: process.send_signal(signal.SIGUSR2)
        told = told or "[Torch]" in line
    assert run.wait(400) == 0
    assert max(map(len, processes.values())) > 1, "no job was queued again"
    assert content(tmp_path / "jobs") == content(tmp_path / "alone")
