"""What the project knows of another project's format: one file per format makes one of these."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xlstm_jax.interop.mapping import Table
from xlstm_jax.interop.tensor_files import Tensor
from xlstm_jax.models.config import ModelConfig

Tensors = Mapping[str, np.ndarray]


class Wish(NamedTuple):
    """How a checkpoint is to be written.

    Attributes:
        context_length: of training.
        dtype: its name.
        end_of_text: the id of the tokenizer's end-of-text token.
        weight_mode: "single", or "fused" where a format has it.
    """

    context_length: int
    dtype: str
    end_of_text: int
    weight_mode: str = "single"


def _as_they_are(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    return tensors


def _as_ours(tensors: Iterable[Tensor], wish: Wish) -> Iterable[Tensor]:
    return tensors


class Format(NamedTuple):
    """A format of checkpoints.

    Attributes:
        about: what it is, for messages.
        recognises: whether the fields of a folder's `config_file` are of this format.
        import_config: their fields -> our configuration; raises `UserError` for what this project
            has no counterpart for.
        export_fields: our configuration -> the content of their `config_file`; raises `UserError`
            for what theirs lacks.
        table: the names and shapes of a model's parameters.
        config_file: config.json or config.yaml.
        context_length: the context that their fields name; None where they name none.
        incoming: their tensors -> those of `table`.
        outgoing: tensors of `table` -> those of their folder.
        weight_modes: the ways to store the same weights.
        one_file: their reader takes a single file of tensors.
    """

    about: str
    recognises: Callable[[Mapping[str, Any]], bool]
    import_config: Callable[[Mapping[str, Any]], ModelConfig]
    export_fields: Callable[[ModelConfig, Wish], dict[str, Any]]
    table: Callable[[ModelConfig], Table]
    config_file: str = "config.json"
    context_length: Callable[[Mapping[str, Any]], int | None] = lambda fields: None
    incoming: Callable[[ModelConfig, Mapping[str, Any], Tensors], Tensors] = _as_they_are
    outgoing: Callable[[Iterable[Tensor], Wish], Iterable[Tensor]] = _as_ours
    weight_modes: tuple[str, ...] = ("single",)
    one_file: bool = False
