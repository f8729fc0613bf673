"""Embedding, backbone and vocabulary projection."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pallas_kernels.derivatives import with_backward
from xlstm_jax.models.backbone import Backbone, BackboneState, make_norm, segments_of
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import Kernel, project, soft_cap
from xlstm_jax.parallel import compute_dtype, constrain, gathered
from xlstm_jax.typing import Activations, Array, Float, Int, Logits, SegmentIds, Tokens


def _take(
    static: tuple[jnp.dtype, str], table: Float[Array, "E D"], index: Int[Array, "B T"]
) -> Activations:
    dtype, axis = static
    return jnp.take(gathered(table.astype(dtype), axis, "embed"), index, axis=0, mode="fill")


def _take_backward(static, residuals, d_rows):
    """Summed up in float32 or better: a frequent token has thousands of rows, and in bfloat16 a sum
    stands still as soon as it is 256 times what is added. Then in the dtype of the rows, which is
    what devices send to each other.
    """
    (dtype, axis), (table, index) = static, residuals
    wide = jnp.promote_types(dtype, jnp.float32)
    take = functools.partial(jnp.take, indices=index, axis=0, mode="fill")
    (sums,) = jax.linear_transpose(take, table.astype(wide))(d_rows.astype(wide))
    return gathered(sums.astype(dtype), axis, "embed").astype(table.dtype), None


def _take_push(static, residuals, tangents):
    index = residuals[1]
    return jax.jvp(lambda table: _take(static, table, index), residuals[:1], tangents[:1])[1]


_rows = with_backward(
    _take,
    lambda static, table, index: (_take(static, table, index), (table, index)),
    _take_backward,
    _take_push,
)


def rows_of(
    table: Float[Array, "E D"], index: Int[Array, "B T"], dtype: jnp.dtype, axis: str
) -> Activations:
    """Rows of a table in a dtype, NaN for an index beyond its end; their gradients are summed up in
    float32 or better.

    Args:
        axis: the logical axis of the table's rows.
    """
    return _rows((dtype, axis), table, index)


class LanguageModel(nn.Module):
    """Next-token logits from tokens. `stacked` as in `Backbone`."""

    config: ModelConfig
    stacked: bool = False

    def setup(self):
        config, init = self.config, small_init(self.config.dim)
        self.embedding = nn.Embed(
            config.vocab_size,
            config.dim,
            embedding_init=nn.with_logical_partitioning(init, ("vocab", "embed")),
        )
        if config.positions == "learned":
            self.position_embedding = nn.Embed(
                config.max_positions,
                config.dim,
                embedding_init=nn.with_logical_partitioning(init, ("positions", "embed")),
            )
        if config.embedding_norm:
            self.embedding_norm = make_norm(config, None)
        self.backbone = Backbone(config, self.stacked)
        if not config.tie_embeddings:
            self.lm_head = Kernel(config.vocab_size, ("embed", "vocab"), init)

    def __call__(
        self,
        tokens: Tokens,
        state: BackboneState | None = None,
        *,
        segments: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Logits, BackboneState]:
        """float32 logits of the token after each one, and the state after the last; arguments as of
        `Backbone`.
        """
        y, state = self.hidden(tokens, state, segments=segments, train=train)
        return self.head(y), state

    def hidden(
        self,
        tokens: Tokens,
        state: BackboneState | None = None,
        *,
        segments: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Activations, BackboneState]:
        """The backbone's output, so that a loss need not hold all logits at once."""
        found = segments_of(segments, state, tokens.shape)
        x = self._rows(self.embedding, tokens, "vocab")
        if self.config.positions == "learned":
            x = x + self._rows(self.position_embedding, found.positions, "positions")
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        return self.backbone(x, state, segments=found, train=train)

    def _rows(self, embedding: nn.Embed, index: Int[Array, "B T"], axis: str) -> Activations:
        """Rows of a table in the compute dtype; NaN for an index beyond its end."""
        rows = rows_of(embedding.embedding, index, compute_dtype(self.config.dtype), axis)
        return constrain(rows, "batch", "time", "channels")

    def head(self, y: Activations) -> Logits:
        """The vocabulary projection, in float32 after the product."""
        return self.logits(y, self.head_kernel())

    def head_kernel(self) -> Float[Array, "D E"]:
        """The kernel of the vocabulary projection, so that a loss can make the logits of some
        tokens at a time.
        """
        if self.config.tie_embeddings:
            return self.embedding.embedding.T
        return self.lm_head(self.config.dim)

    @nn.nowrap
    def logits(self, y: Activations, kernel: Float[Array, "D E"]) -> Logits:
        """The logits that some columns of the kernel give; no parameters are read."""
        dtype = compute_dtype(self.config.dtype)
        logits = project(y.astype(dtype), gathered(kernel.astype(dtype), "embed", "vocab"))
        logits = constrain(logits, "batch", "time", "vocab")
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return soft_cap(logits, self.config.logit_soft_cap)

    @nn.nowrap
    def init_state(
        self, batch_size: int, dtype: Any = None, cache_length: int | None = None
    ) -> BackboneState:
        """The empty state, a function of the configuration alone; see `Backbone.init_state`."""
        return Backbone(self.config, self.stacked).init_state(batch_size, dtype, cache_length)

    @nn.nowrap
    def flops(self, context_length: int, counting: Sequence[str] = ()) -> float:
        """Forward FLOPs per token: backbone and vocabulary projection."""
        head = 2 * self.config.dim * self.config.vocab_size
        return Backbone(self.config, self.stacked).flops(context_length, counting) + head


def build_model(config: ModelConfig, *, stacked: bool = False) -> LanguageModel:
    """The language model of a configuration."""
    return LanguageModel(config, stacked)
