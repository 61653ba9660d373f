"""Settings, registries and errors: every value checked, every name known in one place, mistakes in sentences."""
import copy
import itertools
import json
import pickle
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from gesture_nb import config, registry
from gesture_nb.config import (
    COMPONENTS,
    Settings,
    active_members,
    as_json,
    changed_settings,
    disable_components,
    fixed_weights,
    read_settings,
    setting_fields,
    settings_notes,
    with_settings,
)
from gesture_nb.errors import UserError, suggestion
from gesture_nb.registry import DEFAULT_MEMBERS, MEMBERS, SINKS, Entry, Registry

@pytest.fixture
def nearest():
    """A member that is registered from outside."""
    class Nearest:
        pass
    MEMBERS.register("nearest", Entry(Nearest, "Nearest neighbour", ("numpy",), ("metric", "mirror")))
    yield Nearest
    MEMBERS.unregister("nearest")


# ------------------------------------------------------------------ reading

def test_defaults_then_environment_then_keywords():
    environ = {"GESTURE_NB_SEED": "1", "DL_NUM_WORKERS": "3", "W_TORCH": "0.5", "RESUME": "  "}
    s = read_settings(environ, seed=2)
    assert (s.seed, s.dl_num_workers, s.w_torch, s.resume, s.folds) == (2, 3, 0.5, True, 5)
    assert read_settings(environ, SEED=None, w_torch=None) == read_settings(environ)


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("GESTURE_NB_FOLDS", "7")
    assert read_settings().folds == 7 and read_settings({}).folds == 5


@pytest.mark.parametrize("name, variable", [
    ("data", "GESTURE_NB_DATA"), ("output_path", "OUTPUT_PATH"), ("members", "GESTURE_NB_MEMBERS"),
    ("folds", "GESTURE_NB_FOLDS"), ("fold_column", "GESTURE_NB_FOLD_COLUMN"), ("preset", "GESTURE_NB_PRESET"),
    ("seed", "GESTURE_NB_SEED"), ("epochs", "GESTURE_NB_EPOCHS"), ("batch_size", "GESTURE_NB_BATCH_SIZE"),
    ("boosting_rounds", "GESTURE_NB_BOOSTING_ROUNDS"), ("dl_num_workers", "DL_NUM_WORKERS"),
    ("dl_start_method", "DL_START_METHOD"), ("log_every_steps", "LOG_EVERY_STEPS"),
    ("print_every_steps", "PRINT_EVERY_STEPS"), ("feature_log_every", "FEATURE_LOG_EVERY"),
    ("heartbeat_seconds", "HEARTBEAT_SECONDS"), ("use_tqdm", "USE_TQDM"), ("progress", "PROGRESS"),
    ("save_jsonl", "SAVE_JSONL"), ("w_lgbm", "W_LGBM"), ("w_torch", "W_TORCH"), ("w_keras", "W_KERAS"),
    ("w_rocket", "W_ROCKET"), ("run_any_training", "RUN_ANY_TRAINING"), ("resume", "RESUME"),
    ("feature_store", "FEATURE_STORE"), ("decision", "DECISION"), ("flip", "GESTURE_NB_FLIP"),
    ("disable", "GESTURE_NB_DISABLE"), ("time_limit_hours", "TIME_LIMIT_HOURS"),
    ("dl_persistent_workers", "DL_PERSISTENT_WORKERS"), ("run_data_code", "GESTURE_NB_RUN_DATA_CODE"),
    ("columns", "GESTURE_NB_COLUMNS"), ("rate_hz", "GESTURE_NB_RATE_HZ"), ("time_unit", "GESTURE_NB_TIME_UNIT"),
    ("gaps", "GESTURE_NB_GAPS"), ("units", "GESTURE_NB_UNITS"), ("acc_unit", "GESTURE_NB_ACC_UNIT"),
    ("gyr_unit", "GESTURE_NB_GYR_UNIT"), ("quaternion_order", "GESTURE_NB_QUATERNION_ORDER"),
    ("acc_sign", "GESTURE_NB_ACC_SIGN"), ("group_column", "GESTURE_NB_GROUP_COLUMN")])
