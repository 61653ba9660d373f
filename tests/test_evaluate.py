"""Scenarios, decisions, repairs and components of a finished run; and leaks, planted to be caught."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gesture_nb import scratch
from gesture_nb.analysis.evaluate import (
    finished_units,
    frames_without_sensors,
    imu_half,
    predict_without_sensors,
    run_settings,
    scenarios_of,
    summary,
    without_sensors,
)
from gesture_nb.artifacts import DamagedError, read_json, write_json
from gesture_nb.config import COMPONENTS, UserError, disable_components, read_settings
from gesture_nb.control import StopSignal
from gesture_nb.data.sequences import slice_sequences
from gesture_nb.evaluation.folds import LeakError
from gesture_nb.evaluation.metric import bootstrap_interval
from gesture_nb.features.augment import Augment
from gesture_nb.models.base import TrainingSize
from gesture_nb.progress import Quiet, Reporter
from gesture_nb.report.findings import read_findings
from gesture_nb.sinks import Sink
from gesture_nb.training import units as training
from gesture_nb.training.blend import find_recipe
from gesture_nb.training.forecast import estimate_unit_seconds, format_forecast
from gesture_nb.training.orientation import find_flips
from gesture_nb.training.out_of_fold import arrival_order, blend_and_decide
from gesture_nb.training.results import read_unit_outputs
from gesture_nb.training.run import train

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of the competition's kind: trees only, two folds, everything switched on."""
    out = tmp_path_factory.mktemp("evaluate") / "out"
    s = read_settings(
        {}, data="sim:200:1", out=out, members="lgbm", folds=2, boosting_rounds=6, decision="assignment", flip="on"
    )
    p, metrics = train(s, Quiet())
    from gesture_nb.serving.predictor import read_blend

    return SimpleNamespace(s=s, p=p, metrics=metrics, out=out, kept=read_blend(out))


