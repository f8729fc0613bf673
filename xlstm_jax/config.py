"""Every configuration key, once: its type, default and meaning, as frozen dataclasses.

`configs/*.py` are `ml_collections` files whose `get_config(variant)` starts from
`default_config_dict()`; `load` and `from_config_dict` turn such a ConfigDict into a validated
`Config`. None stands for "not set" and becomes a placeholder in the ConfigDict, so that every key
can be overridden on the command line.
"""

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from xlstm_jax import config_checks, config_files
from xlstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture: a stack of blocks between an embedding and a vocabulary projection.

    The mLSTM blocks are the paper's pre up-projection blocks or those of xLSTM 7B; sLSTM blocks
    stand at `slstm_positions`, or at the end of each period of `ratio`. A key that the chosen
    blocks do not use must keep its default.
    """

    vocab_size: int = 320  # rows of the embedding, at least the tokenizer's vocabulary
    dim: int = 256  # D
    num_blocks: int = 4
    num_heads: int = 4  # H, of both cells
    # the mLSTM blocks: "paper" (2405.04517, figure 11) or "7b" (2503.13427, figure 8)
    block: str = "paper"
    # "a:b": each period of a+b blocks ends with b sLSTM blocks; xLSTM[a:b] of the paper
    ratio: str | None = None
    slstm_positions: tuple[int, ...] = ()  # explicit 0-based positions, instead of `ratio`
    up_factor: float = 2.0  # paper mLSTM block: inner dimension / D, rounded up to 64
    conv_width: int = 4  # paper blocks: taps of the causal convolution; 0 leaves it out
    # paper mLSTM block: block size of the block-diagonal q, k, v projections
    qkv_block_size: int = 4
    qk_factor: float = 0.5  # 7b block: query/key dimension / D
    ffn_factor: float = 1.3  # sLSTM and 7b blocks: feed-forward dimension / D, rounded up to 64
    input_gate: str = "exponential"  # mLSTM: or "sigmoid" (mLSTMsig of TFLA: no normaliser)
    input_gate_bias: float = 0.0  # mLSTM: mean of the initial input-gate bias; xLSTM 7B: -10
    input_gate_bias_std: float = 0.1  # mLSTM: its standard deviation; xLSTM 7B: 0
    # mLSTM: initial bias of the first and last head, linear between
    forget_gate_bias: tuple[float, float] = (3.0, 6.0)
    slstm_recurrent_init: str = "zeros"  # or "uniform" in +-1/sqrt(D)
    gate_soft_cap: float | None = None  # mLSTM: gates become a*tanh(x/a); xLSTM 7B: 15
    logit_soft_cap: float | None = None  # the same for the logits; xLSTM 7B: 30
    norm_eps: float = 1e-5
    cell_eps: float = 1e-6  # mLSTM: added to the stabilised normaliser
    tie_embeddings: bool = False  # the vocabulary projection is the transposed embedding
    dropout: float = 0.0  # on each residual branch, in training only
    # of the computation; "auto" is bfloat16, on the CPU float32. Parameters are always float32
    dtype: str = "auto"
    # recompute in the backward pass: "block" all but each block's input, "dots" all but its
    # projections too
    remat: str = "none"
    # one of pallas_kernels' names; None takes the best that serves the device
    mlstm_backend: str | None = None
    slstm_backend: str | None = None
    chunk_size: int | None = None  # mLSTM: L; None leaves it to the backend
    # sLSTM: bound on the gradient through R h; the paper used 10
    recurrent_gradient_clip: float | None = None

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The kind of each block, in order: "slstm", "mlstm" (paper) or "mlstm_7b"."""
        mlstm = {"paper": "mlstm", "7b": "mlstm_7b"}[self.block]
        if self.ratio is None:
            at = set(self.slstm_positions)
        else:
            a, b = config_checks.parse_ratio(self.ratio)
            at = {position for position in range(self.num_blocks) if position % (a + b) >= a}
        return tuple("slstm" if position in at else mlstm for position in range(self.num_blocks))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from and how they are cut into samples."""

    # "stdlib" (the embedded corpus), text file, folder of text, folder with prepared token shards,
    # "synthetic" (random tokens), or a mixture of these by weight: "a:0.7,b:0.3"
    path: str = "stdlib"
    max_tokens: int | None = None  # train on the first tokens only
    # of the held-out tokens; None: a prepared `path`'s own, else every `holdout_every`-th file
    validation_path: str | None = None
    # more held-out data, "name=path,name=path", logged as validation/name
    validation_sets: str | None = None
    holdout_every: int = 20
    tokenizer: str = "byte"  # or a file of the `tokenizers` library
    context_length: int = 256  # T, tokens
    batch_size: int = 8  # B, sequences per optimizer step, over all devices
    reset_at_document: bool = False  # drop all states at document borders
    seed: int = 0  # of the order of samples
    workers: int = 0  # reader processes; 0 reads in the main process


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate (paper, appendix B.2)."""

    learning_rate: float = 1e-3  # peak
    # warm-up, then "cosine", or "exponential" (xLSTM 7B), or "constant"; then the cool-down
    schedule: str = "cosine"
    warmup_steps: int = 750
    # step at which the decay reaches `final_fraction`; None: train.steps - cooldown_steps
    decay_steps: int | None = None
    final_fraction: float = 0.1  # of the peak
    cooldown_steps: int = 0  # linear to 0 over the last steps
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1  # on kernels only: not on biases, norms, the embedding, R
    clip_norm: float | None = 1.0  # of the global gradient norm


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, and what happens when a step goes wrong."""

    steps: int = 1000
    accumulation_steps: int = 1  # micro-batches per optimizer step, weighted by their tokens
    seed: int = 0  # of initialisation and dropout
    # skip a step whose loss is so many standard deviations above the last ones' mean
    spike_deviations: float | None = None
    spike_window: int = 128  # how many losses that is measured on
    # stop after so many skipped steps in a row; a loss that isn't finite always skips its step
    max_skipped: int = 10
    watchdog_seconds: int | None = None  # print all threads' stacks when a step takes longer
    watchdog_ends: bool = False  # and end the process
    # with several processes: when one that is silent counts as dead, and all others are ended
    heartbeat_seconds: int = 100
    # after SIGTERM or Ctrl-C: when the process ends, also if it could not save until then
    grace_seconds: int = 300


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and where the parameters come from."""

    every: int = 1000  # steps; the last step is always saved
    keep_latest: int = 2
    keep_best: int = 1  # by held-out loss
    keep_every: int | None = None  # steps: the checkpoints at its multiples are kept for good
    # a run's folder or an imported one: start from its parameters at step 0
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a person sees while it runs."""

    every: int = 10  # steps
    tensorboard: bool = True
    wandb: str | None = None  # project at Weights & Biases


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the held-out tokens."""

    every: int = 1000  # steps; the end of training is always evaluated
    batch_size: int = 8
    context_length: int | None = None  # tokens per window; None: that of training
    max_tokens: int | None = None  # evaluate the first tokens only
    sample_tokens: int = 300  # length of the text generated at the end; 0: none


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. `load` makes it from a file in `configs/`."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def to_json(self) -> str:
        """The resolved configuration as JSON, the text of a run's `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def from_json(text: str) -> Config:
    """The `Config` that `Config.to_json` wrote; raises `UserError` where a key is unknown or of the
    wrong type.
    """
    sections = json.loads(text)
    if not isinstance(sections, dict):
        raise UserError(f"a configuration is an object of sections, not {type(sections).__name__}")
    return _from_sections(sections)


def default_config_dict() -> ml_collections.ConfigDict:
    """Every key with its default, as a locked ConfigDict; None becomes a placeholder of the key's
    type.
    """
    return ml_collections.ConfigDict(
        {
            section.name: _section_dict(section.default_factory)
            for section in dataclasses.fields(Config)
        }
    ).lock()


def from_config_dict(
    values: ml_collections.ConfigDict, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The validated, immutable form of a ConfigDict with overrides such as {"model.dim": 256}.

    What is checked is the result: a file whose values contradict each other will do where the
    overrides mend it. An override of None unsets an optional key.

    Raises:
        UserError: a key is unknown or missing, a value has the wrong type, or values contradict
            each other.
    """
    sections = {name: section for name, section in values.items()}
    for key, value in (overrides or {}).items():
        check_key(key)
        section, _, name = key.partition(".")
        sections[section] = {**sections.get(section, {}), name: value}
    return _from_sections(sections)


