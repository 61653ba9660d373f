"Exported members against the members themselves; one run of three members for the whole file, all four in the soak."
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gesture_nb import registry
from gesture_nb.app import train_only
from gesture_nb.artifacts import atomic_folder, fingerprint, read_json, write_json
from gesture_nb.config import UserError
from gesture_nb.data.readers import read_table
from gesture_nb.data.sequences import slice_sequences
from gesture_nb.models.base import Member, Outputs
from gesture_nb.models.registry import register_member
from gesture_nb.progress import Reporter
from gesture_nb.schema import TEST_COLUMNS
from gesture_nb.serving.compiled import open_graph, unit_folders
from gesture_nb.serving.export import export_kernels, export_run, noise, write_kernels
from gesture_nb.serving.gateway import local_gateway, read_test_sequences
from gesture_nb.serving.predictor import load, read_blend
from gesture_nb.sinks import LineSink
from gesture_nb.training.results import read_oof

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pl = pytest.importorskip("polars", reason="polars is not installed")
DATA = "sim:120:3"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "out"
    train_only(
        data=DATA,
        members="lgbm,torch,rocket",
        folds=2,
        epochs=1,
        boosting_rounds=4,
        decision="argmax",
        output_path=out,
        progress="lines",
    )
    with Reporter(sinks=[]) as reporter:
        assert sorted(export_run(out, reporter)) == ["lgbm", "rocket", "torch"]
    return out


@pytest.fixture(scope="module")
def table():
    return read_table(DATA)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def apart(a, b):
    return float(np.abs(a - b).max())


def load_and_output(capsys, out, **more):
    "The predictor, and what was printed while it was loaded."
    predictor = load(out, reporter=Reporter(sinks=[LineSink()]), **more)
    return capsys.readouterr().out, predictor


def test_exported_answers_are_those_of_the_members(run, table):
    fast, own = load(run), load(run, exported=False)
    assert {m: len(u) for m, u in own.members.items()} == dict.fromkeys(own.members, 2)
    kinds = {m: type(u[0]).__name__ for m, u in fast.members.items()}
    assert kinds == {"lgbm": "CompiledTrees", "torch": "CompiledNets", "rocket": "CompiledKernels"}
    some = slice_sequences(table, 0, 30)

    def probs(predictor, t):
        return {m: outputs.probs for m, outputs in predictor.member_outputs(predictor.batch(t)).items()}

    whole, alone = probs(own, some), [probs(fast, slice_sequences(some, i, i + 1)) for i in range(30)]
    for m, p in probs(fast, some).items():
        assert p.dtype == np.float32 and apart(p, whole[m]) < 1e-5
        assert apart(np.concatenate([a[m] for a in alone]), whole[m]) < 1e-5


def test_one_fold_answers_as_it_did_out_of_fold_and_the_gateway_as_the_batch(run, table, tmp_path):
    """Each recording alone; with other recordings of the person, which are used by default now: test_wearers.py."""
    oof, fold1 = read_oof(run), load(run, 1, adapt=False)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(oof["fold"] == 1))[:25]
    for i in rows:
        p = fold1.table_proba(slice_sequences(table, i, i + 1))[0]
        assert apart(p, oof["p_ensemble"][i]) < 1e-5 and fold1.classes[p.argmax()] == oof["pred"][i]
    people, everyone = slice_sequences(table, 0, 30), load(run, adapt=False)
    answered = local_gateway(everyone, people, out=tmp_path / "s.parquet", labels=everyone.classes, seed=None)
    assert answered["gesture"].tolist() == [everyone.classes[k] for k in everyone.table_proba(people).argmax(1)]


def test_frames_of_every_kind_order_and_condition_get_one_answer(run, table):
    p = load(run)
    sequence, person = read_test_sequences(slice_sequences(table, 4, 5))[0]
    known = p.proba(sequence, person)
    objects = pl.Series([{}] * len(sequence), dtype=pl.Object)
    backwards = sequence.select(reversed(sequence.columns)).with_columns(note=pl.lit("x"), row=objects)
    lists, arrays = sequence.to_dict(as_series=False), {c: sequence[c].to_numpy() for c in sequence.columns}
    for frame in (backwards, sequence.to_pandas(), sequence.to_arrow(), lists, arrays):
        assert apart(p.proba(frame, person), known) < 1e-6 and p(frame) in p.classes
    sensors = [c for c in TEST_COLUMNS if c.startswith(("thm", "tof", "rot"))]
    blind = []
    for dtype in (pl.Float64, pl.String, pl.Int64, pl.Null, pl.Boolean):
        nothing = [pl.Series(c, [None] * len(sequence), dtype=dtype) for c in sensors]
        blind.append(p.proba(sequence.with_columns(*nothing), person))
    assert all(apart(b, blind[0]) < 1e-6 for b in blind)
    assert apart(p.proba(sequence.drop(sensors), person), blind[0]) < 1e-6 < apart(blind[0], known)


