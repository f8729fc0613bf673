"""Hugging Face `xLSTMForCausalLM` (transformers 5.23, the format of NX-AI/xLSTM-7b): the 7b block.

PyPI `xlstm`'s `xLSTMLarge` has the same tensors, the embedding under another name. With
`weight_mode="fused"` some are one tensor: `split_fused` and `fuse` cut and join their rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from xlstm_jax.config import ModelConfig
from xlstm_jax.config_checks import large_ffn_dim, qk_dim
from xlstm_jax.errors import UserError
from xlstm_jax.interop.mapping import (
    SAME,
    SIDE_BY_SIDE,
    TRANSPOSED,
    Entry,
    Fields,
    Table,
    Tensors,
    checked,
    refuse_unless,
)
from xlstm_jax.interop.tensor_files import Tensor

REQUIRED = {
    "use_bias": False,
    "add_out_norm": True,
    "v_dim_factor": 1.0,
    "ffn_round_up_to_multiple_of": 64,
    "norm_reduction_force_float32": True,
}
# What a field has where it is absent: the defaults of transformers' `xLSTMConfig`. The sizes have
# two names each, of which either will do (`_names_of`).
DEFAULTS = {
    "vocab_size": 50304,
    "num_heads": 8,
    "qk_dim_factor": 0.5,
    "ffn_proj_factor": 2.667,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "norm_eps": 1e-6,
    "eps": 1e-6,
    "tie_word_embeddings": False,
    "weight_mode": "single",
}
DEFAULT_SIZES = {"hidden_size": 4096, "num_hidden_layers": 32}
# The same of PyPI xlstm's `xLSTMLargeConfig`; the sizes and vocab_size it wants to be given.
PYPI_DEFAULTS = {
    name: value for name, value in DEFAULTS.items() if name not in ("vocab_size", "num_heads")
} | {"ffn_proj_factor": 2.6667}

# Tensors of a block that are one tensor in the fused mode, in the order of their rows.
FUSED = {
    "mlstm_layer.qkv_opreact.weight": tuple(
        f"mlstm_layer.{part}.weight" for part in ("q", "k", "v", "ogate_preact")
    ),
    "mlstm_layer.ifgate_preact.weight": (
        "mlstm_layer.igate_preact.weight",
        "mlstm_layer.fgate_preact.weight",
    ),
    "mlstm_layer.ifgate_preact.bias": (
        "mlstm_layer.igate_preact.bias",
        "mlstm_layer.fgate_preact.bias",
    ),
    "ffn.proj_up_gate_z.weight": ("ffn.proj_up_gate.weight", "ffn.proj_up.weight"),
}
EMBEDDING, PYPI_EMBEDDING = "backbone.embeddings.weight", "embedding.weight"


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    del config
    block = (
        Entry("norm/scale", ("norm_mlstm.weight",), SAME),
        Entry("query/kernel", ("mlstm_layer.q.weight",), TRANSPOSED),
        Entry("key/kernel", ("mlstm_layer.k.weight",), TRANSPOSED),
        Entry("value/kernel", ("mlstm_layer.v.weight",), TRANSPOSED),
        Entry("output_gate/kernel", ("mlstm_layer.ogate_preact.weight",), TRANSPOSED),
        Entry("input_gate/kernel", ("mlstm_layer.igate_preact.weight",), TRANSPOSED),
        Entry("input_gate/bias", ("mlstm_layer.igate_preact.bias",), SAME),
        Entry("forget_gate/kernel", ("mlstm_layer.fgate_preact.weight",), TRANSPOSED),
        Entry("forget_gate/bias", ("mlstm_layer.fgate_preact.bias",), SAME),
        Entry("head_norm/scale", ("mlstm_layer.multihead_norm.weight",), SAME),
        Entry("out_projection/kernel", ("mlstm_layer.out_proj.weight",), TRANSPOSED),
        Entry("ffn_norm/scale", ("norm_ffn.weight",), SAME),
        Entry(
            "ffn/up_projection/kernel",
            ("ffn.proj_up_gate.weight", "ffn.proj_up.weight"),
            SIDE_BY_SIDE,
        ),
        Entry("ffn/down_projection/kernel", ("ffn.proj_down.weight",), TRANSPOSED),
    )
    outside = (
        Entry("embedding/embedding", (EMBEDDING,), SAME),
        Entry("backbone/final_norm/scale", ("backbone.out_norm.weight",), SAME),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {"mlstm_7b": block}, "backbone.blocks.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json; those that are absent have
    transformers' defaults.

    Raises:
        UserError: a field has a value that this project has no counterpart for.
    """
    sizes = {
        name: value
        for name, value in DEFAULT_SIZES.items()
        if all(theirs.get(known) is None for known in _names_of(name))
    }
    return _import_config({**DEFAULTS, **theirs, **sizes})


def _names_of(size: str) -> tuple[str, str]:
    """Both names of one size: PyPI xlstm's, which transformers takes too, and transformers'."""
    return {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}[size], size


