"""Array types of the models: the kernels' notation and the models' own dimensions.

B batch, T time, H heads, K query/key dim per head, V value dim per head, L chunk length,
N number of chunks: the kernels' names.
D model dim, F feed-forward dim, I inner dim of the paper's mLSTM block, W taps of the causal
convolution, E vocabulary: the models' own.
"""

import jax
from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B T D"]
HeadActivations = Float[Array, "B T H V"]
Tokens = Int[Array, "B T"]
SegmentIds = Int[Array, "B T"]  # changes where a new document begins; negative: padding
Logits = Float[Array, "B T E"]
PRNGKey = jax.Array

__all__ = [
    "Activations",
    "Array",
    "Bool",
    "Float",
    "HeadActivations",
    "Int",
    "Logits",
    "PRNGKey",
    "SegmentIds",
    "Tokens",
]
