"""Which rows a process reads follows from where its devices stand in the mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from xlstm_jax.parallel import own_part


@dataclasses.dataclass
class Rows:
    """Stands for a sharding: the rows of this process's devices."""

    slices: list

    def addressable_devices_indices_map(self, shape):
        return {k: (rows, slice(None)) for k, rows in enumerate(self.slices)}


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([slice(None)], (0, 1)),  # replicated: every process reads all
        ([slice(0, 2), slice(2, 4)], (0, 2)),
        ([slice(4, 6), slice(6, 8)], (1, 2)),
        ([slice(6, 8), slice(6, 8)], (3, 4)),  # two devices share their rows
        ([slice(0, 2), slice(4, 6)], (0, 1)),  # devices that are no neighbours: everything is read
        ([slice(2, 4), slice(4, 6)], (0, 1)),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(slices, expected):
    assert own_part(Rows(slices), 8, 16) == expected


def test_one_process_reads_everything():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    assert own_part(
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), 8, 16
    ) == (0, 1)
