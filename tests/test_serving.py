"Exported members against the members themselves; one run of three members for the whole file, all four in the soak."
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gesture_nb.app import train_only
from gesture_nb.commands import read_oof
from gesture_nb.data.readers import read_table
from gesture_nb.data.sequences import span
from gesture_nb.progress import LineSink, Reporter
from gesture_nb.schema import TEST_COLUMNS
from gesture_nb.serving.compiled import Convolutions, layout, open_graph, unit_folders
from gesture_nb.serving.export import export_run, stack_rocket, write_kernels
from gesture_nb.serving.gateway import local_gateway, questions
from gesture_nb.serving.predictor import load

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pl = pytest.importorskip("polars", reason="polars is not installed")
DATA = "sim:120:3"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "out"
    train_only(data=DATA, members="lgbm,torch,rocket", folds=2, epochs=1, boosting_rounds=4, decision="argmax", output_path=out, progress="lines")
    with Reporter(sinks=[]) as reporter: assert sorted(export_run(out, reporter)) == ["lgbm", "rocket", "torch"]
    return out


@pytest.fixture(scope="module")
def table(): return read_table(DATA)


@pytest.fixture
def copy(run, tmp_path): return shutil.copytree(run, tmp_path / "copy")


def apart(a, b): return float(np.abs(a - b).max())


def told(capsys, out, **more):
    "What loading says, and the predictor."
    predictor = load(out, reporter=Reporter(sinks=[LineSink()]), **more)
    return capsys.readouterr().out, predictor


def test_exported_answers_are_those_of_the_members(run, table):
    fast, own = load(run), load(run, exported=False)
    assert {m: len(u) for m, u in own.members.items()} == dict.fromkeys(own.members, 2)
    assert {m: type(u[0]).__name__ for m, u in fast.members.items()} == {"lgbm": "Trees", "torch": "Graph", "rocket": "Rocket"}
    some = span(table, 0, 30)
    probs = lambda p, t: {m: v["proba"] for m, v in p.members_told(p.batch(t)).items()}
    whole, alone = probs(own, some), [probs(fast, span(some, i, i + 1)) for i in range(30)]
    for m, p in probs(fast, some).items():
        assert p.dtype == np.float32 and apart(p, whole[m]) < 1e-5 and apart(np.concatenate([a[m] for a in alone]), whole[m]) < 1e-5


def test_one_fold_answers_as_it_did_out_of_fold_and_the_gateway_as_the_batch(run, table, tmp_path):
    oof, fold1 = read_oof(run), load(run, 1)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(oof["fold"] == 1))[:25]
    for i in rows:
        p = fold1.table_proba(span(table, i, i + 1))[0]
        assert apart(p, oof["p_ensemble"][i]) < 1e-5 and fold1.classes[p.argmax()] == oof["pred"][i]
    people, everyone = span(table, 0, 30), load(run)
    answered = local_gateway(everyone, people, out=tmp_path / "s.parquet", labels=everyone.classes, seed=None)
    assert answered["gesture"].tolist() == [everyone.classes[k] for k in everyone.table_proba(people).argmax(1)]


def test_frames_of_every_kind_order_and_condition_get_one_answer(run, table):
    p = load(run)
    sequence, person = questions(span(table, 4, 5))[0]
    known = p.proba(sequence, person)
    backwards = sequence.select(reversed(sequence.columns)).with_columns(note=pl.lit("x"), row=pl.Series([{}] * len(sequence), dtype=pl.Object))
    for frame in (backwards, sequence.to_pandas(), sequence.to_arrow(), sequence.to_dict(as_series=False), {c: sequence[c].to_numpy() for c in sequence.columns}):
        assert apart(p.proba(frame, person), known) < 1e-6 and p(frame) in p.classes
    sensors = [c for c in TEST_COLUMNS if c.startswith(("thm", "tof", "rot"))]
    blind = [p.proba(sequence.with_columns(*(pl.Series(c, [None] * len(sequence), dtype=t) for c in sensors)), person) for t in (pl.Float64, pl.String, pl.Int64, pl.Null, pl.Boolean)]
    assert all(apart(b, blind[0]) < 1e-6 for b in blind) and apart(p.proba(sequence.drop(sensors), person), blind[0]) < 1e-6 < apart(blind[0], known)


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
    from gesture_nb.serving.export import noise
    own = load(run, exported=False)
    names, answer = done.stdout.split(" [[")
    assert names == "['lgbm', 'rocket', 'torch']" and apart(np.array(eval("[[" + answer)), own.table_proba(noise(own.channels, (40, 90), 10.0))) < 1e-5


