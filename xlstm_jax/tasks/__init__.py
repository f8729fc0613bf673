"""The table of tasks. `register` adds one, also from a notebook.

language_modelling  the next token of a text
cifar               what images show, pixel by pixel, of the Long Range Arena
formal              questions about sequences of formal languages
listops             the value of nested lists, of the Long Range Arena
mqar                multi-query associative recall
nearest_neighbour   the value of the most similar vector so far
pathfinder          whether two points are the ends of one curve, of the Long Range Arena
retrieval           whether one text cites the other, of the Long Range Arena
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from xlstm_jax import settings
from xlstm_jax.data.config import DataConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig
from xlstm_jax.settings import setting
from xlstm_jax.tasks import (
    cifar,
    formal,
    language_modelling,
    listops,
    mqar,
    nearest_neighbour,
    pathfinder,
    retrieval,
)
from xlstm_jax.tasks.config import EvalConfig
from xlstm_jax.tasks.task import Task


class TaskKind(NamedTuple):
    """What the table holds of a task.

    Attributes:
        section: the frozen dataclass of its settings.
        task: made from (settings, model, data, eval).
        reads: keys of the sections `data` and `eval` that it reads beside GENERAL.
    """

    section: type
    task: type[Task]
    reads: frozenset[str] = frozenset()


# keys of `data` and `eval` that mean something in every task
GENERAL = frozenset(
    {
        "data.context_length",
        "data.batch_size",
        "data.seed",
        "eval.every",
        "eval.batch_size",
    }
)

_TABLE: dict[str, TaskKind] = {}


def register(name: str, kind: TaskKind) -> None:
    """Makes a task known: as `task.name`, its settings as `task.NAME.key`.

    Raises:
        ValueError: the name has other characters than a-z, 0-9 and _.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"the task's name is {name!r}; use a-z, 0-9 and _, a letter first")
    _TABLE[name] = kind


def find(name: str) -> TaskKind:
    """The task of a name; raises `UserError` where there is none."""
    if name not in _TABLE:
        raise UserError(f"config key task.name is {name!r}; it must be one of {', '.join(_TABLE)}")
    return _TABLE[name]


def names() -> tuple[str, ...]:
    """All names, in the order of registration."""
    return tuple(_TABLE)


register(
    language_modelling.NAME,
    TaskKind(
        language_modelling.LanguageModellingConfig,
        language_modelling.LanguageModelling,
        reads=language_modelling.READS,
    ),
)
register("cifar", TaskKind(cifar.CifarConfig, cifar.Cifar))
register("formal", TaskKind(formal.FormalConfig, formal.Formal))
register("listops", TaskKind(listops.ListOpsConfig, listops.ListOps))
register("mqar", TaskKind(mqar.MQARConfig, mqar.MQAR))
register(
    "nearest_neighbour",
    TaskKind(nearest_neighbour.NearestNeighbourConfig, nearest_neighbour.NearestNeighbour),
)
register("pathfinder", TaskKind(pathfinder.PathfinderConfig, pathfinder.Pathfinder))
register("retrieval", TaskKind(retrieval.RetrievalConfig, retrieval.Retrieval))


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is learned. The settings of the task are `task.NAME.key`."""

    name: str = setting(language_modelling.NAME, "what is learned")
    own: Any = None  # the section of the task

    def __post_init__(self):
        section = find(self.name).section
        if not isinstance(self.own, section):
            given = settings.read(section, self.own or {}, f"task.{self.name}")
            object.__setattr__(self, "own", given)

    def values(self) -> dict[str, Any]:
        """All settings as nested dictionaries, as config.json has them."""
        return {"name": self.name, self.name: dataclasses.asdict(self.own)}


def read_task(values: Mapping[str, Any]) -> TaskConfig:
    """The section from nested values; a mapping is the settings of a task.

    Raises:
        UserError: a key is unknown, a value does not fit, or another task has settings.
    """
    nested = {key: dict(value) for key, value in values.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in values.items() if key not in nested}
    for key in (*(flat.keys() - {"name"}), *(nested.keys() - set(names()))):
        raise UserError(settings.unknown_key(f"task.{key}", [k.name for k in task_keys()]))
    name = flat.get("name", TaskConfig.name)
    for other in nested.keys() - {name}:
        section = settings.read(find(other).section, nested[other], f"task.{other}")
        unread = settings.differing(section)
        settings.refuse_ignored(section, f"task.{other}", unread, f"task.name is {name!r}")
    return settings.read(TaskConfig, flat, "task", own=nested.get(name, {}))


def default_values() -> dict[str, Any]:
    """Every key of the section with its default, those of all tasks too."""
    of_tasks = {name: settings.defaults(find(name).section) for name in names()}
    return settings.defaults(TaskConfig) | of_tasks


def task_keys() -> list[settings.Key]:
    """Every key of the section, those of all tasks too."""
    found = [key._replace(choices=names()) for key in settings.keys(TaskConfig, "task")]
    for name in names():
        found += settings.keys(find(name).section, f"task.{name}")
    return found


def make_task(
    config: TaskConfig, model: ModelConfig, data: DataConfig, evaluation: EvalConfig
) -> Task:
    """The task of a configuration.

    Raises:
        UserError: a key of `data` or `eval` is set that the task does not read, or its settings
            can't work together.
    """
    kind = find(config.name)
    for section_name, section in (("data", data), ("eval", evaluation)):
        names_read = GENERAL | kind.reads
        unread = {
            field.name
            for field in dataclasses.fields(section)
            if f"{section_name}.{field.name}" not in names_read
        }
        why = f"the task {config.name!r} does not read it"
        settings.refuse_ignored(section, section_name, unread, why)
    return kind.task(config.own, model, data, evaluation)
