"""The archives that people install, and what is said to those who have the required packages only."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from configparser import ConfigParser
from email import message_from_bytes

import pytest
from conftest import ROOT

CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = CONFIG["DEFAULT"]
EXTRAS = ("serve", "explore", "ray", "tune", "trackers", "devices")
SERVICES = (".ci/", ".github/")   # files of the services that hold the repository: not for those who build from sources
MADE = {"PKG-INFO", "setup.cfg"}


def kept_files():
    """The files that git keeps, or would keep."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def build(folder, hook, to):
    """The archive that a hook of the build system makes of the sources in `folder`."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(to)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return to / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive of what git keeps, and the wheel that is built from what it holds."""
    folder = tmp_path_factory.mktemp("build")
    for name in kept_files():
        target = folder / "sources" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    source = build(folder / "sources", "build_sdist", folder)
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    left = unpacked / "build" / "lib" / "gesture_nb" / "removed.py"   # by a build before the module was removed
    left.parent.mkdir(parents=True)
    left.touch()
    return source, build(unpacked, "build_wheel", folder)


@pytest.fixture(scope="module")
def wheel(archives):
    with zipfile.ZipFile(archives[1]) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return message_from_bytes(next(data for name, data in wheel.items() if name.endswith("dist-info/METADATA")))


