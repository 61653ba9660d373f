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
    columns = ["sequence_id", "subject", "fold", "gesture", "pred", "p_lgbm", "p_ensemble"]
    assert t.column_names == [*columns, "pred_all_at_once", "p_ensemble_all_at_once"]
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
    for fold in (0, 1):  # each recording alone; `test_wearers` has those of a person together
        rows = kept["fold"].to_numpy() == fold
        p = load(run, fold, adapt=False).table_proba(table)[rows]
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
    for command, *data in (("predict", "--data", toy), ("evaluate", "--data", toy), ("report",)):
        done = program(command, *data, "--out", tmp_path / "nothing")
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


@pytest.mark.soak
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


# ------------------------------------------------------------------ nothing made, nothing lost

def paths(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


REFUSALS = {  # what is wrong → arguments; {run} is a finished run, {toy} its data
    "no such data": "--data nope.csv --out new",
    "no such user": "--data ~nouser/x.csv --out ~nouser/y",
    "long name": f"--data {'a' * 300}.csv --out new",
    "long output": f"--data {{toy}} --out {'b' * 300}",
    "a file in the way": "--data {toy} --out file/new",
    "no memory": "--data sim:99999999999999999999 --out new/er",
    "wrong value": "--data {toy} --out new --seed text",
    "infinite": "--data {toy} --out new --heartbeat-seconds 1e308",
    "no column": "--data {toy} --out new --fold-column nofold",
    "unknown option": "--data {toy} --out new --wrokers 2",
    "no value": "--data {toy} --out",
    "a store in a file": "--data {toy} --out new --feature-store file/store",
    "no run": "--out new/er",
}


@pytest.mark.parametrize(
    "command",
    ["run", "train", "evaluate", "predict", "serve", "features", "report", "replay", "export", "inspect", "convert"],
)
@pytest.mark.parametrize("refusal", list(REFUSALS))
def test_what_is_refused_leaves_nothing(command, refusal, toy, tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main

    if refusal == "no run" and command in ("run", "train", "features", "serve"):
        return
    own = ["--to", "made.parquet"] if command in ("predict", "convert") else []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert main([command, *own, *(part.format(toy=toy) for part in REFUSALS[refusal].split())]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gesture-nb: ") and said.count("\n") == 1 and len(said) < 700
    assert paths(tmp_path) == {"file"}


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("trian", "Did you mean 'train'?"),
        ("train --wrokers 2", "train has no option '--wrokers'. Did you mean '--workers'?"),
        ("train more", "train has no argument 'more'"),
        ("simulate", "--to must be given"),
        ("simulate --to x --sequences 0", "--sequences is '0', but must be a whole number"),
        ("simulate --to x --sequences 99999999999999", "GB"),
        ("simulate --to x --out y", "simulate does not read --out: it only writes recordings, to the folder --to."),
        ("simulate --to file/x", "is not a folder"),
        ("simulate --to file", "is there already"),
        ("simulate --to .", "is there already"),
        ("simulate --to ~nouser/x", "there is no user"),
        ("kaggle --to x --mode fly", "--mode is 'fly', but must be one of"),
        ("kaggle --to ~nouser/x", "--to is '~nouser/x', but there is no user"),
        ("train --restart=1", "--restart takes no value"),
        ("report --epochs 3", "report does not read --epochs"),
        ("export --data spar", "export does not read --data"),
        ("features --epochs 3 --data sim:10", "features does not read --epochs"),
        ("--import no/module train", "not the name of a module"),
        ("train --import", "--import needs a value"),
        ("train --out x --output-path y", "--out is given twice"),
        ("kaggle --to x --user a/b", "--user is 'a/b', but a user name on Kaggle"),
        ("kaggle --to x --python new", "--python is 'new', but must be a version"),
        ("evaluate --epochs 3", "evaluate does not read --epochs: the run in --out is scored as it was trained"),
        ("train --data s3://bucket/x.csv", "is an address, and only files of this machine"),
        ("simulate --to file:///x", "is an address, and only files of this machine"),
        ("report --out line\x1bbreak", "line\\x1bbreak holds no finished run"),
    ],
)
def test_arguments_that_make_no_sense(arguments, said, tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert main(arguments.split()) == 2
    assert said in capsys.readouterr().err and paths(tmp_path) == {"file"}


WORK = {  # command → arguments, and what it makes
    "predict": ("--data {toy} --out {run} --to new/p.csv", "new/p.csv"),
    "predict as Parquet": ("--data {toy} --out {run} --to p.parquet", "p.parquet"),
    "simulate": ("--to new/cmi --sequences 12 --test-sequences 3", "new/cmi/test_demographics.csv"),
    "features": ("--data {toy} --out new/f", "new/f/features"),
    "report": ("--out {run}", None),
    "evaluate": ("--out {run}", None),
    "export": ("--out {run}", None),
}


@pytest.mark.parametrize("work", list(WORK))
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing_half_made(work, number, run, toy, tmp_path, monkeypatch, capsys):
    """It comes right before the first file is put in its place; then the same command does its work."""
    import os
    import shutil
    import signal

    from gesture_nb.cli import main

    if number != "SIGTERM" and work in ("report", "evaluate", "export", "features"):
        return
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    arguments, made = WORK[work]
    argv = [work.split()[0], *arguments.format(toy=toy, run="run").split()]
    before, replace, sent = paths(tmp_path), os.replace, []

    def interrupted(*args, **kwargs):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), getattr(signal, number))
        return replace(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert main(argv) == 130 and sent
    left = {p for p in paths(tmp_path) - before if "logs" not in p and p != "run/.lock"}
    assert not {p for p in left if p.endswith(".tmp")} and (work == "features" or not left)
    assert main(argv) == 0 and "Traceback" not in capsys.readouterr().err
    assert made is None or (tmp_path / made).exists()


# ------------------------------------------------------------------ predictions for a file

@pytest.fixture
def predict(run, toy, tmp_path, monkeypatch, capsys):
    """Runs `predict` in an empty folder; returns the exit code, what was said, and the file as a frame."""
    import pandas as pd

    from gesture_nb.cli import main

    monkeypatch.chdir(tmp_path)

    def predict(*arguments, data=toy, to="p.csv"):
        code = main(["predict", "--data", str(data), "--out", str(run), "--to", str(to), *arguments])
        said = capsys.readouterr()
        path = tmp_path / to
        frame = None
        if code == 0:
            frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        return code, said.out + said.err, frame

    return predict


def test_csv_and_parquet_say_the_same(predict, tmp_path):
    import numpy as np
    import pyarrow.parquet as pq

    _, said, as_csv = predict()
    as_parquet, as_pq = predict(to="p.parquet")[2], predict(to="P.PQ")[2]
    columns = ["sequence_id", "gesture", "p_hold", "p_shake", "p_wave"]
    assert list(as_csv) == list(as_parquet) == columns and as_parquet.equals(as_pq)
    assert as_csv.iloc[:, :2].equals(as_parquet.iloc[:, :2]) and len(as_csv) == 60
    assert np.array_equal(as_csv.iloc[:, 2:].to_numpy("f4"), as_parquet.iloc[:, 2:].to_numpy())
    assert np.allclose(as_csv.iloc[:, 2:].sum(axis=1), 1, atol=1e-5)
    assert json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"classes"]) == ["hold", "shake", "wave"]
    assert "60 of 60 recordings are among those the run was trained on: their predictions are no test." in said


