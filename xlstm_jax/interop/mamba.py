"""Hugging Face `MambaForCausalLM` (state-spaces/mamba-130m-hf): blocks "mamba" with RMS norms."""

from collections.abc import Mapping
from typing import Any

from xlstm_jax.errors import UserError
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.mapping import (
    CONV,
    PLAIN,
    SAME,
    TRANSPOSED,
    Entry,
    Table,
    Tensors,
    checked,
    refuse_other_blocks,
    refuse_unless,
)
from xlstm_jax.interop.transformer import fields_beside, with_defaults
from xlstm_jax.models.config import ModelConfig

BLOCK = ("mamba",)
# What a field has where it is absent: the defaults of transformers' `MambaConfig`.
DEFAULTS = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "time_step_rank": "auto",
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "tie_word_embeddings": True,
}
# Of fields that change what is computed and are not read below.
REQUIRED = {"hidden_act": "silu", "use_conv_bias": True}
# The state-spaces' own name of the embedding, which transformers renames when it loads.
OLD_EMBEDDING, EMBEDDING = "backbone.embedding.weight", "backbone.embeddings.weight"


def table(config: ModelConfig) -> Table:
    """The names and shapes of a model's parameters."""
    block = [
        Entry("mamba_norm/scale", ("norm.weight",), SAME),
        Entry("mamba/conv/kernel", ("mixer.conv1d.weight",), CONV),
        Entry("mamba/conv/bias", ("mixer.conv1d.bias",), SAME),
        Entry("mamba/x_projection/kernel", ("mixer.x_proj.weight",), TRANSPOSED),
        Entry("mamba/step_projection/kernel", ("mixer.dt_proj.weight",), TRANSPOSED),
        Entry("mamba/step_projection/bias", ("mixer.dt_proj.bias",), SAME),
        Entry("mamba/a_log", ("mixer.A_log",), TRANSPOSED),
        Entry("mamba/skip", ("mixer.D",), SAME),
    ]
    section = config.mixers.get("mamba")  # none in a model of other blocks
    for side in ("in", "out"):
        theirs = f"mixer.{side}_proj"
        block.append(Entry(f"mamba/{side}_projection/kernel", (f"{theirs}.weight",), TRANSPOSED))
        if section is not None and section.bias:
            block.append(Entry(f"mamba/{side}_projection/bias", (f"{theirs}.bias",), SAME))
    outside = (
        Entry("embedding/embedding", (EMBEDDING,), SAME),
        Entry("backbone/final_norm/scale", ("backbone.norm_f.weight",), SAME),
        Entry("lm_head/kernel", ("lm_head.weight",), TRANSPOSED),
    )
    return Table(outside, {BLOCK: tuple(block)}, "backbone.layers.{l}.")


def import_config(theirs: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from the fields of their config.json; those that are absent have
    transformers' defaults.

    Raises:
        UserError: a field has a value that this project has no counterpart for.
    """
    fields = with_defaults(theirs, DEFAULTS)
    refuse_unless(fields, REQUIRED, "the model")
    dim, factor = fields.whole("hidden_size"), fields.whole("expand")
    if fields.get("intermediate_size") is not None:
        inner = fields.whole("intermediate_size")
        if inner != factor * dim:
            raise UserError(
                f"the checkpoint can't be converted: intermediate_size is {inner}; it must be "
                f"expand x hidden_size, {factor} x {dim}"
            )
    automatic = -(-dim // 16)
    rank = automatic
    if fields["time_step_rank"] != "auto":
        rank = fields.whole("time_step_rank")
    return checked(
        vocab_size=fields.whole("vocab_size"),
        dim=dim,
        num_blocks=fields.whole("num_hidden_layers"),
        blocks="+".join(BLOCK),
        norm="rms",
        norm_eps=fields.decimal("layer_norm_epsilon"),
        tie_embeddings=fields.yes("tie_word_embeddings"),
        mixers={
            "mamba": {
                "up_factor": float(factor),
                "state_dim": fields.whole("state_size"),
                "rank": None if rank == automatic else rank,
                "conv_width": fields.whole("conv_kernel"),
                "step_range": (fields.decimal("time_step_min"), fields.decimal("time_step_max")),
                "bias": fields.yes("use_bias"),
            }
        },
    )


def export_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of their config.json that describe the architecture.

    Raises:
        UserError: the model has something that theirs lacks.
    """
    refuse_other_blocks(config, {BLOCK})
    refuse_unless(vars(config), PLAIN | {"norm": "rms", "logit_soft_cap": None}, "the model")
    mamba = config.mamba
    factor, (shortest, longest) = mamba.up_factor, mamba.step_range
    if factor != int(factor):
        raise UserError(
            f"the checkpoint can't be converted: the mixer has up_factor = {factor}; the format "
            "has whole numbers"
        )
    return {
        "model_type": "mamba",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": mamba.inner_dim(config.dim),
        "state_size": mamba.state_dim,
        "num_hidden_layers": config.num_blocks,
        "layer_norm_epsilon": config.norm_eps,
        "expand": int(factor),
        "conv_kernel": mamba.conv_width,
        "use_bias": mamba.bias,
        "time_step_rank": mamba.rank_of(config.dim),
        "time_step_min": shortest,
        "time_step_max": longest,
        **REQUIRED,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _renamed(config: ModelConfig, fields: Mapping[str, Any], tensors: Tensors) -> Tensors:
    return {EMBEDDING if name == OLD_EMBEDDING else name: x for name, x in tensors.items()}


def _export_fields(config: ModelConfig, wish: Wish) -> dict[str, Any]:
    beside = fields_beside("MambaForCausalLM", wish) | {"pad_token_id": None}
    return beside | export_config(config)


FORMAT = Format(
    about="MambaForCausalLM of transformers (model_type 'mamba')",
    recognises=lambda fields: fields.get("model_type") == "mamba",
    import_config=import_config,
    export_fields=_export_fields,
    table=table,
    incoming=_renamed,
)
