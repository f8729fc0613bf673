"""Sections of a configuration: frozen dataclasses whose fields carry meaning and bounds.

A room declares its section beside the code that reads it:

    @dataclasses.dataclass(frozen=True)
    class MLPConfig:
        activation: str = setting("silu", "of the gate", choices=("silu", "gelu"))
        factor: float = setting(1.3, "hidden size / D", above=0)

`read` makes one from given values and refuses what does not fit; `defaults` is what a config file
starts from.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from xlstm_jax.errors import UserError
from xlstm_jax.paths import refuse_address


class Bounds(NamedTuple):
    """What a setting's value must fulfil; what is None is not asked."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    entries: int | None = None  # of a tuple
    finite: bool = True

    def complaint(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None where nothing is."""
        if self.choices is not None and value not in self.choices:
            return f"it must be one of {', '.join(map(repr, self.choices))}"
        if self.entries is not None and len(value) != self.entries:
            return f"it must have {self.entries} entries"
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            if math.isnan(number) or (self.finite and math.isinf(number)):
                return "it must be a finite number"
            if self.at_least is not None and number < self.at_least:
                return f"it must be at least {self.at_least}"
            if self.above is not None and number <= self.above:
                return f"it must be above {self.above}"
            if self.at_most is not None and number > self.at_most:
                return f"it must be at most {self.at_most}"
            if self.below is not None and number >= self.below:
                return f"it must be below {self.below}"
        return None


def setting(
    default: Any, meaning: str, *, may_change: bool = False, place: bool = False, **bounds: Any
) -> Any:
    """A field of a section.

    Args:
        meaning: one line, for --help.
        may_change: a run may go on with another value: it says how something is computed, kept or
            shown, and not what is computed.
        place: a path, or several with commas between, each perhaps with "name=" before it.
        bounds: `Bounds` by name.
    """
    metadata = {"meaning": meaning, "bounds": Bounds(**bounds)}
    metadata |= {"may_change": may_change, "place": place}
    return dataclasses.field(default=default, metadata=metadata)


def read(section: type, values: Mapping[str, Any], name: str, **ready: Any) -> Any:
    """The section with these values, the others at their defaults.

    Args:
        name: of the section in messages, like "data" or "model.mlp".
        ready: fields that are not checked here.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key in values:
        if key not in fields:
            raise UserError(unknown_key(f"{name}.{key}", [f"{name}.{field}" for field in fields]))
    hints = typing.get_type_hints(section)
    given = {key: typed(f"{name}.{key}", value, hints[key]) for key, value in values.items()}
    made = section(**given, **ready)
    check_bounds(made, name)
    return made


def check_bounds(section: Any, name: str) -> None:
    """Raises `UserError` at the first value of a section that is out of its bounds."""
    for field in dataclasses.fields(section):
        value, bounds = getattr(section, field.name), field.metadata.get("bounds")
        if bounds is None or value is None:
            continue
        if complaint := bounds.complaint(value):
            raise UserError(f"config key {name}.{field.name} is {value!r}; {complaint}")
        for path in value.split(",") if field.metadata["place"] else ():
            refuse_address(f"config key {name}.{field.name}", path.rpartition("=")[2])


def defaults(section: type) -> dict[str, Any]:
    """The defaults of a section for a ConfigDict, None as a placeholder of the declared type."""
    hints = typing.get_type_hints(section)
    return {
        field.name: field.default
        if field.default is not None
        else config_dict.placeholder(allowed_types(hints[field.name])[0])
        for field in dataclasses.fields(section)
        if field.metadata
    }


class Key(NamedTuple):
    """What is known of a configuration key."""

    name: str  # "data.path", "model.mlp.factor"
    default: Any
    hint: Any  # its declared type
    meaning: str
    may_change: bool
    place: bool
    choices: tuple[Any, ...] | None
    section: type


def keys(section: type, name: str) -> Iterator[Key]:
    """The keys of a section; `name` is the section's."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        if about := field.metadata:
            yield Key(
                f"{name}.{field.name}",
                field.default,
                hints[field.name],
                about["meaning"],
                about["may_change"],
                about["place"],
                about["bounds"].choices,
                section,
            )


def differing(section: Any) -> dict[str, Any]:
    """The settings that do not have their default."""
    return {
        field.name: value
        for field in dataclasses.fields(section)
        if (value := getattr(section, field.name)) != field.default
    }


def refuse_ignored(section: Any, name: str, keys: Iterable[str], why: str) -> None:
    """Raises `UserError` where one of these settings does not have its default, though nothing
    would read it.

    Args:
        name: of the section in messages, as in `read`.
        why: nothing reads it, as the part of the sentence after "but".
    """
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in differing(section).items():
        if key in keys:
            raise UserError(
                f"config key {name}.{key} is {value!r}, but {why}; leave it at its default "
                f"{fields[key].default!r}"
            )


def allowed_types(hint: Any) -> tuple[type, ...]:
    """int | None -> (int, NoneType); tuple[int, ...] -> (tuple,)."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def typed(key: str, value: Any, hint: Any) -> Any:
    """A value as the type that a key declares: a whole number where a fraction may stand, a list as
    a tuple.

    Raises:
        UserError: the value is of another type.
    """
    allowed = allowed_types(hint)
    if float in allowed and type(value) is int:
        value = float(value)
    if float in allowed and types.NoneType in allowed and value == math.inf:
        value = None  # no bound and an infinite one are the same
    if isinstance(value, list):
        value = tuple(value)
    if type(value) not in allowed:
        wanted = " or ".join(
            "unset" if kind is types.NoneType else kind.__name__ for kind in allowed
        )
        raise UserError(
            f"config key {key} is {value!r} ({type(value).__name__}); it must be {wanted}"
        )
    if isinstance(value, tuple):
        tuple_hint = next(
            h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is tuple
        )
        member = typing.get_args(tuple_hint)[0]
        if member is float:  # as config.json has it
            value = tuple(float(item) if item in ("inf", "-inf") else item for item in value)
        fits = (int, float) if member is float else (member,)
        if any(type(item) not in fits for item in value):
            raise UserError(
                f"config key {key} is {value!r}; each entry must be of type {member.__name__}"
            )
        value = tuple(member(item) for item in value)
    return value


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message about a key that does not exist, with the nearest that do."""
    close = difflib.get_close_matches(key, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "train.py --help lists all keys"
    return f"unknown config key {key}; {hint}"
