"""A backbone between two linear maps: sequences of vectors in, sequences of vectors out."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.backbone import Backbone, BackboneState
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import Projection
from xlstm_jax.parallel import compute_dtype
from xlstm_jax.settings import refuse_ignored
from xlstm_jax.typing import Array, Float, SegmentIds

# Settings of the language model's input and head.
OF_TOKENS = (
    "vocab_size",
    "embedding_norm",
    "positions",
    "max_positions",
    "tie_embeddings",
    "logit_soft_cap",
)


class SequenceModel(nn.Module):
    """A model of real-valued input: time series, images row by row, features of tokens.

    Attributes:
        outputs: size of the output vectors.
        stacked: as in `Backbone`.

    Raises:
        UserError: the configuration has settings of tokens or logits, which this model lacks.
    """

    config: ModelConfig
    outputs: int
    stacked: bool = False

    def __post_init__(self):
        why = "this task's model reads and writes vectors, no tokens"
        refuse_ignored(self.config, "model", OF_TOKENS, why)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T X"],
        state: BackboneState | None = None,
        *,
        segments: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T Y"], BackboneState]:
        """float32 outputs, and the state after the last token; arguments as of `Backbone`."""
        config, init = self.config, small_init(self.config.dim)
        x = x.astype(compute_dtype(config.dtype))
        x = Projection(config.dim, ("features", "embed"), init, use_bias=True, name="input")(x)
        backbone = Backbone(config, self.stacked, name="backbone")
        y, state = backbone(x, state, segments=segments, train=train)
        head = Projection(self.outputs, ("embed", "features"), init, use_bias=True, name="head")
        y = head(y)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32)), state

    @nn.nowrap
    def init_state(
        self, batch_size: int, dtype: Any = None, cache_length: int | None = None
    ) -> BackboneState:
        """The empty state; see `Backbone.init_state`."""
        return Backbone(self.config, self.stacked).init_state(batch_size, dtype, cache_length)

    @nn.nowrap
    def flops(self, context_length: int, counting: Sequence[str] = ()) -> float:
        """Forward FLOPs per token: backbone and head. The input's projection, whose size only the
        data tell, counts as little as the language model's embedding.
        """
        head = 2 * self.config.dim * self.outputs
        return Backbone(self.config, self.stacked).flops(context_length, counting) + head
