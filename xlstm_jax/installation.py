"""The words for commands that a person can paste: which Python, and how to install an extra."""

import os
import pathlib
import shutil
import sys

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
    return str(_from_here(running))


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml into the environment that runs now.

    The project is on no package index, so that only the clone itself can be named.
    """
    place = str(_from_here(CLONE))
    return f"{python()} -m pip install -e '{place}[{extra}]'"


def _from_here(path: pathlib.Path) -> pathlib.Path:
    """Relative where it lies below the working directory."""
    path, here = pathlib.Path(os.path.abspath(path)), pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
