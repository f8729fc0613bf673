"""What the entry points share: flags of their own `FlagValues`, and errors of the user as one line
instead of a traceback.
"""

import itertools
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from ml_collections import config_flags

from xlstm_jax import config as config_lib
from xlstm_jax import interrupts
from xlstm_jax.errors import UserError

EXIT_USER_ERROR = 2
NO_CONFIG = (
    "--config is missing; give a file of configs/, for example --config=configs/quickstart.py"
)


def run(command: Callable[[], None], advice: str = "") -> int:
    """Runs a command and returns the process's exit status; a `UserError` is printed as one line on
    stderr, and so is Ctrl-C (`interrupts.run`), with `advice`.
    """
    try:
        return interrupts.run(command, advice)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR


def parse(
    argv: Sequence[str], usage: str, strings: Mapping[str, str], *, with_config: bool = False
) -> flags.FlagValues:
    """The flags of a command line, argv[0] being the program.

    Args:
        usage: printed by --help.
        strings: name -> meaning of the flags with a text as value; all may be left out.
        with_config: also take --config=FILE[:VARIANT] and --config.section.key=value.

    Raises:
        UserError: an unknown flag or config key, a value of the wrong type, no such config file.
        SystemExit: after --help.
    """
    values = flags.FlagValues()
    for name, meaning in strings.items():
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    if with_config:
        config_flags.DEFINE_config_file(
            "config", None, "file in configs/", flag_values=values, sys_argv=list(argv)
        )
        _check_config_flags(argv)
    if {"--help", "-h", "--helpfull"} & set(argv[1:]):
        print(usage)
        for name in strings:
            print(f"  --{name}: {strings[name]}")
        raise SystemExit(0)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise UserError(_plain(str(error))) from None
    if rest:
        raise UserError(
            f"argument {rest[0]!r} is not understood; write --name=value (--help lists the flags)"
        )
    return values


def config_of(values: flags.FlagValues) -> config_lib.Config:
    """The validated configuration that --config and its overrides name.

    Raises:
        UserError: there is no --config, or the configuration is not valid.
    """
    if values.config is None:
        raise UserError(NO_CONFIG)
    return config_lib.from_config_dict(values.config)


def text(values: flags.FlagValues, name: str, example: str) -> str:
    """The value of a flag that must be given."""
    if not values[name].value:
        raise UserError(f"--{name} is missing; give for example --{name}={example}")
    return values[name].value


def number(values: flags.FlagValues, name: str) -> int | None:
    """The value of an optional flag that must be a count."""
    given = values[name].value
    if given is not None and not given.isdigit():
        raise UserError(f"--{name} is {given!r}; it must be a whole number")
    return None if given is None else int(given)


def span(values: flags.FlagValues, name: str) -> tuple[int, int] | None:
    """The value of an optional flag like 10:12, two counts of which the second is not the smaller."""
    given = values[name].value
    if given is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", given)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--{name} is {given!r}; it must be FIRST:LAST, for example 10:12")
    return int(match[1]), int(match[2])


def config_file(argv: Sequence[str]) -> str | None:
    """FILE[:VARIANT] of the last --config; None where there is none."""
    files = [
        argument.partition("=")[2] if "=" in argument else after
        for argument, after in itertools.pairwise([*argv[1:], ""])
        if argument.partition("=")[0] in ("--config", "-config")
    ]
    return files[-1] if files else None


def config_name(argv: Sequence[str]) -> str:
    """A name for files about the configuration: xlstm_1.3b_7_1-15b for
    configs/xlstm_1.3b.py:7_1-15b.
    """
    file, _, variant = (config_file(argv) or "").partition(":")
    name = pathlib.Path(file).name.removesuffix(".py")
    return f"{name}_{variant}" if variant else name


def _check_config_flags(argv: Sequence[str]) -> None:
    """Names a bad config file or an unknown key before ml_collections does, whose words are less
    helpful.
    """
    if (file := config_file(argv)) is not None:
        _check_file(file)
    for argument in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            config_lib.check_key(match[1])


def _check_file(path: str) -> None:
    if not path:
        raise UserError(NO_CONFIG)
    try:
        config_lib.load(path)
    except UserError:
        raise
    # a config file is Python: whatever a slip in it raises is the user's to mend
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename.endswith(path.partition(":")[0])
        ]
        where = f", line {lines[-1]}" if lines else ""
        # ml_collections goes on to list all keys
        what = str(error).partition(" Other fields present")[0].strip("'\"")
        raise UserError(f"config file {path}{where}: {type(error).__name__}: {what}") from error


def _plain(message: str) -> str:
    """absl's message about a value of the wrong type, in the words of `xlstm_jax.config`."""
    match = re.match(r"flag --config\.(\w+)\.(\w+)=(.*?): ", message, re.DOTALL)
    if not match:
        return message
    section, name, value = match.groups()
    kind = config_lib.default_config_dict()[section].get_type(name).__name__
    return f"config key {section}.{name} is {value!r}; it must be of type {kind}"