def forms_of(sequence):
    "The same sequence (a Polars frame) in the hands of other libraries."
    from importlib.util import find_spec

    import pandas as pd
    import pyarrow as pa
    import torch

    frame, table = sequence.to_pandas(), sequence.to_arrow()
    names = [c for c in sequence.columns if c.startswith(("acc", "rot"))]
    numbers = {c: sequence[c].to_numpy() for c in names}
    others = sequence.drop(names)

    def with_numbers(convert):
        return {c: others[c] for c in others.columns} | {c: convert(x) for c, x in numbers.items()}

    class LikeXarray:
        def to_dataframe(self):
            return frame.set_index("sequence_counter")

    texts = [c for c in sequence.columns if sequence[c].dtype == pl.String]
    views = {c: table[c].cast(pa.string_view()) for c in texts}
    optional = {}
    if find_spec("narwhals"):
        import narwhals

        optional = {"narwhals": narwhals.from_native(frame), "narwhals, lazy": narwhals.from_native(sequence.lazy())}
    return optional | {
        "lazy": sequence.lazy(),
        "records": frame.to_records(),
        "structured": np.asarray(frame.to_records(index=False)),
        "two levels": pd.concat({"wrist": frame}, axis=1),
        "two levels, joined": frame.set_axis(pd.MultiIndex.from_tuples([c.split("_", 1) for c in frame]), axis=1),
        "string views": pa.table({c: views.get(c, table[c]) for c in table.column_names}),
        "reader": table.to_reader(),
        "batch": table.combine_chunks().to_batches()[0],
        "like xarray": LikeXarray(),
        "objects": frame.astype(object),
        "texts": sequence.with_columns(pl.col(names).cast(pl.String)),
        "torch": with_numbers(torch.tensor),
        "torch with gradients": with_numbers(lambda x: torch.tensor(x, requires_grad=True)),
        "column vectors": with_numbers(lambda x: x[:, None]),
        "big endian": with_numbers(lambda x: x.astype(">f8")),
        "masked": with_numbers(np.ma.masked_invalid),
    }


def test_forms_of_other_libraries_are_read(run, table):
    p = load(run)
    sequence, person = read_test_sequences(slice_sequences(table, 4, 5))[0]
    known = p.proba(sequence, person)
    apart_by = {name: apart(p.proba(form, person), known) for name, form in forms_of(sequence).items()}
    assert {name: d for name, d in apart_by.items() if not d < 1e-6} == {}


def wrong_frames(sequence):
    "Frames that no answer may be given to, and what the sentence says."
    import pandas as pd
    import torch

    frame = sequence.to_pandas()
    acc = ["acc_x", "acc_y", "acc_z"]
    sensors = [c for c in sequence.columns if c.startswith(("acc", "rot", "thm", "tof"))]
    two = pl.concat([sequence, sequence.with_columns(sequence_id=pl.lit("another"))])
    return [
        (sequence.drop(sensors), "none of the channels acc_x"),
        (sequence[:0], "no reading in any of the channels"),
        (sequence.with_columns(pl.lit(None).alias(c) for c in sensors), "no reading"),
        (sequence.with_columns(pl.lit(float("inf")).alias(c) for c in sensors), "no reading"),
        (sequence.rename({"acc_x": "Acc_X"}), "'Acc_X'. Did you mean 'acc_x'"),
        (sequence.rename({c: f"acc{c[-1].upper()}" for c in acc}), "'accX'. Did you mean 'acc_x'"),
        (frame.rename(columns=str.upper), "Did you mean"),
        (sequence.drop("rot_w"), "'rot_x' but no 'rot_w'"),
        (frame.astype({"acc_x": object}).assign(acc_x="fast"), "'acc_x' of the frame holds 'fast' in row 1"),
        ({c: torch.zeros(9, 3) for c in acc}, "'acc_x' of the frame holds"),
        ({"acc_x": [0j], "acc_y": [0j], "acc_z": [0j]}, "which is not a number"),
        (pd.concat([frame, frame[["acc_x"]]], axis=1), "two columns 'acc_x'"),
        (pd.concat({"left": frame, "right": frame}, axis=1), "have 2 levels"),
        (two, "holds 2 sequences"),
        (sequence.with_columns(t=pl.int_range(pl.len()) * 10**12), "give seconds"),
        ({"acc_x": [1.0, 2.0], "acc_y": [1.0], "acc_z": [1.0]}, "differ in length"),
        (pl.scan_csv("nowhere.csv"), "no frame"),
        *((other, "no frame") for other in (None, 7, "sequence.csv", frame.acc_x, frame[acc].to_numpy(), [frame], pd)),
        *((other, "no frame") for other in (pl.DataFrame, torch.zeros(9, 3), iter([1]))),
    ]


