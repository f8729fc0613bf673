"""The table of formats, by the names that `python -m xlstm_jax.interop export --format` takes."""

from xlstm_jax.errors import UserError
from xlstm_jax.interop import gpt2, large, llama, mamba, paper, rwkv4
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.models.config import ModelConfig

FORMATS: dict[str, Format] = {
    "huggingface": large.HUGGING_FACE,
    "xlstm-large": large.PYPI,
    "xlstm": paper.FORMAT,
    "llama": llama.FORMAT,
    "gpt2": gpt2.FORMAT,
    "mamba": mamba.FORMAT,
    "rwkv4": rwkv4.FORMAT,
}


def format_of(config: ModelConfig) -> str:
    """The name of the first format that can hold a model.

    Raises:
        UserError: there is none.
    """
    blocks = set(config.layout)
    refused = {}
    for name, format in FORMATS.items():
        if not blocks <= format.table(config).blocks.keys():
            continue
        try:
            format.export_fields(config, Wish(1, "float32", 0))
        except UserError as reason:
            refused[name] = str(reason)
        else:
            return name
    if len(refused) == 1:
        raise UserError(next(iter(refused.values())))
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UserError(f"no format of other projects can hold this model. {reasons}")
    raise UserError(
        f"no format of other projects has the blocks of this model (model.blocks is "
        f"{config.blocks!r}); there are {', '.join(FORMATS)}"
    )
