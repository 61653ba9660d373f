"""`import gesture_nb as gn`: quick, silent, complete in help and completion; runs, frames and sinks go through it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import gesture_nb as gn
from gesture_nb.config import UserError, setting_fields
from gesture_nb.sinks import Sink

NAMES = {"GestureClassifier", "Run", "Settings", "load", "main", "read_recordings"}
NAMES |= {"register_member", "register_sensor", "register_sink", "train", "tune"}
NAMES |= {"convert", "from_arrays", "from_frame"}
NAMES |= {"inspect", "explore", "adapt", "compare", "replay", "trackers"}
NAMES |= {"to_arrays", "to_dataset", "to_frame"}
QUICK = {"members": "lgbm", "folds": 2, "boosting_rounds": 5, "progress": "lines"}


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return gn.train(toy, tmp_path_factory.mktemp("front") / "run", **QUICK)


def test_dir_shows_what_people_call_and_no_others():
    assert set(dir(gn)) == NAMES
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        gn.fit  # noqa: B018


def test_every_name_is_there_and_documented():
    for name in NAMES:
        assert inspect.getdoc(getattr(gn, name)), name
    assert (ROOT / "gesture_nb" / "py.typed").exists()


def test_editors_see_the_names():
    text = (ROOT / "gesture_nb" / "__init__.py").read_text()
    block = text.split("if TYPE_CHECKING:")[1]
    assert all(f" {name}" in block for name in NAMES)


def test_the_version_is_that_of_the_settings():
    assert f"version = {gn.__version__}\n" in (ROOT / "settings.ini").read_text()


def test_importing_is_silent_and_loads_nothing(tmp_path):
    code = (
        "import sys, gesture_nb; dir(gesture_nb); print(sorted(m for m in sys.modules if m.startswith('gesture_nb.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_help_and_completion_show_every_setting():
    for _ in range(2):  # looking twice must not lose any
        signature = inspect.signature(gn.train)
        wanted = set(setting_fields()) - {"output_path"}
        assert wanted <= set(signature.parameters)
        assert signature.parameters["folds"].default == 5
    text = inspect.getdoc(gn.train)
    for name, field in setting_fields().items():
        if name not in ("data", "output_path"):
            assert f"{name} : default {field.default!r}" in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_registered_member_appears_in_help():
    from gesture_nb.registry import MEMBERS, Entry

    MEMBERS.register("extra", Entry("nowhere:Extra", "an extra one"))
    try:
        assert "w_extra" in inspect.signature(gn.train).parameters and "w_extra : default None" in inspect.getdoc(
            gn.train
        )
    finally:
        MEMBERS.unregister("extra")
    assert "w_extra" not in inspect.signature(gn.train).parameters


def test_a_run_and_what_it_knows(run):
    import pandas as pd

    assert run.metrics["ensemble"]["accuracy"] > 0.5 and run.classes == ("hold", "shake", "wave")
    frame = run.predictions()
    assert isinstance(frame, pd.DataFrame) and len(frame) == 60
    assert list(frame.columns[:5]) == ["sequence_id", "subject", "fold", "gesture", "pred"]
    probs = frame[[f"p_{c}" for c in run.classes]].to_numpy()
    assert np.allclose(probs.sum(1), 1, atol=1e-5)
    assert np.array_equal(probs, np.array(_column(run, "p_ensemble"), np.float32))
    assert run.predictions("lgbm").shape == frame.shape
    with pytest.raises(UserError, match="it has lgbm, ensemble"):
        run.predictions("torch")
    assert run.report().read_text().startswith("<!doctype html>")
    assert {"open", "close", "unit"} <= set(run.log()["kind"])
    assert run.predictor(fold=1).classes == run.classes == gn.load(run.folder).classes
    assert "accuracy" in repr(run)
    for shown in (run, run.predictor(), gn.read_recordings("sim:3")):
        assert "<table" in shown._repr_html_()


def test_the_report_after_main_has_the_served_people_and_the_last_line_the_submission(run, toy, capsys):
    outcome = gn.main(data=toy, out=run.folder, run_any_training=False, progress="lines")   # folds are the run's
    served = outcome.served
    text = (run.folder / "report.html").read_text()
    assert f"{served['sequences']} sequences of {served['subjects']} people (fold 1)" in text
    assert capsys.readouterr().out.rstrip().endswith(f"the submission is {run.folder / 'submission.parquet'}")
    assert outcome.submission == run.folder / "submission.parquet" and outcome.submission.exists()


def test_no_answers_no_submission(run, toy, monkeypatch):
    """Where members fail on every sequence, `main()` ends with an error and the former submission stays."""
    from gesture_nb.models.gbdt import LgbmMember
    from gesture_nb.serving.compiled import CompiledTrees

    def fails(self, *arguments):
        raise ValueError("broken")

    for kind, name in ((LgbmMember, "predict_outputs"), (CompiledTrees, "parts"), (CompiledTrees, "predict_outputs")):
        monkeypatch.setattr(kind, name, fails)
    (run.folder / "submission.parquet").write_text("former")
    with pytest.raises(UserError, match="could not be predicted"):
        gn.main(data=toy, out=run.folder, run_any_training=False, **QUICK)
    assert (run.folder / "submission.parquet").read_text() == "former"


def _column(run, name):
    import pyarrow.parquet as pq

    return pq.read_table(run.folder / "oof.parquet")[name].to_pylist()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        gn.Run(tmp_path)


def test_a_frame_trains_like_its_file(run, toy, tmp_path):
    import pandas as pd

    frame = pd.read_parquet(toy)
    other = gn.train(frame, tmp_path / "run", **QUICK)
    assert np.array_equal(_column(run, "p_ensemble"), _column(other, "p_ensemble"))
    again = gn.train(frame, tmp_path / "run", **QUICK)
    assert "finished before" in " ".join(again.log()["text"].dropna())
    with pytest.raises(UserError, match="data was"):
        gn.train(frame.assign(acc_x=frame.acc_x + 1), tmp_path / "run", **QUICK)
    with pytest.raises(UserError, match="no frame"):
        gn.train(42, tmp_path / "other", **QUICK)


def test_recordings_from_files_and_frames_are_the_same(toy):
    import pandas as pd
    import polars as pl

    table = gn.read_recordings(toy)
    for source in (pd.read_parquet(toy), pl.read_parquet(toy), str(toy)):
        other = gn.read_recordings(source)
        assert np.array_equal(other.values, table.values) and np.array_equal(other.offsets, table.offsets)


class Heard(Sink):
    def __init__(self):
        self.kinds = []

    def on_event(self, event):
        self.kinds.append(event["kind"])


def test_sinks_are_handed_in_and_registered(toy, tmp_path):
    from gesture_nb.registry import SINKS

    mine, everywhere = Heard(), Heard()
    gn.register_sink("heard", lambda settings, folder: everywhere)
    try:
        gn.train(toy, tmp_path / "run", sinks=[mine], **QUICK)
    finally:
        SINKS.unregister("heard")
    assert mine.kinds == everywhere.kinds and {"open", "unit", "close"} <= set(mine.kinds)


def test_a_stop_signal_from_outside_ends_a_training(toy, tmp_path):
    """As a cancel button does: another thread requests it, the state is kept, the same call goes on."""
    import threading

    from gesture_nb.control import StopSignal

    stop, settings = StopSignal(), dict(members="torch", folds=2, epochs=30, batch_size=16, progress="lines")
    stopper = threading.Thread(target=lambda: [None for _ in iter(stop.request, True)], daemon=True)
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        gn.train(toy, tmp_path / "run", stop=stop, **settings)
    stopper.join()
    assert list((tmp_path / "run" / "members" / "torch" / "fold0" / "checkpoint").glob("state-*"))


def test_what_a_notebook_has_changed_is_set_aside_while_recordings_are_read(monkeypatch):
    from gesture_nb import api
    from gesture_nb.data import arrays, convert

    seen = []

    def notes(*arguments, **options):
        seen.append(np.geterr()["over"])
        raise UserError("noted")

    # the first thing that each of the functions calls
    places = {"inspect": (api, "inspect_recordings"), "convert": (api, "convert_recordings")}
    places |= {"from_arrays": (arrays, "arrays_of"), "from_frame": (convert, "convert")}
    for name, (module, first) in places.items():
        monkeypatch.setattr(module, first, notes)
        with np.errstate(all="raise"), pytest.raises(UserError, match="noted"):
            getattr(gn, name)([])
        monkeypatch.undo()
    assert seen == ["warn"] * 4


def test_an_evaluation_is_steered_by_the_run_alone(run, toy, monkeypatch, capsys):
    from gesture_nb import commands

    used = []
    monkeypatch.setattr(commands, "evaluate_run", lambda settings, *a: used.append(settings) or {})
    monkeypatch.setattr(commands, "write_and_print", lambda *a: None)
    for variable, value in {"EPOCHS": "7", "DISABLE": "mixup", "FOLDS": "3"}.items():
        monkeypatch.setenv(f"GESTURE_NB_{variable}", value)
    monkeypatch.setenv("W_LGBM", "0.3")
    commands.evaluate(out=run.folder)
    (used,) = used
    assert (used.epochs, used.disable, used.folds, used.w_lgbm, used.boosting_rounds) == (None, (), 2, None, 5)
    assert "evaluate does not read GESTURE_NB_FOLDS, GESTURE_NB_EPOCHS, W_LGBM" in capsys.readouterr().out


def test_weights_of_members_that_the_run_does_not_have(run, capsys):
    from gesture_nb.progress import Reporter

    with pytest.raises(UserError, match="has no member 'lgmb'; it has lgbm. Did you mean 'lgbm'"):
        run.predictor(fixed={"lgmb": 0})
    with Reporter() as reporter:
        run.predictor(fixed={"torch": 1}, reporter=reporter)
        run.predictor(fixed={"keras": 0}, reporter=reporter)
    assert "The weight of torch changes nothing" in (said := capsys.readouterr().out) and "keras" not in said
    for how in ({"fold": "a"}, {"fold": True}, {"fold": 1.5}, {"fold": 2}, {"fixed": "lgbm"}, {"fixed": {"lgbm": "x"}}):
        with pytest.raises(UserError, match="must be"):
            run.predictor(**how)
    for folder in (None, "", 3.5):
        with pytest.raises(UserError, match="The run folder is"):
            gn.load(folder)


def test_a_predictor_that_was_changed_is_pickled_as_it_is(run):
    import pickle
    from dataclasses import replace

    from gesture_nb.serving.batch import with_decision

    changed = replace(with_decision(run.predictor(), "argmax", "auto"), on_error="label", trained=None)
    again = pickle.loads(pickle.dumps(changed))
    assert again.on_error == "label" and again.trained is None and again.blend == changed.blend
    assert repr(again.decide.decision) == repr(changed.decide.decision)