def test_what_cannot_be_read_is_refused_and_only_the_gateway_gets_a_label(run, table):
    """Contract changed on purpose: formerly each of these got a label, without a word."""
    p, lenient = load(run), load(run, on_error="label")
    sequence, person = read_test_sequences(slice_sequences(table, 4, 5))[0]
    for frame, message in wrong_frames(sequence):
        for call in (p, p.proba):
            with pytest.raises(UserError) as e:
                call(frame, person)
            assert message in str(e.value), (message, str(e.value))
        assert lenient(frame, person) in p.classes
    assert lenient.guesses >= 12 and lenient(sequence, person) == p(sequence, person)
    with pytest.raises(UserError, match="must be 'raise' or 'label'"):
        load(run, on_error="ignore")


def test_absent_channels_are_said_once(run, table, capsys):
    p = load(run, reporter=Reporter(sinks=[LineSink()]))
    sequence, person = read_test_sequences(slice_sequences(table, 4, 5))[0]
    without = sequence.drop([c for c in sequence.columns if c.startswith(("thm", "tof"))])
    for frame in (sequence, without, without):
        p(frame, person)
    assert capsys.readouterr().out.count("A sequence lacks 325 of the 332 channels of the run (thm_1") == 1


def test_times_of_any_unit_mean_the_same_rate(run, table):
    import pandas as pd

    p = load(run)
    acc = {c: table.channel(c)[:40] for c in ("acc_x", "acc_y", "acc_z")}
    t = np.arange(40) * 0.02
    stamps = pd.Timestamp("2026-01-02 03:04") + pd.to_timedelta(t, "s")
    since_1970 = [(1.7e15 + t * 1e6).astype(int), (1.7e18 + t * 1e9).astype(int), stamps, stamps.astype(str)]
    for times in (t, t * 1e3, *since_1970):
        assert p.table(acc | {"t": times}).meta["sample_rate_hz"][0] == pytest.approx(50, rel=1e-5)


def test_a_predictor_is_pickled_by_its_run(run, table):
    import copy
    import pickle

    one = slice_sequences(table, 0, 1)
    p = load(run, 1, fixed={"rocket": 0}, exported=False, on_error="label")
    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert other is not p and [*other.members] == [*p.members] and "rocket" not in other.members
        assert np.array_equal(other.table_proba(one), p.table_proba(one)) and other.on_error == "label"
    p.source = None
    with pytest.raises(UserError, match="let each process make its own"):
        pickle.dumps(p)


def test_neither_torch_nor_tensorflow_is_needed(run, table):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "tensorflow", "keras"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from gesture_nb.serving.export import noise
from gesture_nb.serving.predictor import load
p = load({str(run)!r})
print(sorted(p.members), np.round(p.table_proba(noise(p.channels, (40, 90), 10.0)), 6).tolist())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = load(run, exported=False)
    names, answer = done.stdout.split(" [[")
    expected = own.table_proba(noise(own.channels, (40, 90), 10.0))
    assert names == "['lgbm', 'rocket', 'torch']" and apart(np.array(eval("[[" + answer)), expected) < 1e-5


def test_damaged_and_outdated_exports_are_not_used(copy, capsys):
    from gesture_nb.artifacts import write_manifest

    path = copy / "serving" / "rocket.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    printed, p = load_and_output(capsys, copy)
    assert "rocket.safetensors is damaged" in printed and type(p.members["torch"][0]).__name__ == "TorchMember"
    path.write_bytes(whole)
    manifest = unit_folders(copy)["torch"][0] / "manifest.json"
    facts = json.loads(manifest.read_text())["facts"]
    write_manifest(manifest.parent, **facts | {"seconds": -1})
    printed, p = load_and_output(capsys, copy)
    assert "torch is served fold by fold" in printed and "trained again" in printed
    kinds = {m: type(u[0]).__name__ for m, u in p.members.items()}
    assert kinds["torch"] == "TorchMember" and kinds["rocket"] == "CompiledKernels"


