"""Where a state is dropped, and which document a sequence ends with."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.segments import last_segment, segment_borders

BORDERS = [
    # ids                 previous  tokens before which the state is dropped   last id
    ([0, 0, 0, 0], None, [], 0),
    ([5, 5, 5, 5], None, [], 5),  # the first token goes on with the initial state
    ([0, 0, 1, 1], None, [2], 1),
    ([0, 1, 0, 0], None, [1, 2], 0),  # an id that comes back is another document
    ([0, -1, 0, 0], None, [], 0),  # ids are compared through padding
    ([0, -1, -1, 1], None, [3], 1),
    ([-1, -1, 3, 3], None, [], 3),
    ([-1, -1, 3, 3], 3, [], 3),
    ([-1, -1, 3, 3], 2, [2], 3),
    ([2, 2, 3, -1], 2, [2], 3),
    ([2, 2, 2, 2], 1, [0], 2),
    ([2, 2, 2, 2], -1, [], 2),  # nothing seen yet
    ([-1, -1, -1, -1], None, [], -1),
    ([-2, -1, -1, -1], -5, [], -1),
    ([-1, -1, -1, -1], 4, [], 4),
]


@pytest.mark.parametrize(("ids", "previous", "dropped", "last"), BORDERS)
def test_borders(ids, previous, dropped, last):
    ids = jnp.asarray([ids])
    previous = None if previous is None else jnp.asarray([previous])
    starts, padding = segment_borders(ids, previous)
    assert np.flatnonzero(starts[0]).tolist() == dropped
    np.testing.assert_array_equal(padding, ids < 0)
    assert last_segment(ids, previous).tolist() == [last]