def test_every_setting_has_its_variable(name, variable):
    assert setting_fields()[name].variable == variable


def test_every_setting_is_described():
    fields = setting_fields()
    assert len(fields) == 50
    for name, f in fields.items():
        assert f.name == name and len(f.help) > 15 and not f.help.endswith(".") and f.parse.wants
        assert f.options[-1] == "--" + name.replace("_", "-") and f.option == f.options[0]
        assert getattr(Settings(), name) == f.default
    options = [option for f in fields.values() for option in (*f.options, *f.deprecated_options)]
    variables = [variable for f in fields.values() for variable in (f.variable, *f.deprecated_variables)]
    assert len(set(options)) == len(options) and len(set(variables)) == len(variables)
    assert fields["output_path"].options == ("--out", "--output-path")


@pytest.mark.parametrize("environ, keywords, expected", [
    ({"W_TORCH": "-1"}, {},
     "The environment variable W_TORCH is '-1', but must be 0, or a number from 1e-06 to 1,000,000."),
    ({"W_LGBM": "nan"}, {}, "W_LGBM is 'nan', but must be 0, or a number"),
    ({"RESUME": "maybe"}, {}, "RESUME is 'maybe', but must be 1 or 0."),
    ({"GESTURE_NB_SEED": "1.5"}, {}, "GESTURE_NB_SEED is '1.5', but must be a whole number from 0 to 2147483647."),
    ({"HEARTBEAT_SECONDS": "0"}, {}, "HEARTBEAT_SECONDS is '0', but must be a number from 0.01 to 86,400."),
    ({}, {"batch_size": 0}, "The setting batch_size is 0, but must be a whole number from 2 to 1000000."),
    ({}, {"epochs": 2.5}, "epochs is 2.5"), ({}, {"epochs": True}, "epochs is True"),
    ({}, {"seed": float("inf")}, "seed is inf"), ({}, {"time_limit_hours": True}, "time_limit_hours is True"),
    ({}, {"out": " "}, "output_path is ' ', but must be a name or path that is not empty."),
    ({}, {"preset": "huge"}, "preset is 'huge', but must be one of fast, full, or the path of a preset file (.json)."),
    ({}, {"members": "lgbm,lgbm"},
     "members is 'lgbm,lgbm', but must be a list of different names, separated by commas."),
    ({}, {"wrokers": 2}, "There is no setting 'wrokers'. Did you mean 'workers'?"),
    ({}, {"members": "lgbm,torhc"},
     "There is no member 'torhc'; members are lgbm, torch, keras, rocket. Did you mean 'torch'? A member made "
     "elsewhere must be registered first, with gesture_nb.register_member."),
    ({}, {"members": "nearest"}, "A member made elsewhere must be registered first, with gesture_nb.register_member."),
    ({}, {"w_nearest": 1}, "There is no member 'nearest'"),
    ({}, {"disable": "mixupp"}, "There is no component 'mixupp'; components are mixup, cutmix"),
    ({}, {"w_lgbm": 0, "w_torch": 0, "w_keras": 0}, "Every member has weight 0: give at least one of W_LGBM"),
    ({}, {"members": "lgbm", "w_torch": 1}, "W_TORCH is set, but 'torch' is not among the members (lgbm)"),
    ({}, {"out": "a", "output_path": "b"}, "out and output_path are the same setting: give only one of them."),
    ({"GESTURE_NB_WITHOUT": "ema", "GESTURE_NB_DISABLE": "ema"}, {}, "are the same setting")])
def test_mistakes_are_refused_in_a_sentence(environ, keywords, expected):
    with pytest.raises(UserError) as caught:
        read_settings(environ, **keywords)
    assert expected in str(caught.value)


