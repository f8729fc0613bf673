"""Every key with its default, and the recipe that the paper's SlimPajama runs share.
`python train.py --help` says what each key means.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from xlstm_jax.config import default_config_dict
from xlstm_jax.errors import UserError


def get_config() -> ConfigDict:
    """The defaults: a small xLSTM[1:0] on the embedded corpus."""
    return default_config_dict()


def split_variant(variant: str, peaks: Mapping[str, Sequence[float | None]]) -> tuple[str, str]:
    """The two parts of a variant "NAME-TOKENS", where TOKENS is "15b" or "300b".

    Args:
        peaks: by name the peak learning rates of the 15B and the 300B run; None where there is no
            such run.

    Raises:
        UserError: there is no such variant.
    """
    known = [
        f"{name}-{tokens}"
        for number, tokens in enumerate(("15b", "300b"))
        for name, rates in peaks.items()
        if rates[number] is not None
    ]
    if variant not in known:
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(known)}"
        )
    name, _, tokens = variant.rpartition("-")
    return name, tokens


def slimpajama_run(tokens: str, peak: float, batch_size: int = 256) -> ConfigDict:
    """Data, length and schedule of a run of the paper (2405.04517, sections 4.2 and 4.3, appendix
    B.2 and B.3, table 7); the model is left to be filled in.

    Args:
        tokens: "15b" or "300b".
        peak: learning rate.
        batch_size: of the 300B run, which has as many steps as 314.6B tokens give; the 15B runs
            have 256.
    """
    config = get_config()
    # GPT-2 has 50,257 ids. With rows up to a multiple of 64 the parameter counts are the paper's.
    config.model.vocab_size = 50304
    config.model.remat = "auto"

    config.data.path = "data/slimpajama-gpt2"
    config.data.tokenizer = "data/slimpajama-gpt2/tokenizer.json"
    config.data.context_length = 2048
    config.data.batch_size = 256 if tokens == "15b" else batch_size

    config.optimizer.learning_rate = peak
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


class Size(NamedTuple):
    """A row of table 7: D, blocks, and the peak learning rates of the 15B and the 300B run (None:
    there is no such run).
    """

    dim: int
    num_blocks: int
    peak_15b: float
    peak_300b: float | None = None


# Of the models that the paper trains at every size on 15B tokens alone: HGRN2, RWKV-5, RWKV-6.
SIZES_OF_15B = {
    "125m": Size(768, 12, 3e-3),
    "350m": Size(1024, 24, 1e-3),
    "760m": Size(1536, 24, 9e-4),
    "1.3b": Size(2048, 24, 9e-4),
    "2.7b": Size(2560, 32, 8e-4),
}
ONLY_350M = {"350m": SIZES_OF_15B["350m"]}


def baseline(variant: str, sizes: Mapping[str, Size], blocks: str) -> ConfigDict:
    """A SlimPajama run of a model that the paper compares with; its mixers' settings are left to
    be filled in.

    Args:
        variant: "SIZE-TOKENS", as 350m-15b.
        blocks: `model.blocks`.

    Raises:
        UserError: there is no such variant.
    """
    size, tokens = split_variant(variant, {name: row[2:] for name, row in sizes.items()})
    row = sizes[size]
    config = slimpajama_run(
        tokens,
        row.peak_15b if tokens == "15b" else row.peak_300b,
        batch_size=512 if size == "1.3b" else 256,
    )
    config.model.dim = row.dim
    config.model.num_blocks = row.num_blocks
    config.model.blocks = blocks
    return config


def xlstm(
    variant: str,
    *,
    dim: int,
    num_blocks: int,
    slstm_positions: tuple[int, ...],
    peaks: tuple[float, float | None],
    batch_size: int = 256,
) -> ConfigDict:
    """A SlimPajama run of an xLSTM.

    Args:
        variant: "KIND-TOKENS" with KIND "1_0" (xLSTM[1:0]) or "7_1" (sLSTM blocks at
            `slstm_positions`).
        peaks: peak learning rates of the 15B and the 300B run.
        batch_size: of the 300B run.
    """
    kind, tokens = split_variant(variant, dict.fromkeys(("1_0", "7_1"), peaks))
    config = slimpajama_run(tokens, peaks[tokens == "300b"], batch_size)
    config.model.dim = dim
    config.model.num_blocks = num_blocks
    if kind == "7_1":
        config.model.blocks = with_slstm(num_blocks, slstm_positions)
        config.model.slstm.recurrent_gradient_clip = 10.0  # appendix A.2
    return config


def with_slstm(num_blocks: int, positions: tuple[int, ...]) -> str:
    """`model.blocks` with mLSTM blocks, but for sLSTM blocks at these 0-based positions."""
    blocks = ["slstm+mlp" if number in positions else "mlstm" for number in range(num_blocks)]
    return ",".join(f"{len(list(run))}*{block}" for block, run in itertools.groupby(blocks))
