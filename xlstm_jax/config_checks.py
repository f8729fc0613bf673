"""What a configuration must fulfil before any device work starts. Each failure names the key, its
value and what would be right.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing

from xlstm_jax.errors import UserError
from xlstm_jax.paths import refuse_address

if typing.TYPE_CHECKING:
    from xlstm_jax.config import Config, ModelConfig

CHOICES = {
    "model.block": ("paper", "7b"),
    "model.input_gate": ("exponential", "sigmoid"),
    "model.slstm_recurrent_init": ("zeros", "uniform"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16", "float64"),
    "model.remat": ("none", "block", "dots"),
    "optimizer.schedule": ("cosine", "exponential", "constant"),
}

AT_LEAST = {
    "model.vocab_size": 1,
    "model.dim": 1,
    "model.num_blocks": 1,
    "model.num_heads": 1,
    "model.conv_width": 0,
    "model.qkv_block_size": 1,
    "model.chunk_size": 1,
    "model.norm_eps": 0.0,
    "model.cell_eps": 0.0,
    "model.input_gate_bias_std": 0.0,
    "data.context_length": 1,
    "data.batch_size": 1,
    "data.max_tokens": 1,
    "data.holdout_every": 2,
    "data.seed": 0,
    "data.workers": 0,
    "optimizer.learning_rate": 0.0,
    "optimizer.warmup_steps": 0,
    "optimizer.cooldown_steps": 0,
    "optimizer.eps": 0.0,
    "optimizer.weight_decay": 0.0,
    "train.steps": 1,
    "train.seed": 0,
    "train.accumulation_steps": 1,
    "train.spike_window": 2,
    "train.max_skipped": 1,
    "train.watchdog_seconds": 1,
    "train.heartbeat_seconds": 1,
    "train.grace_seconds": 1,
    "checkpoint.every": 1,
    "checkpoint.keep_latest": 1,
    "checkpoint.keep_best": 0,
    "checkpoint.keep_every": 1,
    "log.every": 1,
    "eval.every": 1,
    "eval.batch_size": 1,
    "eval.context_length": 1,
    "eval.max_tokens": 1,
    "eval.sample_tokens": 0,
}

AT_MOST = {
    # a seed has 32 bits: 4294967296 would draw what 0 draws
    "data.seed": 2**32 - 1,
    "train.seed": 2**32 - 1,
    "train.steps": 2**31 - 1,  # counted in int32 on the device
}

ABOVE_ZERO = (
    "model.up_factor",
    "model.qk_factor",
    "model.ffn_factor",
    "model.gate_soft_cap",
    "model.logit_soft_cap",
    "model.recurrent_gradient_clip",
    "optimizer.clip_norm",
    "optimizer.decay_steps",
    "train.spike_deviations",
)

# Keys that hold a path, or several with commas between, each perhaps with "name=" before it.
PATHS = (
    "data.path",
    "data.validation_path",
    "data.validation_sets",
    "data.tokenizer",
    "checkpoint.init_from",
)

# Bounds. No bound and an infinite one are the same, so that "inf" unsets these.
UNBOUNDED_AT_INFINITY = (
    "model.gate_soft_cap",
    "model.logit_soft_cap",
    "model.recurrent_gradient_clip",
    "optimizer.clip_norm",
    "train.spike_deviations",
)

FRACTIONS = ("model.dropout", "optimizer.final_fraction", "optimizer.beta1", "optimizer.beta2")
# at 1 nothing is left to learn from
BELOW_ONE = ("model.dropout", "optimizer.beta1", "optimizer.beta2")

# The model keys that only some blocks read; elsewhere a value other than the default is refused
# instead of ignored.
USED_BY = {
    "up_factor": ("mlstm",),
    "qkv_block_size": ("mlstm",),
    "conv_width": ("mlstm", "slstm"),
    "qk_factor": ("mlstm_7b",),
    "ffn_factor": ("slstm", "mlstm_7b"),
    "input_gate": ("mlstm", "mlstm_7b"),
    "input_gate_bias": ("mlstm", "mlstm_7b"),
    "input_gate_bias_std": ("mlstm", "mlstm_7b"),
    "forget_gate_bias": ("mlstm", "mlstm_7b"),
    "gate_soft_cap": ("mlstm", "mlstm_7b"),
    "cell_eps": ("mlstm", "mlstm_7b"),
    "mlstm_backend": ("mlstm", "mlstm_7b"),
    "chunk_size": ("mlstm", "mlstm_7b"),
    "slstm_recurrent_init": ("slstm",),
    "slstm_backend": ("slstm",),
    "recurrent_gradient_clip": ("slstm",),
}


def parse_ratio(ratio: str) -> tuple[int, int]:
    """The numbers of "a:b"; raises `UserError` for anything else."""
    a, _, b = ratio.partition(":")
    if not re.fullmatch("[0-9]{1,9}:[0-9]{1,9}", ratio) or int(a) + int(b) == 0:
        raise UserError(
            f'config key model.ratio is {ratio!r}; it must be "a:b" like "7:1", a mLSTM blocks to '
            f"b sLSTM blocks"
        )
    return int(a), int(b)


def check(config: Config) -> None:
    """Raises `UserError` at the first thing that is wrong."""
    _check_single_values(config)
    _check_backends(config.model)
    _check_blocks(config.model)
    _check_dimensions(config.model)
    _check_training(config)
    _check_mesh(config)


def _value(config: Config, key: str):
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _check_single_values(config: Config) -> None:
    for section in dataclasses.fields(config):
        for key, value in vars(getattr(config, section.name)).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(
                    f"config key {section.name}.{key} is {value!r}; it must be a finite number"
                )
    for key in PATHS:
        for path in (_value(config, key) or "").split(","):
            refuse_address(f"config key {key}", path.rpartition("=")[2])
    for key, choices in CHOICES.items():
        if (value := _value(config, key)) not in choices:
            raise UserError(
                f"config key {key} is {value!r}; it must be one of {', '.join(map(repr, choices))}"
            )
    for key, least in AT_LEAST.items():
        if (value := _value(config, key)) is not None and not value >= least:
            raise UserError(f"config key {key} is {value!r}; it must be at least {least}")
    for key, most in AT_MOST.items():
        if (value := _value(config, key)) > most:
            raise UserError(f"config key {key} is {value!r}; it must be at most {most}")
    for key in ABOVE_ZERO:
        if (value := _value(config, key)) is not None and not value > 0:
            raise UserError(f"config key {key} is {value!r}; it must be above 0")
    for key in FRACTIONS:
        if not 0 <= (value := _value(config, key)) <= 1:
            raise UserError(f"config key {key} is {value!r}; it must lie between 0 and 1")
    for key in BELOW_ONE:
        if not (value := _value(config, key)) < 1:
            raise UserError(f"config key {key} is {value!r}; it must be below 1")
    _check_float64(config.model)
    if len(bias := config.model.forget_gate_bias) != 2:
        raise UserError(
            f"config key model.forget_gate_bias is {bias!r}; it must have two entries, for the "
            f"first and the last head"
        )


def _check_float64(model: ModelConfig) -> None:
    if model.dtype != "float64":
        return
    # imports jax, which reading a config need not
    from xlstm_jax.parallel.devices import compute_dtype

    compute_dtype(model.dtype)


def _check_backends(model: ModelConfig) -> None:
    if model.mlstm_backend is None and model.slstm_backend is None:
        return
    # imports jax, which reading a config need not
    from pallas_kernels.mlstm.api import BACKENDS as MLSTM_BACKENDS
    from pallas_kernels.slstm.api import BACKENDS as SLSTM_BACKENDS

    for key, names in (("mlstm_backend", MLSTM_BACKENDS), ("slstm_backend", SLSTM_BACKENDS)):
        value = getattr(model, key)
        if value is not None and value not in names:
            raise UserError(
                f"config key model.{key} is {value!r}; it must be one of "
                f"{', '.join(map(repr, names))}, or unset for the best that the "
                "device has"
            )


def _check_blocks(model: ModelConfig) -> None:
    if model.ratio is not None:
        if model.slstm_positions:
            raise UserError(
                f"config keys model.ratio {model.ratio!r} and model.slstm_positions "
                f"{model.slstm_positions} exclude each other; "
                "unset one of them"
            )
        period = sum(parse_ratio(model.ratio))
        if model.num_blocks % period:
            raise UserError(
                f"config key model.num_blocks is {model.num_blocks}, no multiple of the {period} "
                f"blocks of model.ratio "
                f"{model.ratio!r}; use a multiple, or name the positions in model.slstm_positions"
            )
    for position in model.slstm_positions:
        if not 0 <= position < model.num_blocks:
            raise UserError(
                f"config key model.slstm_positions has {position}; positions count from 0 and must "
                f"be below model.num_blocks "
                f"{model.num_blocks}"
            )
    if len(set(model.slstm_positions)) < len(model.slstm_positions):
        raise UserError(
            f"config key model.slstm_positions {model.slstm_positions} names a position twice"
        )
    kinds = set(model.block_kinds)
    for field in dataclasses.fields(model):
        users = USED_BY.get(field.name)
        if (
            users
            and not kinds.intersection(users)
            and (value := getattr(model, field.name)) != field.default
        ):
            raise UserError(
                f"config key model.{field.name} is {value!r}, but no block of this model reads it "
                f"(its blocks: "
                f"{', '.join(sorted(kinds))}); leave it at {field.default!r}"
            )
    if "mlstm" not in kinds and "mlstm_7b" not in kinds and model.block != "paper":
        raise UserError(
            f"config key model.block is {model.block!r}, but the model has sLSTM blocks only; "
            f"leave it at 'paper'"
        )
    if model.input_gate == "sigmoid" and model.cell_eps != type(model).cell_eps:
        raise UserError(
            f"config key model.cell_eps is {model.cell_eps!r}, but a sigmoid input gate has no "
            f"normaliser to add it to; "
            f"leave it at {type(model).cell_eps!r}"
        )


def _check_dimensions(model: ModelConfig) -> None:
    kinds = model.block_kinds
    if model.dim % model.num_heads:
        raise UserError(
            f"config key model.dim is {model.dim}, not divisible by model.num_heads "
            f"{model.num_heads}; use a multiple of it"
        )
    if "mlstm" in kinds:
        inner = inner_dim(model)
        if inner % model.num_heads or inner % model.qkv_block_size:
            raise UserError(
                f"the inner dimension {inner} of the mLSTM blocks (model.dim {model.dim} x "
                f"model.up_factor {model.up_factor}, "
                f"rounded up to 64) is not divisible by model.num_heads {model.num_heads} and "
                f"model.qkv_block_size "
                f"{model.qkv_block_size}; change one of them"
            )
    if "mlstm_7b" in kinds and qk_dim(model) % model.num_heads:
        raise UserError(
            f"the query/key dimension {qk_dim(model)} (model.dim {model.dim} x model.qk_factor "
            f"{model.qk_factor}) is not divisible "
            f"by model.num_heads {model.num_heads}; change one of them"
        )


def inner_dim(model: ModelConfig) -> int:
    """Inner dimension of the paper's mLSTM block."""
    return _round_up(model.up_factor * model.dim)


