"The gateway's contract, ours and the stand-in's for the competition's."
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gesture_nb.config import UserError
from gesture_nb.data.sequences import SequenceTable
from gesture_nb.data.simulate import simulate, write_competition
from gesture_nb.progress import Reporter
from gesture_nb.schema import GESTURES, TEST_COLUMNS
from gesture_nb.serving.gateway import (
    MIN_CALLS,
    LazyPredictor,
    NoAnswers,
    check_submission,
    competition_server,
    find_server,
    listen,
    local_gateway,
    read_test_sequences,
)
from gesture_nb.sinks import LineSink

pl = pytest.importorskip("polars", reason="polars is not installed")
STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    f = tmp_path_factory.mktemp("input")
    write_competition(f, sequences=2, test_sequences=40, seed=6)
    return f


@pytest.fixture()
def server(folder, monkeypatch, tmp_path):
    "The competition's folder with its package in it; nothing of it is left behind."
    competition = tmp_path / "kaggle" / "competitions" / "cmi-detect-behavior-with-sensor-data"
    shutil.copytree(folder, competition)
    shutil.copytree(STAND_IN / "kaggle_evaluation", competition / "kaggle_evaluation")
    work = tmp_path / "working"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("KAGGLE_IS_COMPETITION_RERUN", "KAGGLE_INPUT"): monkeypatch.delenv(variable, raising=False)
    yield competition
    for name in [m for m in sys.modules if m.split(".")[0] == "kaggle_evaluation"]: del sys.modules[name]


class Watcher:
    "Remembers how it was called."
    def __init__(self): self.calls = []
    def __call__(self, *args):
        sequence, demographics = args
        name, subject = sequence["sequence_id"][0], sequence["subject"][0]
        self.calls.append((name, subject, sequence, demographics, threading.current_thread()))
        return GESTURES[len(sequence) % 18]


def test_contract(folder, tmp_path):
    w = Watcher()
    answered = local_gateway(w, folder / "test.csv", folder / "test_demographics.csv", tmp_path / "s.parquet")
    whole = pl.read_csv(folder / "test.csv")
    assert len(w.calls) == 40 == len({c[0] for c in w.calls}) and len({c[4] for c in w.calls}) == 1
    assert w.calls[0][4] is not threading.main_thread()
    for name, subject, sequence, demographics, _ in w.calls:
        assert type(sequence) is type(demographics) is pl.DataFrame and tuple(sequence.columns) == TEST_COLUMNS
        assert sequence.equals(whole.filter(pl.col("sequence_id") == name))
        assert demographics["subject"].to_list() == [subject] and demographics.width == 8
    found = check_submission(tmp_path / "s.parquet", answered["sequence_id"])
    expected = [GESTURES[n % 18] for n in whole.group_by("sequence_id", maintain_order=True).len()["len"]]
    assert found["gesture"].tolist() == answered["gesture"].tolist() == expected


def test_order_is_random_seedable_and_mixes_people(folder, tmp_path):
    def order(seed):
        w = Watcher()
        local_gateway(w, folder / "test.csv", out=tmp_path / "s.parquet", seed=seed)
        return [c[0] for c in w.calls], [c[1] for c in w.calls]
    a, b, c, d, e = order(0), order(0), order(1), order(None), order(None)
    assert a == b != c and d != e and sorted(a[0]) == sorted(c[0])
    assert sum(x != y for x, y in zip(a[1], a[1][1:])) >= 5


def test_same_bytes_whatever_the_order(folder, tmp_path):
    for seed in (0, 1):
        local_gateway(Watcher(), folder / "test.csv", out=tmp_path / f"{seed}.parquet", seed=seed)
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


def test_columns_missing_in_the_first_rows_arrive_as_strings(folder, tmp_path):
    rows = pl.read_csv(folder / "test.csv")
    rows.sort(pl.col("tof_1_v0").is_null(), descending=True, maintain_order=True).write_csv(tmp_path / "test.csv")
    sequence, _ = read_test_sequences(tmp_path / "test.csv", folder / "test_demographics.csv")[0]
    assert sequence["thm_1"].dtype == pl.String and sequence["tof_1_v0"].null_count() == len(sequence)
    assert sequence["acc_x"].dtype == pl.Float64


