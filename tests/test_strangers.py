"""A stranger's run folder: whatever stands in the place of its files is refused in a sentence, and nothing leaks."""
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from gesture_nb import artifacts
from gesture_nb.artifacts import MANIFEST, check_manifest, fingerprint, read_manifest, write_sealed
from gesture_nb.config import UserError, read_settings
from gesture_nb.files import DamagedError, OutOfMemoryError, find_fault
from gesture_nb.progress import Quiet

SECRET = "the secret of somebody else"
MUTANTS = int(os.environ.get("MUTANTS", "3"))   # changed values of a record


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A finished run of LightGBM with everything that commands add to it."""
    from gesture_nb.analysis.evaluate import evaluate
    from gesture_nb.app import export_members, main
    from gesture_nb.commands import write_and_print
    from gesture_nb.serving.predictor import read_blend
    from gesture_nb.training.checkpoint import FolderCheckpoint
    from gesture_nb.training.dataset import load_dataset

    out = tmp_path_factory.mktemp("strangers") / "run"
    settings = dict(data=str(toy), members="lgbm", folds=2, boosting_rounds=3, progress="lines")
    main(output_path=out, **settings)
    export_members(output_path=out, progress="lines")
    known = read_settings({}, output_path=out, **settings)
    found = evaluate(known, load_dataset(known, Quiet()), read_blend(out), Quiet(), orders=1)
    write_and_print(out, "evaluation", found, lambda found: [], Quiet())
    effect = {"on": 0.5, "off": 0.4, "effect": 0.1, "low": 0.0, "high": 0.2, "metric": "macro_f1"}
    write_and_print(out, "ablations", {"mirror": effect}, lambda found: [], Quiet())
    unit = out / "members" / "lgbm" / "fold0"
    write_sealed(unit / "checkpoint.json", check_manifest(unit)["identity"])
    FolderCheckpoint(unit / "checkpoint").save({"w": np.zeros(3)}, {"done": 1})
    plan = {"hours": 1.0, "folds": 2, "each": {"lgbm": 1.0}, "units": [["lgbm", 0]]}
    write_sealed(out / "members" / "plan.json", plan)
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def fresh(whole, run):
    """Makes `run` a copy of the whole run, of hard links: files are replaced, not changed."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run, copy_function=os.link, ignore=shutil.ignore_patterns("*.png", "report.html", "data"))


@contextmanager
def in_time(seconds=20):
    """Fails what waits for a pipe or reads without an end."""
    def late(number, frame): raise AssertionError("it waits, or reads without an end")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- who reads a run

def loaded(out, exported):
    from gesture_nb.serving.predictor import load
    sequence = {"acc_x": np.zeros(30), "acc_y": np.zeros(30), "acc_z": np.full(30, 9.8)}
    load(out, exported=exported).proba(sequence)
    load(out, 0, exported=exported)


def reported(out):
    from gesture_nb.api import Run
    from gesture_nb.app import score_lines, served_lines
    from gesture_nb.report import report
    predictions, run = report.read_predictions(out), Run(out)
    score_lines(run.metrics)
    report.head_section(run.metrics, predictions)
    report.members_section(run.metrics)
    report.gestures_section(run.metrics)
    report.sensors_section(report.read_findings(out, "evaluation"))
    report.ablation_section(report.read_findings(out, "ablations"))
    served = report.read_optional(out / "served.json")
    report.gateway_section(served)
    served_lines(served)
    report.config_section(run.config)
    for history in report.read_histories(out).values(): report.curve_pairs(history)


def replayed(out):
    from gesture_nb.report.run_log import learning_curves, replay
    found = replay(out)
    assert str(found)
    learning_curves(found.events)


def copied(out):
    from gesture_nb.serving.kaggle import copy_run
    to = out.parent / "copy"
    shutil.rmtree(to, ignore_errors=True)
    copy_run(out, to)
    for path in to.rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or SECRET.encode() not in path.read_bytes()), path