def test_the_former_name_of_disable_still_works_and_is_mentioned():
    for environ, keywords in (({"GESTURE_NB_WITHOUT": "mixup,ema"}, {}), ({}, {"without": "mixup,ema"}),
                              ({}, {"WITHOUT": ("mixup", "ema")})):
        assert read_settings(environ, **keywords).disable == ("mixup", "ema")
        note, = settings_notes(environ, **keywords)
        assert "now called disable" in note and "--disable" in note and "GESTURE_NB_DISABLE" in note
    assert settings_notes({"GESTURE_NB_DISABLE": "ema"}, out="x", without=None) == []
    assert setting_fields()["disable"].deprecated_options == ("--without",)


EXTREMES = [
    "", " ", "0", "-0", "1e308", "-1e308", "1e-320", "nan", "inf", "-inf", "1e999", "9" * 5000, "99999999999999999999",
    "0x10", "1_000", "٣", "1,000", "seed", "a" * 300, "a/" * 3000, "~nouser/x", "~", "nul\0", "\udc80", "a\nb", "=",
    "a=", "=b", "a=b=c", "a=b,a=c", ",", ",,a,,", "counts:", "counts:1e-320", "counts:nan", "counts:1e308", "+", "-",
    ".", "/", "sim:99999999999999999999", "sim:::", "spar", "/dev/null", "true", "None",
    0, -1, 1, 2.5, 10**12, 10**400, -(10**400), 1e308, 1e-320, float("nan"), float("inf"), True, False,
    Decimal("1e1000000"), Decimal("NaN"), Decimal("sNaN"), 1j, b"lgbm", b"\xff", [], (), {}, set(), [[]], [None],
    {1: 2}, {"a": None}, [("a",)], [("a", "b", "c")], ["a\0"], itertools.count(), itertools.repeat("a"), object(),
    print, Path("x"), Path("a" * 300), range(10**12), memoryview(b"x")]


@pytest.mark.parametrize("name", list(setting_fields()))
def test_any_value_gives_settings_or_a_sentence(name):
    """No other exception, no endless loop, and what is accepted can be written down and read again."""
    variable, accepted = setting_fields()[name].variable, 0
    for value in EXTREMES:
        for environ, keywords in (({}, {name: value}), ({variable: str(value)}, {})):
            try: s = read_settings(environ, **keywords)
            except UserError as e: assert len(str(e)) < 800
            else:
                accepted += 1
                json.dumps(as_json(s), allow_nan=False).encode()
                assert with_settings(s, seed=3) == with_settings(with_settings(s, seed=3), seed=3)
    assert 0 < accepted < 1.9 * len(EXTREMES)


def test_what_no_machine_can_hold_is_refused():
    for keywords in ({"w_lgbm": "1e308"}, {"w_lgbm": 1e-300}, {"heartbeat_seconds": 1e308}, {"heartbeat_seconds": 1e-9},
                     {"time_limit_hours": 1e308}, {"folds": 10**9}, {"batch_size": 10**12}, {"epochs": 10**12},
                     {"rate": 1e30}, {"boosting_rounds": 10**12}, {"seed": "text"}, {"acc_unit": "counts:1e300"}):
        with pytest.raises(UserError, match=" is .*, but must be "): read_settings({}, **keywords)


@pytest.mark.parametrize("name", ["output_path", "feature_store", "data"])
@pytest.mark.parametrize("value, said", [
    ("~nouser/x", "there is no user whose home folder is '~nouser'"), ("a" * 300, "has a name of 300 bytes"),
    ("ä" * 200, "has a name of 400 bytes"), ("a/" * 3000, "is a path of 5999 bytes"), ("a\0b", "NUL"),
    ("a\udcffb", "no UTF-8 text")])
def test_paths_that_cannot_be(name, value, said):
    with pytest.raises(UserError, match=said): read_settings({}, **{name: value})


# ------------------------------------------------------------------ what nobody reads

