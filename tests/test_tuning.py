"""Presets in files, and the search that writes them: resumed after a kill, scored on people whom no trial saw."""
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import gesture_nb as gn
from gesture_nb.config import Settings, UserError, as_json, read_settings, settings_notes, with_settings
from gesture_nb.models.base import Member
from gesture_nb.models.registry import member_class
from gesture_nb.presets import checked_preset, preset_value

VALUES = {"lgbm": {"leaves": 5, "learning_rate": 0.2}, "torch": {"lr": 0.001, "mixup": 0.5}}


@pytest.fixture
def preset_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"preset": "fast", "members": VALUES, "origin": {"by": "hand"}}))
    return path


# ------------------------------------------------------------------ presets in files

def test_a_preset_file_reaches_the_members(preset_file):
    s = read_settings({}, preset=str(preset_file), epochs=3)
    assert s.preset == "fast" and s.values_of("lgbm") == VALUES["lgbm"] and s.values_of("rocket") == {}
    assert as_json(s)["preset"] == {"preset": "fast", "members": VALUES} and as_json(Settings())["preset"] == "fast"
    recipe, net = member_class("lgbm")(s).recipe, member_class("torch")(s).preset
    assert (recipe.leaves, recipe.learning_rate, recipe.rounds) == (5, 0.2, 500)
    assert (net.lr, net.augment.mixup, net.augment.cutmix) == (0.001, 0.5, 0.2)
    assert with_settings(s, seed=1).preset_values == s.preset_values
    assert with_settings(s, preset=as_json(s)["preset"]) == s and with_settings(s, preset="full").preset_values == ()
    assert read_settings({"GESTURE_NB_PRESET": str(preset_file)}).preset_values == s.preset_values


def test_every_built_in_member_can_be_searched():
    assert Member.search_space("fast") == {}
    for name in ("lgbm", "torch", "keras", "rocket"):
        for preset in ("fast", "full"):
            space = member_class(name).search_space(preset)
            assert len(space) >= 4
            stated = {key: dimension.default for key, dimension in space.items()}
            if name == "keras": assert 2 * space["dropout"].high < 1   # the last layer drops twice as much
            found = checked_preset({"preset": preset, "members": {name: stated}}, "it")
            own = Settings(preset=preset, preset_values=found.values)
            plain = member_class(name)(Settings(preset=preset))
            assert vars(member_class(name)(own)).get("recipe") == vars(plain).get("recipe")


@pytest.mark.parametrize("contents, sentence", [
    ({"members": {"lgbn": {}}}, "states values of 'lgbn', but members are .* Did you mean 'lgbm'?"),
    ({"members": {"lgbm": {"leavs": 5}}}, "states 'leavs' of lgbm, .* it has learning_rate, .*Did you mean 'leaves'"),
    ({"members": {"lgbm": {"leaves": 1}}}, "leaves of lgbm is 1, but must be a whole number from 4 to 127"),
    ({"members": {"lgbm": {"leaves": "5"}}}, "leaves of lgbm is '5', but must be a whole number"),
    ({"members": {"lgbm": {"leaves": True}}}, "leaves of lgbm is True, but"),
    ({"members": {"lgbm": {"leaves": 5.5}}}, "leaves of lgbm is 5.5, but"),
    ({"members": {"lgbm": {"bins": 64}}}, "bins of lgbm is 64, but must be one of 15, 31"),
    ({"members": {"lgbm": {"at_random": 1}}}, "at_random of lgbm is 1, but must be one of true, false"),
    ({"members": {"lgbm": [5]}}, "'members.lgbm' is a list, but must be an object"),
    ({"preset": "huge"}, "is based on 'huge', but must be based on one of fast, full"),
    ({"member": {}}, "has 'member', but a preset has preset, members, origin. Did you mean 'members'?"),
    ([1], "is a list, but must be an object")])
def test_a_wrong_preset_file_is_refused(tmp_path, contents, sentence):
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=f"wrong.json.*{sentence}"): read_settings({}, preset=path)


def test_a_run_keeps_the_preset_that_it_began_with(preset_file, tmp_path):
    s = read_settings({}, preset=preset_file, out=tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"settings": as_json(s)}))
    preset_file.unlink()
    with pytest.raises(UserError, match="There is no preset file .*mine.json"): read_settings({}, preset=preset_file)
    given = {"preset": preset_file, "out": tmp_path / "run"}
    assert read_settings({}, **given) == s
    assert "is not there: what" in settings_notes({}, **given)[0]


