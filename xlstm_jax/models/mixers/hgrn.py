"""HGRN (arXiv 2311.04823) in its real-valued form: forget gates with a lower bound that grows with
the layers.

f = bound + (1 - bound) sigmoid(F x)          bound: see lower_bounds.py
h_t = f_t h_{t-1} + (1 - f_t) SiLU(I x_t)     per channel
y = out(norm(h) * SiLU(G x))                  root-mean-square norm over all channels
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.elementwise_scan import elementwise_recurrence
from pallas_kernels.elementwise_scan.chunks import BACKENDS
from xlstm_jax.errors import backend_of
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import HeadNorm, Projection
from xlstm_jax.models.lower_bounds import LowerBounds, bounded_forget_gate
from xlstm_jax.models.mixer import (
    ONE_DOCUMENT,
    Depth,
    Mixer,
    Parts,
    Segments,
    check_whole_time,
)
from xlstm_jax.parallel import constrain
from xlstm_jax.settings import setting
from xlstm_jax.typing import Activations, Array, Float

NAME = "hgrn"


@dataclasses.dataclass(frozen=True)
class HGRNConfig:
    """Settings of HGRN."""

    norm_eps: float = setting(1e-5, "added to the mean square in the norm of h", at_least=0)
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )
    chunk_size: int | None = setting(
        None, "L, tokens between two kept states; unset: the backend's", at_least=1, may_change=True
    )


class HGRN(nn.Module):
    """The mixer; see the top of this file. Its state is h."""

    settings: HGRNConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: Activations,
        state: Float[Array, "B D"] | None = None,
        segments: Segments | None = None,
        *,
        share: Float[Array, " D"],
    ) -> tuple[Activations, Float[Array, "B D"]]:
        settings, dim, segments = self.settings, self.dim, segments or ONE_DOCUMENT
        forget, i, g = (
            constrain(
                Projection(dim, ("embed", "inner"), small_init(dim), name=name)(x),
                *("batch", "time", "inner"),
            )
            for name in ("forget_gate", "input", "output_gate")
        )

        def coefficients(tokens: Any) -> tuple[Array, Array]:
            z, i = tokens
            _, closed = bounded_forget_gate(z, share)
            return 1 - closed, closed * silu(i)

        with backend_of(f"model.{NAME}.backend", settings.backend):
            h, state = elementwise_recurrence(
                coefficients,
                lambda h, tokens: h.astype(x.dtype),
                (forget, i),
                state,
                segment_ids=segments.ids,
                previous_segment=segments.previous,
                chunk_size=settings.chunk_size,
                # one token is always the decode step
                backend=settings.backend if x.shape[1] > 1 else None,
            )
        # all channels are one head
        norm = HeadNorm(settings.norm_eps, center=False, name="norm")
        y = constrain(norm(h[:, :, None]), "batch", "time", "inner") * silu(g)
        out_init = wang_init(dim, self.depth.num_blocks)
        return Projection(dim, ("inner", "embed"), out_init, name="out_projection")(y), state


def empty_state(
    settings: HGRNConfig, dim: int, batch_size: int, dtype: Any, cache_length: int | None
) -> Float[Array, "B D"]:
    """No memory."""
    return jnp.zeros((batch_size, dim), jnp.promote_types(dtype, jnp.float32))


def flops(settings: HGRNConfig, dim: int, context_length: int) -> float:
    """Projections; per channel 3 for the forget gate, 2 for the input, 2 for h and 2 for the output
    gate.
    """
    return 2 * 4 * dim * dim + (3 + 2 + 2 + 2) * dim


def check(settings: HGRNConfig, dim: int, parts: Parts) -> None:
    """The time can't be spread."""
    check_whole_time(NAME, parts)


MIXER = Mixer(
    section=HGRNConfig,
    module=HGRN,
    flops=flops,
    empty_state=empty_state,
    check=check,
    cast=frozenset({"forget_gate", "input", "output_gate", "out_projection"}),
    stack=LowerBounds,
)
