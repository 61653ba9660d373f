"""The competition's rerun, played by a stand-in of its server.

It listens first, loads or trains inside the first call, and predicts every sequence. A finished run is served as it is.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gesture_nb.app import main, serve
from gesture_nb.config import UserError

STAND_IN = Path(__file__).parent / "stand_in"
SCRIPT = """
import os, sys
from kaggle_evaluation.cmi_inference_server import CMIInferenceServer
CMIInferenceServer.hidden = (sys.argv[1] + "/test.csv", sys.argv[1] + "/test_demographics.csv")
from gesture_nb.app import main
from gesture_nb.config import UserError
if __name__ == "__main__":
    members = os.environ.get("TEST_MEMBERS", "lgbm")
    try: main(data=sys.argv[1], output_path=sys.argv[2], members=members, folds=2, boosting_rounds=8)
    except UserError as e: sys.exit(f"refused: {e}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from gesture_nb.data.simulate import write_competition

    folder = tmp_path_factory.mktemp("input") / "cmi"
    write_competition(folder, sequences=200, test_sequences=14, imu_only_share=0.5)
    return folder


def python(folder, cwd, *arguments, **environ):
    "A process on the rerun; the stand-in's answers come in one order, as a run may decide by person."
    path = os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")])
    environ = {"KAGGLE_IS_COMPETITION_RERUN": "1", "PYTHONPATH": path, "STAND_IN_ORDER": "7"} | environ
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environ,
    )


