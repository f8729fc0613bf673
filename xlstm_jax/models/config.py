"""The section `model`: the stack as a text, and the settings of its mixers."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from xlstm_jax import settings
from xlstm_jax.errors import UserError
from xlstm_jax.models import mixers
from xlstm_jax.models.mixer import ONE_DEVICE, Mixer, Parts
from xlstm_jax.models.remat import check_remat
from xlstm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A stack of residual blocks between an input and a head.

    The settings of a mixer are `model.NAME.key`; here `config.mlstm.num_heads`, given as
    `ModelConfig(blocks="7*mlstm,slstm+mlp", mixers=dict(mlstm=dict(num_heads=2)))`.
    """

    blocks: str = setting(
        mixers.DEFAULT_BLOCKS,
        'the stack: "7*mlstm,slstm+mlp" repeats until num_blocks; "+" joins branches of a block',
    )
    num_blocks: int = setting(4, "blocks of the stack", at_least=1)
    dim: int = setting(256, "D, channels of the residual stream", at_least=1)
    vocab_size: int = setting(
        320, "rows of the embedding, at least the tokenizer's vocabulary", at_least=1
    )
    norm: str = setting(
        "layer",
        'before each branch and wherever else the model has a norm; "none": nowhere',
        choices=("layer", "rms", "none"),
    )
    norm_bias: bool = setting(False, "the norms have a bias")
    norm_eps: float = setting(1e-5, "added to the variance", at_least=0)
    residual: bool = setting(True, "x + branch(x); without it, branch(x)")
    final_norm: bool = setting(True, "a norm after the last block")
    embedding_norm: bool = setting(False, "a norm after the embedding, as RWKV has")
    positions: str = setting(
        "none", '"learned": an embedding per position is added', choices=("none", "learned")
    )
    max_positions: int | None = setting(None, "positions that can be learned", at_least=1)
    tie_embeddings: bool = setting(False, "the vocabulary projection is the transposed embedding")
    dropout: float = setting(0.0, "on each residual branch, in training only", at_least=0, below=1)
    logit_soft_cap: float | None = setting(
        None, "logits become a tanh(x / a); xLSTM 7B: 30", above=0
    )
    dtype: str = setting(
        "auto",
        'compute dtype; "auto" is bfloat16, on the CPU float32. Parameters are always float32',
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    remat: str = setting(
        "none",
        'kept for the backward pass: all ("none"), each block\'s input ("block"), also what is '
        'named ("cell+qkv"), or as much as fits ("auto")',
        may_change=True,
    )
    mixers: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # by name: sections or dicts

    def __post_init__(self):
        """Completes the sections of the stack's mixers.

        Raises:
            UserError: a mixer or a setting is unknown, or a setting is not read by this stack.
        """
        sections = {}
        for name in self.mixer_names:
            sections[name] = _section(name, self.mixers.get(name, {}))
        for name in self.mixers.keys() - sections.keys():
            section = _section(name, self.mixers[name])
            settings.refuse_ignored(
                section,
                f"model.{name}",
                settings.differing(section),
                f"no block of this model reads it (model.blocks is {self.blocks!r})",
            )
        object.__setattr__(self, "mixers", FrozenDict(sections))

    def __getattr__(self, name: str) -> Any:
        """The settings of a mixer of the stack."""
        sections = self.__dict__.get("mixers", {})
        if name in sections:
            return sections[name]
        raise AttributeError(
            f"ModelConfig has no field {name!r}, and the stack {self.__dict__.get('blocks')!r} no "
            "mixer of that name"
        )

    @functools.cached_property
    def layout(self) -> tuple[tuple[str, ...], ...]:
        """The names of each block's mixers, from the first block to the last."""
        return parse_blocks(self.blocks, self.num_blocks)

    @property
    def mixer_names(self) -> tuple[str, ...]:
        """The mixers of the stack, each once."""
        return tuple(dict.fromkeys(name for block in self.layout for name in block))

    def of(self, name: str) -> tuple[Mixer, Any]:
        """A mixer of the stack and its settings."""
        return mixers.find(name), self.mixers[name]

    def values(self) -> dict[str, Any]:
        """All settings as nested dictionaries, as config.json has them."""
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "mixers"
        }
        return own | {name: dataclasses.asdict(self.mixers[name]) for name in self.mixer_names}


