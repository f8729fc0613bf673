"""Bytes that the TPU kernels move between HBM and VMEM, from their grids and blocks: what they say
they move, and what they must.
"""

import jax.numpy as jnp
import pytest

from benchmarks import aot_tpu
from benchmarks.aot_tpu import MLSTM_HEADS, SLSTM_HEADS, TIMES


def calls_of(case):
    """Forward alone, forward when gradients follow, backward."""
    loss, arguments = case
    alone = aot_tpu.pallas_calls(loss, arguments)
    both = aot_tpu.pallas_calls(aot_tpu.gradient(loss, arguments), arguments)
    op = next(iter(alone)).split("_")[0]
    return alone[f"{op}_forward"], both[f"{op}_forward"], both[f"{op}_backward"]


@pytest.mark.parametrize("state", (True, False), ids=("state", "no state"))
@pytest.mark.parametrize(("model", "dtype"), (("7b", "bfloat16"), ("1.3b", "float32")))
def test_mlstm_says_what_it_moves(model, dtype, state):
    """The compiler is told the exact number, with and without what the backward pass needs; the
    last stretch is not full.
    """
    for call in calls_of(aot_tpu.mlstm_case(model, 5000, dtype, state=state)):
        assert call.params["cost_estimate"].bytes_accessed == aot_tpu.traffic(call)


@pytest.mark.parametrize("documents", (False, True), ids=("one document", "documents"))
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("model", MLSTM_HEADS)
def test_mlstm_reads_and_writes_everything_once(model, time, documents):
    """A training step's forward: at most 1.25 of one read of q, k, v, i, f and one write of h,
    states kept and the last one included.

    At T 2048 the last state of 1.3B, in float32, makes exactly that: 4 of 16 MiB; documents' 8
    bytes a token come on top. 2.7B's last state is 6.25 of 20 MiB, and it keeps a state every 1280
    tokens, as its states between take more VMEM than others'.
    """
    loss, arguments = aot_tpu.mlstm_case(model, time, state=False, documents=documents)
    bound = {("2.7b", 2048): 1.469, ("2.7b", 8192): 1.313}.get((model, time), 1.25)
    for call in calls_of((loss, arguments))[:2]:
        assert call.params["cost_estimate"].bytes_accessed == aot_tpu.traffic(call)
        assert aot_tpu.traffic(call) <= (bound + 0.001 * documents) * aot_tpu.least_traffic(
            arguments
        )


@pytest.mark.parametrize("model", ("1.3b", "7b"))
def test_a_state_that_is_given_is_read_once(model):
    """And nothing is moved in place of one that is not: forward the state, back the state and its
    cotangent; m in 128 lanes each time.
    """
    given, not_given = (
        calls_of(aot_tpu.mlstm_case(model, 2048, state=state)) for state in (True, False)
    )
    heads, K, V = MLSTM_HEADS[model]
    for call, other, times in zip(given, not_given, (1, 1, 2), strict=True):
        assert aot_tpu.traffic(call) - aot_tpu.traffic(other) == heads * 4 * (
            times * (K * V + K) + 128
        )


@pytest.mark.parametrize("model", SLSTM_HEADS)
def test_slstm_reads_and_writes_everything_once(model):
    """The forward kernel alone: x and h once, R once, in the kernel's layout, which fills heads up
    to 128 lanes; the state is little.
    """
    loss, (ids, x, *rest) = aot_tpu.slstm_case(model, 2048)
    call = aot_tpu.pallas_calls(loss, [ids, x, *rest])["slstm_forward"]
    heads, V = SLSTM_HEADS[model]
    filled = -(-V // 128) * 128 / V if V >= 128 else 1
    least = x.size * 2 * (1 + 1 / 4) * filled + 4 * heads * V * V * 2
    assert aot_tpu.traffic(call) <= 1.25 * least


def test_traffic_counts_blocks_that_change():
    """Two heads of four chunks: q moves with every chunk, the state's block once per head."""
    loss, arguments = aot_tpu.mlstm_case("7b", 512, documents=False)
    call = aot_tpu.pallas_calls(loss, arguments)["mlstm_forward"]
    heads, K, V = MLSTM_HEADS["7b"]
    assert call.params["grid_mapping"].grid == (1, heads, 4)
    tokens = 512 * heads * (2 * (2 * K + 2 * V) + 2 * 4)
    state = heads * (K * V + K) * 4
    assert aot_tpu.traffic(call) == tokens + 2 * state + heads * 4 * 128
    assert jnp.dtype(arguments[1].dtype).itemsize == 2


@pytest.mark.parametrize("model", ("125m", "1.3b", "2.7b"))
def test_what_stands_around_the_cell_moves_each_array_once(model):
    """The front: c and u, q, k and v; back these and all gradients. Behind the cell: h, gate, c and
    y; back dy instead of y, and three gradients. Weights and gates are little.
    """
    heads, _, V = MLSTM_HEADS[model]
    array = 4096 * heads * V * 2
    for op, case, forward, backward in (
        ("mlstm_front", aot_tpu.front_case, 5, 7),
        ("mlstm_back", aot_tpu.back_case, 4, 7),
    ):
        loss, arguments = case(model, 4096)
        calls = aot_tpu.pallas_calls(aot_tpu.gradient(loss, arguments), arguments)
        assert len(calls) == 2
        for name, call in calls.items():
            arrays = backward if name == f"{op}_back" else forward
            assert arrays * array <= aot_tpu.traffic(call) <= 1.1 * arrays * array
            said = call.params["cost_estimate"].bytes_accessed
            assert said == pytest.approx(aot_tpu.traffic(call), rel=0.05)