def test_a_preset_travels_to_kaggle(preset_file):
    from gesture_nb.serving.kernel import settings_cell

    s = read_settings({}, preset=preset_file)
    names = {"DATA": None, "RUN": "run"}
    exec(settings_cell("train", s, ["preset"]), names)
    assert read_settings({}, preset=names["settings"]["preset"]).preset_values == s.preset_values
    assert preset_value(s) == names["settings"]["preset"]


# ------------------------------------------------------------------ the search

@pytest.mark.parametrize("people", [4, 5, 6, 10, 20])
def test_people_are_held_out_and_in_one_inner_fold_each(people):
    from gesture_nb.analysis.trials import search_parts

    groups, y = np.repeat([f"p{k}" for k in range(people)], 6), np.arange(6 * people) % 3
    for seed in range(3):
        parts = search_parts(groups, y, 5, seed)
        held_out, searched = ({*groups[parts.outer == part]} for part in (0, 1))
        assert not held_out & searched and 2 <= len(held_out) <= people - 2
        folds = [{*groups[parts.outer == 1][parts.inner == k]} for k in range(parts.inner.max() + 1)]
        assert sum(map(len, folds)) == len(searched) and len(folds) == min(5, len(searched)) and all(folds)
    with pytest.raises(UserError, match="needs at least 4 subjects, and there are 3"):
        search_parts(groups[:18], y[:18], 5, 0)


HOW = dict(members="lgbm", folds=2, boosting_rounds=5, save_jsonl=False, progress="lines")


def found_in(out):
    return json.loads((out / "tune" / "results.json").read_text())["members"]["lgbm"]


@pytest.fixture(scope="module")
def searched(toy, tmp_path_factory):
    """A search that was broken off inside its second trial, gone on with; and how far it had come."""
    pytest.importorskip("optuna")
    from gesture_nb.analysis import trials
    from gesture_nb.tuning import tune_members

    out, calls, train_unit = tmp_path_factory.mktemp("searched"), [], trials.train_unit

    def killed(*arguments):
        calls.append(arguments[2])
        if len(calls) == 4: raise KeyboardInterrupt
        return train_unit(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "train_unit", killed)
        with pytest.raises(KeyboardInterrupt): tune_members(3, data=str(toy), out=out, **HOW)
    assert not (out / "tune" / "results.json").exists()
    return out, tune_members(3, data=str(toy), out=out, **HOW | {"save_jsonl": True})


def test_the_log_of_a_search_counts_earlier_trials_and_is_no_training(searched):
    from gesture_nb.report.run_log import read_events
    from gesture_nb.tracking import last_attempt

    events = read_events(searched[0])
    units = [(e["label"], e["done"], e["units"], e["trained"]) for e in events if e["kind"] == "unit"]
    assert units == [("lgbm trial 1", 1, 3, False), ("lgbm trial 3", 2, 3, True), ("lgbm trial 4", 3, 3, True)]
    assert not {"plan", "step"} & {e["kind"] for e in last_attempt(events)}   # which trackers would record