def voices(n=240, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    p = SimpleNamespace(
        y=rng.integers(classes, size=n),
        fold=np.arange(n) % 3,
        subjects=np.array([f"p{i % 12:02d}" for i in range(n)]),
        classes=tuple("abcdef"[:classes]),
    )
    z = {m: rng.normal(size=(n, classes)) + k * np.eye(classes)[p.y] for m, k in (("lgbm", 1.5), ("torch", 2.5))}
    return p, [
        (m, {"index": np.arange(n), "proba": (np.exp(v) / np.exp(v).sum(1, keepdims=True)).astype("f4")})
        for m, v in z.items()
    ]


# ---- leaks


def test_a_person_on_both_sides_is_caught_before_training(done):
    fold = done.p.fold.copy()
    fold[np.flatnonzero(fold == 0)[0]] = 1  # one sequence strays into the other fold
    unit = training.Unit("lgbm", 0, done.out / "never")
    with pytest.raises(LeakError, match=str(done.p.subjects[np.flatnonzero(done.p.fold == 0)[0]])):
        training.train_unit(replace(done.p, fold=fold), done.s, unit, {}, Quiet(), StopSignal())
    assert not unit.folder.exists()
    with pytest.raises(LeakError):
        predict_without_sensors(replace(done.p, fold=fold), finished_units(done.s, done.p), ("thm",))


def test_a_batch_that_holds_the_reported_fold_is_caught(done, monkeypatch):
    honest = training.make_batch
    monkeypatch.setattr(
        training,
        "make_batch",
        lambda p, index, labelled=True, **kw: honest(p, np.arange(len(p.y)) if labelled else index, labelled, **kw),
    )
    with pytest.raises(LeakError):
        training.train_unit(done.p, done.s, training.Unit("lgbm", 0, done.out / "never"), {}, Quiet(), StopSignal())


def test_an_inner_split_with_the_same_people_on_both_sides_is_caught(done, monkeypatch):
    monkeypatch.setattr(
        training, "inner_split", lambda subjects, y, seed: (np.arange(len(y)), np.arange(9))
    )
    with pytest.raises(LeakError, match="inner split"):
        training.train_unit(done.p, done.s, training.Unit("lgbm", 0, done.out / "never"), {}, Quiet(), StopSignal())


def depends_on_its_own_labels(recipes, p, told, k=1) -> bool:
    """Whether what is used for fold `k` changes when the labels of fold `k` do."""
    other = SimpleNamespace(**vars(p) | {"y": np.where(p.fold == k, (p.y + 1) % len(p.classes), p.y)})
    return recipes(p, told)[k] != recipes(other, told)[k]


@pytest.mark.parametrize("how", ["auto", "expected_f1"])
def test_weights_and_decisions_never_see_the_fold_they_are_judged_on(how):
    p, told = voices()
    s = read_settings({}, decision=how)
    honest = lambda p, told: [*zip((b := blend_and_decide(p, s, told).blend)["per_fold"], b["decision"]["per_fold"])]
    planted = lambda p, told: [find_recipe({m: a["proba"] for m, a in told}, p.y)] * 3
    assert not any(depends_on_its_own_labels(honest, p, told, k) for k in range(3))
    assert depends_on_its_own_labels(planted, p, told)  # the check would see it
    v, other = (
        blend_and_decide(SimpleNamespace(**vars(p) | {"y": y}), s, told) for y in (p.y, np.where(p.fold == 1, 0, p.y))
    )
    assert np.array_equal(v.labels[p.fold == 1], other.labels[p.fold == 1]) and not np.array_equal(
        v.blended, other.blended
    )


def test_the_detector_of_a_fold_knows_nothing_of_its_people(done):
    strange = done.p.table.values.copy()
    strange[:, np.repeat(done.p.fold == 1, done.p.table.lengths)] *= -1
    order = arrival_order(len(done.p.y), 0)
    one, two = (find_flips(replace(done.p.table, values=v), done.p.fold, order) for v in (done.p.table.values, strange))
    assert (
        one.detectors[1].as_json() == two.detectors[1].as_json()
        and one.detectors[0].as_json() != two.detectors[0].as_json()
    )
    assert np.array_equal(one.turned[1][done.p.fold == 0], two.turned[1][done.p.fold == 0])


# ---- decisions and repairs, in training and while serving


def test_serving_answers_what_the_out_of_fold_table_says(done):
    """Blend, repairs and deciding by person, asked one at a time in the same order of arrival, features as recorded."""
    import pyarrow.parquet as pq

    from gesture_nb.serving.predictor import load

    said, k = np.array(pq.read_table(done.out / "oof.parquet")["pred"].to_pylist()), 1
    order = [i for i in arrival_order(len(said), done.s.seed) if done.p.fold[i] == k]
    predictor, t = load(done.out, k, adapt=False), done.p.table
    frames = {
        i: {
            "sequence_id": [t.meta["sequence_id"][i]] * t.lengths[i],
            "subject": [t.meta["subject"][i]] * t.lengths[i],
            "handedness": None,
            **{c: slice_sequences(t, i, i + 1).channel(c) for c in t.names},
        }
        for i in order[:40]
    }
    people = lambda i: {c: [t.meta[c][i]] for c in ("subject", "handedness")}
    answers = {i: predictor(frames[i], people(i)) for i in frames}
    assert predictor.decide.decision.by_person and predictor.fix_orientation is not None
    assert (
        np.mean([answers[i] == said[i] for i in frames]) > 0.98
    )  # features of one sequence differ from a block's in the last digit
    assert {i: predictor(frames[i], people(i)) for i in [*frames][:10]} == {
        i: answers[i] for i in [*frames][:10]
    }  # never revised
    alone = {k: v for k, v in frames[order[0]].items() if k not in ("subject", "sequence_id")}
    p = predictor.proba(alone)
    assert (
        predictor(alone) == predictor.classes[predictor.decide.decision.rule.decide(p)]
        and len(predictor.decide.labels) == 40
    )


def test_assignment_needs_the_competitions_gestures(toy, tmp_path):
    with pytest.raises(UserError, match="DECISION=assignment"):
        train(read_settings({}, data=toy, out=tmp_path / "out", members="lgbm", decision="assignment"), Quiet())
    assert not (tmp_path / "out" / "members").exists()


# ---- scenarios


def test_sensors_are_removed_before_the_features(done):
    assert list(scenarios_of(done.p.table)) == ["all", "imu", "no_rot", "acc"]
    quiet = without_sensors(done.p.table, ("thm", "tof"))
    assert (
        np.isnan(quiet.values[7:]).all()
        and np.array_equal(quiet.values[:7], done.p.table.values[:7], equal_nan=True)
        and not np.isnan(done.p.table.values[7:]).all()
    )
    units = finished_units(done.s, done.p)
    again = predict_without_sensors(done.p, units, (), done.s.seed)
    for (_, a), b in zip(read_unit_outputs(units), again):
        assert np.allclose(a["proba"], b[1]["proba"], atol=1e-5)  # nothing removed: what was said in training


def test_features_without_sensors_are_kept_in_a_file_where_the_readings_are(done, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "SMALL", 0)
    values = scratch.scratch_array(tmp_path, done.p.table.values.shape)
    values[:] = done.p.table.values
    there = replace(done.p, table=replace(done.p.table, values=values))
    assert done.p.flips.turned.any()
    for kinds in ((), ("thm", "tof"), ("rot", "thm", "tof")):
        here = frames_without_sensors(done.p, kinds, rows=10**9)
        mapped = frames_without_sensors(there, kinds, rows=500)
        assert scratch.is_in_file(mapped.values) and not scratch.is_in_file(here.values)
        for name in ("values", "grids", "offsets", "rate_hz"):
            assert getattr(here, name).tobytes() == getattr(mapped, name).tobytes()
        assert all(np.array_equal(mask, mapped.masks[name]) for name, mask in here.masks.items())
    assert pickle.loads(pickle.dumps(mapped)).values.tobytes() == mapped.values.tobytes()
    assert not list(tmp_path.iterdir())


def test_evaluation_of_a_run(done):
    """The command, with the run's own settings."""
    from gesture_nb.commands import evaluate

    said = run_settings(done.out, progress="lines")
    assert said["data"] == "sim:200:1" and said["boosting_rounds"] == 6 and "w_lgbm" not in said
    found = evaluate(out=done.out, ablations="expected_f1")
    assert list(found["scenarios"]) == ["all", "imu", "half", "no_rot", "acc"]
    e = found["scenarios"]["all"]["ensemble"]
    assert (
        e["score"]["value"] == pytest.approx(done.metrics["ensemble"]["score"])
        and found["scenarios"]["all"]["orders"]["n"] == 20
    )
    assert found["scenarios"]["all"]["members"]["lgbm"]["macro_f1"]["value"] == pytest.approx(
        done.metrics["members"]["lgbm"]["macro_f1"]
    )
    assert (
        set(e["per_subject"]) == set(done.p.subjects) and e["score"]["low"] <= e["score"]["value"] <= e["score"]["high"]
    )
    assert sum(imu_half(len(done.p.y), 0)) == len(done.p.y) // 2 and (done.out / "ablations.json").exists()
    page = (done.out / "report.html").read_text()
    assert "IMU only" in page and "expected_f1" in page
    missing = page[page.index("Missing sensors"):page.index("By gesture")]
    for name in ("all", "imu"):
        scenario = found["scenarios"][name]
        for protocol in ("as_they_come", "all_at_once"):
            score = scenario["adapted"][protocol]["ensemble"]["score"]
            assert f"{score['value']:.3f}" in missing and f"{score['low']:.3f} – {score['high']:.3f}" in missing
    del scenario["adapted"]["all_at_once"]["ensemble"]["score"]
    stored = read_json(done.out / "evaluation.json")
    write_json(done.out / "evaluation.json", stored | {"found": found})
    with pytest.raises(DamagedError, match="scenarios do not tell of the same"):
        read_findings(done.out, "evaluation")


def test_summary_is_the_metric_with_its_interval():
    p, told = voices()
    answers = told[1][1]["proba"].argmax(1)
    found, names = summary(p, answers), np.array(p.classes)
    assert found["macro_f1"] == pytest.approx(
        bootstrap_interval(names[p.y], names[answers], p.subjects, classes=p.classes)
    )
    assert found["per_subject"]["p03"]["n"] == (p.subjects == "p03").sum()


# ---- components


def test_components_have_neutral_values():
    off = disable_components(Augment(), tuple(COMPONENTS))
    assert (
        all(not getattr(off, f) for names in COMPONENTS.values() for f in names if hasattr(off, f))
        and off.alpha == Augment().alpha
    )
    with pytest.raises(UserError, match="Did you mean 'mixup'"):
        read_settings({}, disable="mixupp")
    with pytest.raises(UserError, match="Did you mean 'mixup'"):
        read_settings({}, without="mixupp")


def test_a_component_changes_its_members_and_nothing_else(toy, tmp_path, component="mixup"):
    from gesture_nb.analysis.ablate import ablate, ablation_lines

    s = read_settings({}, data=toy, out=tmp_path / "out", members="lgbm,torch", folds=2, boosting_rounds=3, epochs=1)
    p, _ = train(s, Quiet())
    lines = []

    class Lines(Sink):
        def on_event(self, event):
            lines.append(event.get("text"))

    found = ablate(s, p, f"{component},weights,lgbm", Reporter(sinks=[Lines()]))
    assert set(found) == {component, "weights", "lgbm"} and len(ablation_lines(found)) == 4
    estimate_at, first = (
        next(i for i, x in enumerate(lines) if x and w in x) for w in ("To train", f"without {component}")
    )
    assert estimate_at < first
    a, b = (
        s.output_path / f / "torch" / "fold0" / "weights.safetensors"
        for f in ("members", f"ablations/{component}/members")
    )
    assert a.read_bytes() != b.read_bytes() and not (s.output_path / f"ablations/{component}/members/lgbm").exists()
    kept = b.stat().st_mtime_ns
    ablate(s, p, component, Quiet())
    assert b.stat().st_mtime_ns == kept  # a second call trains nothing
    with pytest.raises(UserError, match="no component 'heads'"):
        ablate(s, p, "heads", Quiet())


# ---- the forecast


def test_forecast():
    size, net = TrainingSize(5000, 200, 26, 0, 700, 18), lambda epochs: {"epochs": epochs, "total_steps": 157 * epochs}
    assert estimate_unit_seconds("torch", net(20), size) == pytest.approx(
        2 * estimate_unit_seconds("torch", net(10), size)
    )
    assert (
        estimate_unit_seconds("torch", net(100), size, "full")
        > estimate_unit_seconds("torch", net(100), size, "fast")
        > 0
    )
    assert "TIME_LIMIT_HOURS" in format_forecast({"torch": (5, 4000.0)}) and "TIME_LIMIT_HOURS" not in format_forecast(
        {"torch": (5, 40.0)}
    )
    assert "limit of 1 h" in format_forecast({"torch": (5, 4000.0)}, 1.0)
