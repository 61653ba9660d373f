"""The feature store: damage is found, work is done once, nothing is lost."""
import errno
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import flipped

from gesture_nb import scratch
from gesture_nb.config import UserError, read_settings
from gesture_nb.data.sequences import blocks, concat, slice_sequences, table_from_arrays, take
from gesture_nb.features import record as R
from gesture_nb.features import store as S
from gesture_nb.features.compute import FrameSettings, frame_features
from gesture_nb.features.summary import summarise
from gesture_nb.progress import Reporter
from gesture_nb.schema import ACC, ROT, THM, TOF
from gesture_nb.sensors import Sensor, register_sensor, unregister_sensor
from gesture_nb.sinks import Sink

ROOT = Path(__file__).resolve().parent.parent
NAMES = ACC + ROT + THM + TOF[:128]
KEY = "05fe252ba28ada5b"      # of the data "a" with the rows "b" and default settings


class Ear(Sink):
    def __init__(self): self.lines = []
    def on_event(self, event):
        if event.get("text"): self.lines.append(event["text"])


def hearing(**kw):
    ear = Ear()
    return Reporter(read_settings({}, **kw), sinks=[ear]), ear.lines


def made(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = []
    for i, k in enumerate(rng.integers(1, 60, n)):
        q = rng.normal(size=(4, k))
        a = np.concatenate([rng.normal(size=(3, k)) + [[0], [0], [9.8]], q, rng.normal(28, 1, (5, k)),
                            rng.integers(-1, 250, (128, k))])
        if i % 5 == 0: a[12:76] = np.nan
        if i % 7 == 0: a[3:7] = np.nan
        x.append(a)
    return table_from_arrays(x, NAMES, rate_hz=10)


TABLE = made()
RIGHT = frame_features(TABLE)


def same(f, g=RIGHT):
    arrays = [(f.values, g.values), (f.grids, g.grids), (f.offsets, g.offsets), (f.rate_hz, g.rate_hz)]
    return (all(a.tobytes() == b.tobytes() and a.dtype == b.dtype for a, b in arrays) and f.names == g.names
            and list(f.masks) == list(g.masks) and all(np.array_equal(f.masks[m], g.masks[m]) for m in g.masks))


def files(folder): return {p.name: p.stat().st_ino for p in folder.iterdir() if p.suffix != ".lock"}


def test_built_once_then_mapped(tmp_path):
    reporter, lines = hearing(feature_log_every=10)
    f = S.load_or_build(TABLE, tmp_path, read_settings({}, feature_log_every=10), reporter, source="a", block_rows=200)
    assert same(f) and isinstance(f.values, np.memmap) and isinstance(f.grids, np.memmap)
    assert lines[0] == "Frame features are computed: there are none yet"
    assert re.match(r"Processing sequence \d+/40  \d+\.\d/s  ETA \d+ s", lines[1])
    assert lines[-1].startswith("Processing sequence 40/40") and len(lines) <= 6
    before, spoken = files(tmp_path), len(lines)
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a"))
    assert files(tmp_path) == before and len(lines) == spoken
    assert not list(tmp_path.glob(".*tmp")) and len(before) == 5


def test_the_record_alone_holds_everything(tmp_path):
    S.load_or_build(TABLE, tmp_path, source="a", block_rows=300)
    record = next(tmp_path.glob("*.parquet"))
    import pyarrow as pa
    import pyarrow.parquet as pq
    meta = pq.read_metadata(record)
    assert meta.num_row_groups > 2 and meta.num_rows == TABLE.rows and meta.row_group(0).column(5).compression == "ZSTD"
    t = pq.read_table(record)
    assert all(t.schema.field(n).type == pa.float32() for n in RIGHT.names)
    assert np.array_equal(np.stack([t[n].to_numpy() for n in RIGHT.names], axis=1), RIGHT.values)
    for p in tmp_path.iterdir():
        if p != record: p.unlink()
    reporter, lines = hearing()
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a"))
    assert "laid out again from their record" in lines[0]


def test_bytes_do_not_depend_on_blocks_or_streaming(tmp_path):
    stream = lambda: (slice_sequences(TABLE, a, b) for a, b in blocks(TABLE.offsets, 150))
    for i, kw in enumerate(({"block_rows": 1}, {"block_rows": 333}, {})):
        assert same(S.load_or_build(TABLE, tmp_path / str(i), source="a", **kw))
    assert same(S.load_or_build(stream, tmp_path / "s", source="a", block_rows=100))
    again = []
    for name in "xy":
        assert same(S.load_or_build(TABLE, tmp_path / name, source="a"))
        again.append(next((tmp_path / name).glob("*.parquet")).read_bytes())
    assert again[0] == again[1]
    with pytest.raises(UserError, match="source"): S.load_or_build(stream, tmp_path / "t")


@pytest.mark.parametrize("suffix", [".parquet", ".values.raw", ".grids.raw", ".index.safetensors", ".json"])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "removed"])
def test_damage_is_found_and_mended(tmp_path, suffix, harm):
    S.load_or_build(TABLE, tmp_path, source="a", block_rows=300)
    path = next(p for p in tmp_path.iterdir() if p.name.endswith(suffix))
    raw = bytearray(path.read_bytes())
    if harm == "flipped": raw[len(raw) // 2] ^= 4
    if harm == "truncated": raw = raw[:-7]
    path.unlink()
    if harm != "removed": path.write_bytes(b"" if harm == "empty" else raw)
    reporter, lines = hearing()
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a"))
    why = [line for line in lines if not line.startswith("Processing")]
    assert len(why) == 1 and (path.name in why[0] or "header" in why[0]), why
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a", verify=True))
    assert len(lines) == len(why) + len([x for x in lines if x.startswith("Processing")])


def test_silent_damage_is_found_by_verify(tmp_path):
    "A flipped bit under an unchanged time is seen when checksums are compared."
    S.load_or_build(TABLE, tmp_path, source="a")
    path = next(tmp_path.glob("*.values.raw"))
    stat, raw = path.stat(), bytearray(path.read_bytes())
    raw[999] ^= 1
    path.unlink()
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    reporter, lines = hearing()
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a", verify=True)) and "checksum" in lines[0]


def test_damaged_record_and_arrays_are_computed_again(tmp_path):
    S.load_or_build(TABLE, tmp_path, source="a")
    for p in tmp_path.iterdir():
        if not p.name.endswith((".parquet", ".raw")): continue
        raw = bytearray(p.read_bytes())
        raw[len(raw) // 3] ^= 1
        p.write_bytes(raw)
    (next(tmp_path.glob("*.json"))).unlink()
    reporter, lines = hearing()
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a"))
    assert any("record cannot be used" in line for line in lines)


def test_changed_code_makes_it_stale(tmp_path, monkeypatch):
    S.load_or_build(TABLE, tmp_path, source="a")
    monkeypatch.setattr(S, "FRAMES_VERSION", 99)
    reporter, lines = hearing()
    assert same(S.load_or_build(TABLE, tmp_path, None, reporter, source="a"))
    assert lines[0] == "Frame features are computed: the feature version has changed since"
    assert len(files(tmp_path)) == 5


def test_other_data_and_settings_have_their_own_store(tmp_path):
    f = S.load_or_build(TABLE, tmp_path, source="a")
    g = S.load_or_build(TABLE, tmp_path, source="a", physics=FrameSettings(far=500))
    h = S.load_or_build(take(TABLE, [3, 1]), tmp_path, source="a")
    assert same(f) and same(g, frame_features(TABLE, FrameSettings(far=500)))
    assert same(h, frame_features(take(TABLE, [3, 1])))
    changed = TABLE.values.copy()
    changed[0, 5] += 1
    other = type(TABLE)(changed, TABLE.names, TABLE.offsets, TABLE.meta)
    assert same(S.load_or_build(TABLE, tmp_path)) and same(S.load_or_build(other, tmp_path), frame_features(other))
    assert len(list(tmp_path.glob("*.json"))) == 5


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    S.load_or_build(TABLE, tmp_path, source="a")
    before = files(tmp_path)
    def fails(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(S, "frame_features", fails)
    with pytest.raises(KeyboardInterrupt): S.load_or_build(TABLE, tmp_path, source="b")
    assert files(tmp_path) == before
    monkeypatch.undo()
    monkeypatch.setattr(S, "FRAMES_VERSION", 99)
    monkeypatch.setattr(S, "frame_features", fails)
    with pytest.raises(KeyboardInterrupt): S.load_or_build(TABLE, tmp_path, source="a")
    assert files(tmp_path) == before


def test_full_disk_is_a_sentence_and_keeps_the_old_store(tmp_path, monkeypatch):
    S.load_or_build(TABLE, tmp_path, source="a")
    before = files(tmp_path)
    def full(self, a): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(R.RawFile, "add", full)
    monkeypatch.setattr(S, "FRAMES_VERSION", 99)
    with pytest.raises(UserError, match="disk is full"): S.load_or_build(TABLE, tmp_path, source="a")
    assert files(tmp_path) == before


PROGRAM = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_store import *
    from gesture_nb.config import read_settings
    from gesture_nb.progress import Reporter
    {prelude}
    reporter = Reporter(read_settings({{}}, feature_log_every=10, progress="lines"))
    f = S.load_or_build(TABLE, Path({folder!r}), read_settings({{}}), reporter, source="a", block_rows=100)
    assert same(f)
    x, names = S.load_or_build_summaries(f, Path({folder!r}), None, reporter)
    print("kind", type(f.values).__name__, x.shape)
"""


def process(folder, prelude="", **kw):
    code = textwrap.dedent(PROGRAM).format(tests=str(ROOT / "tests"), folder=str(folder), prelude=prelude)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def test_two_processes_at_once_build_once(tmp_path):
    slow = "\n".join(["import time", "real = S.frame_features",
                      "S.frame_features = lambda *a, **k: time.sleep(.15) or real(*a, **k)"])
    both = [process(tmp_path, slow) for _ in range(2)]
    outs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    text = "".join(o for o, _ in outs)
    assert text.count("Frame features are computed") == 1
    assert text.count("Another process is computing these features") >= 1
    assert text.count("kind memmap (40,") == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    """As another user when the tests run as root, because root may write anywhere."""
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(0o555)
    for p in folder.parents:
        if p.stat().st_uid == os.getuid() and p != Path("/"): p.chmod(p.stat().st_mode | 0o111)
    drop = "import filelock, pyarrow.parquet\nos.getuid() or (os.setgid(65534), os.setuid(65534))"
    p = process(folder, drop)
    out, err = p.communicate(timeout=120)
    folder.chmod(0o755)
    assert p.returncode == 0, err
    assert "Warning: store cannot be written, so the features are kept in memory" in out
    assert "summaries are kept in memory" in out and "kind ndarray" in out


def test_features_of_readings_in_a_file_are_in_one_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refused(*of): raise UserError("cannot be written") from OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(S, "_exclusive", refused)
    monkeypatch.setattr(scratch, "SMALL", 0)
    values = scratch.scratch_array(tmp_path, TABLE.values.shape)
    values[:] = TABLE.values
    table, (reporter, lines) = replace(TABLE, values=values), hearing()
    more = take(table, [3, 1])
    f = S.load_or_build(table, tmp_path / "store", None, reporter, source="a", block_rows=300, more=(more,))
    assert scratch.is_in_file(f.values) and scratch.is_in_file(f.grids) and "cannot be written" in lines[0]
    assert same(f, frame_features(concat([TABLE, take(TABLE, [3, 1])])))
    x, _ = S.load_or_build_summaries(f, tmp_path / "store", None, reporter)
    assert x.tobytes() == summarise(f).values.tobytes()


def test_a_finished_store_is_read_from_a_read_only_folder(tmp_path):
    S.load_or_build(TABLE, tmp_path, source="a")
    before = files(tmp_path)
    for p in tmp_path.glob("*.lock"): p.unlink()
    assert same(S.load_or_build(TABLE, tmp_path, source="a"))
    assert files(tmp_path) == before and not list(tmp_path.glob("*.lock"))


def test_summaries_are_kept_and_checked(tmp_path):
    f = S.load_or_build(TABLE, tmp_path, source="a")
    reporter, lines = hearing()
    x, names = S.load_or_build_summaries(f, tmp_path, None, reporter)
    want, columns = summarise(RIGHT)
    assert x.tobytes() == want.tobytes() and names == columns
    assert lines[0] == "Summaries are computed: there are none yet"
    spoken = len(lines)
    again = S.load_or_build_summaries(f, tmp_path, None, reporter)
    assert again.values.tobytes() == want.tobytes() and again.names == columns and len(lines) == spoken
    path, header = (next(tmp_path.glob(f"summaries-*.{kind}")) for kind in ("parquet", "json"))
    def mended():
        assert S.load_or_build_summaries(f, tmp_path, None, reporter)[0].tobytes() == want.tobytes()
        assert "cannot be used" in [line for line in lines if line.startswith("Summaries")][-1]
        lines.clear()
        assert S.load_or_build_summaries(f, tmp_path, None, reporter)[0].tobytes() == want.tobytes() and not lines
    for harmed in (path, header):
        for _ in flipped(harmed, 12): mended()   # none is missed, whatever the Parquet reader makes of it
        harmed.write_bytes(harmed.read_bytes()[:harmed.stat().st_size // 2])
        mended()
    header.unlink()
    mended()
    assert "duration" not in S.load_or_build_summaries(f, tmp_path, None, reporter, duration=False)[1]
    assert S.load_or_build_summaries(RIGHT, None)[0].tobytes() == want.tobytes()


def test_no_folder_means_memory(): assert same(S.load_or_build(TABLE, None))


def test_the_identity_of_built_in_data_does_not_depend_on_registered_sensors(tmp_path):
    "And a sensor that the data has makes another store when its record changes."
    heart = lambda **kw: Sensor(name="hr", title="heart rate", unit="bpm", columns=("hr_bpm",), valid=(25, 250), **kw)
    plain, names = tmp_path / "plain", NAMES + ("hr_bpm",)
    values = np.concatenate([TABLE.values, np.full((1, TABLE.rows), 70, np.float32)])
    pulse = type(TABLE)(values, names, TABLE.offsets, TABLE.meta)
    f = S.load_or_build(TABLE, plain, source="a")
    S.load_or_build_summaries(f, plain)
    before = files(plain)
    def keys(sensor):
        register_sensor(sensor)
        try:
            f = S.load_or_build(TABLE, plain, source="a")
            S.load_or_build_summaries(f, plain)
            assert same(f) and files(plain) == before
            g = S.load_or_build(pulse, tmp_path / "pulse", source="b")
            x = S.load_or_build_summaries(g, tmp_path / "pulse")
            streamed = S.load_or_build(lambda: [pulse], tmp_path / "stream", source="b")
            assert same(streamed, g) and "hr.bpm:mean" in x.names
            return {p.name for p in (tmp_path / "pulse").glob("*.json")}
        finally: unregister_sensor("hr")
    first, again = keys(heart()), keys(heart())
    assert first == again and len(first) == 2
    summary = keys(heart(summary="full"))
    assert len(summary - first) == 1                         # the same features, other summaries
    assert len(keys(replace(heart(), valid=(40, 250))) - summary) == 2


def test_the_keys_of_built_in_data_stay():
    "Stores on disk are found again: the names of their files depend on data and settings alone."
    identity = S.frames_identity("a", "b", FrameSettings(), NAMES)
    assert list(identity) == ["kind", "layout", "source", "rows", "settings", "code"]
    assert S.Store(Path("x"), identity).record.name == f"frames-{KEY}.parquet"
    assert S.Store(Path("x"), identity | {"code": 99}).record.name == f"frames-{KEY}.parquet"
