"""The table of formats, by the names that `python -m xlstm_jax.interop export --format` takes."""

from xlstm_jax.errors import UserError
from xlstm_jax.interop import large, paper
from xlstm_jax.interop.format import Format
from xlstm_jax.models.config import ModelConfig

FORMATS: dict[str, Format] = {
    "huggingface": large.HUGGING_FACE,
    "xlstm-large": large.PYPI,
    "xlstm": paper.FORMAT,
}


def format_of(config: ModelConfig) -> str:
    """The name of the first format that has the blocks of a model.

    Raises:
        UserError: there is none.
    """
    blocks = set(config.layout)
    for name, format in FORMATS.items():
        if blocks <= format.table(config).blocks.keys():
            return name
    raise UserError(
        f"no format of other projects has the blocks of this model (model.blocks is "
        f"{config.blocks!r}); there are {', '.join(FORMATS)}"
    )
