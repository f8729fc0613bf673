"""The training step, with a stand-in model: the step knows no model by name."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig, task_of
from xlstm_jax.data.loader import Batch
from xlstm_jax.models import build_model
from xlstm_jax.tasks.cross_entropy import cross_entropy_sum
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import init_state
from xlstm_jax.training.step import make_train_step, split_batch, totals_and_gradient


class StandIn(nn.Module):
    """A bigram model with the language model's call; it also looks at segment ids and dropout."""

    rate: float = 0.0

    def setup(self):
        self.embedding, self.head = (
            nn.Embed(11, 8),
            self.param("head", nn.initializers.normal(0.3), (8, 11)),
        )
        self.dropout = nn.Dropout(self.rate)

    def __call__(self, tokens):
        return self.logits(self.hidden(tokens)[0], self.head_kernel())

    def hidden(self, tokens, state=None, *, segments=None, train=False):
        x = self.embedding(tokens)
        if segments is not None:
            x = x + segments[..., None]
        return jnp.tanh(self.dropout(x, deterministic=not train)), state

    def head_kernel(self):
        return self.head

    @nn.nowrap
    def logits(self, y, kernel):
        return y @ kernel


def ragged_batch(rows=6, length=5, seed=0) -> Batch:
    """Row r counts r of its tokens, so that micro-batches have very different numbers of them."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 11, (rows, length + 1)).astype(np.int32)
    mask = np.arange(length)[None] < np.arange(rows)[:, None]
    return Batch(
        tokens[:, :-1], np.where(mask, tokens[:, 1:], -1), np.zeros((rows, length), np.int32)
    )


def config(**train) -> Config:
    return Config(
        model=ModelConfig(vocab_size=11),
        optimizer=OptimizerConfig(warmup_steps=0, schedule="constant", learning_rate=0.01),
        train=TrainConfig(steps=10, **train),
    )


def stepper(config, model=None):
    task, model = task_of(config), model or StandIn()
    schedule = make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    return make_train_step(task, model, optimizer, schedule, config.train), init_state(
        task, model, optimizer, config.train
    )


def test_the_loss_counts_exactly_the_masked_in_tokens():
    batch = ragged_batch()
    logits = np.random.default_rng(1).normal(size=(6, 5, 11))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(np.take_along_axis(probabilities, batch.targets[..., None], -1))[..., 0]
    np.testing.assert_allclose(
        cross_entropy_sum(jnp.asarray(logits, jnp.float32), batch.targets, batch.mask),
        losses[batch.mask].sum(),
        rtol=1e-5,
    )


def test_what_is_masked_out_may_be_nan_in_value_and_gradient():
    batch = ragged_batch()
    logits = jnp.where(batch.mask[..., None], 0.0, jnp.nan) + jnp.zeros((6, 5, 11))
    loss, gradient = jax.value_and_grad(cross_entropy_sum)(logits, batch.targets, batch.mask)
    np.testing.assert_allclose(loss, 15 * np.log(11), rtol=1e-6)
    assert np.isfinite(gradient[batch.mask]).all()


def test_softmax_and_sum_are_float32_for_bfloat16_logits():
    logits = jnp.full((1, 1000, 11), 3.0, jnp.bfloat16)
    loss = cross_entropy_sum(logits, jnp.zeros((1, 1000), jnp.int32), jnp.ones((1, 1000), bool))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 1000 * np.log(11), rtol=1e-6)


def test_the_reported_loss_is_the_mean_over_counted_tokens():
    step, state = stepper(config())
    batch = ragged_batch()
    logits = StandIn().apply({"params": state.params}, batch.tokens)
    expected = cross_entropy_sum(logits, batch.targets, batch.mask) / 15
    _, metrics = step(state, batch)
    assert metrics["tokens"] == 15
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 0.01, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_over_ragged_micro_batches_equals_the_whole_batch(parts):
    batch = ragged_batch()
    whole, state = stepper(config())
    split, same_state = stepper(config(accumulation_steps=parts))
    (state, metrics), (split_state, split_metrics) = whole(state, batch), split(same_state, batch)
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=1e-5, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        split_state.params,
        state.params,
    )


def test_a_mean_of_micro_batch_means_would_have_been_noticed():
    """The ragged batch is a real test: weighting its parts equally gives another loss."""
    batch, (_, state) = ragged_batch(), stepper(config())

    def mean_loss(part):
        totals, _ = totals_and_gradient(graded, state.params, part, jax.random.key(0), 1)
        loss, tokens = totals["loss"]
        return float(loss) / max(float(tokens), 1)

    parts = split_batch(batch, 6)  # the first row counts no token at all
    means = [mean_loss(jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(6)]
    assert abs(mean_loss(batch) - float(np.mean(means))) > 0.1


def graded(params, part, key):
    """Sums with three different weights, of the stand-in model."""
    logits, mask = StandIn().apply({"params": params}, part.tokens), part.mask
    right = jnp.argmax(logits, -1) == part.targets
    counts = jnp.sum(mask, dtype=jnp.float32)
    rows = jnp.any(mask, axis=1)
    return {
        "loss": (cross_entropy_sum(logits, part.targets, mask), counts),
        "accuracy": (jnp.sum(right & mask, dtype=jnp.float32), counts),
        "sequence_accuracy": (
            jnp.sum(jnp.all(right | ~mask, axis=1) & rows, dtype=jnp.float32),
            jnp.sum(rows, dtype=jnp.float32),
        ),
    }


def half_right_batch(params) -> Batch:
    """Ragged rows; every second row, and every other token, has the model's own answer."""
    batch = ragged_batch()
    answers = np.asarray(jnp.argmax(StandIn().apply({"params": params}, batch.tokens), -1))
    own = (np.arange(6)[:, None] % 2 == 0) | (np.arange(5)[None] % 2 == 0)
    targets = np.where(own, answers, (answers + 1) % 11).astype(np.int32)
    return batch._replace(targets=np.where(batch.mask, targets, -1))


