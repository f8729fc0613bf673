"""Configuration files: Python with a function `get_config`, named as FILE or FILE:VARIANT.

The project's own lie in `configs/` of a clone, and as `xlstm_jax/configs/` where the package is
installed. They are found from any folder, by path (configs/xlstm_1.3b.py) or name (xlstm_1.3b).
"""

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import ml_collections

from xlstm_jax.errors import UserError


def split(path: str) -> tuple[str, str]:
    """The file and the variant of "FILE:VARIANT"; the variant is "" where there is none.

    A colon may be part of the file's own path: "runs/12:30/config.py" names no variant.
    """
    file, colon, variant = path.rpartition(":")
    if not colon or pathlib.Path(path).is_file() or "/" in variant or variant.endswith(".py"):
        return path, ""
    return file, variant


def read(path: str) -> ml_collections.ConfigDict:
    """What a file's `get_config` returns. The file is executed once, and anew in each call.

    It may import its neighbours (`from . import base`). They are found beside it and nowhere else,
    so that neither another clone nor a package of the user's called `configs` can stand in.

    Raises:
        UserError: no such file or variant, or it has no `get_config` that gives a ConfigDict.
        Exception: whatever the file itself raises.
    """
    file, variant = split(path)
    with _executed(file) as (module, file):
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"config file {file!r} has no function get_config; see configs/")
        parameters = inspect.signature(get_config).parameters.values()
        if variant and not parameters:
            raise UserError(
                f"config file {file!r} takes no variant, but {variant!r} is given; leave it out"
            )
        if not variant and any(p.default is p.empty for p in parameters):
            raise UserError(f"config file {file!r} needs a variant; write --config={file}:VARIANT")
        values = get_config(variant) if variant else get_config()
    if not isinstance(values, ml_collections.ConfigDict):
        raise UserError(
            f"config file {file!r}: get_config returns {type(values).__name__}; it must return the "
            f"ConfigDict that it made with xlstm_jax.config.default_config_dict()"
        )
    return values


def experiment(file: str, preset: str) -> Any:
    """What a file's `get_experiment` returns for a preset: the grid of runs that it belongs to.

    Raises:
        UserError: no such file, or it has no such function.
        Exception: whatever the file itself raises.
    """
    return _called(file, "get_experiment", "experiment", preset)


def series(file: str, preset: str) -> dict[str, list[str]]:
    """What a file's `get_series` returns for a preset: by family of models, the variants that a
    series for scaling laws chooses from. Errors as of `experiment`.
    """
    return _called(file, "get_series", "series", preset)


def _called(file: str, function: str, what: str, preset: str) -> Any:
    with _executed(file) as (module, file):
        if not callable(found := getattr(module, function, None)):
            raise UserError(
                f"config file {file!r} is of one run and no {what}: it has no function {function}"
            )
        return found(preset)


@contextlib.contextmanager
def _executed(file: str) -> Iterator[tuple[types.ModuleType, str]]:
    """A file as a module, and its path; while the context lasts it can import its neighbours."""
    given, file = file, find(file)
    if given == file and _is_name(file) and not os.path.exists(file):
        raise UserError(
            f"there is no configuration {file!r}; there are {', '.join(own_names())}. A file of "
            "your own ends with .py"
        )
    if os.path.isdir(file):
        raise UserError(f"config file {file!r} is a folder; give one of its files")
    if not os.path.isfile(file):
        raise UserError(
            f"config file {file!r} does not exist; configs/ has one per experiment, e.g. "
            f"configs/quickstart.py"
        )
    if not file.endswith(".py"):
        raise UserError(
            f"config file {file!r} is no Python file; configs/ has one per experiment, e.g. "
            f"configs/quickstart.py"
        )
    with _package(pathlib.Path(file).resolve().parent) as package:
        name = f"{package}.{re.sub(r'[^0-9A-Za-z_]', '_', pathlib.Path(file).stem)}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module, file


def find(file: str) -> str:
    """The path of a config file.

    "quickstart" is the project's own file of that name; "configs/quickstart.py" too, in every
    working directory that has no such file. Anything else, and what is not found, is given back.
    """
    if _is_name(file):
        own = f"{file}.py"
    elif os.path.exists(file) or not file.startswith("configs/"):
        return file
    else:
        own = file.removeprefix("configs/")
    path = own_folder() / own
    return str(path) if path.is_file() else file


def own_folder() -> pathlib.Path:
    """Where the project's own files lie: in the package as installed, beside it in a clone."""
    package = pathlib.Path(__file__).resolve().parent
    return next(f / "configs" for f in (package, package.parent) if (f / "configs").is_dir())


def own_names() -> list[str]:
    """The names of the project's own files."""
    return sorted(path.stem for path in own_folder().glob("*.py"))


def _is_name(file: str) -> bool:
    """No path and no file's name: what has neither a folder nor an ending."""
    return "/" not in file and not file.endswith(".py")


@contextlib.contextmanager
def _package(folder: pathlib.Path) -> Iterator[str]:
    """The name of a package that has the folder's files as modules, while the context lasts.

    The name belongs to the folder alone. Afterwards the modules are forgotten: who changes a file
    in a notebook gets the change with the next call.
    """
    name = f"_configs_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]

    def forget() -> None:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]

    forget()
    sys.modules[name] = importlib.util.module_from_spec(spec)
    importlib.invalidate_caches()
    try:
        yield name
    finally:
        forget()