def resumed(out):
    """What `train` reads of a run before it trains."""
    from gesture_nb.models.base import load_checkpoint
    from gesture_nb.serving.compiled import is_exported
    from gesture_nb.training.budget import read_plan
    from gesture_nb.training.checkpoint import FolderCheckpoint
    from gesture_nb.training.identity import record_identity, refuse_other_checkpoint
    from gesture_nb.training.results import read_config, read_unit_outputs
    from gesture_nb.training.units import finished, recover, units_of
    settings = read_settings({}, output_path=out, members="lgbm")
    recover(settings)
    is_exported(out)
    record_identity(out / "members", read_config(out)["identity"], print)
    for unit in units_of(settings, 2, out / "members"):
        facts = finished(unit)
        checkpoint = FolderCheckpoint(unit.folder / "checkpoint")
        refuse_other_checkpoint(unit, checkpoint, facts["identity"] if facts else {}, settings, print)
        load_checkpoint(checkpoint, print)
        read_unit_outputs([unit])
    read_plan(out / "members" / "plan.json", 1.0, 2, ["lgbm"], print)


def stored(out, toy):
    """The feature store is mended, whatever is wrong with it."""
    from gesture_nb.data.readers import read_table, source_fingerprint
    from gesture_nb.features.store import load_or_build, load_or_build_summaries
    settings = read_settings({}, output_path=out, data=str(toy))
    table = read_table(settings.data, settings)
    frames = load_or_build(table, out / "features", settings, source=source_fingerprint(toy, out / "features"))
    load_or_build_summaries(frames, out / "features", settings)


READERS = {"load": lambda out: loaded(out, True), "load members": lambda out: loaded(out, False), "report": reported,
           "replay": replayed, "kaggle": copied, "train": resumed}


def attempt(out, readers=tuple(READERS)):
    """Reader → the sentence with which it refuses, or ''. Anything but a sentence fails."""
    found = {}
    for name in readers:
        with in_time():
            try: READERS[name](out)
            except UserError as error: found[name] = str(error)
            else: found[name] = ""
    assert all(sentence.endswith((".", ")")) and "Traceback" not in sentence for sentence in found.values() if sentence)
    return found


def test_a_whole_run_is_read_by_all(run, toy):
    assert attempt(run) == dict.fromkeys(READERS, "")
    stored(run, toy)


# ---------------------------------------------------------------- every file, in the place of which something else is

def put_link(path, aside): path.symlink_to(aside)
def put_pipe(path, aside): os.mkfifo(path)
def put_folder(path, aside): path.mkdir()
def put_device(path, aside): path.symlink_to("/dev/zero")
def put_nothing(path, aside): pass
def put_deep(path, aside): path.write_bytes(b"[" * 200_000)


def put_real_device(path, aside):
    try: os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    except PermissionError: put_device(path, aside)


def put_huge(path, aside):
    path.touch()
    os.truncate(path, 1 << 43)


PUT = {f.__name__.removeprefix("put_"): f for f in (put_link, put_pipe, put_folder, put_device, put_real_device,
                                                    put_nothing, put_deep, put_huge)}
NOT_READ = (".png", ".html", ".lock", "submission.parquet")


def files_of(out):
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    return [name for name in names if not name.endswith(NOT_READ) and name != "data.parquet"]


def readers_of(name):
    """Those that can meet a file: not all of them are asked about all files, for time."""
    if name.startswith("logs/"): return ("replay",)
    if name.startswith("members/lgbm/fold1"): return ("load members", "train")
    if "checkpoint" in name: return ("train",)
    return ("load", "load members", "report", "kaggle", "train")


# a run does without these, or mends them
FALLBACK = ("members/lgbm/", "serving/", "members/identity.json", "members/plan.json", "recordings")


