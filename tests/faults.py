"""What tests of faults share: bytes flipped and put back, and frames in every condition."""
import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gesture_nb.schema import ACC, CHANNELS, DEMOGRAPHICS, GYR, ROT

FLIPS = int(os.environ.get("FLIPS", "5"))           # bytes of a file that are flipped; `make soak` takes many
CASES = int(os.environ.get("PREDICT_CASES", "40"))  # frames that are predicted


def flipped(path, times: int, seed: int = 0):
    """Yields once for each of some bytes, flipped in turn, the first and the last byte among them.

    The file is whole again at the end.
    """
    good = path.read_bytes()
    rng = np.random.default_rng(seed)
    if times > 1: positions = {0, len(good) - 1, *rng.integers(0, len(good), max(times - 2, 0)).tolist()}
    else: positions = rng.integers(0, len(good), 1).tolist()
    for position in positions:
        changed = bytes([good[position] ^ int(rng.integers(1, 256))])
        path.write_bytes(good[:position] + changed + good[position + 1:])
        try: yield position
        finally: path.write_bytes(good)


CELLS = [
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-20, 20),
    st.just(0.0),
    st.just(float("nan")),
    st.integers(-300, 300),
    st.none(),
    st.sampled_from(["", "x", "nan", "1e999", "-1", "3,5", "é"]),
    st.booleans(),
]
TOF_1 = tuple(c for c in CHANNELS if c.startswith("tof_1_"))
GROUP = [ACC, ROT, GYR, ("thm_1",), TOF_1, ("sequence_id",), ("subject",), ("sequence_counter",), ("gesture", "note")]


def frame(shape):
    """A dictionary, pandas or Polars frame: some sensors, each in one condition, 1 to 5,000 rows."""
    import pandas as pd
    import polars as pl

    rows, groups, kind, cells, repeat = shape
    values_of = {column: values for group, values in zip(groups, cells) for column in GROUP[group]}
    columns = {}
    for k, (column, values) in enumerate(values_of.items()):
        columns[column] = [values[(i + k) % len(values)] for i in range(rows)]
    if repeat and rows > 1:   # repeated and unordered rows
        columns = {c: v[: rows // 2] + v[: rows - rows // 2][::-1] for c, v in columns.items()}
    if kind == "pandas": return pd.DataFrame(columns, dtype=object if repeat else None)
    if kind == "polars":
        try: return pl.DataFrame(columns, strict=False)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError): return columns
    return columns


ROWS = st.one_of(st.integers(1, 4), st.integers(1, 80), st.sampled_from([1, 2, 500, 5000]))
KINDS = st.sampled_from(["dict", "pandas", "polars"])
VALUES = st.sampled_from(CELLS).flatmap(lambda cell: st.lists(cell, min_size=1, max_size=4))
GROUPS = st.lists(st.integers(0, len(GROUP) - 1), unique=True, max_size=6)
SHAPE = GROUPS.flatmap(
    lambda groups: st.tuples(ROWS, st.just(groups), KINDS, st.tuples(*[VALUES for _ in groups]), st.booleans()))
ONE_CELL = st.lists(st.one_of(*CELLS), min_size=1, max_size=1)
PEOPLE = st.one_of(st.none(), st.dictionaries(st.sampled_from(DEMOGRAPHICS), ONE_CELL), st.just(7))


def answers_always(predictor, sequence, people):
    label = predictor(sequence, people)
    assert isinstance(label, str) and label in predictor.classes, label


def frames_and_people():
    """A fixed handful of everything."""
    import pandas as pd
    import polars as pl

    n = 30
    zeros = {c: np.zeros(n) for c in (*ACC, *ROT)}
    yield zeros, None                                                   # zero quaternions
    yield {"acc_x": [np.inf, -np.inf, np.nan]}, {"subject": ["nobody"], "age": ["old"]}
    yield {"acc_x": ["a", "b"], "rot_w": [None, None]}, pd.DataFrame({"subject": []})
    yield pd.DataFrame({"acc_x": range(5000)}), None
    yield pl.DataFrame(zeros)[:1], pl.DataFrame({"subject": ["new"], "sex": [7]})
    yield pd.DataFrame({"acc_x": [1, 1, 1], "sequence_counter": [2, 2, 0], "subject": ["a", "b", None]}), {}
    yield {}, None
    yield 7, None
    yield {"acc_x": [1, 2], "acc_y": [1]}, 7


def fuzz_predict(predictor, cases: int = CASES):
    """`cases` random frames through `predictor`."""
    @settings(max_examples=cases, deadline=None, derandomize=cases <= 1000, database=None,
              suppress_health_check=list(HealthCheck))
    @given(SHAPE, PEOPLE)
    def fuzz(shape, people): answers_always(predictor, frame(shape), people)
    fuzz()