def test_sums_are_those_of_the_counted_tokens():
    """Against NumPy: rows 0 to 5 count 0 to 5 tokens; rows 2 and 4, and row 1's only token, are
    all right; row 3 has two of three right, row 5 three of five.
    """
    _, state = stepper(config())
    batch = half_right_batch(state.params)
    totals, _ = totals_and_gradient(graded, state.params, batch, jax.random.key(0), 1)
    assert [float(x) for x in totals["accuracy"]] == [1 + 2 + 2 + 4 + 3, 15]
    assert [float(x) for x in totals["sequence_accuracy"]] == [3, 5]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_gives_the_sums_the_accuracies_and_the_gradient_of_one_batch(parts):
    """However unevenly what counts falls on the parts: with 6 one of them has nothing."""
    _, state = stepper(config())
    batch = half_right_batch(state.params)
    whole, gradient = totals_and_gradient(graded, state.params, batch, jax.random.key(0), 1)
    split, split_gradient = jax.jit(
        lambda: totals_and_gradient(graded, state.params, batch, jax.random.key(0), parts)
    )()
    assert split.keys() == whole.keys()
    for name in ("accuracy", "sequence_accuracy"):
        assert [float(x) for x in split[name]] == [float(x) for x in whole[name]]
    np.testing.assert_allclose(split["loss"], whole["loss"], rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        split_gradient,
        gradient,
    )


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_weights_may_be_fractions_whose_sum_is_below_one(parts):
    """The gradient is that of the loss's sum over its weight, whatever the weight's size."""
    x = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    importance = np.float32([0.01, 0.0, 0.2, 0.05, 0.0, 0.1])

    def sums(w, part, key):
        x, importance = part
        return {"loss": (jnp.sum(importance * jnp.sum((x - w) ** 2, axis=1)), importance.sum())}

    def mean(w):
        return jnp.sum(importance * jnp.sum((x - w) ** 2, axis=1)) / importance.sum()

    w = jnp.arange(4.0)
    totals, gradient = totals_and_gradient(sums, w, (x, importance), jax.random.key(0), parts)
    np.testing.assert_allclose(totals["loss"][0] / totals["loss"][1], mean(w), rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(mean)(w), rtol=1e-5)