@pytest.mark.parametrize("kind", PUT)
def test_whatever_stands_in_the_place_of_a_file_is_refused_in_a_sentence(whole, tmp_path, kind):
    run, secret = tmp_path / "run", tmp_path / "secret"
    for name in files_of(whole):
        if name.startswith("features/"): continue
        fresh(whole, run)
        secret.write_bytes((run / name).read_bytes() + SECRET.encode())
        before = secret.read_bytes()
        (run / name).unlink()
        PUT[kind](run / name, secret)
        found = attempt(run, readers_of(name))
        assert secret.read_bytes() == before
        said = [sentence for sentence in found.values() if Path(name).name in sentence]
        assert said or kind == "nothing" or name.startswith(FALLBACK), (name, found)


@pytest.mark.parametrize("kind", PUT)
def test_the_feature_store_is_mended_whatever_stands_in_the_place_of_its_files(whole, toy, tmp_path, kind):
    run, secret = tmp_path / "run", tmp_path / "secret"
    names = [name for name in files_of(whole) if name.startswith("features/") and "sources" not in name]
    for name in names:
        fresh(whole, run)
        secret.write_bytes((run / name).read_bytes() + SECRET.encode())
        before = secret.read_bytes()
        (run / name).unlink()
        PUT[kind](run / name, secret)
        with in_time():
            try: stored(run, toy)
            except UserError as error: assert kind == "folder" and "in the way" in str(error), name
            else: assert (run / name).is_file() and not (run / name).is_symlink(), name
        assert secret.read_bytes() == before


@pytest.mark.parametrize("name", ["members", "members/lgbm", "members/lgbm/fold0", "serving", "logs"])
def test_folders_that_are_links_are_not_followed(run, tmp_path, name):
    os.replace(run / name, tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    found = attempt(run)
    refuse = {"logs": ["replay", "train"], "serving": ["kaggle", "train"]}
    refuse = refuse.get(name, ["load", "load members", "kaggle", "train"])
    assert all("is a link" in found[reader] for reader in refuse), found


def put_loop(path, aside): path.symlink_to(path.name)
def put_file(path, aside): path.write_text("hello")


@pytest.mark.parametrize("put", [put_pipe, put_file, put_loop])
@pytest.mark.parametrize("name", ["members", "logs", "features", "serving"])
def test_what_is_no_folder_is_called_that(whole, toy, tmp_path, name, put):
    """Neither 'train them again' nor 'File exists' where somebody has put something in the place of a folder."""
    from gesture_nb.sinks import JsonlSink
    run = tmp_path / "run"
    fresh(whole, run)
    shutil.rmtree(run / name, ignore_errors=True)
    put(run / name, None)
    READERS_OF = {"members": ("load", "load members", "kaggle", "train"), "logs": ("replay",), "serving": ("load",)}
    found = list(attempt(run, READERS_OF.get(name, ())).values())
    if name == "features" or name == "logs":
        with in_time(), pytest.raises(UserError) as error:
            if name == "features": stored(run, toy)
            else: JsonlSink(run / "logs" / "run.jsonl", below=run).on_event({"kind": "x"})
        found.append(str(error.value))
    if name == "serving": assert found == [""]   # a run does without
    else: assert all(f"{name} is a " in sentence and "File exists" not in sentence for sentence in found), found


@pytest.mark.parametrize("name", ["run", "run/.lock", ".run.1-0123abcd.tmp", ".run.1-0123abcd.tmp/a", "."])
@pytest.mark.parametrize("whole_path", [False, True])
def test_errors_of_writing_are_told_whether_names_are_whole_or_relative(tmp_path, monkeypatch, name, whole_path):
    """As where a run folder on a read-only disk is locked by a library that names the whole path."""
    from gesture_nb.writing import raise_disk_error
    monkeypatch.chdir(tmp_path)
    named = str(tmp_path / name) if whole_path else name
    with pytest.raises(UserError, match="Cannot write run: the file system is read-only"):
        raise_disk_error(OSError(errno.EROFS, "Read-only file system", named), Path("run"))
    with pytest.raises(OSError, match="other"): raise_disk_error(OSError(errno.EROFS, "x", "other/run"), Path("run"))


def test_a_run_that_cannot_be_written_is_read_without_a_log(tmp_path, monkeypatch, capsys):
    from gesture_nb import session
    monkeypatch.setattr(session.os, "access", lambda path, mode: False)
    with session.command(read_settings({}, progress="lines"), tmp_path): pass
    assert "Nothing can be written to" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_working_directory_that_is_gone_is_called_that(tmp_path, monkeypatch, capsys):
    from gesture_nb.cli import main
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for line in ("train --data sim:20 --out run", "simulate --to new --sequences 5", "features --data sim:5 --out run"):
        assert main(line.split()) == 2 and "The working directory has been deleted" in capsys.readouterr().err


def test_the_run_folder_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    assert attempt(tmp_path / "link") == dict.fromkeys(READERS, "")


def test_what_no_manifest_names_is_neither_read_nor_copied(run, tmp_path):
    unit = run / "members" / "lgbm" / "fold0"
    (tmp_path / "key").write_text(SECRET)
    (unit / "notes.txt").symlink_to(tmp_path / "key")
    (unit / "more.txt").write_text(SECRET)
    (run / "serving" / "more.onnx").write_text(SECRET)
    assert attempt(run) == dict.fromkeys(READERS, "")
    files = {name: entry for name, entry in read_manifest(unit)["files"].items() if name != "model.txt"}
    write_sealed(unit / MANIFEST, {"files": files, "facts": read_manifest(unit)["facts"]})
    said = []
    from gesture_nb.serving.predictor import load_unit
    ear = type("Ear", (), {"say": lambda self, text: said.append(text)})()
    assert load_unit("lgbm", unit, ear) is None and "model.txt is not named by the manifest" in said[0]


def test_a_lock_that_is_a_link_is_not_emptied(run, tmp_path, toy):
    (tmp_path / "key").write_text(SECRET)
    locks = [run / ".lock", *run.glob("features/*.lock")]
    for lock in locks:
        lock.unlink(missing_ok=True)
        lock.symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match=".lock is a link"), artifacts.locked(run): pass
    for path in run.glob("features/*.json"): path.unlink()
    with pytest.raises(UserError, match=".lock is a link"): stored(run, toy)
    assert (tmp_path / "key").read_text() == SECRET