def _from_sections(given: Mapping[str, Any]) -> Config:
    sections = {}
    for section in dataclasses.fields(Config):
        values = given.get(section.name, {})
        if not isinstance(values, Mapping | ml_collections.ConfigDict):
            raise UserError(f"config section {section.name} is {values!r}; it must have keys")
        values = dict(values.items())
        fields = {field.name for field in dataclasses.fields(section.default_factory)}
        for key in values.keys() - fields:
            raise UserError(_unknown(f"{section.name}.{key}"))
        sections[section.name] = section.default_factory(
            **{key: _checked(f"{section.name}.{key}", value) for key, value in values.items()}
        )
    for key in given.keys() - sections.keys():
        raise UserError(_unknown(key))
    config = Config(**sections)
    config_checks.check(config)
    return config


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a file such as "configs/xlstm_1.3b.py:7_1-15b", with overrides such as
    {"model.dim": 256, "optimizer.clip_norm": None}.

    Raises:
        UserError: no such file or variant, an unknown key, a wrong type or an impossible
            combination.
    """
    return from_config_dict(config_files.read(str(path)), overrides)


def check_key(key: str) -> None:
    """Raises `UserError`, with the nearest names, where "section.name" is no configuration key."""
    if key not in _hints():
        raise UserError(_unknown(key))


def types_of(key: str) -> tuple[type, ...]:
    """The types that a key's value may have; NoneType is among them where it can be unset."""
    return _allowed_types(_hints()[key])


