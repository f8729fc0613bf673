"""The words for commands that a person can paste: which Python, which program, what may be typed
next, and how to install an extra.
"""

import importlib.metadata
import os
import pathlib
import shlex
import shutil
import sys

DISTRIBUTION = "xlstm-jax-stack"
CLONE = pathlib.Path(__file__).resolve().parents[1]


def python() -> str:
    """How a shell in the working directory starts the Python that runs now: "python" where that is
    the same one, else its path, such as .venv/bin/python.
    """
    running = pathlib.Path(sys.executable)
    found = shutil.which("python")
    # not resolved: the interpreters of two environments may be links to one file
    if found is not None and os.path.abspath(found) == os.path.abspath(running):
        return "python"
    return shlex.quote(str(_from_here(running)))


def program(name: str) -> str:
    """How a shell in the working directory starts "train" or "eval": the script of the clone, or,
    where the package is installed without one, xlstm-train or xlstm-eval.
    """
    if _is_clone():
        return f"{python()} {shlex.quote(str(_from_here(CLONE / f'{name}.py')))}"
    script = pathlib.Path(sys.executable).with_name(f"xlstm-{name}")
    found = shutil.which(script.name)
    if found is not None and os.path.abspath(found) == os.path.abspath(script):
        return script.name
    return shlex.quote(str(_from_here(script)))


def module(name: str) -> str:
    """How a shell in the working directory starts xlstm_jax.NAME."""
    return f"{python()} -m xlstm_jax.{name}"


def shell_line(start: str, *words: object, **flags: object) -> str:
    """A line that a shell takes: words and the values of flags are quoted; a flag of None is left
    out, and a dot in a flag's name is no matter in `**{"config.data.path": ...}`.

    Args:
        start: what `program` or `module` says.
    """
    given = [
        f"--{name}={shlex.quote(str(value))}" for name, value in flags.items() if value is not None
    ]
    return " ".join([start, *(shlex.quote(str(word)) for word in words), *given])


def next_lines(*commands: str) -> list[str]:
    """The last lines of a command: what may be typed next; none without commands."""
    return ["next:", *(f"  {line}" for line in commands)] if commands else []


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml into the environment that runs now.

    The project is on no package index: without a clone to name, what the extra asks for is named.
    """
    command = f"{python()} -m pip install"
    asked = () if _is_clone() else _requirements()
    wanted = [what.strip() for what, _, when in asked if f'extra == "{extra}"' in when]
    if wanted:
        return f"{command} {shlex.join(wanted)}"
    return f"{command} -e {shlex.quote(f'{_from_here(CLONE)}[{extra}]')}"


def _requirements() -> list[tuple[str, str, str]]:
    """What the installed package asks for: package, ";", and when."""
    try:
        return [entry.partition(";") for entry in importlib.metadata.requires(DISTRIBUTION) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _is_clone() -> bool:
    return (CLONE / "pyproject.toml").is_file()


def _from_here(path: pathlib.Path) -> pathlib.Path:
    """Relative where it lies below the working directory."""
    path, here = pathlib.Path(os.path.abspath(path)), pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
