"""One optimizer step, as a pure function. It knows no model by name: anything with the language
model's call will do.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import Config
from xlstm_jax.data.loader import Batch
from xlstm_jax.parallel import mesh_in_context, num_devices
from xlstm_jax.training.cross_entropy import projected_cross_entropy_sum, vocabulary_parts
from xlstm_jax.training.guard import accepts, after_step
from xlstm_jax.training.state import TrainState, abstract_state, shardings_of

Metrics = dict[str, Array]  # scalars on the device


def loss_sum(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    reset_at_document: bool,
    dropout_key: jax.Array | None = None,
) -> Float[Array, ""]:
    """The summed loss of one batch, nats; in training mode when a dropout key is given."""
    return loss_and_statistics(
        model, params, batch, reset_at_document=reset_at_document, dropout_key=dropout_key
    )[0]


def loss_and_statistics(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    reset_at_document: bool,
    dropout_key: jax.Array | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The same, and what the blocks note of themselves (flax's collection "statistics"): of each
    name the mean over the blocks.
    """
    training = dropout_key is not None
    (y, _), noted = model.apply(
        {"params": params},
        batch.tokens,
        segment_ids=batch.segment_ids if reset_at_document else None,
        train=training,
        rngs={"dropout": dropout_key} if training else None,
        method="hidden",
        mutable=["statistics"],
    )
    kernel = model.apply({"params": params}, method="head_kernel")
    parts = vocabulary_parts(batch.targets.size * kernel.shape[1], num_devices())
    return projected_cross_entropy_sum(
        model.logits, y, kernel, batch.targets, batch.mask, parts=parts
    ), mean_by_name(noted)


def mean_by_name(noted: Any) -> Metrics:
    """Of all arrays under one name, wherever they are in the tree, the mean over all entries."""
    by_name: dict[str, list[Array]] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(noted)[0]:
        by_name.setdefault(path[-1].key, []).append(value.ravel())
    return {name: jnp.mean(jnp.concatenate(values)) for name, values in by_name.items()}


def count_tokens(mask: Float[Array, "*shape"] | Bool[Array, "*shape"]) -> Int[Array, ""]:
    """How many targets count."""
    return jnp.sum(mask.astype(bool), dtype=jnp.int32)


def split_batch(batch: Batch, parts: int) -> Batch:
    """[B ...] -> [parts B/parts ...]; part i has rows i, i + parts, ..., so that each part stays
    spread over all devices.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def mean_loss_and_gradient(
    loss: Callable[[Any, Batch, jax.Array], tuple[Float[Array, ""], Any]],
    params: Any,
    batch: Batch,
    key: jax.Array,
    parts: int,
) -> tuple[tuple[Float[Array, ""], Any], Any]:
    """((mean loss over all counted tokens of the batch, statistics), gradient), computed in `parts`
    micro-batches.

    `loss(params, batch, key)` is (a sum over tokens, statistics, of which the mean over the parts
    is returned). Each part is divided by the tokens of the whole batch, not by its own: the result
    is that of the un-split batch however unevenly the mask falls. Sums are float32.
    """
    tokens = jnp.maximum(count_tokens(batch.mask), 1).astype(jnp.float32)

    def share(params, part, part_key):
        total, statistics = loss(params, part, part_key)
        return total / tokens, statistics

    gradient = jax.value_and_grad(share, has_aux=True)
    if parts == 1:
        return gradient(params, batch, key)

    def add_part(sums, inputs):
        part, part_key = inputs
        (part_loss, statistics), part_gradient = gradient(params, part, part_key)
        return jax.tree.map(jnp.add, sums, (part_loss, part_gradient)), statistics

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    sums, statistics = jax.lax.scan(
        add_part, zeros, (split_batch(batch, parts), jax.random.split(key, parts))
    )
    return (sums[0], jax.tree.map(jnp.mean, statistics)), sums[1]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Config,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step: state and batch to the next state and its metrics. The given state's memory
    is reused (donated).

    Metrics are device scalars: loss (mean over counted tokens, nats), tokens, grad_norm (before
    clipping), learning_rate (that the update has if it is applied), param_norm and update_norm
    (after and of it), skipped (steps so far whose update was not), skipped_in_a_row (of those, up
    to this step), and the blocks' statistics.
    """

    def loss(params, batch, key):
        return loss_and_statistics(
            model, params, batch, reset_at_document=config.data.reset_at_document, dropout_key=key
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        (mean_loss, statistics), gradient = mean_loss_and_gradient(
            loss, state.params, batch, key, config.train.accumulation_steps
        )
        grad_norm = optax.tree.norm(gradient)
        accepted = accepts(state.guard, mean_loss, grad_norm, config.train.spike_deviations)

        def update() -> tuple[Any, Any, Array]:
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state, optax.tree.norm(updates)

        def keep() -> tuple[Any, Any, Array]:
            return state.params, state.opt_state, jnp.zeros_like(grad_norm)

        params, opt_state, update_norm = jax.lax.cond(accepted, update, keep)
        guard = after_step(state.guard, accepted, mean_loss)
        metrics = {
            "loss": mean_loss,
            "tokens": count_tokens(batch.mask),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
            "update_norm": update_norm,
            "learning_rate": schedule(state.guard.accepted + 1),
            "skipped": guard.skipped,
            "skipped_in_a_row": guard.in_a_row,
            **statistics,
        }
        return TrainState(state.step + 1, params, opt_state, guard), metrics

    mesh = mesh_in_context()
    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    # Said and not left to the compiler: the next step takes the state as this one left it, and must
    # not be compiled again.
    shardings = shardings_of(abstract_state(model, optimizer, config.train, mesh))
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
