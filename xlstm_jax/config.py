"""The configuration of an experiment: the rooms' sections, composed.

`configs/*.py` are `ml_collections` files whose `get_config(variant)` starts from
`default_config_dict()`; `load` and `from_config_dict` turn such a ConfigDict into a validated
`Config`. None stands for "not set" and becomes a placeholder in the ConfigDict, so that every key
can be overridden on the command line.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from xlstm_jax import config_files, settings
from xlstm_jax.data.config import DataConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models.config import ModelConfig, check_model, model_keys, read_model
from xlstm_jax.models.config import default_values as model_defaults
from xlstm_jax.models.mixer import Parts
from xlstm_jax.parallel import compute_dtype
from xlstm_jax.parallel.mesh import MeshConfig
from xlstm_jax.settings import Key, setting
from xlstm_jax.tasks import TaskConfig, make_task, read_task, task_keys
from xlstm_jax.tasks import default_values as task_defaults
from xlstm_jax.tasks.config import EvalConfig
from xlstm_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate (paper, appendix B.2)."""

    learning_rate: float = setting(1e-3, "at the peak of the schedule", at_least=0)
    schedule: str = setting(
        "cosine",
        'after the warm-up "cosine", "restarts" (four of them), "exponential" (xLSTM 7B) or '
        '"constant"; then the cool-down',
        choices=("cosine", "restarts", "exponential", "constant"),
    )
    warmup_steps: int = setting(750, "in which the rate rises linearly from 0", at_least=0)
    decay_steps: int | None = setting(
        None,
        "step at which the decay reaches final_fraction; unset: train.steps - cooldown_steps",
        above=0,
    )
    final_fraction: float = setting(0.1, "where the decay ends, of the peak", at_least=0, at_most=1)
    cooldown_steps: int = setting(0, "last steps, in which it falls linearly to 0", at_least=0)
    beta1: float = setting(0.9, "decay of the first moment", at_least=0, below=1)
    beta2: float = setting(0.95, "decay of the second moment", at_least=0, below=1)
    eps: float = setting(1e-5, "added to the root of the second moment", at_least=0)
    weight_decay: float = setting(
        0.1, "on kernels only: not on biases, norms, embeddings, recurrent kernels", at_least=0
    )
    clip_norm: float | None = setting(1.0, "of the global gradient norm", above=0)

    @property
    def follows_length(self) -> bool:
        """Whether the learning rate of a step depends on `train.steps`."""
        decays_to_the_end = self.schedule != "constant" and self.decay_steps is None
        return decays_to_the_end or self.cooldown_steps > 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of the run, and what happens when a step goes wrong."""

    # counted in int32 on the device
    steps: int = setting(1000, "optimizer steps", at_least=1, at_most=2**31 - 1)
    accumulation_steps: int = setting(
        1, "micro-batches per optimizer step", at_least=1, may_change=True
    )
    seed: int = setting(0, "of initialisation and dropout", at_least=0, at_most=2**32 - 1)
    spike_deviations: float | None = setting(
        None, "skip a step whose loss is so many deviations above the last ones' mean", above=0
    )
    spike_window: int = setting(128, "how many losses that is measured on", at_least=2)
    max_skipped: int = setting(
        10,
        "stop after so many skipped steps in a row; a loss that isn't finite always skips its step",
        at_least=1,
    )
    watchdog_seconds: int | None = setting(
        None, "print all threads' stacks when a step takes longer", at_least=1, may_change=True
    )
    watchdog_ends: bool = setting(False, "and then end the process", may_change=True)
    heartbeat_seconds: int = setting(
        100,
        "with several processes: when a silent one counts as dead and all others are ended",
        at_least=1,
        may_change=True,
    )
    grace_seconds: int = setting(
        300,
        "after SIGTERM or Ctrl-C: when the process ends, also if it could not save until then",
        at_least=1,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and where the parameters come from."""

    every: int = setting(
        1000, "steps between checkpoints; the last step is always saved", at_least=1
    )
    keep_latest: int = setting(2, "newest checkpoints that are kept", at_least=1, may_change=True)
    keep_best: int = setting(1, "kept by held-out loss", at_least=0, may_change=True)
    keep_every: int | None = setting(
        None, "steps: checkpoints at its multiples are kept for good", at_least=1, may_change=True
    )
    init_from: str | None = setting(
        None,
        "a run's folder or an imported one: start from its parameters at step 0",
        place=True,
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a person sees while it runs."""

    every: int = setting(10, "steps between lines and events", at_least=1, may_change=True)
    tensorboard: bool = setting(True, "write TensorBoard's event files", may_change=True)
    wandb: str | None = setting(None, "project at Weights & Biases", may_change=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. `load` makes it from a file in `configs/`."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def values(self) -> dict[str, dict[str, Any]]:
        """All keys as nested dictionaries."""
        return {
            name: section.values() if name in NESTED else dataclasses.asdict(section)
            for name, section in vars(self).items()
        }

    def to_json(self) -> str:
        """The resolved configuration as JSON, the text of a run's `config.json`."""
        return json.dumps(_finite(self.values()), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Nested values in which an infinite number is the text "inf" or "-inf", as JSON has none."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}
# Sections with a subsection for each registered part: how one is read, its defaults, its keys.
NESTED = {
    "model": (read_model, model_defaults, model_keys),
    "task": (read_task, task_defaults, task_keys),
}


def keys() -> list[Key]:
    """Every key that can be given, section by section; a mixer that is registered adds its own."""
    return [
        key
        for name, section in SECTIONS.items()
        for key in (NESTED[name][2]() if name in NESTED else settings.keys(section, name))
    ]


def find_key(name: str) -> Key:
    """The key of a name such as "model.mlp.factor".

    Raises:
        UserError: there is none; the message has the nearest names.
    """
    known = {key.name: key for key in keys()}
    if name not in known:
        raise UserError(settings.unknown_key(name, known))
    return known[name]


def flat(config: Config) -> dict[str, Any]:
    """The value of every key by its dotted name."""
    found = {}

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = value

    add("", config.values())
    return found


def default_config_dict() -> ml_collections.ConfigDict:
    """Every key with its default, as a locked ConfigDict; None becomes a placeholder of the key's
    type.
    """
    return ml_collections.ConfigDict(
        {
            name: NESTED[name][1]() if name in NESTED else settings.defaults(section)
            for name, section in SECTIONS.items()
        }
    ).lock()


def from_json(text: str) -> Config:
    """The `Config` that `Config.to_json` wrote; raises `UserError` where a key is unknown or of the
    wrong type.
    """
    sections = json.loads(text)
    if not isinstance(sections, dict):
        raise UserError(f"a configuration is an object of sections, not {type(sections).__name__}")
    return _from_sections(sections)


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
    sections = values.to_dict()
    for name, value in (overrides or {}).items():
        find_key(name)
        *path, last = name.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return _from_sections(sections)


def _from_sections(given: Mapping[str, Any]) -> Config:
    for name, values in given.items():
        if name not in SECTIONS:
            raise UserError(settings.unknown_key(name, SECTIONS))
        if not isinstance(values, Mapping):
            raise UserError(f"config section {name} is {values!r}; it must have keys")
    made = {}
    for name, section in SECTIONS.items():
        values = given.get(name, {})
        nested = name in NESTED
        made[name] = NESTED[name][0](values) if nested else settings.read(section, values, name)
    config = Config(**made)
    check(config)
    return config


def task_of(config: Config) -> Task:
    """What the configuration says is learned; no data are touched."""
    return make_task(config.task, config.model, config.data, config.eval)


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a file such as "configs/xlstm_1.3b.py:7_1-15b", with overrides such as
    {"model.dim": 256, "optimizer.clip_norm": None}.

    Raises:
        UserError: no such file or variant, an unknown key, a wrong type or an impossible
            combination.
    """
    return from_config_dict(config_files.read(str(path)), overrides)


AnyConfig = Config | ml_collections.ConfigDict | str | os.PathLike


def as_config(given: AnyConfig) -> Config:
    """A `Config` as it is, the validated form of a ConfigDict, or what `load` gives for a path.

    Raises:
        UserError: as of `load`, or it is nothing of these.
    """
    if isinstance(given, Config):
        return given
    if isinstance(given, ml_collections.ConfigDict):
        return from_config_dict(given)
    if isinstance(given, str | os.PathLike):
        return load(os.fspath(given))
    raise UserError(
        f"the configuration is of type {type(given).__name__}; give what xlstm_jax.config.load "
        'returns, a ConfigDict, or a config file, like "configs/quickstart.py"'
    )


def check(config: Config) -> None:
    """Raises `UserError` where values of several keys can't work together."""
    mesh = config.mesh
    # -1 stands for the devices that are left: a mixer whose time can't be spread refuses it too
    check_model(config.model, Parts(tensor=max(mesh.tensor, 1), sequence=mesh.sequence))
    task_of(config).model()  # task and model refuse keys that they would not read
    _check_training(config)
    # "auto" would start jax's backend, before which several processes have to find one another
    if config.model.dtype == "float64":
        compute_dtype(config.model.dtype)  # refuses it where jax would compute float32
    if config.data.context_length % max(mesh.sequence, 1):
        raise UserError(
            f"config key mesh.sequence is {mesh.sequence}, which does not divide "
            f"data.context_length {config.data.context_length}; use a divisor of it"
        )


def _check_training(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.schedule == "constant":
        why = "optimizer.schedule 'constant' has no decay"
        settings.refuse_ignored(optimizer, "optimizer", ("decay_steps", "final_fraction"), why)
    if config.train.spike_deviations is None:
        why = "without train.spike_deviations no step is skipped as a spike"
        settings.refuse_ignored(config.train, "train", ("spike_window",), why)
    if config.train.watchdog_seconds is None:
        why = "without train.watchdog_seconds nothing watches the steps"
        settings.refuse_ignored(config.train, "train", ("watchdog_ends",), why)
    if config.data.batch_size % config.train.accumulation_steps:
        raise UserError(
            f"config key data.batch_size is {config.data.batch_size}, not divisible by "
            f"train.accumulation_steps {config.train.accumulation_steps}; use a multiple of it"
        )
    if optimizer.warmup_steps + optimizer.cooldown_steps > steps:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} and optimizer.cooldown_steps "
            f"{optimizer.cooldown_steps} do not fit into train.steps {steps}; shorten them or "
            "train longer"
        )
    if config.data.reset_at_document and config.eval.max_tokens == 1:
        raise UserError(
            "config key eval.max_tokens is 1, but with data.reset_at_document the first token of a "
            "document is not scored, so that none is left; use at least 2"
        )
    longest = max(config.data.context_length, config.eval.context_length or 0)
    if (most := config.model.max_positions) is not None and longest > most:
        raise UserError(
            f"config key model.max_positions is {most}, less than the {longest} tokens of "
            "data.context_length or eval.context_length; use at least that many"
        )
    if config.data.reset_at_document:
        for name in config.model.mixer_names:
            if not config.model.of(name)[0].resets:
                raise UserError(
                    f"config key data.reset_at_document is True, but the mixer {name!r} of "
                    "model.blocks can't forget at a document's border; leave it False"
                )
