"""Recordings to other libraries and back: the same bits; what a form cannot hold is refused or said."""

from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import gesture_nb as gn
from gesture_nb.data.adapters import recordings_arrow, rows_of_steps, with_index_columns
from gesture_nb.data.sequences import take
from gesture_nb.errors import UserError

LISTS = {"subject": ["anna", "anna", "ben"], "gesture": ["wave", "hold", "wave"],
         "acc_x": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], "acc_y": [[0.5, 0.5], [0.5], None],
         "acc_z": [[9.8, 9.8], [9.8], [9.8, 9.8, 9.8]]}   # fmt: skip


@pytest.fixture(scope="module")
def table():
    """Recordings of unequal lengths with three sensors, missing readings and metadata of every type."""
    found = gn.read_recordings("sim:12:7")
    assert len(set(found.lengths)) > 1
    values = found.values[:12].copy()
    values[::5, found.offsets[1] + 3] = np.nan
    return replace(found, values=values, names=found.names[:12])


def assert_same(found, wanted):
    assert found.names == wanted.names and np.array_equal(found.offsets, wanted.offsets)
    assert np.array_equal(found.values, wanted.values, equal_nan=True)
    assert set(found.meta) == set(wanted.meta)
    for name, values in wanted.meta.items():
        other = found.meta[name]
        assert other.dtype.kind == values.dtype.kind, name
        assert np.array_equal(other, values, equal_nan=values.dtype.kind == "f"), name


def test_frames_come_back_bit_for_bit(table):
    tidy, rows = gn.to_frame(table), recordings_arrow(table)
    assert isinstance(tidy, pd.DataFrame) and len(tidy) == table.rows and rows.num_rows == len(table)
    for frame in (tidy, pl.from_pandas(tidy), rows, rows.to_pandas(), pl.from_arrow(rows)):
        assert_same(gn.read_recordings(frame), table)
    assert_same(gn.from_frame(rows), table)


def test_lists_share_the_memory_of_the_table(table):
    rows = recordings_arrow(table)
    for name, values in zip(table.names, table.values):
        assert np.shares_memory(rows[name].chunk(0).flatten().to_numpy(), values)
    spread = rows_of_steps(rows)
    assert np.shares_memory(spread["acc_x"].chunk(0).to_numpy(), table.values)


@pytest.mark.parametrize("form", ["numpy3D", "np-list", "df-list", "nested_univ", "pd-multiindex"])
def test_arrays_come_back_bit_for_bit(table, form):
    x = gn.to_arrays(table, form)
    assert_same(gn.from_arrays(x, channels=table.names, **table.meta), table)
    if hasattr(x, "columns") or hasattr(x[0], "columns"):   # names are in the form
        assert_same(gn.from_arrays(x, **table.meta), table)


def test_the_form_follows_from_the_lengths(table):
    assert isinstance(gn.to_arrays(table), list)
    equal = take(table, np.flatnonzero(table.lengths == table.lengths[0]))
    x = gn.to_arrays(equal)
    assert x.shape == (len(equal), len(equal.names), equal.lengths[0])
    x[:] = 0   # a copy
    assert table.values.any()
    with pytest.raises(UserError, match="Did you mean 'numpy3D'"):
        gn.to_arrays(table, "numpy3d")


def test_frames_of_aeon_have_a_row_a_channel(table):
    x = gn.to_arrays(table, "np-list")
    numbered = [pd.DataFrame(a) for a in x]
    assert_same(gn.from_arrays(numbered, channels=table.names, **table.meta), table)
    assert_same(gn.from_arrays([frame.T for frame in gn.to_arrays(table, "df-list")], **table.meta), table)


def test_lists_a_recording_become_rows_a_step():
    found = gn.read_recordings(LISTS, rate_hz=50, units="keep")
    assert found.lengths.tolist() == [2, 1, 3]
    assert found.meta["sequence_id"].tolist() == ["s000000", "s000001", "s000002"]
    assert found.meta["subject"].tolist() == LISTS["subject"] and found.meta["gesture"].tolist() == LISTS["gesture"]
    assert found.channel("acc_x").tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(found.channel("acc_y")).tolist() == [False] * 3 + [True] * 3   # a list that was not there


def test_lists_of_other_lengths_are_refused():
    for column, message in (
        ([[1.0], [3.0], [4.0, 5.0, 6.0]], "has 1 entries in 'acc_x' and 2 in 'acc_y'"),
        ([[1.0, 2.0], [3.0], [4.0, 5.0]], "has 2 entries in 'acc_x' and 3 in 'acc_z'"),
    ):
        with pytest.raises(UserError, match=message):
            gn.read_recordings(LISTS | {"acc_x": column}, rate_hz=50)
    with pytest.raises(UserError, match="Row 2 of the frame has no steps"):
        rows_of_steps(pa.table({"acc_x": [[1.0], []]}))


def test_rows_that_are_no_recordings_are_refused(table):
    with pytest.raises(UserError, match="Two rows of the frame have the sequence_id 'q'"):
        gn.read_recordings(LISTS | {"sequence_id": ["q", "r", "q"]}, rate_hz=50)
    with pytest.raises(UserError, match="The frame has no rows"):
        gn.read_recordings(recordings_arrow(table).slice(0, 0))
    for function in (gn.to_arrays, gn.to_frame, gn.to_dataset):
        with pytest.raises(UserError, match="This is a ndarray, but must be a SequenceTable"):
            function(np.ones(3))


