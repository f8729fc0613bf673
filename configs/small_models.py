"""The models that the paper compares on its small tasks (2405.04517, section 4.1, appendix B.1),
for their config files, by the names that variants have.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from xlstm_jax.errors import UserError
from xlstm_jax.models import mixers

# name -> (how the paper calls it, keys of the section `model`)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "xlstm_1_1": ("xLSTM[1:1]", {"blocks": "mlstm,slstm+mlp"}),
    "xlstm_0_1": ("xLSTM[0:1]", {"blocks": "slstm+mlp"}),
    "xlstm_1_0": ("xLSTM[1:0]", {"blocks": "mlstm"}),
    "llama": ("Llama", {"blocks": "attention+mlp", "norm": "rms", "mlp.activation": "silu"}),
    "mamba": ("Mamba", {"blocks": "mamba", "norm": "rms"}),
    "rwkv4": (
        "RWKV-4",
        {"blocks": "rwkv4+rwkv4_channel", "norm_bias": True, "embedding_norm": True},
    ),
    "rwkv5": (
        "RWKV-5",
        {"blocks": "rwkv5+rwkv4_channel", "norm_bias": True, "embedding_norm": True},
    ),
    "rwkv6": (
        "RWKV-6",
        {
            "blocks": "rwkv6+rwkv4_channel",
            "norm_bias": True,
            "embedding_norm": True,
            "rwkv4_channel.factor": 3.5,
        },
    ),
    "retention": ("Retention", {"blocks": "retnet+mlp", "norm": "rms", "mlp.activation": "silu"}),
    "hyena": ("Hyena", {"blocks": "hyena+mlp"}),
    "h3": ("H3", {"blocks": "h3+mlp"}),
    # layers one after another, without residual connections and norms
    "lstm": ("LSTM", {"blocks": "lstm", "residual": False, "norm": "none"}),
    "lstm_block": ("LSTM(Block)", {"blocks": "lstm+mlp"}),
}
LABELS = {name: label for name, (label, _) in MODELS.items()}


def split_variant(
    variant: str, tasks: Mapping[str, Any] | None, presets: Mapping[str, Any]
) -> tuple[str, str, str, int | None]:
    """(task, model, preset, dimension) of a variant "TASK-MODEL", "TASK-MODEL-PRESET" or
    "TASK-MODEL-PRESET-DIM". Without a preset it is the first, without a dimension it is None.

    Args:
        tasks: None for a file with one task, whose variants begin with the model.

    Raises:
        UserError: there is no such task, model or preset, or the dimension is no number.
    """
    task, _, rest = ("", "", variant) if tasks is None else variant.partition("-")
    model, _, rest = rest.partition("-")
    preset, _, dim = rest.partition("-")
    preset = preset or next(iter(presets))
    form = "MODEL" if tasks is None else "TASK-MODEL"
    parts = ((task, tasks, "TASK"), (model, MODELS, "MODEL"), (preset, presets, "PRESET"))
    for part, known, what in parts:
        if known is not None and part not in known:
            raise UserError(
                f"config variant {variant!r} does not exist: it is {form}, {form}-PRESET or "
                f"{form}-PRESET-DIM, and {part!r} is no {what}; there are {', '.join(known)}"
            )
    if dim and not re.fullmatch("[1-9][0-9]{0,5}", dim):
        raise UserError(f"config variant {variant!r} ends with {dim!r}, which is no dimension")
    return task, model, preset, int(dim) if dim else None


def check_preset(preset: str, presets: Sequence[str]) -> str:
    """The preset of an experiment; raises `UserError` where it has none of that name."""
    if preset not in presets:
        raise UserError(f"--preset is {preset!r}; it must be one of {', '.join(presets)}")
    return preset


def absent() -> dict[str, str]:
    """The models that have a mixer which is not registered, and why they are not there."""
    found = {}
    for name, (_, keys) in MODELS.items():
        missing = [m for m in _mixers_of(keys["blocks"]) if m not in mixers.names()]
        if missing:
            found[name] = f"it needs the mixer {missing[0]!r}, which is not there yet"
    return found


def _mixers_of(blocks: str) -> list[str]:
    return re.findall(r"[a-z]\w*", blocks)


def set_model(
    config: ConfigDict,
    name: str,
    *,
    dim: int,
    num_blocks: int = 2,
    num_heads: int = 1,
    slstm: Mapping[str, Any] | None = None,
) -> None:
    """Makes the config's model one of the table's.

    Args:
        num_heads: of every mixer that has heads.
        slstm: keys of `model.slstm`, where the model has one.

    Raises:
        UserError: the model has a mixer that is not registered.
    """
    keys = dict(MODELS[name][1])
    stack = _mixers_of(keys["blocks"])
    if why := absent().get(name):
        raise UserError(
            f"the model {name!r} can't be: {why}; there are {', '.join(mixers.names())}"
        )
    for mixer in stack:
        section = config.model[mixer]
        if "num_heads" in section:
            section.num_heads = num_heads
        if "head_dim" in section:
            section.head_dim = dim // num_heads
    config.model.num_blocks = num_blocks
    config.model.dim = dim
    for key, value in keys.items():
        *section, last = key.split(".")
        (config.model[section[0]] if section else config.model)[last] = value
    if "slstm" in stack:
        config.model.slstm.update(slstm or {})