@pytest.fixture(scope="module")
def first(folder, tmp_path_factory):
    "A rerun that had to train: the finished process and its working folder, with the run in `out`."
    work = tmp_path_factory.mktemp("first")
    done = python(folder, work, "-c", SCRIPT, folder, work / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    return done, work


@pytest.fixture
def here(monkeypatch, tmp_path, folder):
    "The rerun in this process: the stand-in importable, its hidden files named, the working folder empty."
    monkeypatch.syspath_prepend(STAND_IN)
    from kaggle_evaluation.cmi_inference_server import CMIInferenceServer

    CMIInferenceServer.hidden = (folder / "test.csv", folder / "test_demographics.csv")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    yield work
    for name in [m for m in sys.modules if m.split(".")[0] == "kaggle_evaluation"]:
        del sys.modules[name]


@pytest.fixture
def copy(first, tmp_path):
    import shutil

    return shutil.copytree(first[1] / "out", tmp_path / "run", ignore=shutil.ignore_patterns("features", ".lock"))


def check(submission, folder):
    import polars as pl

    from gesture_nb.schema import GESTURES

    answers, asked = pl.read_parquet(submission), pl.read_csv(folder / "test.csv")["sequence_id"].unique()
    assert answers.columns == ["sequence_id", "gesture"]
    assert set(answers["sequence_id"]) == set(asked) and len(answers) == len(asked) == 14
    assert set(answers["gesture"]) <= set(GESTURES) and answers["gesture"].n_unique() > 1
    return answers.sort("sequence_id")


def test_trains_inside_the_first_question(first, folder):
    done, work = first
    lines = done.stdout.splitlines()
    at = {
        w: next(i for i, s in enumerate(lines) if w in s)
        for w in ("training comes first", "Listening", "First sequence", "Loading training data", "[LightGBM]")
    }
    assert list(at.values()) == sorted(at.values())
    check(work / "submission.parquet", folder)


OTHERS = {"GESTURE_NB_FOLDS": "3", "GESTURE_NB_EPOCHS": "9", "GESTURE_NB_SEED": "5", "GESTURE_NB_MEMBERS": "lgbm,torch"}


@pytest.mark.parametrize("settings", [OTHERS, {"RUN_ANY_TRAINING": "0"}])
def test_a_finished_run_is_served_as_it_is(first, folder, tmp_path, settings):
    hidden = f"CMIInferenceServer.hidden = ({str(folder)!r} + '/test.csv', {str(folder)!r} + '/test_demographics.csv')"
    program = f"""
from kaggle_evaluation.cmi_inference_server import CMIInferenceServer
{hidden}
import sys
from gesture_nb.cli import main
sys.exit(main(sys.argv[1:]))"""
    command = "serve" if settings is OTHERS else "run"
    done = python(folder, tmp_path, "-c", program, command, "--data", folder, "--out", first[1] / "out", **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Loading training data" not in done.stdout and "[LightGBM]" not in done.stdout
    answers = check(tmp_path / "submission.parquet", folder)
    assert answers.equals(check(first[1] / "submission.parquet", folder))


def test_without_a_finished_run_it_is_refused_before_listening(here, folder, tmp_path, capsys):
    import shutil

    none, alone = tmp_path / "none", tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "test.csv", alone)
    quick = {"members": "lgbm", "folds": 2, "boosting_rounds": 8}
    for message, data, more in [
        ("RUN_ANY_TRAINING=0, but .* has no finished run", folder, {"run_any_training": False}),
        ("holds no finished run, and .* has no train.csv", alone, {}),
    ]:
        for call in (main, serve):
            with pytest.raises(UserError, match=message):
                call(data=str(data), out=none, **quick, **more)
    assert "Listening" not in capsys.readouterr().out and not os.listdir() and not none.exists()


def test_a_run_whose_members_are_all_left_out_is_refused_before_listening(here, folder, copy, capsys):
    with pytest.raises(UserError, match="is 0: give at least one"):
        serve(data=str(folder), out=copy, w_lgbm=0)
    assert "Listening" not in capsys.readouterr().out


def test_a_run_with_other_labels_is_refused_before_listening(here, folder, copy, capsys):
    from gesture_nb.artifacts import write_manifest, write_sealed
    from gesture_nb.serving.predictor import read_blend
    from gesture_nb.training.results import RESULTS

    record = read_blend(copy)
    write_sealed(copy / "ensemble.json", record | {"classes": ["wave", *record["classes"][1:]]})
    write_manifest(copy, RESULTS)
    with pytest.raises(UserError, match="'wave', which is none of the competition's gestures"):
        serve(data=str(folder), out=copy)
    assert "Listening" not in capsys.readouterr().out


@pytest.mark.parametrize("rerun", [True, False])
def test_members_that_cannot_be_loaded_end_it_with_an_error(here, folder, copy, monkeypatch, rerun):
    if not rerun:
        monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN")
    for path in (*copy.glob("members/lgbm/fold*/model.txt"), *copy.glob("serving/lgbm.*")):
        path.write_text("x")
    with pytest.raises(UserError, match="no sequence is answered and there is no submission"):
        serve(data=str(folder), out=copy)
    assert not os.listdir() and not (copy / "submission.parquet").exists()


def test_results_that_were_changed_are_no_finished_run(here, folder, copy, monkeypatch):
    (copy / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="metrics.json is damaged"):
        serve(data=str(folder), out=copy, run_any_training=False)


@pytest.mark.parametrize("call", [serve, main])
def test_a_folder_with_only_a_test_file_is_served(here, first, folder, copy, tmp_path, monkeypatch, call, capsys):
    """Also where the competition's package is beside it: that is not run, and our own gateway is used."""
    import shutil

    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(STAND_IN)])
    for name in [m for m in sys.modules if m.split(".")[0] == "kaggle_evaluation"]:
        del sys.modules[name]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "test.csv", alone)
    (alone / "kaggle_evaluation").mkdir()
    (alone / "kaggle_evaluation" / "__init__.py").write_text("raise SystemExit('code of a stranger')")
    outcome = call(data=str(alone), out=copy, folds=3)
    check(copy / "submission.parquet", folder)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(copy / "submission.parquet")) and "is not run" in printed
    assert call is serve or outcome.submission == copy / "submission.parquet"


def test_the_submission_of_the_competitions_gateway_is_named_where_it_is(here, folder, copy, monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN")
    serve(data=str(folder), out=copy, boosting_rounds=99)
    check(here / "submission.parquet", folder)
    assert capsys.readouterr().out.rstrip().endswith(f"The submission is {here / 'submission.parquet'}")
    assert not (copy / "submission.parquet").exists()