@pytest.mark.parametrize("variable, value, meant", [
    ("EPOCHS", "7", "GESTURE_NB_EPOCHS"), ("FOLDS", "3", "GESTURE_NB_FOLDS"), ("SEED", "1", "GESTURE_NB_SEED"),
    ("PRESET", "full", "GESTURE_NB_PRESET"), ("MEMBERS", "lgbm,torch", "GESTURE_NB_MEMBERS"),
    ("DATA", "sim:100", "GESTURE_NB_DATA"), ("DISABLE", "mixup", "GESTURE_NB_DISABLE"),
    ("GESTURE_NB_EPOCH", "3", "GESTURE_NB_EPOCHS"), ("GESTURE_NB_OUT", "x", "OUTPUT_PATH"),
    ("GESTURE_NB_DL_NUM_WORKERS", "2", "DL_NUM_WORKERS"), ("gesture_nb_seed", "2", "GESTURE_NB_SEED"),
    ("DL_NUM_WORKER", "2", "DL_NUM_WORKERS"), ("DL_WORKERS", "2", "DL_NUM_WORKERS"), ("W_TORHC", "1", "W_TORCH"),
    ("W_LGB", "1", "W_LGBM"), ("HEARTBEAT_SECOND", "3", "HEARTBEAT_SECONDS"),
    ("GESTURE_NB_QXZ", "1", "no such setting")])
def test_variables_under_a_wrong_name_are_said(variable, value, meant):
    line, = settings_notes({variable: value})
    assert f"variable {variable} is not read" in line and meant in line and "\n" not in line


def test_other_programs_variables_are_left_alone():
    foreign = {"W_DIR": "/w", "DL_PATH": "/d", "COLUMNS": "80", "LINES": "24", "DATA": "/data", "SEED": "abc",
               "EPOCHS": "", "DISABLE": "1", "MEMBERS": "ann,bob", "UNITS": "metric", "GAPS": "many", "PROGRES": "1",
               "OUT": "x", "DL_DIR": "x", "W_": "1", "DL_": "1", "WORKERS": "4", "PATH": "/bin", "GESTURE": "wave",
               "GESTURE_NB": "x",
               "FLIP": "table", "OUTPUT_PATHS": "a:b", "FEATURE_STORES": "x", "DECISIONS": "x"}
    assert settings_notes(foreign) == []
    assert settings_notes({"EPOCHS": "7", "GESTURE_NB_EPOCHS": "8"}) == []   # theirs is beside ours
    assert settings_notes({"EPOCHS": "7"}, epochs=8) == []
    for f in setting_fields().values(): assert settings_notes({f.variable: str(f.default or 1)}) == [], f.variable


def test_commands_read_what_their_table_says():
    from gesture_nb.cli import COMMANDS
    from gesture_nb.unread import READ_BY, refuse_unread, unread_by
    assert set(READ_BY) <= set(COMMANDS)
    assert {name for names in READ_BY.values() for name in names} - {"w_"} <= set(setting_fields())
    for command in READ_BY:
        unread = ("fold_column", "w_lgbm") if command == "tune" else ("epochs", "flip")   # it trains, too
        options = ", ".join(setting_fields()[name].option for name in unread)
        with pytest.raises(UserError, match=f"{command} does not read {options}: "):
            refuse_unread(command, [*unread, "heartbeat_seconds"])
        variable = setting_fields()[unread[0]].variable
        line, = unread_by(command, {variable: "3", "DL_NUM_WORKERS": "2", "SAVE_JSONL": "0"})
        assert line.startswith(f"{command} does not read {variable}: ")
    refuse_unread("train", setting_fields())
    refuse_unread("predict", ["w_lgbm", "data", "acc_unit"])
    assert unread_by("train", {"GESTURE_NB_EPOCHS": "3"}) == []


def test_the_readme_has_every_setting():
    from gesture_nb.api import settings_table
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for line in settings_table().splitlines(): assert line in readme


# ------------------------------------------------------------------ the record

def test_weights_read_like_settings():
    s = read_settings({}, w_rocket=0, w_lgbm="0.25")
    assert s.member_weights == (("lgbm", 0.25), ("rocket", 0.0))
    assert (s.w_lgbm, s.w_torch, s.w_rocket) == (0.25, None, 0.0)
    assert s == read_settings({}, w_lgbm=0.25, w_rocket=0)
    with pytest.raises(AttributeError, match="no setting 'w_nearest'"):
        _ = s.w_nearest
    assert not hasattr(s, "epoch") and pickle.loads(pickle.dumps(s)) == copy.deepcopy(s) == s