def test_an_export_that_disagrees_is_refused(copy, capsys, monkeypatch):
    from gesture_nb.artifacts import read_arrays, write_arrays
    from gesture_nb.serving import export

    def wrong(members, batch, name, folder):
        entry = export_kernels(members, batch, name, folder)
        arrays = read_arrays(folder / "rocket.safetensors")
        shifted = {key: a + np.float32(0.5) for key, a in arrays.items() if key.endswith(".centre")}
        write_arrays(folder / "rocket.safetensors", arrays | shifted)
        return entry

    monkeypatch.setattr(export, "EXPORTERS", {"kernels": wrong})
    with Reporter(sinks=[LineSink()]) as reporter:
        assert export_run(copy, reporter) == []
    printed = capsys.readouterr().out
    assert "rocket is served as it was trained" in printed and "differently" in printed
    assert [p.name for p in (copy / "serving").iterdir()] == ["manifest.json"]


class Constant(Member):
    "Predicts the same for every sequence; has no export format."

    name, title, version = "constant", "Constant", 1

    def hyperparameters(self, train):
        return {}

    def fit(self, train, *, inner_split, reporter=None, checkpoint=None, stop=None):
        self.classes = len(train.classes)
        return {}

    def predict_outputs(self, batch):
        probs = np.arange(1, self.classes + 1, dtype=np.float32)
        return Outputs(np.tile(probs / probs.sum(), (len(batch), 1)))

    def save(self, folder):
        write_json(folder / "member.json", {"classes": self.classes})

    @classmethod
    def load(cls, folder):
        member = cls()
        member.classes = read_json(folder / "member.json")["classes"]
        return member


@pytest.fixture
def with_constant(copy):
    "A run that has a member from outside besides; and that member, registered."
    register_member(Constant)
    member = Constant()
    member.classes = len(read_blend(copy)["classes"])
    for k in (0, 1):
        with atomic_folder(copy / f"members/constant/fold{k}", {"seconds": 1}) as folder:
            member.save(folder)
    record = read_blend(copy)
    parts = record, record["adaptation"]["as_they_come"], record["adaptation"]["all_at_once"]
    for recipe in [own for part in parts for own in (part["final"], *part["per_fold"])]:
        recipe["weights"] = {m: w / 2 for m, w in recipe["weights"].items()} | {"constant": 0.5}
        recipe["temperatures"]["constant"] = 1.0
    write_json(copy / "ensemble.json", record | {"digest": fingerprint(record)})
    yield copy
    if "constant" in registry.MEMBERS:
        registry.MEMBERS.unregister("constant")


def test_a_member_without_export_format_is_served_fold_by_fold(with_constant, table, capsys):
    with Reporter(sinks=[LineSink()]) as reporter:
        assert sorted(export_run(with_constant, reporter)) == ["lgbm", "rocket", "torch"]
    lines = [s for s in capsys.readouterr().out.splitlines() if "constant" in s]
    assert len(lines) == 1 and "constant is served as it was trained, fold by fold" in lines[0]
    p, own = load(with_constant), load(with_constant, exported=False)
    assert {m: type(u[0]).__name__ for m, u in p.members.items()} == {
        "lgbm": "CompiledTrees",
        "torch": "CompiledNets",
        "rocket": "CompiledKernels",
        "constant": "Constant",
    }
    some = slice_sequences(table, 0, 5)
    assert apart(p.table_proba(some), own.table_proba(some)) < 1e-5
    one = slice_sequences(table, 0, 1)
    assert apart(p.table_proba(one), own.table_proba(one)) < 1e-5
    assert apart(p.table_proba(one), load(with_constant, fixed={"constant": 0}).table_proba(one)) > 1e-3


def test_a_member_that_is_not_registered_is_named(with_constant, table):
    registry.MEMBERS.unregister("constant")
    with pytest.raises(UserError, match="'constant' that is not registered") as e:
        load(with_constant)
    assert "import the module that registers it" in str(e.value) and "fixed={'constant': 0}" in str(e.value)
    with pytest.raises(UserError, match="not registered"):
        export_run(with_constant, Reporter(sinks=[]))
    assert "constant" not in load(with_constant, fixed={"constant": 0}).members


def test_a_sensor_that_is_not_registered_is_named(copy):
    record = read_blend(copy) | {"channels": [*read_blend(copy)["channels"], "hr_bpm"]}
    write_json(copy / "ensemble.json", record | {"digest": fingerprint(record)})
    with pytest.raises(UserError, match="'hr_bpm', whose sensor is not registered"):
        load(copy)