def test_damaged_and_outdated_exports_are_not_used(copy, capsys):
    import json
    path = copy / "serving" / "rocket.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    said, p = told(capsys, copy)
    assert "rocket.safetensors is damaged" in said and type(p.members["torch"][0]).__name__ == "TorchMember"
    path.write_bytes(whole)
    manifest = unit_folders(copy)["torch"][0] / "manifest.json"
    from gesture_nb.artifacts import write_manifest
    facts = json.loads(manifest.read_text())["facts"]
    write_manifest(manifest.parent, **facts | {"seconds": -1})
    said, p = told(capsys, copy)
    assert "torch answers fold by fold" in said and "trained again" in said
    assert type(p.members["torch"][0]).__name__ == "TorchMember" and type(p.members["rocket"][0]).__name__ == "Rocket"


def test_an_export_that_disagrees_is_refused(copy, capsys, monkeypatch):
    from gesture_nb.artifacts import read_arrays, write_arrays
    from gesture_nb.serving import export
    def wrong(members, batch, name, to):
        facts, arrays = stack_rocket(members, batch, name, to), read_arrays(to / "rocket.safetensors")
        write_arrays(to / "rocket.safetensors", arrays | {"0.mean": arrays["0.mean"] + np.float32(0.5)})
        return facts
    monkeypatch.setattr(export, "EXPORTERS", {"rocket": wrong})
    with Reporter(sinks=[LineSink()]) as reporter: assert export_run(copy, reporter) == []
    said = capsys.readouterr().out
    assert "rocket is served as it was trained" in said and "differently" in said and [p.name for p in (copy / "serving").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("more", [{}, {"extra_trees": True}, {"num_leaves": 2}, {"min_data_in_leaf": 150}, {"use_missing": False}, {"max_bin": 7}])
def test_trees_as_bits_answer_as_lightgbm(more):
    import lightgbm as lgb

    from gesture_nb.serving.compiled import Forest
    from gesture_nb.serving.trees import tree_bits
    rng = np.random.default_rng(len(str(more)))
    x = rng.normal(size=(400, 12)).astype("f4")
    x[:, 3], x[:, 4] = np.round(x[:, 3]), 0.1                                     # ties, and a constant
    x[rng.random(x.shape) < 0.1], x[:, 5:7], x[::3, 7] = np.nan, x[:, 5:7], np.nan
    y = (np.nan_to_num(x[:, 0]) > 0) + 2 * (np.nan_to_num(x[:, 7]) > 0.3).astype(int)
    b = lgb.train({"objective": "multiclass", "num_class": 4, "num_leaves": 16, "min_data_in_leaf": 3, "verbosity": -1, "seed": 1} | more, lgb.Dataset(x, y), 30)
    forest = Forest([tree_bits(b.model_to_string())] * 2, [np.arange(4), np.array([4, 2, 0, 1])], 5)
    asked = np.concatenate([x[:60], rng.normal(size=(60, 12)).astype("f4") * 1e6, np.full((1, 12), np.nan, "f4"), np.zeros((1, 12), "f4")])
    for row, own in zip(asked, b.predict(asked, raw_score=True)):
        first, second = forest.scores(row)
        assert apart(first[:4], own) < 1e-5 and apart(second[[4, 2, 0, 1]], own) < 1e-5 and first[4] == second[3] == 0


def test_what_is_no_plain_tree_is_refused():
    import lightgbm as lgb

    from gesture_nb.serving.trees import tree_bits
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 3)).astype("f4"), rng.integers(0, 2, 900)
    x[::4] = 0
    text = lambda **more: lgb.train({"objective": "multiclass", "num_class": 2, "verbosity": -1} | more, lgb.Dataset(x, y, params=more), 3).model_to_string()
    for said, model in {"16 leaves": text(num_leaves=31), "several classes": text(objective="binary", num_class=1), "zeros": text(num_leaves=8, zero_as_missing=True), "numbers": text(num_leaves=8, linear_tree=True)}.items():
        with pytest.raises(ValueError, match=said): tree_bits(model)