def test_a_changed_copy_is_checked_and_may_unset():
    s = with_settings(Settings(), w_torch=0, epochs=3, without="ema")
    assert (s.w_torch, s.epochs, s.disable) == (0.0, 3, ("ema",)) and Settings().epochs is None
    unset = with_settings(s, w_torch=None, epochs=None, seed=7)
    assert unset == with_settings(Settings(), seed=7, disable=("ema",))
    with pytest.raises(UserError, match="The setting epochs is 0"):
        with_settings(s, epochs=0)
    with pytest.raises(UserError, match="There is no setting 'epoch'"):
        with_settings(s, epoch=1)


def test_names_in_config_json_never_change():
    s = read_settings({}, out="runs/a", disable="ema", w_keras=0, feature_store="f")
    values = as_json(s)
    assert set(values) == {
        "acc_sign", "acc_unit", "batch_size", "boosting_rounds", "columns", "data", "decision", "dl_num_workers",
        "dl_persistent_workers", "dl_start_method", "epochs", "gaps", "group_column", "gyr_unit", "quaternion_order",
        "adapt", "rate_hz", "run_data_code", "time_unit", "units", "devices", "executor", "memory_gb", "precision",
        "trackers", "unit_gpus", "unit_threads",
        "feature_log_every", "feature_store", "flip", "fold_column", "folds", "heartbeat_seconds", "log_every_steps",
        "members", "output_path", "preset", "print_every_steps", "progress", "resume", "run_any_training",
        "save_jsonl", "seed", "time_limit_hours", "use_tqdm", "w_keras", "w_lgbm", "w_rocket", "w_torch", "without"}
    assert values["without"] == ["ema"] and values["output_path"] == "runs/a"
    assert values["w_keras"] == 0.0 and values["w_lgbm"] is None
    assert changed_settings(s) == {"output_path": "runs/a", "disable": ["ema"], "w_keras": 0.0, "feature_store": "f"}
    assert changed_settings(Settings()) == {}


def test_whoever_weighs_three_members_has_described_the_ensemble():
    three = {"w_lgbm": 1, "w_torch": 1, "w_keras": 0}
    assert fixed_weights(read_settings({}, **three)) == {"lgbm": 1.0, "torch": 1.0, "keras": 0.0, "rocket": 0.0}
    assert active_members(read_settings({}, **three)) == ("lgbm", "torch")
    assert active_members(read_settings({}, **three, w_rocket=1)) == ("lgbm", "torch", "rocket")
    assert active_members(read_settings({}, **three, members="rocket,lgbm,torch,keras")) == ("rocket", "lgbm", "torch")
    assert active_members(read_settings({}, w_lgbm=0)) == ("torch", "keras", "rocket")
    assert fixed_weights(Settings()) == {}


# ------------------------------------------------------------------ members from outside

def test_a_registered_member_has_settings_of_its_own(nearest):
    s = read_settings({"W_NEAREST": "2"}, members="lgbm,nearest")
    assert s.w_nearest == 2.0 and fixed_weights(s) == {"nearest": 2.0} and active_members(s) == ("lgbm", "nearest")
    assert as_json(s)["w_nearest"] == 2.0 and "w_nearest" not in as_json(Settings())
    assert changed_settings(s) == {"members": ["lgbm", "nearest"], "w_nearest": 2.0}
    described = setting_fields()["w_nearest"]
    assert "Nearest neighbour" in described.help and described.option == "--w-nearest"
    assert Settings().members == DEFAULT_MEMBERS
    assert read_settings({}, disable="metric").disable == ("metric",)


def test_a_member_that_is_gone_is_refused_again(nearest):
    assert "nearest" in MEMBERS and Settings().w_nearest is None
    MEMBERS.unregister("nearest")
    with pytest.raises(UserError, match="no member 'nearest'"):
        read_settings({}, members="nearest")
    MEMBERS.register("nearest", Entry(nearest, "again"))