@pytest.mark.parametrize("answer", [3, None, "Neck scratch", b"Neck - scratch", ["Wave hello"], 0.5])
def test_anything_but_a_label_ends_the_submission(folder, tmp_path, answer):
    with pytest.raises(UserError, match="SEQ_.*the submission ends here"):
        local_gateway(lambda s, d: answer, folder / "test.csv", out=tmp_path / "s.parquet")
    assert not list(tmp_path.iterdir())


def test_an_exception_ends_it_and_the_old_file_survives(folder, tmp_path):
    (tmp_path / "s.parquet").write_text("old")

    def fails(sequence, demographics):
        raise KeyError("acc")

    with pytest.raises(UserError, match="predict failed on sequence SEQ_") as e:
        local_gateway(fails, folder / "test.csv", out=tmp_path / "s.parquet")
    assert isinstance(e.value.__cause__, KeyError) and (tmp_path / "s.parquet").read_text() == "old"


def test_called_by_position(folder, tmp_path):
    answered = local_gateway(lambda a, b, /: "Wave hello", folder / "test.csv", out=tmp_path / "s.parquet")
    assert answered["gesture"][0] == "Wave hello"


def test_scattered_rows_are_brought_together(folder, tmp_path):
    rows, people = pl.read_csv(folder / "test.csv"), pl.read_csv(folder / "test_demographics.csv")
    mixed = rows.sample(fraction=1, shuffle=True, seed=1)

    def readings(frame):
        w = Watcher()
        local_gateway(w, frame, people, tmp_path / "s.parquet")
        return {name: sequence["acc_x"].to_list() for name, _, sequence, *_ in w.calls}

    assert readings(rows) == readings(mixed)


def test_bad_input_is_named(folder, tmp_path):
    rows, people = pl.read_csv(folder / "test.csv"), pl.read_csv(folder / "test_demographics.csv")

    def message(frame, persons=people, **kw):
        frame.write_csv(tmp_path / "test.csv")
        persons.write_csv(tmp_path / "test_demographics.csv")
        with pytest.raises(UserError) as e:
            local_gateway(Watcher(), tmp_path / "test.csv", out=tmp_path / "s.parquet", **kw)
        return str(e.value)

    assert "'tof_3_v7'" in message(rows.drop("tof_3_v7"))
    assert "'gesture'" in message(rows.with_columns(gesture=pl.lit("x")))
    assert "no rows" in message(rows[:0]) and "no row for subject" in message(rows, people[1:])
    assert "'handedness'" in message(rows, people.drop("handedness"))
    no_name = pl.when(pl.col("sequence_counter") == 0).then(None).otherwise(pl.col("sequence_id"))
    assert "test.csv has no sequence_id in row 1" in message(rows.with_columns(sequence_id=no_name))
    for counter, said in ((None, "None"), ("a", "'a'")):
        wrong = rows.with_columns(sequence_counter=pl.lit(counter))
        assert f"test.csv has the sequence_counter {said} in row 1" in message(wrong)
    rows.drop("subject").write_csv(tmp_path / "alone.csv")
    with pytest.raises(UserError, match="alone.csv has no column 'subject'"):
        local_gateway(Watcher(), tmp_path / "alone.csv", out=tmp_path / "s.parquet")
    other = pl.when(pl.col("sequence_counter") == 3).then(pl.lit("SUBJ_1")).otherwise(pl.col("subject"))
    assert "two subjects" in message(rows.with_columns(subject=other))
    with pytest.raises(UserError, match="There is no file"):
        local_gateway(Watcher(), tmp_path / "none.csv", out=tmp_path / "s.parquet")