def test_a_folder_of_a_unit_without_a_number_is_left_out_with_a_line(run):
    from gesture_nb.serving.predictor import load
    os.replace(run / "members" / "lgbm" / "fold1", run / "members" / "lgbm" / "foldX")
    said = []

    class Ear(Quiet):
        def say(self, text, **fields): said.append(text)
    assert len(load(run, reporter=Ear(), exported=False).members["lgbm"]) == 1
    assert [text for text in said if "foldX is left out" in text]
    assert not any(attempt(run, ("load", "report", "kaggle")).values())


# ---------------------------------------------------------------- manifests

ENTRY = {"bytes": 1, "sha256": "0"}
NAMES = ("../a", "/etc/hostname", "a/../../b", "a//b", "./a", "", ".", "..", "a\\b", "C:a", "a\n", "a/")
NO_FILES = ({}, [], 7, "x", None, {"a": 1}, {"a": {"bytes": 1}}, {"a": ENTRY | {"bytes": "1"}},
            {"a": ENTRY | {"bytes": -1}}, {"a": ENTRY | {"bytes": 1.5}}, *({name: ENTRY} for name in NAMES),
            {f"f{i}": ENTRY for i in range(1001)})


@pytest.mark.parametrize("files", NO_FILES, ids=lambda files: str(files)[:30])
def test_what_is_no_manifest(tmp_path, files):
    write_sealed(tmp_path / MANIFEST, {"facts": {}, "files": files})
    with pytest.raises(DamagedError, match=MANIFEST): check_manifest(tmp_path)


