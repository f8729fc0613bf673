"""A backbone that tells the class of a whole sequence, of tokens or of vectors."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.backbone import Backbone, make_norm
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import Projection
from xlstm_jax.models.sequence_model import OF_TOKENS
from xlstm_jax.parallel import compute_dtype
from xlstm_jax.settings import refuse_ignored
from xlstm_jax.typing import Array, Float, Int

POOLINGS = ("mean", "last")
# Settings of the language model that no classifier has.
OF_LOGITS = ("positions", "max_positions", "tie_embeddings", "logit_soft_cap")


class Classifier(nn.Module):
    """The logits of classes, from the mean of the outputs of a sequence's tokens or the last one.

    Of pairs of sequences both go through the same stack, and of their two vectors a and b
    [a, b, a - b, a * b] through a layer with GELU (as S4 has for Retrieval).

    Attributes:
        classes: how many there are.
        tokens: whether the input has ids of tokens; otherwise vectors.
        pooling: one of POOLINGS. What lies behind a sequence's end is left out of both.
        pairs: whether the classes are of pairs.
        stacked: as in `Backbone`.

    Raises:
        UserError: the configuration has settings of a language model, which this model lacks.
    """

    config: ModelConfig
    classes: int
    tokens: bool
    pooling: str = "mean"
    pairs: bool = False
    stacked: bool = False

    def __post_init__(self):
        ignored = OF_LOGITS if self.tokens else OF_TOKENS
        why = "this task's model reads sequences and tells their class"
        refuse_ignored(self.config, "model", ignored, why)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Int[Array, "B T"] | Float[Array, "B T X"] | Int[Array, "B T 2"],
        lengths: Int[Array, " B"] | Int[Array, "B 2"],
        *,
        train: bool = False,
    ) -> Float[Array, "B C"]:
        """float32 logits; `lengths` are those of the sequences, at least 1."""
        init = small_init(self.config.dim)
        if self.pairs:
            rows, time, _ = x.shape
            x = jnp.swapaxes(x, 1, 2).reshape(2 * rows, time)
            both = self._vectors(x, lengths.reshape(-1), train).reshape(rows, 2, -1)
            a, b = both[:, 0], both[:, 1]
            y = jnp.concatenate([a, b, a - b, a * b], axis=-1)
            hidden = Projection(
                self.config.dim, ("features", "embed"), init, use_bias=True, name="compare"
            )
            y = nn.gelu(hidden(y))
        else:
            y = self._vectors(x, lengths, train)
        head = Projection(self.classes, ("embed", "features"), init, use_bias=True, name="head")
        return head(y)

    def _vectors(
        self, x: Int[Array, "B T"] | Float[Array, "B T X"], lengths: Int[Array, " B"], train: bool
    ) -> Float[Array, "B D"]:
        """What is remembered of each sequence."""
        config, init = self.config, small_init(self.config.dim)
        dtype = compute_dtype(config.dtype)
        if self.tokens:
            embed_init = nn.with_logical_partitioning(init, ("vocab", "embed"))
            embedding = nn.Embed(
                config.vocab_size, config.dim, embedding_init=embed_init, name="embedding"
            )
            x = embedding(x).astype(dtype)
            if config.embedding_norm:
                x = make_norm(config, "embedding_norm")(x)
        else:
            x = x.astype(dtype)
            x = Projection(config.dim, ("features", "embed"), init, use_bias=True, name="input")(x)
        y, _ = Backbone(config, self.stacked, name="backbone")(x, None, train=train)
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        places, ends = jnp.arange(y.shape[1]), lengths[:, None]
        if self.pooling == "mean":
            weights = (places < ends) / ends
        else:
            weights = (places == ends - 1).astype(y.dtype)
        return jnp.sum(y * weights[..., None], axis=1)

    @nn.nowrap
    def flops(self, context_length: int, counting: Sequence[str] = ()) -> float:
        """Forward FLOPs per token: the backbone; input and head count next to nothing."""
        return Backbone(self.config, self.stacked).flops(context_length, counting)
