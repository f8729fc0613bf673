"""How a configuration file is found, executed and overridden."""

import pathlib
import sys
import types

import pytest

from xlstm_jax import config_files
from xlstm_jax.config import load
from xlstm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
BASE = """
from xlstm_jax.config import default_config_dict

def get_config():
    config = default_config_dict()
    config.model.dim = {dim}
    return config
"""
CHILD = """
from . import base

def get_config():
    return base.get_config()
"""


def write(folder: pathlib.Path, dim: int) -> str:
    """Two files, the second importing the first; returns the second."""
    folder.mkdir(exist_ok=True)
    (folder / "base.py").write_text(BASE.format(dim=dim))
    (folder / "child.py").write_text(CHILD)
    return str(folder / "child.py")


def test_a_files_neighbours_are_found_beside_it_alone(tmp_path, monkeypatch):
    """Neither a package `configs` of the user's nor another clone's `base` can stand in."""
    monkeypatch.setitem(sys.modules, "configs", types.ModuleType("configs"))
    monkeypatch.setitem(sys.modules, "base", types.ModuleType("base"))
    one, two = write(tmp_path / "one", 256), write(tmp_path / "two", 512)
    assert [load(file).model.dim for file in (one, two, one)] == [256, 512, 256]
    assert load(str(ROOT / "configs/quickstart.py")).model.dim == 128


def test_a_changed_file_is_read_anew_and_nothing_stays_behind(tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    load(write(tmp_path, 256))
    assert load(write(tmp_path, 1024)).model.dim == 1024
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.startswith("_configs")]


def test_a_file_is_executed_once_and_checked_with_its_overrides(tmp_path):
    """A file whose values contradict each other will do where the overrides mend it."""
    file = tmp_path / "odd.py"
    count = f"open({str(tmp_path / 'times')!r}, 'a').write('x')\n"
    heads = "    config.model.mlstm.num_heads = 3\n    return config"
    file.write_text(count + BASE.format(dim=256).replace("    return config", heads))
    assert load(str(file), {"model.dim": 192}).model.mlstm.num_heads == 3
    assert (tmp_path / "times").read_text() == "x"
    with pytest.raises(
        UserError, match="model.dim 256 .* is not divisible by model.mlstm.num_heads 3"
    ):
        load(str(file))


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("configs/a.py", ("configs/a.py", "")),
        ("configs/a.py:7_1-15b", ("configs/a.py", "7_1-15b")),
        ("12:30/a.py", ("12:30/a.py", "")),
        ("12:30/a.py:b", ("12:30/a.py", "b")),
        ("a:b.py", ("a:b.py", "")),
    ],
)
def test_a_colon_may_be_part_of_the_path(path, parts):
    assert config_files.split(path) == parts


def test_an_override_of_none_unsets_and_a_partial_file_gets_the_defaults(tmp_path):
    file = tmp_path / "partial.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config():\n"
        "    return ml_collections.ConfigDict({'model': {'num_blocks': 2}})\n"
    )
    config = load(str(file), {"optimizer.clip_norm": None, "model.num_blocks": 3})
    assert (config.optimizer.clip_norm, config.model.num_blocks) == (None, 3)
    assert config.model.dim == 256


def test_a_section_that_has_no_keys_is_named(tmp_path):
    file = tmp_path / "flat.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config():\n"
        "    return ml_collections.ConfigDict({'model': 3})\n"
    )
    with pytest.raises(UserError, match="config section model is 3; it must have keys"):
        load(str(file))


def test_the_projects_own_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("configs/quickstart.py").model.dim == 128
    write(tmp_path / "configs", 64)
    assert load("configs/child.py").model.dim == 64
    with pytest.raises(UserError, match="'configs/nothing.py' does not exist"):
        load("configs/nothing.py")


def test_the_projects_own_files_are_found_by_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # neither a folder nor a file of that name stands in the way
    (tmp_path / "base").touch()
    assert load("quickstart") == load("configs/quickstart.py")
    assert load("xlstm_1.3b:7_1-300b") == load("configs/xlstm_1.3b.py:7_1-300b")
    with pytest.raises(UserError, match="no configuration 'nothing'; there are ablations, .* own"):
        load("nothing")
