"""What a run computes does not change unless a version says so: all members, on real and on simulated recordings."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import golden  # noqa: E402

@pytest.mark.parametrize("name", list(golden.RUNS))
def test_golden_run(name, tmp_path):
    out = golden.train(name, tmp_path, PYTHONPATH=str(ROOT))
    found, exact = golden.differences(name, out)
    assert not found
    if not exact:
        print(f"{name}: this environment is not on record, so scores were compared within a tolerance")


@pytest.mark.parametrize("name", list(golden.RUNS))
def test_the_record_is_whole(name):
    kept = golden.read_record(name)["environments"]
    assert kept and all({"oof.parquet:p_ensemble", "ensemble.json:final"} <= e["digests"].keys() for e in kept.values())
    weights = [k for e in kept.values() for k in e["digests"] if k.startswith("members/")]
    assert {k.split("/")[1] for k in weights} == {"lgbm", "torch", "keras", "rocket"}


def test_a_changed_result_is_seen(tmp_path):
    """The comparison can fail: one changed probability is named."""
    import pyarrow as pa

    table = pa.table(
        {"sequence_id": ["a", "b"], "p_ensemble": pa.array([[0.25, 0.75], [0.5, 0.5]], pa.list_(pa.float32()))}
    )
    other = pa.table(
        {"sequence_id": ["a", "b"], "p_ensemble": pa.array([[0.25, 0.75], [0.5, 0.25]], pa.list_(pa.float32()))}
    )
    assert golden.column_values(table["sequence_id"]) == golden.column_values(other["sequence_id"])
    assert golden.column_values(table["p_ensemble"]) != golden.column_values(other["p_ensemble"])


@pytest.mark.parametrize("name", list(golden.RUNS))
def test_scores_of_another_environment_may_be_near_but_not_elsewhere(name):
    kept = golden.read_record(name)["scores"]
    assert golden.score_differences(name, kept) == []
    near = {c: {"accuracy": s["accuracy"] + 0.04, "log_loss": s["log_loss"] * 1.1} for c, s in kept.items()}
    assert golden.score_differences(name, near) == []
    guessed = {c: {"accuracy": 0.0, "log_loss": 2 * s["log_loss"]} for c, s in kept.items()}
    assert len(golden.score_differences(name, guessed)) == len(kept)