def test_a_unit_that_cannot_be_loaded_is_left_out_with_a_line(copy, capsys):
    (unit_folders(copy)["lgbm"][0] / "model.txt").write_text("x")
    printed, p = load_and_output(capsys, copy, exported=False)
    assert "lgbm of fold0 cannot be loaded and is left out" in printed and "model.txt is damaged" in printed
    assert len(p.members["lgbm"]) == 1 and len(p.members["rocket"]) == 2
    with Reporter(sinks=[LineSink()]) as reporter:
        assert "lgbm" not in export_run(copy, reporter)
    assert "not all of its folds can be loaded" in capsys.readouterr().out


def test_folders_that_are_no_folds_are_skipped(copy):
    known = unit_folders(copy)
    for name in ("fold-old", "foldx", "fold01", "fold1.bak", "fold"):
        shutil.copytree(copy / "members" / "lgbm" / "fold1", copy / "members" / "lgbm" / name)
    (copy / "members" / "notes").mkdir()
    assert unit_folders(copy) == known and [f.name for f in unit_folders(copy, 1)["lgbm"]] == ["fold1"]
    assert len(load(copy, exported=False).members["lgbm"]) == 2


def test_noise_of_sensors_from_outside(monkeypatch):
    from gesture_nb import sensors
    from gesture_nb.data.simulate import simulate

    built_in = simulate(1).names
    before = noise(built_in, (9, 9, 9)).values
    record = sensors.Sensor(name="hr", title="heart rate", unit="bpm", columns=("hr_bpm",), noise=(70.0, 10.0))
    sensors.register_sensor(record)
    try:
        t = noise((*built_in[:3], "hr_bpm"), (300, 300))
    finally:
        sensors.unregister_sensor("hr")
    bpm = t.channel("hr_bpm")
    assert 65 < bpm[:300].mean() < 75 and np.isnan(bpm[300:]).all() and np.isfinite(t.values[:3]).all()
    after = noise(built_in, (9, 9, 9)).values
    assert before.tobytes() == after.tobytes() and np.nanmin(before[-1]) >= -1 and np.nanmax(before[-1]) <= 249


def test_a_predictor_describes_itself(run):
    p, own = load(run), load(run, exported=False)
    assert "lgbm" in repr(p) and f"{len(p.classes)} labels" in repr(p)
    page = p._repr_html_()
    assert "all folds at once, exported" in page and "fold by fold, 2 units" in own._repr_html_()
    assert all(label.replace("<", "&lt;") in page for label in p.classes)


def push(run, to, **options):
    "The folder for Kaggle, with no wheels but ours."
    from gesture_nb.serving.kaggle import kaggle_folder

    return kaggle_folder(to, wheels=run.parent, progress="lines", output_path=run, **options)


def test_a_folder_for_kaggle_holds_what_manifests_name(copy, tmp_path):
    unit = unit_folders(copy)["lgbm"][0]
    (tmp_path / "key").write_text("private")
    (unit / "notes.txt").symlink_to(tmp_path / "key")
    (unit / "more.txt").write_text("not named")
    (copy / "members" / "lgbm" / "link").symlink_to(tmp_path)
    found = push(copy, tmp_path / "push") / "dataset"
    names = {path.relative_to(found / "run").as_posix() for path in (found / "run").rglob("*") if path.is_file()}
    folders = [f.relative_to(copy) for units in unit_folders(copy).values() for f in units]
    expected = {"manifest.json", "ensemble.json", "config.json", "metrics.json"}
    for folder in map(Path, [*folders, "serving"]):
        expected |= {(folder / name).as_posix() for name in read_json(copy / folder / "manifest.json")["files"]}
        expected.add((folder / "manifest.json").as_posix())
    assert names == expected and not any(path.is_symlink() for path in found.rglob("*"))
    assert {"LICENSE", "NOTICE"} <= {path.name for path in found.iterdir()}
    assert "seglearn" in (found / "NOTICE").read_text()
    assert load(found / "run").classes == load(copy).classes


@pytest.mark.parametrize("file", ["members/lgbm/fold0/model.txt", "metrics.json", "members/torch/fold1"])
def test_a_run_with_links_is_not_packed(copy, tmp_path, file):
    path = copy / file
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link"):
        push(copy, tmp_path / "new" / "push")
    assert not (tmp_path / "new").exists()