@pytest.mark.parametrize("facts", [None, [], "x", 7])
def test_metadata_of_a_manifest_is_an_object(tmp_path, facts):
    (tmp_path / "a").write_text("a")
    files = {"a": {"bytes": 1, "sha256": artifacts.sha256_file(tmp_path / "a")}}
    write_sealed(tmp_path / MANIFEST, {"facts": {}, "files": files})
    check_manifest(tmp_path)
    write_sealed(tmp_path / MANIFEST, {"facts": facts, "files": files})
    with pytest.raises(DamagedError, match="'facts' is"): check_manifest(tmp_path)


# ---------------------------------------------------------------- mistyped values under digests that fit

VALUES = [None, "x", "", -1, 0, 1e300, 10**18, True, [], {}, ["x"], {"x": 1}, [[[]]], "../../x", float("inf")]


def places(value, path=()):
    """The keys that lead to each value inside of a JSON value, those of long lists to the first ones."""
    yield path
    if isinstance(value, dict): inner = list(value.items())
    elif isinstance(value, list): inner = list(enumerate(value[:3]))
    else: inner = []
    for key, part in inner: yield from places(part, (*path, key))


def changed(value, path, new):
    """The JSON value with another one at a place, or without its key if `new` is `...`."""
    if not path: return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(path) == 1: del copy[path[0]]
    else: copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def written(value): return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def seal(path, out):
    """Writes digests and manifests anew, as a forger would."""
    try: body = json.loads(path.read_text())
    except ValueError: return
    if isinstance(body, dict) and "digest" in body:
        body.pop("digest")
        path.write_text(written({**body, "digest": fingerprint(body)}))
    folder = path.parent
    if path.name == MANIFEST or not (folder / MANIFEST).exists(): return
    manifest = json.loads((folder / MANIFEST).read_text())
    if path.name not in manifest["files"]: return
    manifest["files"][path.name] = artifacts._entry(path)
    manifest.pop("digest")
    write_sealed(folder / MANIFEST, manifest)


def mutants(body, rng, count):
    spots = [spot for spot in places(body) if spot != ("digest",)]
    for spot in rng.sample(spots, min(count, len(spots))): yield spot, rng.choice([*VALUES, ...] if spot else VALUES)


def mistyped(whole, run, name, rng):
    """Yields once for each of some values of a JSON file, wrong in turn, under a digest that fits; `run` is a copy."""
    body = json.loads((whole / name).read_text())
    for spot, new in mutants(body, rng, MUTANTS):
        fresh(whole, run)
        (run / name).unlink()
        (run / name).write_text(written(changed(body, spot, new)))
        seal(run / name, run)
        print(name, spot, new)
        yield


def test_mistyped_values_lead_to_a_sentence(whole, tmp_path):
    run, rng, refused = tmp_path / "run", random.Random(7), 0
    records = [name for name in files_of(whole) if name.endswith(".json") and not name.startswith("features/")]
    assert len(records) > 12
    for name in records:
        for _ in mistyped(whole, run, name, rng): refused += any(attempt(run, readers_of(name)).values())
    assert refused > 5


def test_a_mistyped_header_of_the_store_is_mended(whole, toy, tmp_path):
    run, rng = tmp_path / "run", random.Random(7)
    for name in [name for name in files_of(whole) if name.startswith("features/") and name.endswith(".json")]:
        for _ in mistyped(whole, run, name, rng):
            with in_time(): stored(run, toy)


def test_mistyped_events_are_left_out_or_refused(run):
    path, rng = run / "logs" / "run.jsonl", random.Random(3)
    lines = path.read_text().splitlines()
    for _ in range(30 * MUTANTS):
        body = json.loads(rng.choice(lines))
        for spot, new in mutants(body, rng, 1): body = changed(body, spot, new)
        path.write_text("\n".join([*lines[:20], json.dumps(body), *lines[20:30]]) + "\n")
        attempt(run, ("replay",))