def test_edges_of_trees_and_views():
    from gesture_nb.data.views import View
    from gesture_nb.serving.stacked import graphs_of
    from gesture_nb.serving.trees import below
    assert np.isfinite(below(np.array([np.inf, 1e300]))).all()      # a missing reading, which stands at infinity, is beyond them
    (parts, longest), = graphs_of([(k, View("tail", n), "build", "net") for k, n in enumerate((16, 24))], tuple, (8, 2))
    assert longest is None and [v.length for v, *_ in parts] == [16, 24]       # there is no room for padding: they stay apart


def test_nets_of_different_views_answer_together_as_alone():
    from types import SimpleNamespace

    import torch

    from gesture_nb.data.frames import FrameFeatures
    from gesture_nb.data.views import View, gather
    from gesture_nb.models.torch_layers import GestureNet, Preset, Shape
    from gesture_nb.serving.compiled import without_padding
    from gesture_nb.serving.stacked import convolutional
    torch.manual_seed(0)
    names, flags, preset, rng = ("acc.x", "acc.y", "gyr.x", "tof.1_mean"), ("has_acc", "has_gyr", "has_tof_1"), Preset(widths=(16, 32, 48), steps=32, stem=8), np.random.default_rng(0)
    views = [View("tail", 56), View("tail", 64), View("tail", 80), View("resample", 64)]
    members = {k: SimpleNamespace(shape=Shape(names, flags, ("a", "b", "c"), v.length, v.kind, grids=1, aux={"orientation": 4}), preset=preset) for k, v in enumerate(views)}
    for m in members.values():
        m.net = SimpleNamespace(each=[GestureNet(m.shape, preset).eval().requires_grad_(False) for _ in range(2)])
        for net in m.net.each:
            for b in net.modules():
                if isinstance(b, torch.nn.BatchNorm1d): b.running_mean.normal_(); b.running_var.uniform_(0.5, 2); b.weight.data.normal_(); b.bias.data.normal_()
            net.mean.normal_()
    graphs, padding = convolutional(members, ("y", "orientation"))
    assert len(graphs) == 2 and graphs[0][1] > 0 and graphs[1][1] is None
    lengths = [1, 7, graphs[0][1], graphs[0][1] + 1, 55, 56, 57, 80, 200]
    offsets = np.cumsum([0, *lengths])
    frames = FrameFeatures(rng.normal(size=(offsets[-1], 4)).astype("f4"), names, offsets, dict.fromkeys(flags, np.ones(len(lengths), bool)), np.full(len(lengths), 50, "f4"), rng.integers(-2, 250, (offsets[-1], 1, 8, 8), dtype="i2"))
    asked = lambda i, view: {k: torch.from_numpy(a) for k, a in gather(frames, np.array([i]), view).items()} | {"flags": torch.tensor([[1.0, i % 2, i % 3 > 0]])}
    for i, n in enumerate(lengths):
        own = {k: torch.cat([torch.stack([net(asked(i, v))[h].softmax(1) for net in members[k].net.each]).mean(0) for h in ("y", "orientation")], 1) for k, v in enumerate(views)}
        for parts, longest in graphs:
            if longest is not None and n > longest: continue
            for view, folds, nets in parts:
                told = nets(asked(i, without_padding(view, n, *padding)))
                for k in set(folds): assert torch.allclose(told[:, [j for j, f in enumerate(folds) if f == k]].mean(1), own[k], atol=1e-5), (n, view, k)


