"""Hugging Face `xLSTMForCausalLM` (transformers 5.23, the format of NX-AI/xLSTM-7b): blocks
"mlstm_7b+mlp".

PyPI `xlstm`'s `xLSTMLarge` has the same tensors, the embedding under another name. With
`weight_mode="fused"` some are one tensor: `split_fused` and `fuse` cut and join their rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.interop import fused
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.mapping import (
    PLAIN,
    SAME,
    SIDE_BY_SIDE,
    TRANSPOSED,
    Entry,
    Fields,
    Table,
    Tensors,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.interop.tensor_files import Tensor
from xlstm_jax.models.config import ModelConfig

BLOCK = ("mlstm_7b", "mlp")
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
    del config  # all models have the same
    block = (
        Entry("mlstm_7b_norm/scale", ("norm_mlstm.weight",), SAME),
        Entry("mlstm_7b/query/kernel", ("mlstm_layer.q.weight",), TRANSPOSED),
        Entry("mlstm_7b/key/kernel", ("mlstm_layer.k.weight",), TRANSPOSED),
        Entry("mlstm_7b/value/kernel", ("mlstm_layer.v.weight",), TRANSPOSED),
        Entry("mlstm_7b/output_gate/kernel", ("mlstm_layer.ogate_preact.weight",), TRANSPOSED),
        Entry("mlstm_7b/input_gate/kernel", ("mlstm_layer.igate_preact.weight",), TRANSPOSED),
        Entry("mlstm_7b/input_gate/bias", ("mlstm_layer.igate_preact.bias",), SAME),
        Entry("mlstm_7b/forget_gate/kernel", ("mlstm_layer.fgate_preact.weight",), TRANSPOSED),
        Entry("mlstm_7b/forget_gate/bias", ("mlstm_layer.fgate_preact.bias",), SAME),
        Entry("mlstm_7b/head_norm/scale", ("mlstm_layer.multihead_norm.weight",), SAME),
        Entry("mlstm_7b/out_projection/kernel", ("mlstm_layer.out_proj.weight",), TRANSPOSED),
        Entry("mlp_norm/scale", ("norm_ffn.weight",), SAME),
        Entry(
            "mlp/up_projection/kernel",
            ("ffn.proj_up_gate.weight", "ffn.proj_up.weight"),
            SIDE_BY_SIDE,
        ),
        Entry("mlp/down_projection/kernel", ("ffn.proj_down.weight",), TRANSPOSED),
    )
    outside = (
        Entry("embedding/embedding", (EMBEDDING,), SAME),
        Entry("backbone/final_norm/scale", ("backbone.out_norm.weight",), SAME),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {BLOCK: block}, "backbone.blocks.{l}.")


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
        vocab_size=theirs.whole("vocab_size"),
        dim=theirs.whole(*_names_of("hidden_size")),
        num_blocks=theirs.whole(*_names_of("num_hidden_layers")),
        blocks="+".join(BLOCK),
        norm="rms",
        norm_eps=theirs.decimal("norm_eps"),
        logit_soft_cap=theirs.decimal("output_logit_soft_cap"),
        tie_embeddings=theirs.yes("tie_word_embeddings"),
        mixers={
            "mlstm_7b": {
                "num_heads": theirs.whole("num_heads"),
                "qk_factor": theirs.decimal("qk_dim_factor"),
                "gate_soft_cap": theirs.decimal("gate_soft_cap"),
                "eps": theirs.decimal("eps"),
                "norm_eps": theirs.decimal("norm_eps"),
            },
            "mlp": FEED_FORWARD | {"factor": theirs.decimal("ffn_proj_factor")},
        },
    )


FEED_FORWARD = {"activation": "silu", "whole_first": True}


def export_config(config: ModelConfig, weight_mode: str = "single") -> dict[str, Any]:
    """The fields of their config.json that describe the architecture.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    refuse_other_blocks(config, {BLOCK})
    cell, feed_forward = config.mlstm_7b, config.mlp
    required = PLAIN | {"norm": "rms", "residual": True, "final_norm": True}
    refuse_unless(vars(config), required, "the model")
    gates = {"input_gate": "exponential", "input_gate_from": "text", "forget_gate_from": "text"}
    refuse_unless(vars(cell), gates | {"norm_eps": config.norm_eps}, "the mLSTM")
    ours = FEED_FORWARD | {"gated": True, "round_to": 64, "bias": False, "hidden": None}
    refuse_unless(vars(feed_forward), ours, "the feed-forward layer")
    caps = {"gate_soft_cap": cell.gate_soft_cap, "logit_soft_cap": config.logit_soft_cap}
    refuse_unless(
        {name: value is not None for name, value in caps.items()},
        dict.fromkeys(caps, True),
        "whether the model",
    )
    return {
        "model_type": "xlstm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "embedding_dim": config.dim,
        "num_hidden_layers": config.num_blocks,
        "num_blocks": config.num_blocks,
        "num_heads": cell.num_heads,
        "qk_dim_factor": cell.qk_factor,
        "ffn_proj_factor": feed_forward.factor,
        "gate_soft_cap": cell.gate_soft_cap,
        "output_logit_soft_cap": config.logit_soft_cap,
        "norm_eps": config.norm_eps,
        "eps": cell.eps,
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
        UserError: a fused tensor is missing or has another number of rows; the first are named.
    """
    rows = _rows(config)
    groups = {}
    for block in range(config.num_blocks):
        prefix = f"backbone.blocks.{block}."
        for name, parts in FUSED.items():
            groups[prefix + name] = [(prefix + part, rows[part]) for part in parts]
    return fused.split(tensors, groups, axis=0)


def fuse(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors of the single mode as those of the fused mode, each joined when it is written."""
    return fused.join(tensors, FUSED, axis=0)


def _rows(config: ModelConfig) -> dict[str, int]:
    keys = config.mlstm_7b.qk_dim(config.dim)
    layer = {"q": keys, "k": keys, "v": config.dim, "ogate_preact": config.dim}
    rows = {f"mlstm_layer.{name}.weight": count for name, count in layer.items()}
    rows |= {
        name: config.mlstm_7b.num_heads
        for whole, parts in FUSED.items()
        if "ifgate" in whole
        for name in parts
    }
    return rows | {
        name: config.mlp.hidden_dim(config.dim) for name in FUSED["ffn.proj_up_gate_z.weight"]
    }


def _fields_of_transformers(config: ModelConfig, wish: Wish) -> dict[str, Any]:
    return {
        "architectures": ["xLSTMForCausalLM"],
        **export_config(config, wish.weight_mode),
        "dtype": wish.dtype,
        "mode": "inference",
        "return_last_states": True,
        "bos_token_id": wish.end_of_text,
        "eos_token_id": wish.end_of_text,
        "pad_token_id": wish.end_of_text,
    }


def _single(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    return split_fused(config, tensors) if fields.get("weight_mode") == "fused" else tensors


def _in_mode(tensors: Iterable[Tensor], wish: Wish) -> Iterable[Tensor]:
    return fuse(tensors) if wish.weight_mode == "fused" else tensors


def _from_pypi_names(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    names = {PYPI_EMBEDDING: EMBEDDING}
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def _to_pypi_names(tensors: Iterable[Tensor], wish: Wish) -> Iterable[Tensor]:
    names = {EMBEDDING: PYPI_EMBEDDING}
    return (tensor._replace(name=names.get(tensor.name, tensor.name)) for tensor in tensors)


HUGGING_FACE = Format(
    about="xLSTMForCausalLM of transformers (model_type 'xlstm')",
    recognises=lambda fields: fields.get("model_type") == "xlstm",
    import_config=import_config,
    export_fields=_fields_of_transformers,
    table=table,
    incoming=_single,
    outgoing=_in_mode,
    weight_modes=("single", "fused"),
)
PYPI = Format(
    about="PyPI xlstm's xLSTMLarge (config.yaml)",
    recognises=lambda fields: True,  # the only one with a config.yaml
    import_config=import_pypi_config,
    export_fields=lambda config, wish: export_pypi_config(config),
    table=table,
    config_file="config.yaml",
    incoming=_from_pypi_names,
    outgoing=_to_pypi_names,
    one_file=True,
)
