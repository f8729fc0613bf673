"""The configuration on a command line: --config=FILE[:VARIANT] and --config.section.key=value."""

import ast
import itertools
import pathlib
import re
import textwrap
import traceback
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from xlstm_jax import config as config_lib
from xlstm_jax import config_files, settings
from xlstm_jax.errors import UserError

NO_CONFIG = (
    "--config is missing; give a file of configs/, for example --config=configs/quickstart.py"
)
FLAG = re.compile(r"--?(no)?config(?:\.([^=]*))?(?:=(.*))?", re.DOTALL)
WIDTH, COLUMN = 100, 40  # of the help: its lines, and where meanings begin
TRUTH = {"true": True, "t": True, "1": True, "yes": True}
TRUTH |= {"false": False, "f": False, "0": False, "no": False}


class Arguments(NamedTuple):
    """A command line, taken apart.

    Attributes:
        file: FILE[:VARIANT] of the last --config.
        overrides: value as text by key; of a flag given twice the last value.
        rest: all other arguments.
    """

    file: str | None
    overrides: dict[str, str]
    rest: list[str]


def take_apart(argv: Sequence[str]) -> Arguments:
    """Separates what concerns the configuration from other flags.

    A value stands behind "=" or in the next argument; --config.log.tensorboard alone is true, and
    --noconfig.log.tensorboard false.

    Raises:
        UserError: an unknown key, or one without a value.
    """
    file, overrides, rest = None, {}, list(argv[:1])
    arguments = list(argv[1:])
    while arguments:
        argument = arguments.pop(0)
        match = FLAG.fullmatch(argument)
        if not match:
            rest.append(argument)
            continue
        negated, key, value = match.groups()
        if key is None:
            file = value if value is not None else arguments.pop(0) if arguments else ""
            continue
        if value is None and bool in _types_of(key):
            value = "false" if negated else "true"
        elif value is None and not negated and arguments:
            value = arguments.pop(0)
        elif value is None or negated:
            raise UserError(f"{argument} is not understood; write --config.{key}=value")
        overrides[key] = value
    return Arguments(file, overrides, rest)


def without_config(argv: Sequence[str]) -> list[str]:
    """The arguments that do not concern the configuration; errors as of `take_apart`."""
    return take_apart(argv).rest


def read(argv: Sequence[str]) -> config_lib.Config:
    """The validated configuration that a command line names.

    Raises:
        UserError: there is no --config, its file fails, or the configuration is not valid.
    """
    arguments = take_apart(argv)
    if not arguments.file:
        raise UserError(NO_CONFIG)
    overrides = {key: parse(key, text) for key, text in arguments.overrides.items()}
    return config_lib.from_config_dict(_file(arguments.file), overrides)


def parse(key: str, text: str) -> Any:
    """The value of a key that is written as text; "none" or "None" unsets an optional key.

    Raises:
        UserError: the text is no value of the key's type.
    """
    kinds = _types_of(key)
    optional = types.NoneType in kinds
    if optional and text in ("none", "None"):
        return None
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if kind is str:
        # "none" is a word that some keys take, None never is
        if text and text != "None":
            return text
        remedy = "give a value" + (", or none to unset it" if optional else "; it can't be unset")
        raise UserError(f"config key {key} is {text!r}; {remedy}")
    try:
        return _value(kind, text)
    except (ValueError, SyntaxError, KeyError):
        wanted = f"of type {kind.__name__}" + (", or none to unset it" if optional else "")
        if kind is tuple:
            wanted = "numbers with commas between, like 1,3"
        raise UserError(f"config key {key} is {text!r}; it must be {wanted}") from None


def _types_of(key: str) -> tuple[type, ...]:
    """The types that a key's value may have; NoneType is among them where it can be unset."""
    return settings.allowed_types(config_lib.find_key(key).hint)


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return TRUTH[text.lower()]
    if kind is tuple:
        # a number beyond all others is a literal of Python's, the word inf is none
        value = ast.literal_eval(re.sub(r"\binf\b", "1e999", text))
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return kind(text)


def listing() -> str:
    """All keys by section with defaults and meanings: the end of `train.py --help`."""
    head = (
        "Keys of the configuration, with the defaults that config files start from. "
        '"none" means "not set". A run may go on with another value of a key that has a "*".'
    )
    lines = textwrap.wrap(head, WIDTH)
    for section, keys in itertools.groupby(config_lib.keys(), lambda key: key.section):
        lines += ["", (section.__doc__ or section.__name__).partition("\n")[0]]
        lines += [line for key in keys for line in _described(key)]
    return "\n".join(lines)


def _described(key: settings.Key) -> list[str]:
    """A key, its default and its meaning in two columns."""
    default = "none" if key.default is None else key.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    about = f"  {key.name}={default}{' *' if key.may_change else ''}"
    more = []
    others = [choice for choice in key.choices or () if choice != key.default]
    if any(f'"{choice}"' not in key.meaning for choice in others):
        more.append(f"one of {', '.join(map(str, key.choices))}")
    if key.default is not None and types.NoneType in settings.allowed_types(key.hint):
        more.append("may be none")
    meaning = key.meaning + (f" ({'; '.join(more)})" if more else "")
    lines = [" " * COLUMN + line for line in textwrap.wrap(meaning, WIDTH - COLUMN)]
    if len(about) + 1 < COLUMN and lines:
        lines[0] = about.ljust(COLUMN) + lines[0].lstrip()
        return lines
    return [about, *lines]


def name(argv: Sequence[str]) -> str:
    """A name for files about the configuration: xlstm_1.3b_7_1-15b for
    configs/xlstm_1.3b.py:7_1-15b.
    """
    file, variant = config_files.split(take_apart(argv).file or "")
    stem = pathlib.Path(file).name.removesuffix(".py")
    return f"{stem}_{variant}" if variant else stem


def _file(path: str) -> Any:
    """What the file gives; its own errors are named with their line."""
    try:
        return config_files.read(path)
    except UserError:
        raise
    # a config file is Python: whatever a slip in it raises is the user's to mend
    except Exception as error:
        file = str(pathlib.Path(config_files.find(config_files.split(path)[0])).resolve())
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if str(pathlib.Path(frame.filename).resolve()) == file
        ]
        if isinstance(error, SyntaxError) and error.lineno is not None:
            lines.append(error.lineno)
        where = f", line {lines[-1]}" if lines else ""
        # ml_collections goes on to list all keys
        what = str(error).partition(" Other fields present")[0].strip("'\"")
        raise UserError(f"config file {path}{where}: {type(error).__name__}: {what}") from error
