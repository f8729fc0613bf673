"""The feed-forward layer, gated or not.

gated:      y = down(activation(gate x) * up x)
otherwise:  y = down(activation(up x))
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xlstm_jax.errors import UserError
from xlstm_jax.models.cpu_forms import silu
from xlstm_jax.models.initializers import small_init, wang_init
from xlstm_jax.models.layers import Projection, SplitProjection, round_up
from xlstm_jax.models.mixer import Depth, Mixer, Parts, Segments
from xlstm_jax.settings import refuse_ignored, setting
from xlstm_jax.typing import Activations

ACTIVATIONS = {
    "silu": silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Settings of the feed-forward layer; the defaults are those behind the paper's sLSTM."""

    activation: str = setting("gelu", "of the gate, or of the only branch", choices=(*ACTIVATIONS,))
    gated: bool = setting(True, "the activation is multiplied by a second projection")
    factor: float | None = setting(1.3, "hidden dimension / D; or give hidden", above=0)
    hidden: int | None = setting(None, "F, hidden dimension", at_least=1)
    round_to: int = setting(
        64, "the hidden dimension is rounded up to a multiple of it", at_least=1
    )
    whole_first: bool = setting(
        False, "factor x D is cut to a whole number before rounding up, as xLSTM 7B does"
    )
    bias: bool = setting(False, "both projections have a bias")

    def hidden_dim(self, dim: int) -> int:
        """F."""
        if self.hidden is not None:
            return self.hidden
        size = self.factor * dim
        return round_up(int(size) if self.whole_first else size, self.round_to)


class MLP(nn.Module):
    """The mixer; see the top of this file. It remembers nothing: its state is ()."""

    settings: MLPConfig
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(
        self, x: Activations, state: tuple[()] | None = None, segments: Segments | None = None
    ) -> tuple[Activations, tuple[()]]:
        settings, hidden = self.settings, self.settings.hidden_dim(self.dim)
        activation, init = ACTIVATIONS[settings.activation], small_init(self.dim)
        parts = 2 if settings.gated else 1
        up = SplitProjection(
            parts * hidden,
            ("embed", "ffn"),
            init,
            parts=parts,
            use_bias=settings.bias,
            name="up_projection",
        )(x)
        up = [checkpoint_name(part, "ffn") for part in up]
        y = activation(up[0])
        if settings.gated:
            y = y * up[1]
        down_init = wang_init(self.dim, self.depth.num_blocks)
        down = Projection(
            self.dim, ("ffn", "embed"), down_init, use_bias=settings.bias, name="down_projection"
        )
        return down(y), ()


def flops(settings: MLPConfig, dim: int, context_length: int) -> float:
    """The projections."""
    return (6 if settings.gated else 4) * dim * settings.hidden_dim(dim)


def flops_with_activation(settings: MLPConfig, dim: int, context_length: int) -> float:
    """And the activation, one for each hidden channel, with the product behind it if gated; arXiv
    2510.02228 counts so.
    """
    activation = (2 if settings.gated else 1) * settings.hidden_dim(dim)
    return flops(settings, dim, context_length) + activation


def check(settings: MLPConfig, dim: int, parts: Parts) -> None:
    """The hidden dimension is given once, and what computes it only where it is computed."""
    if (settings.hidden is None) == (settings.factor is None):
        raise UserError(
            f"config keys model.mlp.hidden {settings.hidden!r} and model.mlp.factor "
            f"{settings.factor!r}: give one of them and unset the other"
        )
    if settings.hidden is not None:
        why = f"model.mlp.hidden {settings.hidden} is not rounded"
        refuse_ignored(settings, "model.mlp", ("round_to", "whole_first"), why)


MIXER = Mixer(
    section=MLPConfig,
    module=MLP,
    flops=flops,
    check=check,
    cast=frozenset({"up_projection", "down_projection"}),
    countings={"activations": flops_with_activation},
)
