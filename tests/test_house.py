"""The rules of the house that import-linter can't say: who may name a mixer or a task, and what
the kernels stand on.
"""

import ast
import pathlib
import sys

from xlstm_jax import tasks
from xlstm_jax.models import mixers

ROOT = pathlib.Path(__file__).parents[1]
FORMATS = "xlstm_jax/interop/"  # of other projects, which have the blocks that they have


def python_files(*roots: str) -> list[pathlib.Path]:
    paths = [ROOT / root for root in roots]
    return sorted(f for path in paths for f in (path.rglob("*.py") if path.is_dir() else [path]))


def texts(file: pathlib.Path) -> list[tuple[int, str]]:
    """The texts in a file's code, with their lines."""
    return [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def named_elsewhere(names: set[str], room: str, free: tuple[str, ...] = ()) -> list[str]:
    """Where code has one of the names as a text, but for its own file in the room, the room's
    registration and what is below the free folders.
    """
    found = []
    for file in python_files("xlstm_jax", "train.py", "eval.py"):
        path = str(file.relative_to(ROOT))
        for line, text in texts(file):
            own = (f"{room}/{text}.py", f"{room}/__init__.py")
            if text in names and path not in own and not path.startswith(free):
                found.append(f"{path}:{line} names {text!r}")
    return found


def test_a_mixer_is_named_in_its_own_file_its_registration_and_formats_of_others_only():
    names = {*mixers.names(), "7b"}
    assert names > {"mlstm", "mlstm_7b", "slstm", "attention", "mlp"}
    assert not named_elsewhere(names, "xlstm_jax/models/mixers", free=(FORMATS,))


def test_a_task_is_named_in_its_own_file_and_its_registration_only():
    assert not named_elsewhere(set(tasks.names()), "xlstm_jax/tasks")


def test_the_kernels_depend_on_jax_and_jaxtyping_alone():
    imported = set()
    for file in python_files("pallas_kernels"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                imported.add(node.module.split(".")[0])
    own = {"pallas_kernels"}
    comes_with_jax = {"numpy"}
    assert imported - sys.stdlib_module_names - own - comes_with_jax == {"jax", "jaxtyping"}


def test_no_file_is_named_for_nothing_in_particular():
    nameless = {"utils", "util", "helpers", "helper", "common", "misc"}
    for file in python_files("xlstm_jax", "pallas_kernels", "configs", "tests", "benchmarks"):
        assert file.stem not in nameless and file.parent.name not in nameless, file
