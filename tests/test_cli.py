"""The command line: one clear line and exit code 2 for what a person can mend, earlier results untouched."""

import hashlib
import json

import pytest

def tree(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "logs" not in p.parts and p.name != ".lock"
    }


SMALL = ["--members", "lgbm", "--folds", "2", "--boosting-rounds", "8", "--progress", "lines"]


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A finished run folder of the toy data."""
    from gesture_nb.cli import main

    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["run", "--data", str(toy), "--out", str(out), *SMALL]) == 0
    return out


@pytest.mark.parametrize(
    "arguments, environ, said",
    [
        (["--members", "lgbm,svm"], {}, "svm"),
        (["--preset", "slow"], {}, "preset"),
        (["--w-torch", "-1"], {}, "w_torch"),
        ([], {"W_LGBM": "nan"}, "W_LGBM"),
        (["--members", "lgbm", "--w-lgbm", "0"], {}, "weight 0"),
        (["--members", "lgbm", "--w-keras", "1"], {}, "keras"),
        (["--workers", "-2"], {}, "dl_num_workers"),
        (["--data", "nowhere.parquet"], {}, "nowhere.parquet"),
        (["--batch-size", "1"], {}, "batch_size"),
        ([], {"RESUME": "perhaps"}, "RESUME"),
        (["--fold-column", "nofold"], {}, "nofold"),
    ],
)
def test_refusals(arguments, environ, said, toy, tmp_path, program):
    data = [] if "--data" in arguments else ["--data", toy]
    done = program("train", *data, "--out", tmp_path / "out", *arguments, **environ)
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert said in last and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "members").exists()


def test_unknown_option_and_command(program):
    assert program("train", "--wrokers", "2").returncode == 2
    assert program("trian").returncode == 2


def test_run_folder(run):
    for name in (
        "config.json",
        "ensemble.json",
        "metrics.json",
        "oof.parquet",
        "submission.parquet",
        "report.html",
        "logs/run.jsonl",
    ):
        assert (run / name).exists(), name
    m = json.loads((run / "metrics.json").read_text())
    assert m["classes"] == ["hold", "shake", "wave"]
    for judged in (m["members"]["lgbm"], m["ensemble"]):
        assert {"accuracy", "macro_f1", "per_fold", "seconds"} <= judged.keys() and len(judged["per_fold"]) == 2
        assert "score" not in judged  # these labels are not the competition's


def test_out_of_fold_file(run):
    import numpy as np
    import pyarrow.parquet as pq

    t = pq.read_table(run / "oof.parquet")
    assert t.column_names == ["sequence_id", "subject", "fold", "gesture", "pred", "p_lgbm", "p_ensemble"]
    p = np.array(t["p_ensemble"].to_pylist())
    assert p.shape == (60, 3) and np.allclose(p.sum(1), 1, atol=1e-5)
    classes = json.loads((run / "metrics.json").read_text())["classes"]
    assert [classes[i] for i in p.argmax(1)] == t["pred"].to_pylist()
    assert all(
        len(set(f)) == 1
        for f in (t["fold"].to_numpy()[t["subject"].to_numpy(zero_copy_only=False) == s] for s in "abcdef")
    )


def test_answers_of_a_fold_are_its_out_of_fold_rows(run, toy):
    import numpy as np
    import pyarrow.parquet as pq

    from gesture_nb.data.readers import read_table
    from gesture_nb.serving.predictor import load

    kept, table = pq.read_table(run / "oof.parquet"), read_table(str(toy))
    for fold in (0, 1):
        rows = kept["fold"].to_numpy() == fold
        p = load(run, fold).table_proba(table)[rows]
        assert np.abs(p - np.array(kept["p_ensemble"].to_pylist())[rows]).max() < 1e-5


def test_changed_settings_are_refused_and_nothing_is_touched(run, toy, program):
    before = tree(run)
    done = program("train", "--data", toy, "--out", run, *SMALL, "--seed", "7")
    assert done.returncode == 2
    assert "seed was 42 and is now 7" in done.stderr and "--restart" in done.stderr and "--out" in done.stderr
    assert tree(run) == before


def test_a_second_run_changes_nothing(run, toy, program):
    before = tree(run)
    done = program("train", "--data", toy, "--out", run, *SMALL)
    assert done.returncode == 0 and "finished before" in done.stdout
    after = tree(run)
    assert {k: v for k, v in after.items() if not k.startswith(("report", "config")) and not k.endswith(".png")} == {
        k: v for k, v in before.items() if not k.startswith(("report", "config")) and not k.endswith(".png")
    }


def test_a_damaged_member_is_named_and_trained_again(toy, tmp_path, program):
    out = tmp_path / "out"
    assert program("train", "--data", toy, "--out", out, *SMALL).returncode == 0
    before = tree(out / "members")
    victim = next(p for p in sorted((out / "members" / "lgbm" / "fold1").iterdir()) if p.name == "oof.safetensors")
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    done = program("train", "--data", toy, "--out", out, *SMALL)
    assert done.returncode == 0 and "oof.safetensors is damaged" in done.stdout
    same = {k for k in before if not k.endswith("manifest.json")}
    assert {k: v for k, v in tree(out / "members").items() if k in same} == {k: before[k] for k in same}


def test_restart_trains_beside_and_swaps(toy, tmp_path, program):
    out = tmp_path / "out"
    assert program("train", "--data", toy, "--out", out, *SMALL).returncode == 0
    done = program("train", "--data", toy, "--out", out, *SMALL, "--seed", "7", "--restart")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["settings"]["seed"] == 7
    assert not (out / "members.next").exists() and not (out / "members.previous").exists()


def test_serving_only(run, toy, tmp_path, program):
    done = program("run", "--data", toy, "--out", run, *SMALL, RUN_ANY_TRAINING=0)
    assert done.returncode == 0, done.stderr
    done = program("run", "--data", toy, "--out", tmp_path / "empty", *SMALL, RUN_ANY_TRAINING=0)
    assert done.returncode == 2 and "RUN_ANY_TRAINING=0" in done.stderr and "Loading training data" not in done.stdout


def test_serving_only_refuses_other_data(run, toy, tmp_path, program):
    import pandas as pd

    frame, path = pd.read_parquet(toy), tmp_path / "other.parquet"
    for change, said in (({"wave": "clap"}, "'clap'"), ({}, "other data")):
        (frame.replace({"gesture": change}) if change else frame.assign(acc_x=frame.acc_x + 1)).to_parquet(
            path, index=False
        )
        done = program("run", "--data", path, "--out", run, *SMALL, RUN_ANY_TRAINING=0)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_features_are_verified_when_asked(toy, tmp_path, capsys):
    """A flipped bit under an unchanged time: only full checksums can see it."""
    import os

    from gesture_nb.cli import main

    features = ["features", "--data", str(toy), "--out", str(tmp_path), "--progress", "lines"]
    assert main(features) == 0
    path = next(tmp_path.rglob("*.values.raw"))
    stat, right = path.stat(), path.read_bytes()
    path.write_bytes(right[:999] + bytes([right[999] ^ 1]) + right[1000:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    assert main(features) == 0 and path.read_bytes() != right
    assert main([*features, "--verify"]) == 0 and path.read_bytes() == right
    assert "checksum does not fit" in capsys.readouterr().out


def test_predict_evaluate_report_replay(run, toy, tmp_path, program):
    import pyarrow.parquet as pq

    to = tmp_path / "answers.parquet"
    assert program("predict", "--data", toy, "--out", run, "--to", to).returncode == 0
    assert pq.read_table(to).num_rows == 60
    done = program("evaluate", "--out", run)
    assert done.returncode == 0 and "macro_f1" in done.stdout and (run / "evaluation.json").exists()
    assert program("report", "--out", run).returncode == 0
    assert program("replay", "--out", run).returncode == 0
    for command in ("predict", "evaluate", "report"):
        done = program(command, "--data", toy, "--out", tmp_path / "nothing")
        assert done.returncode == 2 and "nothing" in done.stderr and "Traceback" not in done.stderr


def test_competition_folder_end_to_end(tmp_path, program):
    """A generated folder with all its traps: features once, a submission for every test sequence."""
    import pyarrow.parquet as pq

    folder, out = tmp_path / "cmi", tmp_path / "out"
    assert program("simulate", "--to", folder, "--sequences", "240", "--test-sequences", "12").returncode == 0
    done = program("run", "--data", folder, "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "score" in json.loads((out / "metrics.json").read_text())["ensemble"]
    submission = pq.read_table(out / "submission.parquet")
    assert submission.column_names == ["sequence_id", "gesture"] and submission.num_rows == 12


def test_a_folder_for_kaggle(run, tmp_path, program):
    done = program("kaggle", "--out", run, "--to", tmp_path / "push", "--user", "ann")
    assert done.returncode == 0, done.stderr
    kernel = json.loads((tmp_path / "push" / "notebook" / "kernel-metadata.json").read_text())
    assert (
        kernel["id"] == "ann/gesture-nb-submission"
        and kernel["enable_internet"] is False
        and (tmp_path / "push" / "notebook" / kernel["code_file"]).exists()
    )
    data = json.loads((tmp_path / "push" / "dataset" / "dataset-metadata.json").read_text())
    assert kernel["dataset_sources"] == [data["id"]]
    assert (
        next((tmp_path / "push" / "dataset").glob("*.whl"))
        and (tmp_path / "push" / "dataset" / "run" / "members" / "lgbm" / "fold1" / "manifest.json").exists()
    )
    assert program("kaggle", "--out", run, "--to", tmp_path / "push").returncode == 2  # not empty


def test_weights_count_when_only_serving(run, toy, program):
    done = program("run", "--data", toy, "--out", run, *SMALL, RUN_ANY_TRAINING=0, W_LGBM=0, W_TORCH=1)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_unwritable_folder(toy, tmp_path, program):
    (tmp_path / "file").write_text("in the way")
    done = program("train", "--data", toy, "--out", tmp_path / "file" / "out", *SMALL)
    assert done.returncode == 2 and "file" in done.stderr and "Traceback" not in done.stderr


def test_keras_alone_with_a_handful_of_steps(toy, tmp_path, program):
    """Four optimizer steps in all: the schedule has hardly room to rise."""
    done = program(
        "run",
        "--data",
        toy,
        "--out",
        tmp_path / "out",
        "--folds",
        "2",
        "--epochs",
        "4",
        "--batch-size",
        "60",
        "--progress",
        "lines",
        W_LGBM=0,
        W_TORCH=0,
        W_KERAS=1,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert [p.name for p in (tmp_path / "out" / "members").iterdir() if p.is_dir()] == ["keras"]