def _import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    theirs = Fields(theirs)
    refuse_unless(theirs, REQUIRED, "the model")
    if (mode := theirs["weight_mode"]) not in ("single", "fused"):
        raise UserError(
            f"the checkpoint can't be converted: weight_mode is {mode!r}; it must be 'single' or "
            f"'fused'"
        )
    return checked(
        ModelConfig(
            vocab_size=theirs.whole("vocab_size"),
            dim=theirs.whole(*_names_of("hidden_size")),
            num_blocks=theirs.whole(*_names_of("num_hidden_layers")),
            num_heads=theirs.whole("num_heads"),
            block="7b",
            qk_factor=theirs.decimal("qk_dim_factor"),
            ffn_factor=theirs.decimal("ffn_proj_factor"),
            input_gate_bias=-10.0,
            input_gate_bias_std=0.0,
            gate_soft_cap=theirs.decimal("gate_soft_cap"),
            logit_soft_cap=theirs.decimal("output_logit_soft_cap"),
            norm_eps=theirs.decimal("norm_eps"),
            cell_eps=theirs.decimal("eps"),
            tie_embeddings=theirs.yes("tie_word_embeddings"),
        )
    )


def export_config(config: ModelConfig, weight_mode: str = "single") -> dict[str, Any]:
    """The fields of their config.json that describe the architecture.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    ours = {
        name: getattr(config, name) for name in ("block", "input_gate", "slstm_positions", "ratio")
    }
    refuse_unless(
        ours,
        {"block": "7b", "input_gate": "exponential", "slstm_positions": (), "ratio": None},
        "the model",
    )
    caps = {
        name: value is not None
        for name, value in (
            ("gate_soft_cap", config.gate_soft_cap),
            ("logit_soft_cap", config.logit_soft_cap),
        )
    }
    refuse_unless(caps, {"gate_soft_cap": True, "logit_soft_cap": True}, "whether the model")
    return {
        "model_type": "xlstm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "embedding_dim": config.dim,
        "num_hidden_layers": config.num_blocks,
        "num_blocks": config.num_blocks,
        "num_heads": config.num_heads,
        "qk_dim_factor": config.qk_factor,
        "ffn_proj_factor": config.ffn_factor,
        "gate_soft_cap": config.gate_soft_cap,
        "output_logit_soft_cap": config.logit_soft_cap,
        "norm_eps": config.norm_eps,
        "eps": config.cell_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "weight_mode": weight_mode,
        **REQUIRED,
    }


def import_pypi_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """The same from the config.yaml of PyPI `xlstm`'s `xLSTMLarge`, whose tensors are always stored
    in the single mode and never tied.
    """
    always = {"tie_word_embeddings": False, "weight_mode": "single"}
    fields = {name: value for name, value in theirs.items() if name not in DEFAULT_SIZES}
    return _import_config(PYPI_DEFAULTS | fields | always)


def export_pypi_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of an `xLSTMLargeConfig`. Tied embeddings become two tensors that are equal."""
    not_theirs = ("model_type", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
    return {name: value for name, value in export_config(config).items() if name not in not_theirs}


def split_fused(config: ModelConfig, tensors: Tensors) -> dict[str, np.ndarray]:
    """Fused tensors as those of the single mode: views of their rows.

    Raises:
        UserError: a fused tensor is missing or has another number of rows; all of them are named.
    """
    rows = _rows(config)
    result, problems = dict(tensors), []
    for block in range(config.num_blocks):
        prefix = f"backbone.blocks.{block}."
        for fused, parts in FUSED.items():
            whole = result.pop(prefix + fused, None)
            wanted = [rows[part] for part in parts]
            if whole is None:
                problems.append(f"{prefix}{fused} is missing")
            elif whole.ndim == 0 or len(whole) != sum(wanted):
                problems.append(
                    f"{prefix}{fused} has shape {tuple(whole.shape)} instead of {sum(wanted)} rows"
                )
            else:
                pieces = np.split(whole, np.cumsum(wanted)[:-1])
                result |= {prefix + part: piece for part, piece in zip(parts, pieces, strict=True)}
    if problems:
        raise UserError(f"the checkpoint can't be converted: {'; '.join(problems[:8])}")
    return result


def fuse(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors of the single mode as those of the fused mode, each joined when it is written."""
    whole_of = {part: fused for fused, parts in FUSED.items() for part in parts}
    waiting: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        prefix, name = _cut_prefix(tensor.name)
        if name not in whole_of:
            yield tensor
            continue
        fused = prefix + whole_of[name]
        pieces = waiting.setdefault(fused, [])
        pieces.append(tensor)
        if len(pieces) == len(FUSED[whole_of[name]]):
            pieces.sort(
                key=lambda piece, order=FUSED[whole_of[name]]: order.index(
                    _cut_prefix(piece.name)[1]
                )
            )
            shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
            yield Tensor(
                fused,
                shape,
                lambda pieces=pieces: np.concatenate([piece.make() for piece in pieces]),
            )


def _rows(config: ModelConfig) -> dict[str, int]:
    layer = {"q": qk_dim(config), "k": qk_dim(config), "v": config.dim, "ogate_preact": config.dim}
    rows = {f"mlstm_layer.{name}.weight": count for name, count in layer.items()}
    rows |= {
        name: config.num_heads
        for fused, parts in FUSED.items()
        if "ifgate" in fused
        for name in parts
    }
    return rows | {name: large_ffn_dim(config) for name in FUSED["ffn.proj_up_gate_z.weight"]}


def _cut_prefix(name: str) -> tuple[str, str]:
    """("backbone.blocks.3.", "norm_ffn.weight")"""
    parts = name.split(".")
    return (
        ("".join(part + "." for part in parts[:3]), ".".join(parts[3:]))
        if parts[:2] == ["backbone", "blocks"]
        else ("", name)
    )
