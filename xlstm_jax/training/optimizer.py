"""AdamW as in the paper (appendix B.2) and its learning-rate schedules.

Steps count from 1 here, as everywhere in logs and checkpoints: step n is the n-th update.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xlstm_jax.config import OptimizerConfig
from xlstm_jax.errors import UserError

RESTARTS = 3  # of the xLSTM paper's second schedule for the Long Range Arena


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of step 1, 2, ..., `steps`: linear warm-up, decay, linear cool-down to 0.

    The warm-up reaches the peak at step `warmup_steps`, the decay `final_fraction` of it at
    `decay_steps`. After that "cosine" stays there; "restarts" has come to it four times by then,
    and begins anew at the peak after the first three (SGDR, 1608.03983; without a warm-up of their
    own); "exponential" goes on falling at the same rate, as for xLSTM 7B (0.1 at 500k, 0.08 where
    the cool-down starts).

    Raises:
        UserError: the decay ends before the warm-up, or an exponential decay is to reach 0.
    """
    warmup, cooldown, fraction = config.warmup_steps, config.cooldown_steps, config.final_fraction
    decay_end = steps - cooldown if config.decay_steps is None else config.decay_steps
    if decay_end < warmup:
        raise UserError(
            f"config key optimizer.decay_steps is {decay_end}, before the end of the warm-up at "
            f"optimizer.warmup_steps {warmup}; "
            "use a later step"
        )
    if config.schedule == "exponential" and fraction == 0:
        raise UserError(
            "config key optimizer.final_fraction is 0.0, which an exponential decay never reaches; "
            "use e.g. 0.1"
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        decayed_until = jnp.minimum(step, steps - cooldown)
        progress = jnp.maximum(decayed_until - warmup, 0.0) / max(decay_end - warmup, 1)
        rate = config.learning_rate * _decay(config.schedule, progress, fraction)
        if warmup:
            rate = rate * jnp.minimum(step / warmup, 1.0)
        if cooldown:
            rate = rate * jnp.clip((steps - step) / cooldown, 0.0, 1.0)
        return rate

    return schedule


def _decay(name: str, progress: jax.Array, fraction: float) -> jax.Array:
    if name == "cosine":
        return fraction + (1.0 - fraction) * 0.5 * (
            1.0 + jnp.cos(jnp.pi * jnp.minimum(progress, 1.0))
        )
    if name == "restarts":
        part = (RESTARTS + 1) * jnp.minimum(progress, 1.0)
        return _decay("cosine", jnp.where(progress < 1.0, part % 1.0, 1.0), fraction)
    if name == "exponential":
        return jnp.power(fraction, progress)
    return jnp.ones_like(progress)  # "constant"


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: those named "kernel".

    Biases, norm scales, the embedding and the sLSTM's recurrent kernel (named "recurrent_kernel")
    are left alone.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with decoupled weight decay under `decay_mask`."""
    adamw = optax.adamw(
        lambda count: schedule(count + 1),  # optax counts the updates already done
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
