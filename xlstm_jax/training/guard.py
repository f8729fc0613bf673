"""Decides, on the device, whether a step's update is applied: not after a loss or gradient that
isn't finite, nor after a spike.

A refused step leaves parameters, optimizer and window as they were, by selection (`lax.cond`) and
not by multiplication with 0, which would keep a NaN. Nothing of a refused loss enters the window.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LEAST_DEVIATION = 0.01  # nats: losses that hardly differ are no reason to call the next one a spike


class GuardState(NamedTuple):
    """What the guard remembers.

    Attributes:
        losses: the last W accepted losses, as a ring: the n-th one is at n modulo W.
        accepted: steps whose update was applied.
        skipped: steps whose update was not.
        in_a_row: of those, the ones since the last that was.
    """

    losses: Float[Array, " W"]
    accepted: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]


def init_guard(window: int) -> GuardState:
    """Before the first step."""
    accepted, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return GuardState(jnp.zeros(window, jnp.float32), accepted, skipped, in_a_row)


def accepts(
    guard: GuardState,
    loss: Float[Array, ""],
    grad_norm: Float[Array, ""],
    spike_deviations: float | None,
) -> Bool[Array, ""]:
    """Whether the update is to be applied.

    A spike is a loss more than `spike_deviations` standard deviations above the mean of a full
    window; None: there are none.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spike_deviations is None:
        return good
    deviation = jnp.maximum(jnp.std(guard.losses), LEAST_DEVIATION)
    spike = (guard.accepted >= guard.losses.size) & (
        loss > jnp.mean(guard.losses) + spike_deviations * deviation
    )
    return good & ~spike


def after_step(guard: GuardState, accepted: Bool[Array, ""], loss: Float[Array, ""]) -> GuardState:
    """The guard's state after a step."""
    place = guard.accepted % guard.losses.size
    losses = guard.losses.at[place].set(jnp.where(accepted, loss, guard.losses[place]))
    refused = (~accepted).astype(jnp.int32)
    return GuardState(
        losses,
        guard.accepted + 1 - refused,
        guard.skipped + refused,
        (guard.in_a_row + 1) * refused,
    )