def test_a_batch_without_counted_tokens_has_loss_zero_and_finite_gradients():
    step, state = stepper(config())
    batch = ragged_batch()._replace(targets=np.full((6, 5), -1, np.int32))
    _, metrics = step(state, batch)
    assert metrics["loss"] == 0 and metrics["tokens"] == 0 and metrics["grad_norm"] == 0


def test_the_grad_norm_is_that_before_clipping():
    clipped, state = stepper(config())
    other = dataclasses.replace(
        config(), optimizer=dataclasses.replace(config().optimizer, clip_norm=None)
    )
    free, same_state = stepper(other)
    batch = ragged_batch()
    assert clipped(state, batch)[1]["grad_norm"] == free(same_state, batch)[1]["grad_norm"]


def test_the_memory_of_the_old_state_is_reused():
    step, state = stepper(config())
    after, _ = step(state, ragged_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert after.step == 1


def test_dropout_differs_between_steps_and_micro_batches_and_is_a_function_of_seed_and_step():
    model, batch = StandIn(rate=0.5), ragged_batch()
    frozen = dataclasses.replace(
        config(), optimizer=OptimizerConfig(learning_rate=0.0, warmup_steps=0, schedule="constant")
    )

    def losses(setup, steps=3):
        step, state = stepper(setup, model)
        out = []
        for _ in range(steps):
            state, metrics = step(state, batch)
            out.append(float(metrics["loss"]))
        return out

    first = losses(frozen)
    assert len(set(first)) == 3
    assert losses(frozen) == first
    doubled = Batch(*(np.concatenate([part, part]) for part in batch))
    # both parts the same rows
    mirrored = jax.tree.map(lambda x: x.reshape(2, 6, -1).swapaxes(0, 1).reshape(12, -1), doubled)
    step, state = stepper(
        dataclasses.replace(frozen, train=TrainConfig(steps=10, accumulation_steps=2)), model
    )
    single, same_state = stepper(frozen, model)
    assert float(step(state, mirrored)[1]["loss"]) != float(single(same_state, batch)[1]["loss"])


def test_segment_ids_reach_the_model_only_where_states_are_reset_at_documents():
    batch = ragged_batch()._replace(segment_ids=np.ones((6, 5), np.int32))
    plain, state = stepper(config())
    reset, same_state = stepper(
        dataclasses.replace(config(), data=DataConfig(reset_at_document=True))
    )
    unmarked = batch._replace(segment_ids=np.zeros((6, 5), np.int32))
    loss = float(plain(state, batch)[1]["loss"])
    plain, state = stepper(config())
    assert loss == float(plain(state, unmarked)[1]["loss"])
    assert loss != float(reset(same_state, batch)[1]["loss"])


@pytest.mark.slow
def test_the_gates_of_each_kind_of_block_are_among_the_metrics():
    """At the start the mLSTM's forget gates keep sigmoid of 3 to 6, its input gates' bias is about
    0.
    """
    model = build_model(
        ModelConfig(
            vocab_size=11,
            dim=16,
            num_blocks=2,
            blocks="mlstm,slstm+mlp",
            mixers={"mlstm": {"num_heads": 2}, "slstm": {"num_heads": 2}},
        )
    )
    for parts in (1, 2):
        step, state = stepper(config(accumulation_steps=parts), model)
        _, metrics = step(state, ragged_batch())
        assert 0.95 < float(metrics["mlstm_forget_gate"]) < 0.998
        assert (
            abs(float(metrics["mlstm_input_gate"])) < 0.5
            and float(metrics["mlstm_input_gate_std"]) > 0
        )
        assert 0.5 < float(metrics["slstm_forget_gate"]) < 1
