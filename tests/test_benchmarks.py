"""`benchmarks/rivals.py` on a tiny set: rivals run, kept results are not computed again, refusals are sentences."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "rivals.py"
sys.path.append(str(SCRIPT.parent))

from rivals import data, nets, results  # noqa: E402

def run_script(*options, folder):
    """The finished process of the script, with this package."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PROGRESS": "lines"}
    command = [sys.executable, str(SCRIPT), "--out", str(folder), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300)


def lines_of(folder):
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads wait for each other on a busy machine."""
    threads = nets.torch.get_num_threads()
    nets.torch.set_num_threads(1)
    yield
    nets.torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", nets.NETS)
@pytest.mark.parametrize("length", [21, 40, 200])
def test_a_net_takes_any_length(kind, length):
    """Logits for every class, and a gradient for every weight."""
    net = nets.NETS[kind](3, length, 4)
    logits = net(nets.torch.randn(5, 3, length))
    assert logits.shape == (5, 4)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_net_learns_and_does_not_see_the_fold(toy):
    """Three rhythms are told apart after a few epochs; the predicted people's recordings do not reach the weights."""
    recordings = data.read_set(str(toy))
    arrays = data.fold_arrays(recordings, 1)
    rule = nets.Rule(epochs=10, batch=4, learning_rate=0.01, refit=True)
    found = nets.fit_predict("tinierhar", arrays, recordings.y, recordings.subjects, 3, rule, lambda text: None)
    assert np.mean(found.labels == recordings.y[~arrays.train]) > 0.6
    other = arrays._replace(x=np.where(arrays.train[:, None, None], arrays.x, 7 * arrays.x + 1))
    again = nets.fit_predict("tinierhar", other, recordings.y, recordings.subjects, 3, rule, lambda text: None)
    assert again.about == found.about


def test_windows_of_the_wearables_benchmark(toy):
    """Half overlapping windows stay within a recording, and are its rows."""
    table = data.read_set(str(toy)).table
    cut = data.sliding_windows(table, steps=16, hop=8)
    assert len(cut) == 4 * len(table) and set(cut.lengths) == {16}
    np.testing.assert_array_equal(cut.values[:, 16:32], table.values[:, 8:24])
    assert list(cut.meta["subject"][:4]) == [table.meta["subject"][0]] * 4


@pytest.mark.soak
def test_a_killed_benchmark_goes_on_and_stands_beside_ours(toy, tmp_path):
    """The line that a kill cut off is computed again, the others are kept; ours is trained on the same folds."""
    options = "--sets", toy, "--models", "tinierhar,dana", "--epochs", 1
    first = run_script(*options, folder=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    before = (tmp_path / "results.jsonl").read_bytes()
    assert len(lines_of(tmp_path)) == 10
    (tmp_path / "results.jsonl").write_bytes(before[:-40])
    second = run_script(*options, "--ours", "--ours-options", "--members lgbm --boosting-rounds 5", folder=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("to learn from") == 1
    kept = results.Results(tmp_path).read()
    last = json.loads(before.splitlines()[-1])
    assert len(kept) == 10 and kept[str(toy), "dana", 4]["labels"] == last["labels"]
    rows = {row["model"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert {"tinierhar", "dana", "ours: lgbm", "ours: ensemble, alone"} <= rows.keys()
    scored = [row for name, row in rows.items() if "all at once" not in name or "ensemble" in name]
    assert all(row["low"] <= row["macro_f1"] <= row["high"] for row in scored)
    assert {row["folds"] for row in rows.values()} == {"5/5"}


def test_kept_results_of_other_options_or_data_are_refused(tmp_path):
    """The sentence names the line, and what is different."""
    line = {"set": "spar", "model": "dana", "fold": 2, "rule": {"epochs": 2, "seed": 0}, "labels": [0, 1]}
    results.check_rule(line, {"epochs": 2, "seed": 0}, 2, tmp_path)
    with pytest.raises(SystemExit, match="dana on fold 3 of spar with epochs 2, not 3"):
        results.check_rule(line, {"epochs": 3, "seed": 0}, 2, tmp_path)
    with pytest.raises(SystemExit, match="2 sequences, but there are 5"):
        results.check_rule(line, {"epochs": 2, "seed": 0}, 5, tmp_path)


def test_classifiers_of_aeon(toy, tmp_path):
    """They run where aeon is installed."""
    if not (importlib.util.find_spec("aeon") and importlib.util.find_spec("torch")):
        pytest.skip("aeon is not installed")
    done = run_script("--sets", toy, "--models", "minirocket,quant", "--folds", 1, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["versions"]["aeon"] for line in lines_of(tmp_path)]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--models", "quant", "--python", "/bin/false"], "lacks aeon"),
        (["--models", "resnet"], "There is no model 'resnet'"),
        (["--sets", "nowhere"], "There is no set 'nowhere'"),
        (["--run", "spar"], "write it as SET=PATH"),
    ],
)
def test_refusals_are_sentences(options, sentence, tmp_path):
    done = run_script(*options, folder=tmp_path)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
