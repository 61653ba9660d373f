"""Many sequences at once get what they get one by one, in their order, whoever of two threads answers them."""

import threading

import numpy as np
import pytest

from gesture_nb.models.base import Outputs
from gesture_nb.serving.chunks import in_chunks, share_work

@pytest.mark.parametrize("n, size", [(1, 8), (8, 8), (9, 8), (50, 7)])
def test_outputs_keep_their_order_and_chunks_hold_like_lengths(n, size):
    lengths, seen = np.random.default_rng(n).integers(1, 200, n), []

    def answer(rows):
        seen.append(rows)
        return Outputs(rows[:, None].astype(np.float32), {"head": lengths[rows][:, None]})

    outputs = in_chunks(lengths, size, answer)
    assert outputs.probs[:, 0].tolist() == list(range(n)) and outputs.heads["head"][:, 0].tolist() == lengths.tolist()
    assert max(map(len, seen)) <= size and sorted(np.concatenate(seen)) == list(range(n))
    spans = sorted((lengths[rows].min(), lengths[rows].max()) for rows in seen)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))


def test_two_threads_share_the_work():
    meet = threading.Barrier(2, timeout=20)   # passed only if two tasks run at the same time
    assert share_work([meet.wait, meet.wait]) in ([0, 1], [1, 0])


def test_an_error_is_raised_and_what_waits_is_not_begun():
    begun, hold = [], threading.Event()

    def wait():
        hold.wait(20)
        return 0

    def fail(): raise ValueError("of the last task")

    with pytest.raises(ValueError, match="of the last task"):
        share_work([wait, *[lambda: begun.append(1)] * 50, fail])
    hold.set()
    assert share_work([lambda: 1, lambda: 2]) == [1, 2] and not begun


def test_turned_devices_are_found_in_a_table_as_one_by_one():
    from gesture_nb.data.sequences import slice_sequences, take
    from gesture_nb.data.simulate import simulate
    from gesture_nb.evaluation.flip import fit_flip_detector, flip_signs
    from gesture_nb.training.orientation import OrientationFixer

    table = simulate(600, seed=1)
    detector = fit_flip_detector(flip_signs(table), table.meta["subject"])
    together, single = OrientationFixer(detector), OrientationFixer(detector)
    table = take(table, np.arange(300, 600))
    found = together.turned(table)
    assert found.any() and not found.all()
    assert found.tolist() == [single.turned(slice_sequences(table, i, i + 1))[0] for i in range(len(table))]
    assert together.turned(take(table, [5, 3, 5])).tolist() == found[[5, 3, 5]].tolist()   # known from before