def test_views_of_lists_are_lists():
    rows = pa.table(LISTS)
    views = {n: pa.array(LISTS[n], pa.list_view(pa.float64())) for n in ("acc_x", "acc_y", "acc_z")}
    for name, column in views.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    assert_same(gn.read_recordings(rows, rate_hz=50), gn.read_recordings(LISTS, rate_hz=50))


def test_odd_cells_are_refused_and_infinite_readings_are_missing(table):
    frame, nested = gn.to_arrays(table, "pd-multiindex"), gn.to_arrays(table, "nested_univ")
    infinite = frame.copy()
    infinite.iloc[3, 0] = np.inf
    series = nested.iat[0, 0].copy()
    series[3] = np.inf
    other = nested.copy()
    other.iat[0, 0] = series
    for x in (infinite, other):
        found = gn.from_arrays(x, **table.meta)
        assert np.isnan(found.values[0, 3]) and not np.isinf(found.values).any()
    with pytest.raises(UserError, match="X holds something else than numbers"):
        gn.from_arrays(frame.assign(acc_x="word"))
    with pytest.raises(UserError, match="X has 0 sequences"):
        gn.from_arrays(frame.iloc[:0])
    other.iat[0, 1] = None
    with pytest.raises(UserError, match="Sequence 0 of X has a cell that holds something else"):
        gn.from_arrays(other)
    nothing = take(table, np.array([], int))
    assert gn.to_arrays(nothing, "numpy3D").shape == (0, len(table.names), 0) and gn.to_arrays(nothing) == []


def test_channels_in_one_nested_column():
    steps = [np.arange(3 * n, dtype=np.float32).reshape(3, n) for n in (4, 6)]
    frame = {"acc": [a.tolist() for a in steps], "subject": ["anna", "ben"], "gesture": ["wave", "hold"]}
    found = gn.read_recordings(frame, rate_hz=50, units="keep")
    assert found.names == ("acc_x", "acc_y", "acc_z") and np.array_equal(found.values, np.concatenate(steps, axis=1))
    with pytest.raises(UserError, match="holds 2 channels without names.*gn.from_arrays"):
        gn.read_recordings(frame | {"acc": [a[:2].tolist() for a in steps]}, rate_hz=50)


def test_an_index_of_sequence_and_step_names_the_recordings(table):
    frame = gn.to_arrays(table, "pd-multiindex")
    found = gn.read_recordings(frame, rate_hz=10, to_predict=True)
    assert np.array_equal(found.values, table.values, equal_nan=True)
    assert found.meta["sequence_id"].tolist() == [str(i) for i in range(len(table))]
    named = with_index_columns(frame.assign(gesture="wave").rename_axis(["subject", "t"]))
    assert list(named.columns[:2]) == ["subject", "t"]   # names of ours are kept
    assert with_index_columns(gn.to_frame(table)).columns.tolist() == gn.to_frame(table).columns.tolist()


def test_a_row_a_recording_trains_like_its_table(table, tmp_path):
    """The frame that a run keeps is tidy, whatever it was given."""
    from gesture_nb.api import _as_source

    kept = []
    for data in (recordings_arrow(table), table):
        with _as_source(data, tmp_path) as path:
            kept.append(gn.read_recordings(path))
    assert_same(*kept)


def test_without_datasets_one_sentence_says_so(table, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        gn.to_dataset(table)


def test_hugging_face_both_ways(table, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = gn.to_dataset(table)
    assert data.features["gesture"].names == sorted(set(table.meta["gesture"]))
    assert np.shares_memory(data.data.table["acc_x"].chunk(0).flatten().to_numpy(), table.values)
    tidy = datasets.Dataset.from_pandas(gn.to_frame(table))
    for other in (data, tidy, datasets.DatasetDict(train=data)):
        assert_same(gn.read_recordings(other), table)
    assert_same(gn.read_recordings(data.select([5, 2])), take(table, [5, 2]))
    data.save_to_disk(tmp_path / "saved")
    assert_same(gn.read_recordings(datasets.load_from_disk(tmp_path / "saved")), table)
    with pytest.raises(UserError, match="splits train, test: name one"):
        gn.read_recordings(datasets.DatasetDict(train=data, test=data))
    with pytest.raises(UserError, match="collect it first"):
        gn.read_recordings(data.to_iterable_dataset())


def test_aeon_and_sktime_take_the_forms(table):
    collection = pytest.importorskip("aeon.utils.validation.collection")
    conversion = pytest.importorskip("aeon.utils.conversion")
    x = gn.to_arrays(table)
    assert collection.get_type(x) == "np-list"
    for form in ("df-list", "pd-multiindex"):
        other = conversion.convert_collection(x, form)
        assert_same(gn.from_arrays(other, channels=table.names, **table.meta), table)


@pytest.mark.parametrize("form", ["df-list", "nested_univ", "pd-multiindex"])
def test_sktime_takes_the_forms(table, form):
    datatypes = pytest.importorskip("sktime.datatypes")
    x = gn.to_arrays(table, form)
    complete = x if isinstance(x, list) else x.copy()
    assert datatypes.check_is_mtype(complete, form, scitype="Panel")
    assert_same(gn.from_arrays(datatypes.convert_to(x, "df-list", "Panel"), **table.meta), table)