def test_a_lost_process_is_said_and_its_fold_tried_again(toy, tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    from gesture_nb.analysis import trials
    from gesture_nb.executors.base import LostUnitError

    calls, train_unit = [], trials.train_unit

    def lost(*arguments):
        calls.append(str(arguments[2].folder))
        if len(calls) in (2, 4): raise LostUnitError("its process was lost")   # a fold of the trial, and of the end
        return train_unit(*arguments)

    monkeypatch.setattr(trials, "train_unit", lost)
    assert gn.tune(str(toy), tmp_path, trials=1, **HOW)["lgbm"]["best"] == 1
    assert calls[1] == calls[2] and calls[3] == calls[4] and len(calls) == 5 and "outer" in calls[4]
    said = [line for line in capsys.readouterr().out.splitlines() if "it goes on from its checkpoint" in line]
    assert said == [f"lgbm-trial1{part}: its process was lost; it goes on from its checkpoint"
                    for part in (" fold 2", "-outer fold 1")]


def test_what_people_held_out_do_changes_no_trial(searched, toy, tmp_path):
    """Their signals are replaced by others: trials try and score the same, and only their own scores change."""
    import pandas as pd

    from gesture_nb.analysis.trials import search_parts

    table = pd.read_parquet(toy)
    each = table.drop_duplicates("sequence_id")
    parts = search_parts(each.subject.to_numpy(str), np.unique(each.gesture, return_inverse=True)[1], 2, 42)
    rows = table.sequence_id.isin(each.sequence_id[parts.outer == 0]).to_numpy()
    table.loc[rows, ["acc_x", "acc_y"]] = table.loc[rows, ["acc_y", "acc_x"]].to_numpy() * 3 + 1
    table.to_parquet(tmp_path / "other.parquet")
    gn.tune(str(tmp_path / "other.parquet"), tmp_path / "out", trials=3, **HOW)
    other, mine = found_in(tmp_path / "out"), found_in(searched[0])
    tried = [[(t["values"], t["scores"]) for t in found["trials"] if t["state"] != "failed"] for found in (other, mine)]
    assert tried[0] == tried[1] and other["values"] == mine["values"] and other["inner"] == mine["inner"]
    assert other["outer"] != mine["outer"]
    with pytest.raises(UserError, match="holds a search with other settings: data was .* and is now"):
        gn.tune(str(tmp_path / "other.parquet"), searched[0], trials=3, **HOW)


def test_a_preset_of_another_search_is_named(searched, tmp_path):
    from gesture_nb.analysis.tuning import origin_note
    from gesture_nb.presets import origin_of

    known = json.loads((searched[0] / "tune" / "results.json").read_text())["identity"]
    origin = origin_of(searched[0] / "tune" / "preset.json")
    assert origin["scores"]["lgbm"]["trials"] == 4 and origin_note(origin, known) == ""
    assert "their scores are too good" in origin_note(origin, known | {"folds": "other"})
    assert origin_of("fast") == origin_of({"preset": "fast"}) == origin_of(tmp_path / "none.json") == {}
    assert origin_note({"by": "hand"}, known) == ""


def test_a_search_goes_on_and_finds_the_same(searched, toy, tmp_path):
    out, found = searched
    assert gn.tune(str(toy), tmp_path, trials=3, **HOW) == found | {
        "lgbm": found["lgbm"] | {"best": found_in(tmp_path)["best"]}}
    broken, whole = found_in(out)["trials"], found_in(tmp_path)["trials"]
    assert [t["state"] for t in broken] == ["complete", "failed", "complete", "complete"]
    assert broken[1]["values"] == broken[2]["values"]
    kept = [t for t in broken if t["state"] != "failed"]
    assert [(t["values"], t["scores"]) for t in kept] == [(t["values"], t["scores"]) for t in whole]
    assert whole[0]["default"] and whole[0]["values"]["leaves"] == 15


def test_the_winner_is_scored_on_people_whom_no_trial_saw(searched):
    out, found = searched
    outer, inner = found["lgbm"]["outer"], found["lgbm"]["inner"]
    assert outer["metric"] == "macro_f1" and outer["low"] <= outer["effect"] <= outer["high"]
    assert outer["effect"] == outer["on"] - outer["off"] and inner["winner"] >= inner["preset"]
    record = json.loads((out / "tune" / "results.json").read_text())
    assert record["people"] == {"searched": 3, "held_out": 3} and len(found_in(out)["labels"]["winner"]) == 30
    units = [path.parent.parent.name for path in (out / "tune" / "lgbm" / "inner").glob("*/fold0/manifest.json")]
    assert units == [next(t["folder"] for t in found_in(out)["trials"] if t["number"] == found["lgbm"]["best"])]
    page = (out / "tune" / "report.html").read_text()
    assert page.count("<svg") == 2 and "people held out" in page and "<script" not in page


def test_a_training_with_the_preset_equals_the_winning_trial(searched, toy, tmp_path):
    import pandas as pd

    import gesture_nb as gn
    from gesture_nb.analysis.trials import search_parts

    out, found = searched
    table = pd.read_parquet(toy)
    each = table.drop_duplicates("sequence_id")
    parts = search_parts(each.subject.to_numpy(str), np.unique(each.gesture, return_inverse=True)[1], 2, 42)
    own = each[parts.outer == 1].assign(own_fold=parts.inner)[["sequence_id", "own_fold"]]
    table.merge(own).to_parquet(tmp_path / "searched.parquet")
    preset = tmp_path / "preset.json"
    preset.write_bytes((out / "tune" / "preset.json").read_bytes())
    how = HOW | dict(out=tmp_path / "run", preset=preset, fold_column="own_fold", adapt="off")
    gn.train(str(tmp_path / "searched.parquet"), **how)
    preset.unlink()
    gn.train(str(tmp_path / "searched.parquet"), **how)   # goes on with what the run keeps of the file
    winner = next(t["folder"] for t in found_in(out)["trials"] if t["number"] == found["lgbm"]["best"])
    for fold in ("fold0", "fold1"):
        theirs = out / "tune" / "lgbm" / "inner" / winner / fold / "model.txt"
        assert (tmp_path / "run" / "members" / "lgbm" / fold / "model.txt").read_bytes() == theirs.read_bytes()
    identity = json.loads((tmp_path / "run" / "config.json").read_text())["identity"]
    assert identity["preset.lgbm.leaves"] == found["lgbm"]["values"]["leaves"]


def test_what_a_search_refuses(searched, toy, tmp_path):
    from gesture_nb.tuning import tune_members

    out, _ = searched
    with pytest.raises(UserError, match="seed was 42 and is now 7"):
        tune_members(3, data=str(toy), out=out, seed=7, **HOW)
    with pytest.raises(UserError, match="--hours and --time-limit-hours are the same setting"):
        tune_members(3, hours=1, time_limit_hours=2)
    with pytest.raises(UserError, match="tune does not read --decision"): tune_members(3, decision="argmax")
    with pytest.raises(UserError, match="tune does not read --trackers"): tune_members(3, trackers="mlflow")
    with pytest.raises(UserError, match="The number of trials is 0, but must be a whole number"): gn.tune(trials=0)
    with pytest.raises(UserError, match="The number of hours is -1, but must be"): tune_members(3, hours=-1)
    with pytest.raises(UserError, match="lgbm.rounds was 5 and is now 6"):
        tune_members(3, data=str(toy), out=out, **HOW | {"boosting_rounds": 6})
    (out / "tune" / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="study.db cannot be used as the storage of a search"):
        tune_members(3, data=str(toy), out=out, **HOW)


def test_without_optuna_one_sentence_says_so(monkeypatch, tmp_path):
    from gesture_nb.tuning import tune_members

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'gesture-nb\[tune\]'"): tune_members(3, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.soak
def test_a_killed_search_goes_on(toy, tmp_path):
    """SIGKILL inside trials; in the end the study holds what an undisturbed one holds, and so do the winner's units."""
    pytest.importorskip("optuna")
    command = [sys.executable, "-m", "gesture_nb", "tune", "--trials", "5", "--data", str(toy), "--members", "lgbm",
               "--folds", "2", "--boosting-rounds", "40"]
    for trial in (2, 4):   # killed while this one is trained
        process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True)
        assert any(line.startswith(f"lgbm trial {trial}: ") for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    for out in ("killed", "whole"): subprocess.run([*command, "--out", str(tmp_path / out)], check=True)
    killed, whole = (found_in(tmp_path / out) for out in ("killed", "whole"))
    assert [t["state"] for t in killed["trials"]].count("failed") == 2
    kept = [t for t in killed["trials"] if t["state"] != "failed"]
    assert [(t["values"], t["scores"]) for t in kept] == [(t["values"], t["scores"]) for t in whole["trials"]]
    assert killed["outer"] == whole["outer"] and killed["importance"] == whole["importance"]
    models = [sorted(path.read_bytes() for path in (tmp_path / out).glob("tune/lgbm/*/*/fold*/model.txt"))
              for out in ("killed", "whole")]
    assert models[0] == models[1] and len(models[0]) >= 3


@pytest.mark.soak
@pytest.mark.parametrize("member", ["lgbm", "torch", "keras", "rocket"])
def test_the_corners_of_a_search_space_can_be_trained(member, toy, tmp_path):
    from gesture_nb.analysis.trials import load_search_data, select_all_options, train_fold
    from gesture_nb.control import StopSignal
    from gesture_nb.models.spaces import Choice
    from gesture_nb.progress import Quiet
    from gesture_nb.training.worker import Here

    settings = read_settings({}, data=str(toy), out=tmp_path, folds=2, epochs=1, boosting_rounds=3)
    data = load_search_data(settings, Here(Quiet(), StopSignal()))
    select_all_options(data)
    space = member_class(member).search_space("fast")
    ends = {name: (d.options[0], d.options[-1]) if isinstance(d, Choice) else (d.low, d.high)
            for name, d in space.items()}
    cases = [{name: pair[k] for name, pair in ends.items()} for k in (0, 1)]
    if member != "keras": cases += [{name: end} for name, pair in ends.items() for end in pair]
    for k, values in enumerate(cases):
        assert train_fold(data, member, values, "inner", 0, str(tmp_path / f"{k}"))["labels"] is not None, values