@pytest.mark.parametrize("n", [1, 3, 64, 255, 256])
def test_the_graph_counts_what_the_member_counts(n, tmp_path):
    import torch

    from gesture_nb.data.frames import FrameFeatures
    from gesture_nb.models.kernels import draw, shares, thresholds
    from gesture_nb.models.rocket import RocketRecipe, exact
    rng = np.random.default_rng(n)
    x = exact(rng.normal(size=(1, 11, n)) * 9)
    x[:, 3:5] = 0.37 // 2**-12 * 2**-12                      # constant features, where rounding would decide
    dilations, chosen = draw(RocketRecipe().dilations, RocketRecipe().draws, 11, 256, n)
    mask = torch.ones(1, n, dtype=torch.bool)
    bounds = thresholds(torch.from_numpy(x), mask, dilations, chosen, 6)
    expected = shares(torch.from_numpy(x), mask, dilations, chosen, bounds)[0]
    k, names = expected.size, tuple(f"acc.{i}" for i in range(11))
    arrays = {"dilations": dilations, "chosen": chosen, "bounds": bounds, "centre": rng.normal(size=k), "spread": rng.uniform(1, 2, k), "weights": rng.normal(size=(k, 4)) / k**0.5,
              "bias": rng.normal(size=4), "mean": np.zeros(11), "scale": np.ones(11)}
    arrays = {a: np.float32(v) if v.dtype == float else v for a, v in arrays.items()}
    write_kernels(arrays, [0, 1, 3], tmp_path / "kernels.onnx")
    c = Convolutions(arrays, {"view": ["tail", 256], "names": names, "classes": 4, "present": [0, 1, 3], "factor": 2.0}, open_graph(tmp_path / "kernels.onnx"))
    frames = FrameFeatures(np.ascontiguousarray(x[0].T), names, np.array([0, n]), {}, np.float32([50]))
    found = c.run(frames, 0, "shares").reshape(6, -1)[:, layout(dilations)[1]].transpose(1, 2, 0).ravel()
    assert np.array_equal(np.rint(found * n), np.rint(expected * n)) and apart(found, expected) < 1e-6
    z = np.exp(2 * (np.clip((expected - arrays["centre"]) / arrays["spread"], -8, 8) @ arrays["weights"] + arrays["bias"])[[0, 1, 3]].astype(float))
    assert apart(c.one(frames, 0)[[0, 1, 3]], z / z.sum()) < 1e-5 and c.one(frames, 0)[2] == 0


@pytest.mark.soak
def test_all_members_500_sequences_and_100_gateway_runs(tmp_path):
    out, data = tmp_path / "out", "sim:600:5"
    train_only(data=data, members="lgbm,torch,keras,rocket", folds=5, epochs=1, boosting_rounds=30, decision="argmax", flip="off", output_path=out, progress="lines")
    with Reporter(sinks=[]) as reporter: assert sorted(export_run(out, reporter)) == ["keras", "lgbm", "rocket", "torch"]
    table, oof = read_table(data), read_oof(out)
    held = [load(out, k) for k in range(5)]
    for i in np.random.default_rng().permutation(len(table))[:500]:
        p = held[oof["fold"][i]].table_proba(span(table, i, i + 1))[0]
        assert apart(p, oof["p_ensemble"][i]) < 1e-5 and held[0].classes[p.argmax()] == oof["pred"][i]
    everyone, own = load(out), load(out, exported=False)
    asked = span(table, 0, 500)
    whole = own.table_proba(asked)
    assert apart(everyone.table_proba(asked), whole) < 1e-5
    expected = [own.classes[k] for k in whole.argmax(1)]
    for again in range(100):
        many = 500 if again == 0 else 20
        answered = local_gateway(everyone, span(asked, 0, many), out=tmp_path / "s.parquet", labels=own.classes, seed=None)
        assert answered["gesture"].tolist() == expected[:many]