@pytest.mark.parametrize("text", [b"x\n" * 20_000, b"\0" * (3 << 20), b"[" * 100_000], ids=["words", "zeros", "deep"])
def test_what_is_no_log(run, text):
    (run / "logs" / "run.jsonl").write_bytes(text)
    assert "run.jsonl" in attempt(run, ("replay",))["replay"]


def test_a_line_without_an_end_is_left_out(run):
    from gesture_nb.report.run_log import LogReader, replay
    path = run / "logs" / "run.jsonl"
    whole, long = len(replay(run).events), b'{"a": "' + b"y" * (3 << 20) + b'"}'
    path.write_bytes(long + b"\n" + path.read_bytes() + long)
    found = replay(run)
    assert len(found.events) == whole and len(found.bad) == 2 and "more than" in found.bad[0].reason
    reader = LogReader(path)
    assert len(reader.new_events()) == whole
    assert reader.lines == found.bad[1].number - 1   # the last one is not whole yet
    with open(path, "ab") as file: file.write(b"\n")
    assert reader.new_events() == [] and len(reader.bad) == 2


def test_shapes_name_the_key():
    shape = {"a": {str: [float]}, "b?": (int, None), "c": (dict, [str])}
    good = {"a": {"x": [1, 2.5]}, "b": None, "c": ["t"], "more": 1}
    assert find_fault(good, shape) == find_fault({"a": {}, "c": {}}, shape) == ""
    for wrong, said in (({**good, "a": {"x": [1, "2"]}}, "'a.x[1]' is a text, but must be a number"),
                        ({**good, "b": True}, "'b' is true or false, but must be a whole number or null"),
                        ({**good, "c": [1]}, "'c[0]' is a whole number, but must be a text"),
                        ({"a": {}}, "'c' is missing"), ([], "it is a list, but must be an object")):
        assert find_fault(wrong, shape) == said


# ---------------------------------------------------------------- too little memory is called that

def no_memory(*args, **more): raise MemoryError()


@pytest.mark.parametrize("name, place", [
    ("safetensors.numpy.load_file", lambda run: artifacts.read_arrays(run / "members/lgbm/fold0/oof.safetensors")),
    ("gesture_nb.files.json.loads", lambda run: artifacts.read_json(run / "metrics.json")),
    ("gesture_nb.artifacts.parse_json", lambda run: artifacts.read_sealed(run / "ensemble.json")),
    ("pyarrow.parquet.read_table", lambda run: attempt_oof(run)),
    ("gesture_nb.models.gbdt.booster_from_text", lambda run: attempt_member(run)),
])
def test_too_little_memory_is_no_damage(run, monkeypatch, name, place):
    monkeypatch.setattr(name, no_memory)
    with pytest.raises(OutOfMemoryError, match="not enough memory to read .*run/"): place(run)


def attempt_oof(run):
    from gesture_nb.training.results import read_oof
    read_oof(run)


def attempt_member(run):
    from gesture_nb.models.gbdt import LgbmMember
    LgbmMember.load(run / "members" / "lgbm" / "fold0")


# ---------------------------------------------------------------- what a power cut leaves

class Disk:
    """Notes which files, folders and renames were flushed, in order."""
    def __init__(self, monkeypatch):
        self.flushed, self.renamed, self.made = [], [], []
        fsync, replace, mkdir = os.fsync, os.replace, os.mkdir

        def fsync_(handle):
            self.flushed.append((os.fstat(handle).st_ino, len(self.renamed), len(self.made)))
            fsync(handle)

        def replace_(source, target):
            inodes = [p.stat().st_ino for p in [Path(source), *Path(source).rglob("*")]]
            self.renamed.append((Path(target), inodes))
            replace(source, target)

        def mkdir_(path, *args, **more):
            mkdir(path, *args, **more)
            self.made.append(Path(path))
        for name, function in (("fsync", fsync_), ("replace", replace_), ("mkdir", mkdir_)):
            monkeypatch.setattr(os, name, function)

    def check(self):
        for i, (target, inodes) in enumerate(self.renamed):
            if not target.parent.exists() or target.name.endswith(".tmp"): continue
            before = {inode for inode, renames, _ in self.flushed if renames <= i}
            after = {inode for inode, renames, _ in self.flushed if renames > i}
            assert set(inodes) <= before, f"{target} was renamed before it was flushed"
            assert target.parent.stat().st_ino in after, f"the folder of {target} was not flushed"
        for i, path in enumerate(self.made):
            if not path.exists(): continue
            after = {inode for inode, _, made in self.flushed if made > i}
            assert path.parent.stat().st_ino in after, f"the folder of {path} was not flushed"