def test_any_table_can_be_served(tmp_path):
    t = simulate(30, seed=4)
    meta = {k: t.meta[k] for k in ("sequence_id", "subject", "sample_rate_hz")}
    plain = SequenceTable(t.values[:3], t.names[:3], t.offsets, meta)
    w = Watcher()
    answered = local_gateway(w, plain, out=tmp_path / "s.parquet")
    assert list(answered["sequence_id"]) == list(t.meta["sequence_id"]) and w.calls[0][3].columns == ["subject"]
    for name, subject, sequence, demographics, _ in w.calls:
        i = list(t.meta["sequence_id"]).index(name)
        assert np.array_equal(sequence["acc_y"].to_numpy(), plain.channel("acc_y")[slice(*t.offsets[i:i + 2])])
        assert demographics["subject"][0] == subject == t.meta["subject"][i]
        assert sequence["sequence_counter"].to_list() == list(range(len(sequence)))
        assert sequence["sample_rate_hz"][0] == 10
    full = read_test_sequences(t)[0]
    assert full[0].width == 336 and full[1].width == 8
    assert not any(s.is_nan().any() for s in full[0] if s.dtype.is_float())


def test_without_polars_pandas_frames_are_used(folder, tmp_path, monkeypatch, capsys):
    import pandas as pd

    monkeypatch.setitem(sys.modules, "polars", None)
    calls = []

    def predict(sequence, demographics):
        calls.append((sequence, demographics))
        return "Wave hello"

    reporter = Reporter(sinks=[LineSink()])
    local_gateway(predict, folder / "test.csv", out=tmp_path / "s.parquet", reporter=reporter)
    local_gateway(predict, simulate(5), out=tmp_path / "s.parquet")
    assert all(isinstance(x, pd.DataFrame) for c in calls for x in c) and len(calls[0][1]) == 1
    assert "Polars is not installed" in capsys.readouterr().out


def run_threads(work, count=8):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def test_members_load_once_at_the_first_sequence():
    loads = []

    def load():
        loads.append(threading.current_thread())
        threading.Event().wait(0.05)
        return lambda s, d: "Wave hello"

    predict = listen(load)
    assert not loads and predict.__name__ == "predict"
    labels = []
    run_threads(lambda: labels.append(predict(None, None)))
    assert labels == ["Wave hello"] * 8 and len(loads) == 1 and predict.lazy.failed == 0


BAD_PREDICTORS = [lambda s, d: 1 / 0, lambda s, d: "nonsense", lambda s, d: None, lambda s: "Wave hello"]


def failing(bad, every=2):
    "A predictor that answers, but is `bad` for each second sequence, or as often as `every` says."
    calls = []

    def predict(sequence, demographics):
        calls.append(1)
        return bad(sequence, demographics) if len(calls) % every == 0 else "Wave hello"

    return predict


@pytest.mark.parametrize("bad", BAD_PREDICTORS)
def test_a_failed_prediction_still_answers_a_label(bad, capsys):
    reporter = Reporter(sinks=[LineSink()])
    predict = listen(lambda: failing(bad), GESTURES, fallback="Neck - scratch", reporter=reporter)
    answers = [predict(1, 2) for _ in range(300)]
    assert answers == ["Wave hello", "Neck - scratch"] * 150 and predict.lazy.failed == 150
    predict.lazy.check(finished=True)
    printed = capsys.readouterr().out
    assert printed.count("Neck - scratch") == 4 and "150" not in printed


@pytest.mark.parametrize("bad", BAD_PREDICTORS)
def test_a_submission_of_fallbacks_ends(bad, folder, tmp_path):
    """Contract changed on purpose: formerly all 150 were answered with one label, which the gateway accepted."""
    predict = listen(lambda: bad)
    assert [predict(1, 2) for _ in range(MIN_CALLS - 1)] == [GESTURES[0]] * (MIN_CALLS - 1)
    for _ in range(2):
        with pytest.raises(NoAnswers, match=f"{MIN_CALLS} of {MIN_CALLS} sequences could not be predicted"):
            predict(1, 2)
    with pytest.raises(NoAnswers, match="could not be predicted"):
        local_gateway(listen(lambda: bad), folder / "test.csv", out=tmp_path / "s.parquet")
    few = read_test_sequences(folder / "test.csv").rows[:120]  # two sequences: too few to judge before the end
    with pytest.raises(NoAnswers):
        people = folder / "test_demographics.csv"
        local_gateway(listen(lambda: bad), few, people, out=tmp_path / "s.parquet")
    assert not list(tmp_path.iterdir())


