"""What the formats of the library transformers share, those of "attention+mlp" above all."""

from collections.abc import Mapping
from typing import Any

from xlstm_jax.errors import UserError
from xlstm_jax.interop.format import Wish
from xlstm_jax.interop.mapping import Fields

BLOCK = ("attention", "mlp")
# transformers' names of what `model.mlp.activation` computes; the first one of each is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}


def activation_of(theirs: Fields, name: str) -> str:
    """Our name of the activation that a field names; raises `UserError` where we have none."""
    value = theirs[name]
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise UserError(
            f"the checkpoint can't be converted: {name} of its configuration is {value!r}; it must "
            f"be one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[value]


def their_activation(ours: str) -> str:
    """The name that is written for one of ours."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def with_defaults(theirs: Mapping[str, Any], defaults: Mapping[str, Any]) -> Fields:
    """Their fields; one that is absent, or null where null means its default, has the default."""
    given = {
        name: value for name, value in theirs.items() if value is not None or name not in defaults
    }
    return Fields({**defaults, **given})


def fields_beside(architecture: str, wish: Wish) -> dict[str, Any]:
    """The fields of an exported config.json that do not describe the model's layers."""
    return {
        "architectures": [architecture],
        "dtype": wish.dtype,
        "torch_dtype": wish.dtype,  # transformers 4
        "bos_token_id": wish.end_of_text,
        "eos_token_id": wish.end_of_text,
    }


def feed_forward(activation: str, hidden: int, *, gated: bool, bias: bool) -> dict[str, Any]:
    """The settings of the MLP of a hidden size that is given and not computed."""
    return {
        "activation": activation,
        "hidden": hidden,
        "factor": None,
        "gated": gated,
        "bias": bias,
    }
