"""The examples run as they stand, each in a process and a folder of its own."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run_python(*arguments, folder, timeout, **environ):
    """A finished process of its own, in a folder of its own, with this package."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PROGRESS": "lines"} | environ
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    done = run_python(str(path), folder=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_there_are_examples_and_a_member_fits_on_a_page():
    assert {p.stem for p in EXAMPLES} >= {"fifth_member", "new_sensor"}
    assert len((ROOT / "examples" / "fifth_member.py").read_text().splitlines()) <= 60


@pytest.mark.soak   # half a minute; the example itself runs above, interruptions are in `test_resume`
def test_the_fifth_member_goes_all_the_way(toy, tmp_path):
    """Trains beside another member, is interrupted and resumed, blended, reported, predicts and is served; in a process
    of its own, since registering it would change this one."""
    script = tmp_path / "go.py"
    script.write_text(STORY.format(examples=str(ROOT / "examples"), toy=str(toy)))
    done = run_python(str(script), folder=tmp_path, timeout=600)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("all the way"), (
        done.stdout[-2000:] + done.stderr[-3000:]
    )


STORY = """
import sys
sys.path.insert(0, {examples!r})
import numpy as np
import fifth_member
import gesture_nb as gn
from gesture_nb.data.sequences import take
from gesture_nb.serving.gateway import local_gateway
from gesture_nb.training import units

settings = dict(members=("lgbm", "hist"), folds=2, boosting_rounds=8, progress="lines")
real, calls = units.train_unit, []
def interrupted(dataset, settings, unit, *rest, **more):
    calls.append(str(unit))
    if len(calls) == 4: raise KeyboardInterrupt
    return real(dataset, settings, unit, *rest, **more)
units.train_unit = interrupted
try: gn.train({toy!r}, "run", **settings)
except KeyboardInterrupt: pass
units.train_unit = real
run = gn.train({toy!r}, "run", **settings)
assert calls == ["lgbm fold 1", "lgbm fold 2", "hist fold 1", "hist fold 2"], calls
assert "hist fold 1: finished before" in " ".join(run.log()["text"].dropna())
assert set(run.metrics["members"]) == {{"lgbm", "hist"}} and run.metrics["members"]["hist"]["accuracy"] > 0.8
assert run.config["settings"]["members"] == ["lgbm", "hist"] and "scikit-learn" in run.config["versions"]
assert "hist.version" in str(run.config) or any((run.folder / "members" / "hist").glob("fold*/manifest.json"))
assert "hist" in run.report().read_text() and run.predictions("hist").shape == run.predictions().shape
table = gn.read_recordings({toy!r})
predictor = gn.load("run")
assert set(predictor.members) == {{"lgbm", "hist"}}
fold = run.predictions()["fold"].to_numpy()
served = local_gateway(gn.load("run", 1), take(table, np.flatnonzero(fold == 1)), None, "served.parquet", run.classes)
assert len(served["gesture"]) == (fold == 1).sum()
without = gn.train({toy!r}, "other", **settings | {{"w_hist": 0}})
assert set(without.metrics["members"]) == {{"lgbm"}} and not list((without.folder / "members").glob("hist"))
print("all the way")
"""


def recipes():
    """Python blocks of CONTRIBUTING.md that are whole, by the heading they stand under."""
    text, found = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), {}
    for section in text.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        blocks = [block.split("```")[0] for block in body.split("```python\n")[1:]]
        if blocks and title != "Add a member":  # that one is a frame to fill in
            found[title] = "import gesture_nb as gn\n" + "\n".join(blocks)
    return found


@pytest.mark.parametrize("title", list(recipes()))
def test_recipes_run_as_they_stand(title, tmp_path):
    small = {"GESTURE_NB_MEMBERS": "lgbm", "GESTURE_NB_FOLDS": "2", "GESTURE_NB_BOOSTING_ROUNDS": "10"}
    done = run_python("-c", recipes()[title], folder=tmp_path, timeout=300, **small)
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_four_recipes_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"## Add a {kind}\n" in text for kind in ("member", "sensor", "sink", "decision rule"))
    assert set(recipes()) == {"Add a sensor", "Add a sink", "Add a decision rule"}