def test_guesses_of_a_predictor_count_as_failed_and_one_label_for_all_is_said(folder, tmp_path, capsys):
    class Guessing:
        guesses = 0

        def __call__(self, sequence, demographics):
            self.guesses += 1
            return "Wave hello"

    with pytest.raises(NoAnswers):
        local_gateway(listen(Guessing), folder / "test.csv", out=tmp_path / "s.parquet")
    reporter = Reporter(sinks=[LineSink()])
    constant = listen(lambda: lambda s, d: "Wave hello", reporter=reporter)
    local_gateway(constant, folder / "test.csv", out=tmp_path / "s.parquet", reporter=reporter)
    assert "All 40 sequences were answered with 'Wave hello'" in capsys.readouterr().out


def test_members_that_cannot_be_loaded_are_tried_once_and_nobody_is_answered():
    tries = []

    def load():
        tries.append(1)
        raise UserError("ensemble.json is damaged")

    predict = listen(load)
    for _ in range(3):
        with pytest.raises(NoAnswers, match="could not be loaded.*ensemble.json is damaged"):
            predict(1, 2)
    assert len(tries) == 1
    with pytest.raises(UserError):
        listen(load, fallback="nonsense")


def test_the_competitions_gateway_on_the_public_file(server):
    w, loaded = Watcher(), []

    def load():
        loaded.append(1)
        return w

    answered = competition_server(listen(load), environ={"KAGGLE_INPUT": str(server.parent.parent)})
    assert len(answered.gesture) == 40 == len(w.calls) and len(loaded) == 1
    assert answered.path == Path.cwd() / "submission.parquet"
    assert os.listdir() == ["submission.parquet"]
    assert w.calls[0][4] is not threading.main_thread()
    assert w.calls[0][2].width == 336 and w.calls[0][3].height == 1


def test_the_rerun_is_served(server, monkeypatch):
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setenv("KAGGLE_INPUT", str(server.parent.parent))
    find_server().hidden = (server / "test.csv", server / "test_demographics.csv")
    w = Watcher()

    class WithoutName:  # a callable without a name is served under the right one
        def __call__(self, sequence, demographics):
            return w(sequence, demographics)

    competition_server(WithoutName())
    expected = read_test_sequences(server / "test.csv").sequence_id
    assert len(check_submission("submission.parquet", expected)["gesture"]) == 40


def test_the_package_is_found_in_a_named_folder(server):
    before = list(sys.path)
    assert find_server(environ={"KAGGLE_INPUT": "nowhere"}) is None
    assert find_server(server, {"KAGGLE_INPUT": "nowhere"}, run_data_code=True).__name__ == "CMIInferenceServer"
    assert sys.path == before


def as_named(data, tmp_path):
    return data


def by_a_way_round(data, tmp_path):
    return tmp_path / "kaggle" / ".." / data.relative_to(tmp_path)


def by_a_link_to_the_folder(data, tmp_path):
    (tmp_path / "kaggle" / "link").symlink_to(data)
    return tmp_path / "kaggle" / "link"


def by_a_link_to_the_package(data, tmp_path):
    inside = tmp_path / "kaggle" / "cmi"
    inside.mkdir()
    (inside / "kaggle_evaluation").symlink_to(data / "kaggle_evaluation")
    return inside


