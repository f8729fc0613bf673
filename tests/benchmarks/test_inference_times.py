"""Times of inference: a row for every prompt and batch, with the work that its time is said to go
with; the fit reads the rows.
"""

import jax
import pytest

from benchmarks import inference_times
from xlstm_jax.analysis.scaling.inference import FIRST_TOKEN, TOKEN, timing_of
from xlstm_jax.config import load
from xlstm_jax.models import build_model


@pytest.fixture(scope="module")
def found():
    return inference_times.cases("cpu-llama-32x1", (16, 32), (1, 2))


def test_every_prompt_has_a_first_token_and_its_ends_have_steps(found):
    places = [(c.row["kind"], c.row["prefill"], c.row["batch"]) for c in found]
    assert places == [
        *((FIRST_TOKEN, length, 1) for length in (16, 32)),
        *((TOKEN, length, batch) for length in (16, 32) for batch in (1, 2)),
    ]


def test_rows_have_times_that_the_fit_reads(found):
    for row in inference_times.measure(found, rounds=1):
        timing = timing_of(row, "here")
        assert timing.seconds > 0 and timing.model == "Llama"
        assert timing.params == row["params"] > 20_000


def test_a_step_reads_its_weights_once_and_of_the_embedding_one_row_for_each_text(found):
    config = load("configs/scaling.py:cpu-llama-32x1", {}).model
    model = build_model(config)
    bytes_of = {(c.row["prefill"], c.row["batch"]): c.row["bytes"] for c in found[2:]}
    weights = 4 * (found[0].row["params"] - config.vocab_size * config.dim)
    for (length, batch), given in bytes_of.items():
        room = length + inference_times.SPACE
        cache = jax.eval_shape(lambda b=batch, n=room: model.init_state(b, "float32", n))
        states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
        assert given == weights + batch * 4 * config.dim + states


def test_a_prompts_flops_have_the_vocabulary_projection_once():
    model = build_model(load("configs/scaling.py:cpu-xlstm_1_0-32x2", {}).model)
    head = 2 * model.config.dim * model.config.vocab_size
    assert inference_times.prompt_flops(model, 100) == 100 * model.flops(100) - 99 * head
