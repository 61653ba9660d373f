"""Makes .venv-latest with the newest releases that settings.ini allows, and runs the tests in it.

    python tools/latest.py              # the tests of `make test`, without the browser
    python tools/latest.py tests/x.py   # only these

torch stays at the version of requirements.lock: newer ones come as CUDA builds of several gigabytes.
"""
import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from setup import ROOT, run, say  # noqa: E402

VENV = ROOT / ".venv-latest"
PYTHON = VENV / "bin" / "python"


def wanted():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    torch = next(s for s in lock if s.startswith("torch=="))
    return [*(r for k in ("requirements", "dev_requirements") for r in config["DEFAULT"][k].split() if not r.startswith("torch>")), torch]


def main(arguments):
    VENV.mkdir(exist_ok=True)
    log, pip = VENV / "setup.log", [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    if not PYTHON.exists():
        run("virtual environment in .venv-latest", [sys.executable, "-m", "venv", str(VENV)], log)
    run("the newest releases", [*pip, "--upgrade", "--upgrade-strategy", "eager", "setuptools", "wheel", *wanted()], log)
    run("the embedded recordings", [*pip, "--no-deps", "-r", "requirements.nodeps.lock"], log)
    run("gesture_nb itself", [*pip, "--no-deps", "--no-build-isolation", "-e", "."], log)
    found = subprocess.run([str(PYTHON), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True, check=True).stdout.split()
    names = ("numpy", "pandas", "pyarrow", "polars", "scipy", "scikit-learn", "lightgbm", "tensorflow", "keras", "torch", "onnx", "onnxruntime")
    say(", ".join(s for s in found if s.split("==")[0].lower() in names))
    tests = arguments or ["tests", "--ignore=tests/test_browser.py"]
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    sys.exit(subprocess.run([str(PYTHON), "-m", "pytest", "-ra", "--durations=5", *tests], cwd=ROOT, env=environ).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