def test_the_same_labels_as_in_python(predict, run, toy):
    from gesture_nb.data.readers import read_recordings
    from gesture_nb.serving.predictor import load

    frame, predictor = predict()[2], load(run)
    labels = predictor.decide_labels(read_recordings(toy))
    assert frame["gesture"].tolist() == [predictor.classes[i] for i in labels]
    assert predict("--decision", "argmax")[2]["gesture"].tolist() == [
        predictor.classes[i] for i in frame.iloc[:, 2:].to_numpy().argmax(1)
    ]


@pytest.mark.parametrize(
    "to, said",
    [
        ("p.json", "must end in .csv"),
        ("p", "must end in .csv"),
        ("p.csv.gz", "must end in .csv"),
        ("same.parquet", "same file as"),
        ("hard.parquet", "same file as"),
        ("link.parquet", "is a link"),
        ("nowhere.csv", "is a link"),
        ("pipe.csv", "is a pipe"),
        ("folder.csv", "is a folder"),
        ("same.parquet/p.csv", "is not a folder"),
        ("pipe.csv/p.csv", "is not a folder"),
        ("~nouser/p.csv", "no user"),
        ("a" * 300 + ".csv", "names"),
        ("b" * 240 + ".csv", "bytes"),
        ("run/oof.parquet", "belongs to the run"),
        ("run/members/p.csv", "belongs to the run"),
        ("/dev/null", "must end in"),
    ],
)
def test_nothing_is_overwritten(to, said, predict, run, toy, tmp_path, capsys):
    import os
    import shutil

    shutil.copy(toy, tmp_path / "same.parquet")
    os.link(tmp_path / "same.parquet", tmp_path / "hard.parquet")
    os.symlink(tmp_path / "same.parquet", tmp_path / "link.parquet")
    os.symlink(tmp_path / "nothing", tmp_path / "nowhere.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    os.symlink(run, tmp_path / "run")
    before, content = paths(tmp_path), tree(run)
    code, heard, _ = predict(data=tmp_path / "same.parquet", to=to)
    assert code == 2 and (said in heard or "bytes" in heard) and "Reading" not in heard
    assert paths(tmp_path) == before and tree(run) == content
    assert (tmp_path / "same.parquet").read_bytes() == toy.read_bytes()


def test_an_older_file_is_replaced_only_when_the_new_one_is_whole(predict, toy, tmp_path):
    import pandas as pd

    (tmp_path / "p.csv").write_text("older")
    broken = pd.read_parquet(toy)
    broken.loc[1500, "sequence_counter"] = 0
    broken.to_parquet(tmp_path / "broken.parquet")
    assert predict(data="broken.parquet")[0] == 2 and (tmp_path / "p.csv").read_text() == "older"
    assert predict(data="broken.parquet", to="new/er/p.csv")[0] == 2 and not (tmp_path / "new").exists()
    assert predict()[0] == 0 and (tmp_path / "p.csv").read_text().startswith("sequence_id,gesture,p_hold,")


def test_data_must_be_named(run, tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main
    from gesture_nb.commands import predict_file
    from gesture_nb.config import UserError

    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--out", str(run), "--to", "p.csv"]) == 2
    assert "name a file of recordings or a competition folder with --data" in capsys.readouterr().err
    for keywords in ({}, {"data": None}):
        with pytest.raises(UserError, match="--data"): predict_file("p.csv", out=run, **keywords)
    with pytest.raises(UserError, match="predict does not read --epochs"):
        predict_file("p.csv", out=run, data="sim:10", epochs=3)
    assert not paths(tmp_path)
    monkeypatch.setenv("GESTURE_NB_EPOCHS", "3")
    monkeypatch.setenv("EPOCH", "3")
    assert main(["predict", "--out", str(run), "--to", "p.csv", "--data", "nope.csv"]) == 2


def test_settings_that_predict_reads_work_or_are_refused(predict, monkeypatch):
    for option, value in (("--decision", "expected_f1"), ("--decision", "assignment"), ("--flip", "on"),
                          ("--epochs", "3"), ("--members", "lgbm"), ("--folds", "2"), ("--seed", "1"),
                          ("--group-column", "x")):
        code, said, _ = predict(option, value)
        assert code == 2 and (f"DECISION={value}" in said or f"predict does not read {option}: " in said)
    assert predict("--w-lgbm", "0")[0] == 2   # nobody is left
    monkeypatch.setenv("GESTURE_NB_EPOCHS", "3")
    monkeypatch.setenv("DL_NUM_WORKER", "2")
    code, said, _ = predict()
    assert code == 0 and "predict does not read GESTURE_NB_EPOCHS: " in said and "DL_NUM_WORKERS (--workers)?" in said


def test_recordings_of_the_training_are_counted(predict, toy, tmp_path):
    import pandas as pd

    frame = pd.read_parquet(toy)
    known = frame[frame.sequence_id < "q007"].copy()
    other = frame[frame.sequence_id >= "q007"].copy()
    other["acc_x"] += 0.001
    mixed = pd.concat([other, known]).drop(columns="gesture").assign(heart_rate=1.0)
    mixed["sequence_id"] = "new_" + mixed["sequence_id"]
    mixed.to_parquet(tmp_path / "mixed.parquet")
    assert "7 of 60 recordings are among those the run was trained on" in predict(data="mixed.parquet")[1]
    other.to_parquet(tmp_path / "other.parquet")
    assert "among those" not in predict(data="other.parquet")[1]


def test_people_may_be_unknown(predict, toy, tmp_path):
    import pandas as pd

    frame = pd.read_parquet(toy).drop(columns=["subject", "gesture"])
    frame.to_csv(tmp_path / "unknown.csv", index=False)
    code, said, found = predict(data="unknown.csv")
    assert code == 0 and "does not say who made which sequence" in said
    assert found.gesture.tolist() == predict()[2].gesture.tolist()


def test_strangers_are_not_joined():
    """Decisions that use a person's other sequences take unknown people for different ones."""
    from types import SimpleNamespace

    from gesture_nb.data.sequences import with_meta
    from gesture_nb.data.simulate import simulate
    from gesture_nb.serving.batch import people_lines

    table = simulate(3)
    unknown = with_meta(table, subject=["", "", ""])
    for joint in (True, False):
        decide = SimpleNamespace(decision=SimpleNamespace(by_person=joint))
        predictor = SimpleNamespace(decide=decide, fix_orientation=None, adaptation=None)
        assert people_lines(predictor, table, "x.csv") == []
        line, = people_lines(predictor, unknown, "x.csv")
        assert ("nothing is concluded from other sequences of the same person" in line) == joint


def test_channels_that_are_missing_are_said(predict, toy, tmp_path):
    import pandas as pd

    frame = pd.read_parquet(toy)
    none = frame.drop(columns=["acc_x", "acc_y", "acc_z"]).assign(thm_1=30.0)
    none.to_parquet(tmp_path / "none.parquet")
    code, said, _ = predict(data="none.parquet")
    assert code == 2 and "none of the channels that the run was trained on (acc_x, acc_y, acc_z)" in said
    assert paths(tmp_path) == {"none.parquet"}


def test_a_competition_folder_means_its_test_file(run, tmp_path, monkeypatch, capsys):
    import pandas as pd

    from gesture_nb.cli import main
    from gesture_nb.data.simulate import write_competition

    monkeypatch.chdir(tmp_path)
    write_competition("cmi", 4, 3, seed=1)
    assert main(["predict", "--data", "cmi", "--out", str(run), "--to", "p.csv"]) == 0
    test = pd.read_csv("cmi/test.csv", usecols=["sequence_id"]).sequence_id.unique()
    assert pd.read_csv("p.csv").sequence_id.tolist() == test.tolist()
    for name in ("test.csv", "train.csv", "test_demographics.csv"):
        assert main(["predict", "--data", "cmi", "--out", str(run), "--to", f"cmi/{name}"]) == 2
    (tmp_path / "cmi" / "test.csv").unlink()
    capsys.readouterr()
    assert main(["predict", "--data", "cmi", "--out", str(run), "--to", "q.csv"]) == 2
    assert "test.csv" in capsys.readouterr().err and not (tmp_path / "q.csv").exists()


def test_folds_that_nobody_reads_are_said():
    from gesture_nb.config import read_settings
    from gesture_nb.training.dataset import unread_folds

    line, = unread_folds(read_settings({}, folds=2, data="spar"), 5)
    assert line == "--folds 2 is not read: spar brings its own 5 folds."
    assert unread_folds(read_settings({}, folds=3), 3) == [] and unread_folds(read_settings({}), 4) == []


def test_a_frame_that_is_refused_leaves_what_was_there(toy, tmp_path):
    import pandas as pd

    import gesture_nb as gn
    from gesture_nb.config import UserError

    frame, out = pd.read_parquet(toy), tmp_path / "new" / "run"
    with pytest.raises(UserError, match="epochs is 0"):
        gn.train(frame, out=out, epochs=0)
    with pytest.raises(UserError, match="only 6 subjects"):
        gn.train(frame, out=out, folds=99, progress="lines")
    with pytest.raises(UserError, match="DECISION=assignment"):
        gn.train(frame, out=out, decision="assignment", progress="lines")
    assert not paths(tmp_path)
    out.mkdir(parents=True)
    (out / "data.parquet").write_text("of an earlier run")
    with pytest.raises(UserError, match="only 6 subjects"):
        gn.train(frame, out=out, folds=99, progress="lines")
    assert (out / "data.parquet").read_text() == "of an earlier run" and not list(out.glob(".*.tmp"))


# ------------------------------------------------------------------ help

def shown(command, capsys):
    """What `gesture-nb COMMAND --help` prints on a terminal of 80 columns."""
    from gesture_nb.cli import main

    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


def test_help_shows_what_the_command_reads(capsys, monkeypatch):
    from gesture_nb.cli import COMMANDS
    from gesture_nb.settings import setting_fields
    from gesture_nb.unread import READ_BY, is_read

    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        text = shown(command, capsys)
        assert len(text.splitlines()) < 155, command  # with the defaults
        for name, field in setting_fields().items():
            if command in READ_BY:
                assert (f"  {field.option}" in text) == is_read(command, name), (command, name)
        assert "--without" not in text and "MEMBERS" not in text
    assert "--members" not in shown("inspect", capsys) and "--members A,B" in shown("train", capsys)
    assert "any layout" in shown("convert", capsys) and "to predict" in shown("predict", capsys)
    text = shown("convert", capsys)
    assert text.index("--to FILE") < text.index("--pattern") < text.index("--data DATA")


def test_the_version_is_printed(capsys):
    import gesture_nb as gn
    from gesture_nb.cli import main

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gesture-nb {gn.__version__}\n"


# ------------------------------------------------------------------ the folder for Kaggle

@pytest.mark.parametrize("there", ["nothing", "other data", "the data"])
def test_the_notebook_for_kaggle_needs_the_competition_there(there, tmp_path, monkeypatch, capsys):
    from gesture_nb.serving.gateway import COMPETITION
    from gesture_nb.serving.kernel import notebook

    inputs, data = tmp_path / "input", tmp_path / "input" / COMPETITION
    monkeypatch.setenv("KAGGLE_INPUT", str(inputs))
    monkeypatch.chdir(tmp_path)
    if there != "nothing":
        inputs.mkdir()
    if there == "the data":
        data.mkdir()
        (data / "test.csv").write_text("sequence_id")
    install, paths, settings, _ = ["".join(cell["source"]) for cell in notebook("train")["cells"][1:]]
    names = {}
    exec(install, names)
    if there == "other data":
        with pytest.raises(SystemExit, match=f"Add Input → {COMPETITION}"):
            exec(paths, names)
        return
    exec(paths + "\n" + settings, names)
    assert names["settings"]["data"] == ("spar" if there == "nothing" else str(data))
    assert ("'spar' are used" in capsys.readouterr().out) == (there == "nothing")


def test_a_deleted_working_directory_is_said(tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["kaggle", "--mode", "train", "--to", "k"]) == 2
    assert "The working directory has been deleted" in capsys.readouterr().err


# ------------------------------------------------------------------ what is said at the end, and where things go

@pytest.mark.parametrize("command", ["predict", "convert"])
def test_a_file_that_ends_like_a_folder_is_refused(command, toy, tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([command, "--data", str(toy), "--to", "x.csv/"]) == 2
    assert "--to is 'x.csv/', which ends like a folder" in capsys.readouterr().err and not paths(tmp_path)


def test_scores_of_another_kind_are_explained():
    from gesture_nb.app import score_lines, scores_html, served_lines

    entry = {"accuracy": 0.9, "macro_f1": 0.9, "seconds": 1}
    for decided in ({}, {"decided": True}):
        metrics = {"members": {"lgbm": entry}, "ensemble": entry | decided}
        for text in ("\n".join(score_lines(metrics)), scores_html(metrics)):
            assert ("members: their likeliest class." in text) == bool(decided)
    line, = served_lines({"sequences": 1, "subjects": 1, "accuracy": 1.0, "macro_f1": 1.0})
    assert "1 sequence of 1 person " in line


def test_serving_finds_the_data_of_the_run(tmp_path, monkeypatch):
    from gesture_nb import app
    from gesture_nb.config import read_settings
    from gesture_nb.progress import Quiet

    settings, data = read_settings({}, out=tmp_path), tmp_path / "cmi"
    assert app.with_run_data(settings, Quiet()) is settings  # no run
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(app, "read_config", lambda out: {"settings": {"data": str(data)}})
    assert app.with_run_data(settings, Quiet()) is settings  # the data are gone
    data.mkdir()
    (data / "test.csv").write_text("sequence_id")
    assert app.with_run_data(settings, Quiet()).data == str(data)


def test_one_is_singular_and_conversions_are_called_as_their_file(toy):
    from gesture_nb.data.parquet_files import _title
    from gesture_nb.data.readers import read_table
    from gesture_nb.data.sequences import slice_sequences
    from gesture_nb.text import count_of

    assert [count_of(n, "person", "people") for n in (1, 2, 3000)] == ["1 person", "2 people", "3,000 people"]
    text = repr(slice_sequences(read_table(str(toy)), 0, 1))
    assert "1 sequence, " in text and text.endswith(" 1 subject")
    assert _title(toy.with_name("train.80530975b7b34d8c.parquet")) == "train.csv (as converted before)"
    assert _title(toy) == toy.name