def qk_dim(model: ModelConfig) -> int:
    """Query/key dimension of the 7b block, over all heads."""
    return int(model.qk_factor * model.dim)


def slstm_ffn_dim(model: ModelConfig) -> int:
    """Feed-forward dimension of the paper's sLSTM block."""
    return _round_up(model.ffn_factor * model.dim)


def large_ffn_dim(model: ModelConfig) -> int:
    """Feed-forward dimension of the 7b block. Fractions are dropped first, as in its public code:
    1.3 x 99 gives 128 here, 192 above.
    """
    return _round_up(int(model.ffn_factor * model.dim))


def _round_up(size: float) -> int:
    return math.ceil(size / 64) * 64


def _check_training(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if config.data.batch_size % config.train.accumulation_steps:
        raise UserError(
            f"config key data.batch_size is {config.data.batch_size}, not divisible by "
            f"train.accumulation_steps "
            f"{config.train.accumulation_steps}; use a multiple of it"
        )
    if optimizer.warmup_steps + optimizer.cooldown_steps > steps:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} and optimizer.cooldown_steps "
            f"{optimizer.cooldown_steps} do not fit "
            f"into train.steps {steps}; shorten them or train longer"
        )
    if config.data.reset_at_document and config.eval.max_tokens == 1:
        raise UserError(
            "config key eval.max_tokens is 1, but with data.reset_at_document the first token of a "
            "document is not scored, so that none is left; use at least 2"
        )


def _check_mesh(config: Config) -> None:
    sizes, model = dataclasses.asdict(config.mesh), config.model
    if sum(size == -1 for size in sizes.values()) > 1 or any(
        size != -1 and size < 1 for size in sizes.values()
    ):
        raise UserError(
            f"config section mesh is {sizes}; sizes must be positive, at most one may be -1 (what "
            f"is left)"
        )
    if sizes["sequence"] != 1 and "slstm" in model.block_kinds:
        raise UserError(
            f"config key mesh.sequence is {sizes['sequence']}, but the model has sLSTM blocks, "
            f"whose time can't be spread over devices: "
            "each token's output enters the next token's gates; use mesh.sequence 1, or a model of "
            "mLSTM blocks (model.ratio 1:0)"
        )
    for key, dimension in {"tensor": "model.num_heads", "sequence": "data.context_length"}.items():
        if _value(config, dimension) % max(sizes[key], 1):
            raise UserError(
                f"config key mesh.{key} is {sizes[key]}, which does not divide {dimension} "
                f"{_value(config, dimension)}; use a divisor of it"
            )