def test_the_source_archive_holds_what_git_keeps_and_nothing_else(archives):
    with tarfile.open(archives[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name in MADE or name.startswith("gesture_nb.egg-info/")}
    assert MADE <= made
    assert names - made == {name for name in kept_files() if not name.startswith(SERVICES)}


def test_the_wheel_of_the_source_archive_is_whole(wheel):
    kept = {name for name in kept_files() if re.fullmatch(r"gesture_nb/.*(\.(py|html|css|js)|py\.typed)", name)}
    assert {name for name in wheel if ".dist-info/" not in name} == kept
    info = {name.partition(".dist-info/")[2]: data for name, data in wheel.items() if ".dist-info/" in name}
    assert info["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert info["licenses/NOTICE"] == (ROOT / "NOTICE").read_bytes()
    assert info["entry_points.txt"].decode().split("\n")[:2] == [
        "[console_scripts]",
        "gesture-nb = gesture_nb.cli:main",
    ]


def test_all_modules_of_the_wheel_can_be_imported(archives, tmp_path):
    with zipfile.ZipFile(archives[1]) as archive:
        archive.extractall(tmp_path)
    code = f"""
        import importlib, pkgutil, sys
        sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]
        import gesture_nb
        names = [m.name for m in pkgutil.walk_packages(gesture_nb.__path__, "gesture_nb.") if "__main__" not in m.name]
        modules = [importlib.import_module(name) for name in names]
        assert len(modules) > 150 and all(m.__file__.startswith({str(tmp_path)!r}) for m in modules)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_an_index_shows(metadata):
    assert metadata["Version"] == SETTINGS["version"] and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == f">={SETTINGS['min_python']}"
    named = {line.partition(",")[0] for line in metadata.get_all("Project-URL")}
    assert named == {"Homepage", "Documentation", "Changelog", "Issues"}
    pythons = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") if "Python :: 3." in line]
    assert pythons == SETTINGS["python_versions"].split()
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert f"python: {pythons}".replace("'", '"') in workflow   # the versions that are named are tested


def test_links_of_the_description_hold_outside_the_repository(metadata):
    text = metadata.get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 5 and not [target for target in targets if not re.match(r"https?://|#", target)]
    prefix = f"{SETTINGS['git_url']}/"
    for target in targets:
        if target.startswith((f"{prefix}blob/main/", f"{prefix}raw/main/")):
            assert (ROOT / target.split("/main/", 1)[1]).exists(), target


def requirements_of(metadata, extra):
    """Lower-case names of the packages of an extra; '' for those that are always required."""
    marked = f'extra == "{extra}"'
    lines = metadata.get_all("Requires-Dist")
    found = [line for line in lines if (marked in line if extra else "extra ==" not in line)]
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in found}


def test_extras_are_apart_and_dev_has_them_all(metadata):
    assert set(metadata.get_all("Provides-Extra")) == {*EXTRAS, "dev"}
    packages = [requirements_of(metadata, extra) for extra in EXTRAS]
    assert all(packages) and set.union(*packages) <= requirements_of(metadata, "dev")
    assert not set.union(*packages) & requirements_of(metadata, "")
    bounds = [line for line in metadata.get_all("Requires-Dist") if any(f'"{extra}"' in line for extra in EXTRAS)]
    assert not [line for line in bounds if not re.search(r"<\d+.*,>=\d", line)]


def test_the_extras_are_described_as_they_are(metadata):
    rows = re.findall(r"(?m)^\| `(\w+)` \| .* \| ([\w, -]+) \|$", metadata.get_payload())
    described = {name: set(packages.split(", ")) for name, packages in rows if name in EXTRAS}
    assert described == {name: requirements_of(metadata, name) for name in EXTRAS}


def test_the_container_is_built_from_files_that_are_here():
    text = (ROOT / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", text) for word in line.split()[:-1]]
    assert sources and all((ROOT / name).exists() for name in sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*" and {f"!{name.rstrip('/')}" for name in sources} <= set(ignored)
    assert re.search(r"(?m)^USER (?!root)\w+", text) and not re.search(r"(?i)https?://", text)


BLOCKED = ("ray", "submitit", "optuna", "mlflow", "wandb", "tensorboard", "lightning_fabric", "lightning", "plotly",
           "onnxruntime", "onnx", "datasets", "aeon", "sktime", "polars")   # fmt: skip
ALONE = '''
import importlib, importlib.util, io, sys
from contextlib import redirect_stdout

class Refused:
    "Finds nothing, and says that the packages of the extras are not installed."
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED: raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
whole = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in BLOCKED else whole(name, *more)
for name in MODULES: importlib.import_module(name)

import gesture_nb as gn
from gesture_nb.commands import explore_page
from gesture_nb.errors import UserError
from gesture_nb.tuning import tune_members

data, out = sys.argv[1:]
quick = dict(members="lgbm", folds=2, boosting_rounds=3, progress="lines")
run = gn.train(data, out, **quick)
assert run.report().exists() and run.predictor().table_proba(gn.read_recordings(data)).shape == (60, 3)
print("trained")

def said(function, *arguments, **options):
    "The sentence with which a call is refused."
    try: function(*arguments, **options)
    except UserError as e: return print("SAID", " ".join(str(e).split()))
    print("SAID nothing", function, options)

for extra, options in ASKED: said(gn.train, data, f"{out}-{extra}", **quick | options)
said(tune_members, 1, None, None, data=data, out=f"{out}-tune", **quick)
said(explore_page, out=out, to=f"{out}.html")
said(gn.to_dataset, gn.read_recordings(data))
'''
ASKED = {
    "ray": [{"executor": "ray"}, {"executor": "submitit"}],
    "trackers": [{"trackers": "mlflow"}, {"trackers": "wandb"}, {"trackers": "tensorboard"}],
    "devices": [{"members": "torch", "devices": 2}],
}


def test_without_extras_everything_else_works(toy, tmp_path):
    """A process in which no extra can be imported: all modules, a training, its report, predictions; then each feature
    that needs an extra asks for it in one sentence."""
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "gesture_nb").rglob("*.py")]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith(("__main__", "_modidx"))]
    asked = [(extra, options) for extra, group in ASKED.items() for options in group]
    code = f"BLOCKED, MODULES, ASKED = {BLOCKED!r}, {modules!r}, {asked!r}\n{ALONE}"
    program = tmp_path / "alone.py"
    program.write_text(code)
    command = [sys.executable, str(program), str(toy), str(tmp_path / "run")]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]
    said = [line for line in io.StringIO(done.stdout) if line.startswith("SAID ")]
    wanted = [f"gesture-nb[{extra}]" for extra, _ in asked]
    wanted += ["gesture-nb[tune]", "plotly", "datasets"]
    assert len(said) == len(wanted), said
    for line, package in zip(said, wanted):
        assert f"pip install {package}" in line.replace("'", ""), line
    assert not list(tmp_path.glob("run-*"))   # refused before anything is made