# ------------------------------------------------------------------ components

@dataclass(frozen=True)
class Inner:
    drop: tuple = (("rot", 0.1),)
    drop_one: float = 0.2
    width: int = 64


@dataclass(frozen=True)
class Outer:
    mixup: float = 0.3
    mirror: bool = True
    view: str | None = None
    metric: float = 2.0
    augment: Inner = field(default_factory=Inner)


def test_disabled_components_do_nothing():
    assert disable_components(Outer(), ()) == Outer()
    off = disable_components(Outer(view="steps"), ("mixup", "drop", "mirror", "view", "ema"))
    assert off == Outer(0.0, False, None, 2.0, Inner((), 0.0, 64))
    assert disable_components(Outer(), ("metric",)).metric == 0.0   # a component of a registered member: its field


def test_components_of_built_in_members_are_known():
    named = {component for name in DEFAULT_MEMBERS for component in MEMBERS.entry(name).components}
    assert named == set(COMPONENTS) == set(config.component_names())
    assert set(MEMBERS.entry("torch").components) - set(MEMBERS.entry("keras").components) == {"heads"}


# ------------------------------------------------------------------ registries and errors

def test_a_registry_imports_when_asked_for():
    from collections import Counter
    entries = {"counter": Entry("collections:Counter", "Counter"), "bad": Entry("no_such_module:X", "?")}
    shapes = Registry("shape", entries)
    assert shapes.names() == ("counter", "bad") and "counter" in shapes and "other" not in shapes
    assert shapes.get("counter") is Counter and shapes.entry("bad").title == "?"
    with pytest.raises(ModuleNotFoundError):
        shapes.get("bad")
    with pytest.raises(UserError, match="There is no shape 'conter'; shapes are counter, bad. Did you mean 'counter'?"):
        shapes.get("conter")


def test_a_name_is_taken_once_but_the_same_thing_may_come_again():
    shapes = Registry("shape")
    shapes.register("path", Entry(Path, "path"))
    shapes.register("path", Entry(Path, "the same with another title"))
    shapes.register("path", Entry("pathlib:Path", "the same by its address"))
    assert shapes.entry("path").title == "the same by its address" and shapes.get("path") is Path
    with pytest.raises(UserError, match="There is a shape 'path' already, pathlib:Path: choose another name."):
        shapes.register("path", Entry(dict, "another"))
    shapes.unregister("path")
    assert shapes.names() == ()
    with pytest.raises(UserError):
        shapes.unregister("path")


def test_built_in_entries_exist(program):
    code = ("import sys\nfrom gesture_nb.registry import MEMBERS, SINKS\nimport gesture_nb.config\n"
            "heavy = {'torch', 'tensorflow', 'lightgbm', 'numpy', 'ipywidgets'} & set(sys.modules)\n"
            "print(sorted(heavy), MEMBERS.names())\n"
            "print([SINKS.get(name).__name__ for name in SINKS.names()])")
    done = program("-c", code, module=False)
    sinks = ["bars_sink", "lines_sink", "log_sink", "tensorboard_sink", "mlflow_sink", "wandb_sink"]
    expected = ["[] ('lgbm', 'torch', 'keras', 'rocket')", str(sinks)]
    assert done.stdout.splitlines() == expected, done.stderr
    assert registry.DEFAULT_MEMBERS == MEMBERS.names()
    titles = [SINKS.entry(name).title for name in SINKS.names()]
    assert titles[1:4] == ["lines on standard output", "logs/run.jsonl", "TensorBoard"]


@pytest.mark.parametrize("word, known, expected", [
    ("spat", ["spar", "sim"], " Did you mean 'spar'?"), ("music", ["spar", "sim"], ""), ("x", [], "")])
def test_suggestions(word, known, expected):
    assert suggestion(word, known) == expected
    assert issubclass(UserError, ValueError) and config.UserError is UserError and config.suggestion is suggestion