def test_names_are_flushed_like_contents(toy, tmp_path, monkeypatch):
    from gesture_nb.artifacts import atomic_folder, write_text
    from gesture_nb.training.checkpoint import FolderCheckpoint
    from gesture_nb.training.run import train
    disk = Disk(monkeypatch)
    write_text(tmp_path / "a" / "b" / "c.txt", "c")
    for _ in range(2):
        with atomic_folder(tmp_path / "d" / "e") as tmp:
            (tmp / "sub").mkdir()
            (tmp / "sub" / "plain.txt").write_text("written by a member of somebody's own")
    checkpoint = FolderCheckpoint(tmp_path / "f")
    for k in range(3): checkpoint.save({"w": np.zeros(2)}, {"epoch": k})
    for again in (False, True):
        settings = read_settings({}, output_path=tmp_path / "run", data=str(toy), members="lgbm", folds=2,
                                 boosting_rounds=2, run_any_training=again or None)
        train(settings, Quiet())
    assert len(disk.renamed) > 30 and len(disk.made) > 10
    disk.check()


def test_only_one_module_renames():
    found = [path.name for path in (ROOT / "gesture_nb").rglob("*.py")
             if any(word in path.read_text() for word in ("os.replace(", "os.rename(", "shutil.move("))]
    assert set(found) <= {"writing.py", "artifacts.py"}, found


# ---------------------------------------------------------------- LightGBM's text

def with_sizes(text):
    """The text with the sizes that its trees now have, as a forger would write them."""
    head, _, rest = text.partition("\n\nTree=0\n")
    blocks = ("Tree=0\n" + rest.partition("end of trees\n")[0]).split("\n\n\n")[:-1]
    sizes = " ".join(str(len(block) + 3) for block in blocks)
    lines = [f"tree_sizes={sizes}" if line.startswith("tree_sizes=") else line for line in head.split("\n")]
    return "\n".join(lines) + "\n\nTree=0\n" + rest


@pytest.fixture(scope="module")
def models():
    """Kind → (text, features): what LightGBM writes for numbers, categories and single leaves."""
    import lightgbm as lgb
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)), rng.integers(0, 3, 300)
    x[:, 3], x[::7, 2] = rng.integers(0, 6, 300), np.nan
    found, quiet = {}, {"verbosity": -1, "num_threads": 1}
    kinds = {"numbers": {}, "one leaf": {"min_data_in_leaf": 290}, "deep": {"min_data_in_leaf": 1, "num_leaves": 120},
             "categories": {"min_data_per_group": 1, "cat_smooth": 1}}
    for kind, more in kinds.items():
        parameters = {"objective": "multiclass", "num_class": 3, "num_leaves": 7, **quiet, **more}
        data = lgb.Dataset(x, y, params=parameters, categorical_feature=[3] if kind == "categories" else "auto")
        found[kind] = lgb.train(parameters, data, 4).model_to_string()
    assert "num_cat=1" in found["categories"]
    return found


def test_whatever_lightgbm_writes_is_read_as_before(models):
    from gesture_nb.models.gbdt import booster_from_text
    from gesture_nb.models.tree_text import checked_text
    x = np.random.default_rng(1).normal(size=(50, 8))
    for kind, text in models.items():
        assert with_sizes(text) == text
        short = checked_text(text, 8, 3)
        assert np.array_equal(booster_from_text(short).predict(x), booster_from_text(text).predict(x)), kind
        for features, classes in ((7, 3), (8, 4), (8, 1)):
            with pytest.raises(ValueError, match="does not fit member.json"): checked_text(text, features, classes)