def _section(name: str, given: Any) -> Any:
    """The settings of a mixer, from its section or a dictionary."""
    section = mixers.find(name).section
    return given if isinstance(given, section) else settings.read(section, given, f"model.{name}")


def read_model(values: Mapping[str, Any]) -> ModelConfig:
    """The section from nested values; a mapping is the settings of a mixer.

    Raises:
        UserError: a key is unknown, a value does not fit, or a mixer that the stack lacks has
            settings.
    """
    nested = {key: dict(value) for key, value in values.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in values.items() if key not in nested}
    own = {field.name for field in dataclasses.fields(ModelConfig)} - {"mixers"}
    for key in (*(flat.keys() - own), *(nested.keys() - set(mixers.names()))):
        raise UserError(settings.unknown_key(f"model.{key}", [k.name for k in model_keys()]))
    return settings.read(ModelConfig, flat, "model", mixers=nested)


def default_values() -> dict[str, Any]:
    """Every key of the section with its default, those of all mixers too."""
    of_mixers = {name: settings.defaults(mixers.find(name).section) for name in mixers.names()}
    return settings.defaults(ModelConfig) | of_mixers


def model_keys() -> list[settings.Key]:
    """Every key of the section, those of all mixers too."""
    found = list(settings.keys(ModelConfig, "model"))
    for name in mixers.names():
        found += settings.keys(mixers.find(name).section, f"model.{name}")
    return found


def check_model(config: ModelConfig, parts: Parts = ONE_DEVICE) -> None:
    """Raises `UserError` for values that can't work together, not on so many devices, or would be
    ignored.
    """
    if (config.positions == "learned") != (config.max_positions is not None):
        raise UserError(
            f"config key model.max_positions is {config.max_positions!r} and model.positions is "
            f"{config.positions!r}; learned positions need their number, others have none"
        )
    if config.norm == "rms" and config.norm_bias:
        raise UserError("config key model.norm_bias is True, but a root-mean-square norm has none")
    if config.norm == "none":
        of_norms = ("norm_bias", "norm_eps", "final_norm", "embedding_norm")
        settings.refuse_ignored(config, "model", of_norms, "model.norm 'none' leaves out all norms")
    check_remat(config.remat)
    for name in config.mixer_names:
        mixer, section = config.of(name)
        mixer.check(section, config.dim, parts)


def parse_blocks(text: str, num_blocks: int) -> tuple[tuple[str, ...], ...]:
    """The mixers' names, block by block: seven blocks of one and a block of two for
    "7*mlstm,slstm+mlp" and 8 blocks; a shorter pattern is repeated.

    Raises:
        UserError: the text is no list of blocks, or does not give `num_blocks` of them.
    """
    pattern: list[tuple[str, ...]] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*\*)?\s*([a-z]\w*(?:\s*\+\s*[a-z]\w*)*)\s*", entry)
        if not match or (match[1] and not int(match[1])):
            raise UserError(
                f"config key model.blocks is {text!r}, of which {entry!r} is no block; write for "
                'example "7*mlstm,slstm+mlp" or "attention+mlp"'
            )
        block = tuple(name.strip() for name in match[2].split("+"))
        pattern += int(match[1] or 1) * [block]
    if num_blocks % len(pattern):
        raise UserError(
            f"config key model.num_blocks is {num_blocks}, no multiple of the {len(pattern)} "
            f"blocks of model.blocks {text!r}; use a multiple, or name every block, like "
            '"3*mlstm,slstm+mlp,4*mlstm"'
        )
    return tuple(pattern) * (num_blocks // len(pattern))


def text_of_blocks(layout: tuple[tuple[str, ...], ...]) -> str:
    """A short text of which `parse_blocks` makes this stack: "7*mlstm,slstm+mlp"."""
    count = len(layout)
    periods = (size for size in range(1, count) if count % size == 0)
    period = next((p for p in periods if layout[:p] * (count // p) == layout), count)
    runs = ((block, len(list(run))) for block, run in itertools.groupby(layout[:period]))
    named = (("+".join(block), length) for block, length in runs)
    return ",".join(name if length == 1 else f"{length}*{name}" for name, length in named)
