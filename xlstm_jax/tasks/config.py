"""The section `eval`: how often and on how much of the held-out data a model is evaluated."""

import dataclasses

from xlstm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the held-out data."""

    every: int = setting(1000, "steps between evaluations; the last step is always one", at_least=1)
    batch_size: int = setting(8, "samples of a batch", at_least=1)
    context_length: int | None = setting(
        None, "tokens per window; unset: that of training", at_least=1
    )
    max_tokens: int | None = setting(None, "evaluate the first tokens only", at_least=1)
    sample_tokens: int = setting(300, "length of the text written at the end; 0: none", at_least=0)