def test_settings_travel_to_kaggle(tmp_path, monkeypatch, capsys):
    import ast

    for name, value in {"GESTURE_NB_EPOCHS": "7", "W_LGBM": "0.25", "FEATURE_STORE": str(tmp_path / "store")}.items():
        monkeypatch.setenv(name, value)
    given = dict(preset="full", members="lgbm,torch", time_limit_hours="8.5", folds=3, disable="mixup", data="sim:9")
    folder = push(tmp_path / "none", tmp_path / "push", mode="train", user="ann", **given)
    kernel = read_json(folder / "notebook" / "kernel-metadata.json")
    cells = read_json(folder / "notebook" / "submission.ipynb")["cells"]
    sources = ["".join(cell["source"]) for cell in cells[1:]]
    for source in sources:
        ast.parse(source)
    values = {}
    exec(sources[2], {"DATA": None, "RUN": "run"}, values)
    expected = dict(data="spar", output_path="run", progress="lines", epochs=7, w_lgbm=0.25, preset="full", folds=3)
    expected |= {"members": ("lgbm", "torch"), "time_limit_hours": 8.5, "disable": ("mixup",)}
    assert values["settings"] == expected and kernel["enable_gpu"] is True
    assert "# seed=42," in sources[2] and "# seed of every random choice" in sources[2]
    printed = capsys.readouterr().out
    assert "Not taken into the notebook" in printed and "--data" in printed and "--feature-store" in printed
    for more, gpu in [({"gpu": False, **given}, False), ({"gpu": True}, True), ({}, False)]:
        folder = push(tmp_path / "none", tmp_path / f"push{gpu}{len(more)}", mode="train", **more)
        assert read_json(folder / "notebook" / "kernel-metadata.json")["enable_gpu"] is gpu


def test_kaggle_refuses_before_it_writes(run, tmp_path, monkeypatch):
    from gesture_nb.serving import kaggle

    (tmp_path / "wheels").mkdir()
    (tmp_path / "file").touch()
    to = tmp_path / "new" / "push"
    for message, arguments, options in [
        ("does not read --epochs", (run, to), {"epochs": 3}),
        ("holds no finished run", (tmp_path / "none", to), {}),
        ("forbids what --mode train is for", (run, to), {"mode": "train", "run_any_training": False}),
        ("must be serve or train", (run, to), {"mode": "trane"}),
        ("There is no setting 'epoch'", (run, to), {"mode": "train", "epoch": 3}),
        ("is not an empty folder", (run, tmp_path / "file"), {}),
        ("is not an empty folder", (run, run), {}),
    ]:
        with pytest.raises(UserError, match=message):
            kaggle.kaggle_folder(arguments[1], wheels=tmp_path / "wheels", output_path=arguments[0], **options)
    with pytest.raises(UserError, match="There is no folder"):
        kaggle.kaggle_folder(to, wheels=tmp_path / "nowhere", output_path=run)
    for error in (KeyboardInterrupt, OSError("disk full")):
        with monkeypatch.context() as m, pytest.raises((KeyboardInterrupt, UserError)):
            m.setattr(kaggle, "write_wheel", lambda folder, error=error: (_ for _ in ()).throw(error))
            push(run, to, mode="train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "wheels"]
    (tmp_path / "empty").mkdir()
    assert push(run, tmp_path / "empty", mode="train").is_dir()


def test_our_wheel_carries_type_mark_and_licence(tmp_path):
    from gesture_nb.serving.kaggle import write_wheel

    archive = zipfile.ZipFile(write_wheel(tmp_path))
    names = archive.namelist()
    assert "gesture_nb/py.typed" in names
    licences = {n.split("/")[-1]: archive.read(n) for n in names if "/licenses/" in n}
    assert set(licences) == {"LICENSE", "NOTICE"}
    assert b"Apache License" in licences["LICENSE"] and b"seglearn" in licences["NOTICE"]
    record = next(n for n in names if n.endswith("/RECORD"))
    assert [line.split(",")[0] for line in archive.read(record).decode().splitlines()] == names


TREE_OPTIONS = [
    {},
    {"extra_trees": True},
    {"num_leaves": 2},
    {"min_data_in_leaf": 150},
    {"use_missing": False},
    {"max_bin": 7},
]


@pytest.mark.parametrize("more", TREE_OPTIONS)
def test_trees_as_bits_answer_as_lightgbm(more):
    import lightgbm as lgb

    from gesture_nb.serving.compiled import Forest
    from gesture_nb.serving.trees import tree_bits

    rng = np.random.default_rng(len(str(more)))
    x = rng.normal(size=(400, 12)).astype("f4")
    x[:, 3], x[:, 4] = np.round(x[:, 3]), 0.1  # ties, and a constant
    x[rng.random(x.shape) < 0.1], x[:, 5:7], x[::3, 7] = np.nan, x[:, 5:7], np.nan
    y = (np.nan_to_num(x[:, 0]) > 0) + 2 * (np.nan_to_num(x[:, 7]) > 0.3).astype(int)
    recipe = {"objective": "multiclass", "num_class": 4, "num_leaves": 16, "min_data_in_leaf": 3, "verbosity": -1}
    booster = lgb.train(recipe | {"seed": 1} | more, lgb.Dataset(x, y), 30)
    bits = tree_bits(booster.model_to_string())
    forest = Forest([bits] * 2, [np.arange(4), np.array([4, 2, 0, 1])], 5)
    far = rng.normal(size=(60, 12)).astype("f4") * 1e6
    rows = np.concatenate([x[:60], far, np.full((1, 12), np.nan, "f4"), np.zeros((1, 12), "f4")])
    for row, own in zip(rows, booster.predict(rows, raw_score=True)):
        first, second = forest.scores(row)
        assert apart(first[:4], own) < 1e-5 and apart(second[[4, 2, 0, 1]], own) < 1e-5 and first[4] == second[3] == 0


def test_what_is_no_plain_tree_is_refused():
    import lightgbm as lgb

    from gesture_nb.serving.trees import tree_bits

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 3)).astype("f4"), rng.integers(0, 2, 900)
    x[::4] = 0

    def text(**more):
        parameters = {"objective": "multiclass", "num_class": 2, "verbosity": -1} | more
        return lgb.train(parameters, lgb.Dataset(x, y, params=more), 3).model_to_string()

    models = {
        "16 leaves": text(num_leaves=31),
        "several classes": text(objective="binary", num_class=1),
        "zeros": text(num_leaves=8, zero_as_missing=True),
        "categorical, or some leaves linear": text(num_leaves=8, linear_tree=True),
    }
    for message, model in models.items():
        with pytest.raises(ValueError, match=message):
            tree_bits(model)