def by_links_to_its_files(data, tmp_path):
    package = tmp_path / "kaggle" / "cmi" / "kaggle_evaluation"
    package.mkdir(parents=True)
    for path in (data / "kaggle_evaluation").iterdir():
        (package / path.name).symlink_to(path)
    return package.parent


def as_the_working_folder(data, tmp_path):
    os.chdir(data)
    sys.path.insert(0, "")
    return Path(".")


def as_a_module_in_the_working_folder(data, tmp_path):
    (data / "kaggle_evaluation" / "cmi_inference_server.py").rename(data / "kaggle_evaluation.py")
    shutil.rmtree(data / "kaggle_evaluation")
    return as_the_working_folder(data, tmp_path)


WAYS_IN = [as_named, by_a_way_round, by_a_link_to_the_folder, by_a_link_to_the_package, by_links_to_its_files]
WAYS_IN += [as_the_working_folder, as_a_module_in_the_working_folder]


@pytest.mark.parametrize("way", WAYS_IN)
def test_code_beside_data_is_not_run(way, tmp_path, monkeypatch, capsys):
    data, mark = tmp_path / "elsewhere", tmp_path / "RAN"
    package = data / "kaggle_evaluation"
    package.mkdir(parents=True)
    (tmp_path / "kaggle").mkdir()
    for name in ("__init__.py", "cmi_inference_server.py"):
        (package / name).write_text(f"open({str(mark)!r}, 'w')\nclass CMIInferenceServer: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = way(data, tmp_path)
    before, environ = list(sys.path), {"KAGGLE_INPUT": str(tmp_path / "kaggle")}
    try:
        assert find_server(folder, environ, reporter=Reporter(sinks=[LineSink()])) is None
        assert not mark.exists() and "kaggle_evaluation" not in sys.modules and sys.path == before
        if way is not as_a_module_in_the_working_folder:
            assert "is not run" in (printed := capsys.readouterr().out) and "--run-data-code 1" in printed
            assert find_server(folder, environ, run_data_code=True).__name__ == "CMIInferenceServer"
            assert mark.exists() and sys.path == before
    finally:
        for name in [m for m in sys.modules if m.split(".")[0] == "kaggle_evaluation"]:
            del sys.modules[name]


def test_a_server_whose_requirements_are_missing_is_named(server):
    (server / "kaggle_evaluation" / "cmi_inference_server.py").write_text("import grpc_that_is_not_there\n")
    with pytest.raises(UserError, match="'grpc_that_is_not_there'"):
        find_server(server, {"KAGGLE_INPUT": str(server.parent.parent)})


@pytest.mark.parametrize("rerun", [False, True])
@pytest.mark.parametrize("bad", ["load", "predict"])
def test_no_submission_is_left_where_members_failed(server, monkeypatch, rerun, bad):
    """Contract changed on purpose: on the rerun every sequence used to get the first label, without an error."""

    def load():
        if bad == "load":
            raise UserError("no members")
        return lambda sequence, demographics: 1 / 0

    environ = {"KAGGLE_INPUT": str(server.parent.parent)}
    find_server(environ=environ).hidden = (server / "test.csv", server / "test_demographics.csv")
    if rerun:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        environ["KAGGLE_IS_COMPETITION_RERUN"] = "1"
    with pytest.raises(NoAnswers, match={"load": "no members", "predict": "20 of 20"}[bad]):
        competition_server(listen(load), environ=environ)
    assert os.listdir() == []


def test_a_short_file_that_failed_leaves_no_submission(server, folder):
    """Too short to end while it is served: the competition's gateway has written its file by then."""
    rows = pl.read_csv(folder / "test.csv")
    rows.filter(pl.col("sequence_id").is_in(rows["sequence_id"].unique()[:3].implode())).write_csv(server / "test.csv")
    with pytest.raises(NoAnswers, match="3 of 3"):
        competition_server(listen(lambda: lambda s, d: 1 / 0), environ={"KAGGLE_INPUT": str(server.parent.parent)})
    assert os.listdir() == []


def test_a_server_that_waits_for_ever_ends_when_the_predictor_gives_up(monkeypatch):
    """As over gRPC: the gateway has ended with the error, and nobody tells the server."""
    from gesture_nb.serving import gateway

    def load():
        raise UserError("no members")

    predict = listen(load)

    def serve():
        with pytest.raises(NoAnswers):
            predict(1, 2)
        threading.Event().wait()

    monkeypatch.setattr(gateway, "GRACE_SECONDS", 0.05)
    with pytest.raises(NoAnswers, match="no members"):
        gateway.serve_until_done(serve, predict)


def test_a_training_that_is_stopped_inside_the_first_question_ends_the_process(monkeypatch):
    """SIGTERM reaches the training in the server's thread, where gRPC would swallow it."""
    from gesture_nb.serving import gateway

    def load():
        raise KeyboardInterrupt

    predict = listen(load)

    def serve():
        with pytest.raises(KeyboardInterrupt):
            predict(1, 2)
        threading.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        gateway.serve_until_done(serve, predict)


def test_a_test_file_alone_is_enough(folder, tmp_path, capsys):
    shutil.copy(folder / "test.csv", tmp_path)
    w, reporter = Watcher(), Reporter(sinks=[LineSink()])
    environ = {"KAGGLE_INPUT": "nowhere"}
    out = tmp_path / "s.parquet"
    answered = competition_server(w, tmp_path, out=out, environ=environ, reporter=reporter)
    assert answered.path == out and len(answered.gesture) == 40 and "nothing is known" in capsys.readouterr().out
    for _, subject, _, demographics, _ in w.calls:
        assert demographics["subject"].to_list() == [subject] and demographics.width == 8
        assert demographics["age"].null_count() == 1


def test_nothing_to_serve(tmp_path):
    environ = {"KAGGLE_INPUT": str(tmp_path)}
    with pytest.raises(UserError, match="--data"):
        competition_server(Watcher(), tmp_path, environ=environ)
    with pytest.raises(UserError, match="rerun"):
        competition_server(Watcher(), tmp_path, environ=environ | {"KAGGLE_IS_COMPETITION_RERUN": "1"})


def test_a_submission_is_checked(tmp_path):
    import pandas as pd

    def message(frame):
        frame.to_parquet(tmp_path / "s.parquet", index=False)
        with pytest.raises(UserError) as e:
            check_submission(tmp_path / "s.parquet", ["a", "b"])
        return str(e.value)

    good = pd.DataFrame({"sequence_id": ["b", "a"], "gesture": ["Wave hello"] * 2})
    assert "columns" in message(good.assign(x=1)) and "once" in message(good[:1])
    assert "no label" in message(good.assign(gesture="x")) and "once" in message(pd.concat([good, good]))
    (tmp_path / "s.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="no submission"):
        check_submission(tmp_path / "s.parquet", ["a"])


def test_interrupting_the_main_thread_stops_the_gateway():
    from gesture_nb.serving.gateway import in_thread

    def interrupted(stopped):
        raise KeyboardInterrupt

    assert in_thread(lambda stopped: stopped()) is False
    with pytest.raises(KeyboardInterrupt):
        in_thread(interrupted)


def test_sequences_are_predicted_one_at_a_time():
    busy, most = [], []

    def slow(s, d):
        busy.append(1)
        most.append(len(busy))
        threading.Event().wait(0.005)
        busy.pop()
        return "Wave hello"

    predict = LazyPredictor(lambda: slow, GESTURES, GESTURES[0], Reporter(sinks=[])).predict
    run_threads(lambda: predict(1, 2))
    assert max(most) == 1 and len(most) == 8


def test_what_was_in_one_module_is_still_found_there():
    from gesture_nb.serving import exchange, fallback, gateway, kaggle, kernel, loading, predictor

    for old, new in ((gateway, exchange), (gateway, fallback), (kaggle, kernel), (predictor, loading)):
        for name in new.__all__:
            assert getattr(old, name) is getattr(new, name) and name in old.__all__, name
