"""Embedding, backbone and vocabulary projection."""

import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.config import ModelConfig
from xlstm_jax.models.backbone import Backbone, BackboneState, init_backbone_state
from xlstm_jax.models.initializers import small_init
from xlstm_jax.models.layers import Kernel, project, soft_cap
from xlstm_jax.parallel import compute_dtype, constrain, gathered
from xlstm_jax.typing import Activations, Array, Float, Logits, SegmentIds, Tokens


class LanguageModel(nn.Module):
    """Next-token logits from tokens; no positional encoding. `apart` as in `Backbone`."""

    config: ModelConfig
    apart: bool = False

    def setup(self):
        init = small_init(self.config.dim)
        self.embedding = nn.Embed(
            self.config.vocab_size,
            self.config.dim,
            embedding_init=nn.with_logical_partitioning(init, ("vocab", "embed")),
        )
        self.backbone = Backbone(self.config, self.apart)
        if not self.config.tie_embeddings:
            self.lm_head = Kernel(self.config.vocab_size, ("embed", "vocab"), init)

    def __call__(
        self,
        tokens: Tokens,
        state: BackboneState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Logits, BackboneState]:
        """float32 logits of the token after each one, and the state after the last; arguments as of
        `Backbone`.
        """
        y, state = self.hidden(tokens, state, segment_ids=segment_ids, train=train)
        return self.head(y), state

    def hidden(
        self,
        tokens: Tokens,
        state: BackboneState | None = None,
        *,
        segment_ids: SegmentIds | None = None,
        train: bool = False,
    ) -> tuple[Activations, BackboneState]:
        """The backbone's output, so that a loss need not hold all logits at once."""
        table = gathered(
            self.embedding.embedding.astype(compute_dtype(self.config.dtype)), "vocab", "embed"
        )
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "time", "channels")
        return self.backbone(x, state, segment_ids=segment_ids, train=train)

    def head(self, y: Activations) -> Logits:
        """The vocabulary projection, in float32 after the product."""
        return self.logits(y, self.head_kernel())

    def head_kernel(self) -> Float[Array, "D E"]:
        """The kernel of the vocabulary projection, so that a loss can take the vocabulary in parts."""
        return (
            self.embedding.embedding.T
            if self.config.tie_embeddings
            else self.lm_head(self.config.dim)
        )

    @nn.nowrap
    def logits(self, y: Activations, kernel: Float[Array, "D E"]) -> Logits:
        """The logits that some columns of the kernel give; no parameters are read."""
        dtype = compute_dtype(self.config.dtype)
        logits = constrain(
            project(y.astype(dtype), gathered(kernel.astype(dtype), "embed", "vocab")),
            "batch",
            "time",
            "vocab",
        )
        return soft_cap(
            logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), self.config.logit_soft_cap
        )

    @nn.nowrap
    def init_state(self, batch_size: int, dtype=jnp.float32) -> BackboneState:
        """The empty state, a function of the configuration alone. `dtype` is that of the
        convolutions' windows.
        """
        return init_backbone_state(self.config, batch_size, dtype, self.apart)


def build_model(config: ModelConfig) -> LanguageModel:
    """The language model of a configuration."""
    return LanguageModel(config)
