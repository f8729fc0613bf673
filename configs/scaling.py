"""isoFLOP series: the shapes that `python -m xlstm_jax.analysis.scaling plan` chooses from.

A variant is PRESET-MODEL-DxBLOCKS, as cpu-xlstm_1_0-64x4 or dclm-llama-1024x24.

    preset  tokens                               context  batch  models
    cpu     bytes of the standard library            256      8  xlstm_1_0, llama
    dclm    DCLM, GPT-NeoX ids (data/dclm-neox)     8192    128  xlstm_7b, llama

"dclm" has the shapes and peak learning rates of arXiv 2510.02228 (table of its repository: by
dimension, see RATES), warm-up 750, AdamW as in configs/xlstm_7b.py with a cosine to a tenth. "cpu"
goes below them, to models that two CPU cores train in minutes; where that table ends, at D 512, its
rate stays 3e-3. It has more blocks than a Transformer has of the same size, since a block of
xLSTM[1:0] has about half the parameters of a block with a feed-forward layer.

Tokens: as many as the plan's budget pays for; 1000 steps where nothing says so. Expected loss: what
the series is made to find out.

    python -m xlstm_jax.analysis.scaling plan --preset=cpu --flops=3e12,1e13,3e13 --output=DIR
    python train.py --config=configs/scaling.py:cpu-llama-64x2 --workdir=DIR
"""

import re

from xlstm_jax.errors import UserError

from . import base

VARIANT = re.compile(r"(cpu|dclm)-([a-z0-9_]+)-([1-9][0-9]{0,4})x([1-9][0-9]{0,2})")
LABELS = {"xlstm_1_0": "xLSTM[1:0]", "xlstm_7b": "xLSTM", "llama": "Llama"}
MODELS = {"cpu": ("xlstm_1_0", "llama"), "dclm": ("xlstm_7b", "llama")}
# D up to which a peak learning rate holds
RATES = {
    "xlstm_1_0": ((1024, 3e-3),),
    "xlstm_7b": (
        (1024, 3e-3), (1408, 2e-3), (1536, 1e-3), (1792, 9e-4), (2304, 8e-4), (2560, 7e-4),
        (4096, 5e-4),
    ),
    "llama": ((1024, 3e-3), (1792, 1e-3), (2304, 8e-4), (2560, 7e-4), (4096, 5e-4)),
}  # fmt: skip
# D -> blocks
CPU_BLOCKS = {
    "xlstm_1_0": {
        32: (2, 4, 6), 64: (2, 3, 4, 6), 96: (4, 6, 8), 128: (6, 8, 10), 160: (8, 10),
        192: (8, 10, 12), 256: (8, 10, 12),
    },
    "llama": {
        32: (1, 2), 48: (1, 2, 3), 64: (2, 3), 96: (2, 3, 4), 128: (3, 4, 5), 160: (4, 5),
        192: (4, 5, 6), 256: (4, 5, 6),
    },
}  # fmt: skip
# D -> blocks, of both families
DCLM_BLOCKS = {
    512: (10, 12, 14, 16), 640: (10, 13, 16), 768: (12, 15, 18), 896: (12, 15, 18, 21, 24),
    1024: (18, 21, 24, 27, 30), 1152: (24, 27, 30), 1280: (24, 27, 30), 1408: (24, 27, 30),
    1536: (24, 27, 30), 1792: (24, 27, 30), 2048: (24, 27, 30), 2304: (24, 27, 30, 33),
    2560: (32, 35, 38), 4096: (32, 38),
}  # fmt: skip
# of the xLSTM's heads, where they are not of 128 channels
XLSTM_HEADS = {512: 4, 640: 5, 768: 6, 896: 7, 1152: 9, 1408: 11}


def get_config(variant: str = "cpu-xlstm_1_0-64x4"):
    match = VARIANT.fullmatch(variant)
    if match is None or match[2] not in MODELS[match[1]]:
        known = ", ".join(f"{preset}-{model}" for preset in MODELS for model in MODELS[preset])
        raise UserError(
            f"config variant {variant!r} does not exist: it is PRESET-MODEL-DxBLOCKS, for example "
            f"cpu-llama-64x2; there are {known}"
        )
    preset, model, dim, num_blocks = match[1], match[2], int(match[3]), int(match[4])
    config = _cpu() if preset == "cpu" else _dclm()
    config.model.dim, config.model.num_blocks = dim, num_blocks
    config.optimizer.learning_rate = _rate(variant, model, dim)
    if model == "xlstm_1_0":
        config.model.blocks = "mlstm"
        return config
    config.model.norm = "rms"
    config.model.mlp.activation = "silu"
    config.model.mlp.factor = 8 / 3
    if model == "xlstm_7b":
        config.model.blocks = "mlstm_7b+mlp"
        config.model.norm_eps = 1e-6
        config.model.logit_soft_cap = 30.0
        config.model.mlp.factor = 2.667
        config.model.mlp.whole_first = True
        config.model.mlstm_7b.num_heads = XLSTM_HEADS.get(dim, max(1, dim // 256))
    else:
        config.model.blocks = "attention+mlp"
        width = 32 if preset == "cpu" else 64 if dim <= 1024 else 128
        config.model.attention.num_heads = max(1, dim // width)
    if preset == "cpu":
        config.model.mlp.round_to = 16
    return config


def get_series(preset: str) -> dict[str, list[str]]:
    """The variants that a plan chooses from, by family."""
    if preset not in MODELS:
        raise UserError(f"--preset is {preset!r}; it must be one of {', '.join(MODELS)}")
    return {
        LABELS[model]: [
            f"{preset}-{model}-{dim}x{number}"
            for dim, blocks in (CPU_BLOCKS[model] if preset == "cpu" else DCLM_BLOCKS).items()
            for number in blocks
        ]
        for model in MODELS[preset]
    }


def _rate(variant: str, model: str, dim: int) -> float:
    for most, rate in RATES[model]:
        if dim <= most:
            return rate
    raise UserError(
        f"config variant {variant!r} has D {dim}, for which no peak learning rate is published; "
        f"the largest is {RATES[model][-1][0]}"
    )


def _cpu():
    config = base.get_config()
    config.data.context_length = 256
    config.data.batch_size = 8
    config.optimizer.eps = 1e-8
    config.optimizer.warmup_steps = 50
    config.log.every = 50
    config.log.tensorboard = False
    config.eval.every = 1000
    config.eval.max_tokens = 200_000
    config.eval.sample_tokens = 0
    config.checkpoint.every = 500
    return config


def _dclm():
    config = base.get_config()
    config.model.vocab_size = 50304
    config.model.remat = "block"
    config.data.path = "data/dclm-neox"
    config.data.tokenizer = "data/dclm-neox/tokenizer.json"
    config.data.context_length = 8192
    config.data.batch_size = 128
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 0.5
    config.optimizer.warmup_steps = 750
    config.log.every = 50
    config.eval.every = 1000
    config.eval.max_tokens = 10_000_000
    config.checkpoint.every = 1000
    return config