HARM = {"left_child": ["-1", "0", "5", "-8", "99", "-99", "2147483648", "1 1"], "right_child": ["-1", "0", "1", "-300"],
        "split_feature": ["8", "-1", "2000000000"], "num_leaves": ["0", "1", "-1", "8", "2000000000"],
        "num_cat": ["1", "-1", "9"], "threshold": ["nan", "inf", "1e999", "x", ""],
        "leaf_value": ["nan", "1e400", "--1"],
        "decision_type": ["3", "255", "-1"], "cat_boundaries": ["1", "-5", "99"], "cat_threshold": ["", "1 2"],
        "leaf_count": ["", "1 2"], "shrinkage": ["x", "1 2"], "is_linear": ["1", "2"], "internal_value": ["", "1"]}
PREDICT = """
import sys, numpy as np
from gesture_nb.models.gbdt import booster_from_text
x = np.random.default_rng(1).normal(size=(50, 8))
for text in sys.stdin.read().split("@@@")[1:]: assert booster_from_text(text).predict(x).shape == (50, 3)
"""


def test_no_crafted_tree_reaches_the_library(models):
    from gesture_nb.models.tree_text import checked_text
    rng, accepted, refused = random.Random(5), [], 0
    for text in models.values():
        lines = text.split("\n")
        for field, values in HARM.items():
            spots = [i for i, line in enumerate(lines) if line.startswith(f"{field}=")]
            for value in values if spots else ():
                i = rng.choice(spots)
                tokens = lines[i].partition("=")[2].split(" ")
                tokens[rng.randrange(len(tokens))] = value
                harmed = [*lines[:i], f"{field}={' '.join(tokens)}", *lines[i + 1:]]
                if rng.random() < 0.2: del harmed[i]
                try: accepted.append(checked_text(with_sizes("\n".join(harmed)), 8, 3))
                except ValueError: refused += 1
    assert refused > 100
    done = subprocess.run([sys.executable, "-c", PREDICT], input="@@@" + "@@@".join(accepted), text=True,
                          capture_output=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_crafted_model_is_named_and_left_out(run):
    from gesture_nb.models.gbdt import LgbmMember
    path = run / "members" / "lgbm" / "fold0" / "model.txt"
    path.write_text(path.read_text().replace("left_child=", "left_child=7", 1))
    with pytest.raises(DamagedError, match="model.txt cannot be read as a LightGBM model"): LgbmMember.load(path.parent)
    seal(path, run)


# ---------------------------------------------------------------- the same for whole commands

TRAINED = ("--data", "{data}", "--members", "lgbm", "--folds", "2", "--boosting-rounds", "3")
COMMANDS = {"predict": ("--data", "{data}", "--to", "{to}"), "report": (), "replay": (), "evaluate": (), "export": (),
            "kaggle": ("--to", "{to}", "--wheels", "{folder}"), "train": TRAINED}


@pytest.mark.soak
@pytest.mark.parametrize("kind", PUT)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_or_do_without(whole, toy, tmp_path, command, kind):
    run, secret = tmp_path / "run", tmp_path / "secret"
    for k, name in enumerate(files_of(whole)):
        fresh(whole, run)
        secret.write_bytes((run / name).read_bytes() + SECRET.encode())
        before = secret.read_bytes()
        (run / name).unlink()
        PUT[kind](run / name, secret)
        options = [o.format(data=toy, to=tmp_path / f"to{k}.parquet", folder=tmp_path) for o in COMMANDS[command]]
        done = subprocess.run([sys.executable, "-m", "gesture_nb", command, "--out", run, *options], cwd=ROOT,
                              timeout=120, capture_output=True, text=True)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (name, done.stderr[-2000:])
        assert secret.read_bytes() == before