@functools.cache
def _hints() -> dict[str, Any]:
    """The declared type of every key "section.name"."""
    return {
        f"{section.name}.{name}": hint
        for section in dataclasses.fields(Config)
        for name, hint in typing.get_type_hints(section.default_factory).items()
    }


def _section_dict(section: type) -> dict[str, Any]:
    """Defaults of one section, None as a placeholder of the declared type."""
    hints = typing.get_type_hints(section)
    return {
        field.name: config_dict.placeholder(_allowed_types(hints[field.name])[0])
        if field.default is None
        else field.default
        for field in dataclasses.fields(section)
    }


def _allowed_types(hint: Any) -> tuple[type, ...]:
    """int | None -> (int, NoneType); tuple[int, ...] -> (tuple,)."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def _checked(key: str, value: Any) -> Any:
    """The value as the key's type has it: 1 becomes 1.0, a list a tuple, an infinite bound None."""
    hint = _hints()[key]
    allowed = _allowed_types(hint)
    if float in allowed and type(value) is int:
        value = float(value)
    if isinstance(value, list):
        value = tuple(value)
    if key in config_checks.UNBOUNDED_AT_INFINITY and value == float("inf"):
        value = None
    if type(value) not in allowed:
        wanted = " or ".join(
            "unset" if kind is types.NoneType else kind.__name__ for kind in allowed
        )
        raise UserError(
            f"config key {key} is {value!r} ({type(value).__name__}); it must be {wanted}"
        )
    if tuple in allowed:
        member = typing.get_args(hint)[0]
        if any(
            type(item) not in ((int, float) if member is float else (member,)) for item in value
        ):
            raise UserError(
                f"config key {key} is {value!r}; each entry must be of type {member.__name__}"
            )
    return value


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(key, _hints(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "xlstm_jax/config.py lists all keys"
    return f"unknown config key {key}; {hint}"