def test_edges_of_trees_and_views():
    from gesture_nb.features.views import View
    from gesture_nb.serving.stacked import Net, plan_graphs
    from gesture_nb.serving.trees import round_down

    # a missing reading, which stands at infinity, is beyond all thresholds
    assert np.isfinite(round_down(np.array([np.inf, 1e300]))).all()
    nets = [Net(k, View("tail", n), "build", "net") for k, n in enumerate((16, 24))]
    ((parts, longest),) = plan_graphs(nets, tuple, (8, 2))
    # there is no room for padding: they stay apart
    assert longest is None and [v.length for v, *_ in parts] == [16, 24]


def random_nets(member, copies=2):
    "Nets whose normalisation is not that of a net that was just made."
    import torch

    from gesture_nb.models.cnn_layers import GestureNet

    nets = [GestureNet(member.shape, member.preset).eval().requires_grad_(False) for _ in range(copies)]
    for net in nets:
        for b in net.modules():
            if isinstance(b, torch.nn.BatchNorm1d):
                b.running_mean.normal_()
                b.running_var.uniform_(0.5, 2)
                b.weight.data.normal_()
                b.bias.data.normal_()
        net.mean.normal_()
    return nets


def test_nets_of_different_views_answer_together_as_alone():
    from types import SimpleNamespace

    import torch

    from gesture_nb.features.frames import FrameFeatures
    from gesture_nb.features.views import View, gather_windows
    from gesture_nb.models.cnn_layers import Preset, Shape
    from gesture_nb.serving.compiled import without_padding
    from gesture_nb.serving.stacked import stack_convolutional

    torch.manual_seed(0)
    names, flags = ("acc.x", "acc.y", "gyr.x", "tof.1_mean"), ("has_acc", "has_gyr", "has_tof_1")
    preset, rng = Preset(widths=(16, 32, 48), steps=32, stem=8), np.random.default_rng(0)
    views = [View("tail", 56), View("tail", 64), View("tail", 80), View("resample", 64)]
    members = {}
    for k, v in enumerate(views):
        shape = Shape(names, flags, ("a", "b", "c"), v.length, v.kind, grids=1, aux={"orientation": 4})
        members[k] = SimpleNamespace(shape=shape, preset=preset)
    for m in members.values():
        m.net = SimpleNamespace(each=random_nets(m))
    graphs, padding = stack_convolutional(members, ("y", "orientation"))
    assert len(graphs) == 2 and graphs[0][1] > 0 and graphs[1][1] is None
    lengths = [1, 7, graphs[0][1], graphs[0][1] + 1, 55, 56, 57, 80, 200]
    offsets = np.cumsum([0, *lengths])
    values = rng.normal(size=(offsets[-1], 4)).astype("f4")
    masks, rates = dict.fromkeys(flags, np.ones(len(lengths), bool)), np.full(len(lengths), 50, "f4")
    grids = rng.integers(-2, 250, (offsets[-1], 1, 8, 8), dtype="i2")
    frames = FrameFeatures(values, names, offsets, masks, rates, grids)

    def tensors(i, view):
        windows = {k: torch.from_numpy(a) for k, a in gather_windows(frames, np.array([i]), view).items()}
        return windows | {"flags": torch.tensor([[1.0, i % 2, i % 3 > 0]])}

    def alone(i, member, view):
        heads = []
        for head in ("y", "orientation"):
            probs = [net(tensors(i, view))[head].softmax(1) for net in member.net.each]
            heads.append(torch.stack(probs).mean(0))
        return torch.cat(heads, 1)

    for i, n in enumerate(lengths):
        own = {k: alone(i, members[k], v) for k, v in enumerate(views)}
        for parts, longest in graphs:
            if longest is not None and n > longest:
                continue
            for view, folds, nets in parts:
                probs = nets(tensors(i, without_padding(view, n, *padding)))
                for k in set(folds):
                    mean = probs[:, [j for j, f in enumerate(folds) if f == k]].mean(1)
                    assert torch.allclose(mean, own[k], atol=1e-5), (n, view, k)


