"""Runs side by side: paired differences over people, and refusals where runs are about different recordings."""

from types import SimpleNamespace

import numpy as np
import pytest

CLASSES = ("drink", "wave", "write")
PEOPLE = np.repeat([f"p{k}" for k in range(15)], 20)


def write_run(folder, truth, labels, people=PEOPLE, ids=None, missing=()):
    from gesture_nb.training.results import write_oof

    ids = np.arange(len(truth)).astype(str) if ids is None else ids
    meta = {"sequence_id": ids, "subject": people, "gesture": np.array(CLASSES)[truth]}
    table = SimpleNamespace(meta=meta)
    dataset = SimpleNamespace(table=table, classes=CLASSES, groups=None, fold=np.zeros(len(truth), int))
    labels = labels.copy()
    labels[list(missing)] = -1
    result = SimpleNamespace(labels=labels, probs={}, blended=np.eye(3)[labels], adapted={})
    folder.mkdir()
    write_oof(folder / "oof.parquet", dataset, result)
    return folder


@pytest.fixture
def truth():
    return np.random.default_rng(1).integers(0, 3, len(PEOPLE))


def wrong_for(truth, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(truth)) < share, (truth + 1) % 3, truth)


def test_a_difference_is_paired(truth, tmp_path):
    """People differ much, the two runs differ little but everywhere: only the paired interval is narrow."""
    from gesture_nb.analysis.compare import compare
    from gesture_nb.evaluation.metric import bootstrap_interval

    hard = np.isin(PEOPLE, ["p0", "p1", "p2", "p3", "p4"])
    first = np.where(hard, wrong_for(truth, 0.8, 2), truth)
    second = first.copy()
    second[::20] = truth[::20]
    runs = [write_run(tmp_path / name, truth, labels) for name, labels in (("a", first), ("b", second))]
    found = compare(runs)
    difference = found.runs[1]["differences"]["accuracy"]
    alone = bootstrap_interval(truth, first, PEOPLE, "accuracy", classes=CLASSES)
    assert difference["value"] == pytest.approx((second == truth).mean() - (first == truth).mean())
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["high"] - difference["low"] < 0.3 * (alone["high"] - alone["low"])
    assert sum(found.runs[1]["per_person"].values()) == pytest.approx(15 * difference["value"])
    assert found.agreement[0, 1] == pytest.approx((first == second).mean())


def test_equal_runs_do_not_differ(truth, tmp_path):
    from gesture_nb.analysis.compare import compare, verdict

    labels = wrong_for(truth, 0.3, 5)
    found = compare([write_run(tmp_path / name, truth, labels) for name in "ab"])
    for difference in (*found.runs[1]["differences"].values(), *found.runs[1]["per_class"].values()):
        assert difference == {"value": 0, "low": 0, "high": 0} and verdict(difference) == "not told apart"


def test_order_of_rows_and_missing_predictions(truth, tmp_path):
    """Rows may stand in another order; what one run lacks is left out of both and counted."""
    from gesture_nb.analysis.compare import compare

    labels, order = wrong_for(truth, 0.3, 5), np.random.default_rng(0).permutation(len(truth))
    a = write_run(tmp_path / "a", truth, labels, missing=(0, 7))
    b = write_run(tmp_path / "b", truth[order], labels[order], PEOPLE[order], np.arange(len(truth))[order].astype(str))
    found = compare([a, b])
    assert found.sequences == len(truth) - 2 and found.left_out == 2
    assert found.runs[1]["differences"]["macro_f1"]["value"] == 0 and "2 sequences are left out" in str(found)


def test_other_recordings_are_refused(truth, tmp_path):
    from gesture_nb.analysis.compare import compare
    from gesture_nb.config import UserError

    a = write_run(tmp_path / "a", truth, truth)
    elsewhere = write_run(tmp_path / "b", truth, truth, ids=np.arange(1000, 1000 + len(truth)).astype(str))
    same_names = write_run(tmp_path / "c", (truth + 1) % 3, truth)
    other_people = write_run(tmp_path / "d", truth, truth, np.roll(PEOPLE, 1))
    for other, said in ((elsewhere, "no sequence in common"), (same_names, "gesture of sequence"),
                        (other_people, "person of sequence")):
        with pytest.raises(UserError, match=said):
            compare([a, other])
    with pytest.raises(UserError, match="at least two"):
        compare([a])
    with pytest.raises(UserError, match="no finished run"):
        compare([a, tmp_path])
