"""Makes the virtual environment .venv from the lock files, once, and says something at least every ten seconds.

Standard library only: it runs before anything is installed.
"""

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = [ROOT / f"requirements{kind}.lock" for kind in ("", ".nodeps")]
LOCKS += [ROOT / name for name in ("settings.ini", "setup.py", "pyproject.toml")]
STEPS = [
    ("packages of requirements.lock", ["-r", "requirements.lock"]),
    ("the embedded recordings", ["--no-deps", "-r", "requirements.nodeps.lock"]),
    ("gesture_nb itself", ["--no-deps", "--no-build-isolation", "-e", "."]),
]


def say(text):
    print(f"setup: {text}", flush=True)


def stamp():
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in LOCKS) + str(ROOT).encode() + sys.version.encode())
    return VENV / f".installed-{digest.hexdigest()[:16]}"


def last_line(log):
    lines = (
        [s for s in log.read_text(errors="replace").splitlines() if s.strip() and "WARNING" not in s]
        if log.exists()
        else []
    )
    return lines[-1].strip()[:110] if lines else ""


def run(what, command, log, every=8.0):
    """Runs a command with its output in `log`; says how long it has been at it."""
    start = time.monotonic()
    say(what)
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        done = threading.Event()

        def beat():
            while not done.wait(every):
                say(f"{what}: {time.monotonic() - start:.0f} s  {last_line(log)}")

        threading.Thread(target=beat, daemon=True).start()
        code = process.wait()
        done.set()
    if code:
        print(log.read_text(errors="replace")[-4000:], flush=True)
        sys.exit(f"setup: {what} failed (exit {code}); the whole output is in {log.relative_to(ROOT)}")


def main():
    mark = stamp()
    if mark.exists() and PYTHON.exists():
        return
    if sys.version_info < (3, 11):
        sys.exit(
            f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=python3.11 run"
        )
    log = VENV / "setup.log"
    VENV.mkdir(exist_ok=True)
    if not PYTHON.exists():
        run("virtual environment in .venv", [sys.executable, "-m", "venv", str(VENV)], log)
    for what, arguments in STEPS:
        # without compiling all modules of all packages: Python compiles those that are imported
        options = ["--disable-pip-version-check", "--progress-bar", "off", "--no-compile"]
        run(what, [str(PYTHON), "-m", "pip", "install", *options, *arguments], log)
    for old in VENV.glob(".installed-*"):
        old.unlink()
    mark.touch()
    say("done")


if __name__ == "__main__":
    main()
