"""The competition's rerun, played by a stand-in of its server.

It listens first, loads or trains inside the first call, and predicts every sequence.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture
def rerun(folder, tmp_path):
    def go(out, **environ):
        path = os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), str(out)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"KAGGLE_IS_COMPETITION_RERUN": "1", "PYTHONPATH": path} | environ,
        )

    return go


def check(submission, folder):
    import polars as pl

    from gesture_nb.schema import GESTURES

    answers, asked = pl.read_parquet(submission), pl.read_csv(folder / "test.csv")["sequence_id"].unique()
    assert answers.columns == ["sequence_id", "gesture"]
    assert set(answers["sequence_id"]) == set(asked) and len(answers) == len(asked) == 14
    assert set(answers["gesture"]) <= set(GESTURES) and answers["gesture"].n_unique() > 1


def test_trains_inside_the_first_question_and_then_only_serves(rerun, folder, tmp_path):
    done = rerun(
        tmp_path / "out", STAND_IN_ORDER="7"
    )  # a run that decides by person answers otherwise in another order
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    at = {
        w: next(i for i, s in enumerate(lines) if w in s)
        for w in ("Listening", "First sequence", "Loading training data", "[LightGBM]")
    }
    assert list(at.values()) == sorted(at.values())
    check(tmp_path / "submission.parquet", folder)
    first = (tmp_path / "submission.parquet").read_bytes()
    again = rerun(
        tmp_path / "out", STAND_IN_ORDER="7", RUN_ANY_TRAINING="0", TEST_MEMBERS="lgbm,torch,keras"
    )  # the run knows who answers
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Loading training data" not in again.stdout and "[LightGBM]" not in again.stdout
    import polars as pl

    assert (
        pl.read_parquet(tmp_path / "submission.parquet")
        .sort("sequence_id")
        .equals(pl.read_parquet(first).sort("sequence_id"))
    )


def test_without_members_serving_only_is_refused_before_listening(rerun, tmp_path):
    done = rerun(tmp_path / "none", RUN_ANY_TRAINING="0")
    assert done.returncode == 1 and "refused: RUN_ANY_TRAINING=0" in done.stderr
    assert "Listening" not in done.stdout
