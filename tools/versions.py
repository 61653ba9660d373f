"""Runs the tests with other versions of the libraries than those of requirements.lock, in an environment of their own.

    python tools/versions.py kaggle             # requirements.kaggle.lock: Kaggle's image, on Python 3.12 where found
    python tools/versions.py latest             # the newest releases that settings.ini admits
    python tools/versions.py kaggle tests/x.py  # only these tests

torch stays at the version of requirements.lock: newer ones come as CUDA builds of several gigabytes.
"""

import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from setup import ROOT, run, say  # noqa: E402

SHOWN = (
    "numpy",
    "pandas",
    "pyarrow",
    "polars",
    "scipy",
    "scikit-learn",
    "lightgbm",
    "tensorflow",
    "keras",
    "torch",
    "onnx",
    "onnxruntime",
)


def newest_requirements():
    "The requirements of settings.ini, torch as in the lock file."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in lock if line.startswith("torch=="))
    lists = [config["DEFAULT"][name].split() for name in ("requirements", "dev_requirements")]
    return [r for requirements in lists for r in requirements if not r.startswith("torch>")] + [torch]


def works(python):
    "Whether an interpreter of that name starts and is a Python 3.12."
    if python is None or not Path(python).exists():
        return False
    code = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def python_for_kaggle():
    "A Python 3.12, as on Kaggle; where there is none, this one, and a line that says so."
    candidates = [shutil.which("python3.12"), *sorted(Path.home().glob(".pyenv/versions/3.12*/bin/python"))]
    found = next((str(p) for p in candidates if works(p)), None)
    if found is None:
        say(f"no Python 3.12 is found: Kaggle's versions are tested on {sys.version.split()[0]}")
    return found or sys.executable


def environment(name):
    "The interpreter of .venv-NAME, with its packages."
    folder = ROOT / f".venv-{name}"
    python, log = folder / "bin" / "python", folder / "setup.log"
    folder.mkdir(exist_ok=True)
    base = python_for_kaggle() if name == "kaggle" else sys.executable
    if not python.exists():
        run(f"virtual environment in {folder.name}", [base, "-m", "venv", str(folder)], log)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    if name == "kaggle":
        run("packages of requirements.kaggle.lock", [*pip, "-r", "requirements.kaggle.lock"], log)
    else:
        upgrade = ["--upgrade", "--upgrade-strategy", "eager", "setuptools", "wheel"]
        run("the newest releases", [*pip, *upgrade, *newest_requirements()], log)
    run("the embedded recordings", [*pip, "--no-deps", "-r", "requirements.nodeps.lock"], log)
    run("gesture_nb itself", [*pip, "--no-deps", "--no-build-isolation", "-e", "."], log)
    return python


def main(name, tests):
    python = environment(name)
    freeze = [str(python), "-m", "pip", "list", "--format", "freeze"]
    found = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split()
    say(", ".join(line for line in found if line.split("==")[0].lower() in SHOWN))
    tests = tests or ["tests", "--ignore=tests/test_browser.py", "-n", "2", "--dist", "loadfile"]
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-m", "pytest", "-ra", "--durations=5", *tests]
    sys.exit(subprocess.run(command, cwd=ROOT, env=environ).returncode)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("kaggle", "latest"):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