@pytest.mark.parametrize("n", [1, 3, 64, 255, 256, 300])
@pytest.mark.parametrize("kind", ["tail", "resample"])
def test_the_graph_counts_what_the_member_counts(n, kind, tmp_path):
    from gesture_nb.features.frames import FrameFeatures
    from gesture_nb.features.views import View
    from gesture_nb.models.kernel_counts import Transform, count_sequences, fit_transform, ppv_features
    from gesture_nb.models.kernel_inputs import Scaling
    from gesture_nb.models.kernels import init_kernels
    from gesture_nb.models.minirocket import RocketRecipe
    from gesture_nb.serving.kernels import SharedKernels, column_order

    rng = np.random.default_rng(n)
    x = np.float32(rng.normal(size=(2 * n, 11)) * 9)
    x[:, 3:5] = 0.37  # constant features, where rounding would decide
    frames = FrameFeatures(x, tuple(f"acc.{i}" for i in range(11)), np.array([0, n, 2 * n]), {}, np.float32([50, 50]))
    kernels = init_kernels(RocketRecipe().dilations, RocketRecipe().draws, 11, 256, n)
    scaling = Scaling(np.zeros(11, np.float32), np.full(11, 2, np.float32))
    unfitted = Transform(View(kind, 256), scaling, kernels)
    folds = [fit_transform(unfitted, frames, np.array([i]), 6) for i in range(2)]
    write_kernels(kernels.dilations, column_order(folds), tmp_path / "kernels.onnx")
    for own in (folds, folds[1:]):  # a predictor of one fold opens the graph of all
        shared = SharedKernels(own, column_order(folds), open_graph(tmp_path / "kernels.onnx"))
        for transform in own:
            columns, second = shared.columns_of(transform), np.array([1])
            assert np.array_equal(shared.counts(frames, 1)[columns], count_sequences(transform, frames, second)[0])
            assert np.array_equal(shared.ppv(frames, 1)[columns], ppv_features([transform], frames, second)[0])


@pytest.mark.soak
def test_all_members_500_sequences_and_100_gateway_runs(tmp_path):
    out, data = tmp_path / "out", "sim:600:5"
    train_only(
        data=data,
        members="lgbm,torch,keras,rocket",
        folds=5,
        epochs=1,
        boosting_rounds=30,
        decision="argmax",
        flip="off",
        output_path=out,
        progress="lines",
    )
    with Reporter(sinks=[]) as reporter:
        assert sorted(export_run(out, reporter)) == ["keras", "lgbm", "rocket", "torch"]
    table, oof = read_table(data), read_oof(out)
    held = [load(out, k) for k in range(5)]
    for i in np.random.default_rng().permutation(len(table))[:500]:
        p = held[oof["fold"][i]].table_proba(slice_sequences(table, i, i + 1))[0]
        assert apart(p, oof["p_ensemble"][i]) < 1e-5 and held[0].classes[p.argmax()] == oof["pred"][i]
    everyone, own = load(out), load(out, exported=False)
    some = slice_sequences(table, 0, 500)
    whole = own.table_proba(some)
    assert apart(everyone.table_proba(some), whole) < 1e-5
    expected = [own.classes[k] for k in whole.argmax(1)]
    for again in range(100):
        many = 500 if again == 0 else 20
        few = slice_sequences(some, 0, many)
        answered = local_gateway(everyone, few, out=tmp_path / "s.parquet", labels=own.classes, seed=None)
        assert answered["gesture"].tolist() == expected[:many]
