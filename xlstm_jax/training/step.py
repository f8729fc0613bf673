"""One optimizer step, as a pure function. It knows no model by name: anything with the language model's call will do."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import Config
from xlstm_jax.data.loader import Batch
from xlstm_jax.training.state import TrainState

Metrics = dict[str, Array]  # scalars on the device


def cross_entropy_sum(
    logits: Float[Array, "B T E"], targets: Int[Array, "B T"], mask: Float[Array, "B T"] | Bool[Array, "B T"]
) -> Float[Array, ""]:
    """The summed negative log-likelihood of the targets where the mask is set, nats; softmax and sum in float32."""
    logits = logits.astype(jnp.float32)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - target_logits
    return jnp.sum(jnp.where(mask.astype(bool), losses, 0.0))  # where: what is masked can't be NaN times 0


def loss_sum(
    model: nn.Module, params: Any, batch: Batch, *, reset_at_document: bool, dropout_key: jax.Array | None = None
) -> Float[Array, ""]:
    """The summed loss of one batch, nats; in training mode when a dropout key is given."""
    training = dropout_key is not None
    logits, _ = model.apply(
        {"params": params},
        batch.tokens,
        segment_ids=batch.segment_ids if reset_at_document else None,
        train=training,
        rngs={"dropout": dropout_key} if training else None,
    )
    return cross_entropy_sum(logits, batch.targets, batch.mask)


def count_tokens(mask: Float[Array, "*shape"] | Bool[Array, "*shape"]) -> Int[Array, ""]:
    """How many targets count."""
    return jnp.sum(mask.astype(bool), dtype=jnp.int32)


def split_batch(batch: Batch, parts: int) -> Batch:
    """[B ...] -> [parts B/parts ...]; part i has rows i, i + parts, ..., so that each part stays spread over all devices."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def mean_loss_and_gradient(
    loss: Callable[[Any, Batch, jax.Array], Float[Array, ""]], params: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[Float[Array, ""], Any]:
    """Mean loss over all counted tokens of the batch and its gradient, computed in `parts` micro-batches.

    `loss(params, batch, key)` is a sum over tokens. Each part is divided by the tokens of the whole batch, not by its own: the
    result is that of the un-split batch however unevenly the mask falls. Sums are float32.
    """
    tokens = jnp.maximum(count_tokens(batch.mask), 1).astype(jnp.float32)

    def share(params, part, part_key):
        return loss(params, part, part_key) / tokens

    if parts == 1:
        return jax.value_and_grad(share)(params, batch, key)

    def add_part(total, inputs):
        part, part_key = inputs
        return jax.tree.map(jnp.add, total, jax.value_and_grad(share)(params, part, part_key)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add_part, zeros, (split_batch(batch, parts), jax.random.split(key, parts)))[0]


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, schedule: optax.Schedule, config: Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step: state and batch to the next state and its metrics. The given state's memory is reused (donated).

    Metrics are device scalars: loss (mean over counted tokens, nats), tokens, grad_norm (before clipping), learning_rate.
    """

    def loss(params, batch, key):
        return loss_sum(model, params, batch, reset_at_document=config.data.reset_at_document, dropout_key=key)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        mean_loss, gradient = mean_loss_and_gradient(loss, state.params, batch, key, config.train.accumulation_steps)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": mean_loss,
            "tokens": count_tokens(batch.mask),
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step + 1),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(train_step, donate_argnums=0)
