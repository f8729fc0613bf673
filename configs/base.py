"""Every key with its default, and the recipe that the paper's SlimPajama runs share.
`xlstm_jax/config.py` says what each key means.
"""

from ml_collections import ConfigDict

from xlstm_jax.config import default_config_dict
from xlstm_jax.errors import UserError


def get_config() -> ConfigDict:
    """The defaults: a small xLSTM[1:0] on the embedded corpus."""
    return default_config_dict()


def slimpajama(
    variant: str,
    *,
    dim: int,
    num_blocks: int,
    slstm_positions: tuple[int, ...],
    peaks: dict[str, float],
    batch_size: int = 256,
) -> ConfigDict:
    """A run of the paper (2405.04517, sections 4.2 and 4.3, appendix B.2 and B.3, table 7).

    Args:
        variant: "KIND-TOKENS": "1_0" (xLSTM[1:0]) or "7_1" (sLSTM blocks at `slstm_positions`), and
            a key of `peaks`.
        peaks: peak learning rate of the "15b" and the "300b" run, where there is one.
        batch_size: of the 300B run, which has as many steps as 314.6B tokens give; the 15B runs
            have 256.

    Raises:
        UserError: there is no such variant.
    """
    known = [f"{kind}-{tokens}" for tokens in peaks for kind in ("1_0", "7_1")]
    if variant not in known:
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(known)}"
        )
    kind, tokens = variant.split("-")

    config = get_config()
    # GPT-2 has 50,257 ids. With rows up to a multiple of 64 the parameter counts are the paper's.
    config.model.vocab_size = 50304
    config.model.dim = dim
    config.model.num_blocks = num_blocks
    config.model.remat = "block"
    if kind == "7_1":
        config.model.slstm_positions = slstm_positions
        config.model.recurrent_gradient_clip = 10.0  # appendix A.2

    config.data.path = "data/slimpajama-gpt2"
    config.data.tokenizer = "data/slimpajama-gpt2/tokenizer.json"
    config.data.context_length = 2048
    config.data.batch_size = 256 if tokens == "15b" else batch_size

    config.optimizer.learning_rate = peaks[tokens]
    if tokens == "15b":
        # One epoch of 14.77B tokens, here the first ones of the prepared folder. The paper's
        # schedule is of 30k steps; the run ends before it does.
        config.train.steps = 28_170
        config.data.max_tokens = 28_170 * 256 * 2048
        config.optimizer.decay_steps = 30_000
    else:
        config.train.steps = 600_000 * 256 // batch_size

    config.log.every = 50
    config.eval.every = 5_000
    config.eval.context_length = 2048
    config.eval.max_tokens = 10_000_000
    config.checkpoint.every = 5_000
    return config
