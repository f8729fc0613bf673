"""Commands in messages can be pasted: they start the running Python, and install from the clone."""

import ast
import functools
import importlib.metadata
import itertools
import pathlib
import re
import shlex
import sys

from xlstm_jax import installation
from xlstm_jax.progress import counted

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ROOT / "xlstm_jax/analysis/paper"  # writes docs/paper.md, whose commands are a cluster's
FILES = [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "xlstm_jax").rglob("*.py"))]


@functools.cache
def messages(file: pathlib.Path) -> list[str]:
    """The texts in a file's functions, docstrings left out."""
    found = []
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            found += [
                node.value
                for statement in body
                for node in ast.walk(statement)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            ]
    return found


def test_no_message_names_a_python_or_a_package_that_may_not_be_there():
    for file in FILES:
        for text in () if PAGES in file.parents else messages(file):
            assert not re.search(r"\bpython3? (-m|train|eval|\S+\.py)", text), (file, text)
        assert not re.search(r"pip install [^-]", file.read_text()), file
        assert file.stem == "installation" or "xlstm-jax-stack" not in file.read_text(), file


NOUNS = "block|shard|document|file|run|row|device|record"
# numbers of which a message speaks only where there are several
SEVERAL = {"files", "parts", "len(pattern)", "grid.runs"}


def test_what_is_counted_may_be_one():
    """A number and a plural stand nowhere side by side: `counted` knows when it is "1 file"."""
    told = [counted(number, "file") for number in (0, 1, 1000)]
    assert told == ["0 files", "1 file", "1,000 files"]
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for number, text in itertools.pairwise(parts):
                if isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant):
                    plural = re.match(rf" ({NOUNS})s\b", text.value)
                    assert not plural or ast.unparse(number.value) in SEVERAL, (file, text.value)


def test_no_page_names_a_package_that_is_on_no_index():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert "xlstm-jax-stack[" not in page.read_text(), page


def test_an_active_environment_is_called_python(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/python"
    program.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert installation.python() == "python"


def test_an_environment_that_is_not_active_is_called_by_its_path(tmp_path, monkeypatch):
    for name in ("here/.venv/bin", "other/bin"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "here/.venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "other/bin"))
    monkeypatch.chdir(tmp_path / "here")
    assert installation.python() == ".venv/bin/python"
    monkeypatch.chdir(tmp_path / "other")
    assert installation.python() == str(tmp_path / "here/.venv/bin/python")


def test_an_extra_is_installed_from_the_clone(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "python", lambda: "python")
    monkeypatch.chdir(ROOT)
    assert installation.install("data") == "python -m pip install -e '.[data]'"
    monkeypatch.chdir(tmp_path)
    assert installation.install("hf") == f"python -m pip install -e '{ROOT}[hf]'"


def test_without_a_clone_the_installed_programs_and_the_extras_parts_are_named(
    monkeypatch, tmp_path
):
    (tmp_path / "bin").mkdir()
    for name in ("python", "xlstm-eval"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setattr(installation, "CLONE", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.chdir(tmp_path)
    asked = ["jax>=0.10", 'scipy; extra == "analysis"', 'wandb>1; extra == "wandb"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    monkeypatch.setenv("PATH", "")
    assert installation.program("eval") == "bin/xlstm-eval"
    assert installation.install("wandb") == "bin/python -m pip install 'wandb>1'"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert installation.program("eval") == "xlstm-eval"


def test_in_a_clone_its_scripts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "python", lambda: "python")
    monkeypatch.chdir(ROOT)
    assert installation.program("train") == "python train.py"
    monkeypatch.chdir(tmp_path)
    assert installation.program("train") == f"python {ROOT / 'train.py'}"


def test_paths_in_commands_are_quoted_as_the_shell_needs(monkeypatch):
    monkeypatch.setattr(installation, "python", lambda: "python")
    given = {"workdir": pathlib.Path("a run's"), "config.data.path": "$HOME/*", "step": None}
    line = installation.shell_line(installation.module("room"), "go on", "-x", **given, depth=3)
    words = ["python", "-m", "xlstm_jax.room", "go on", "-x", "--workdir=a run's"]
    assert shlex.split(line) == [*words, "--config.data.path=$HOME/*", "--depth=3"]
    assert "--config.data.path='$HOME/*'" in line
    assert installation.next_lines(line) == ["next:", f"  {line}"]
    assert installation.next_lines() == []


def test_a_clone_and_an_environment_may_lie_in_a_folder_with_a_space(monkeypatch, tmp_path):
    clone = tmp_path / "my clone's"
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(installation, "CLONE", clone)
    monkeypatch.setattr(sys, "executable", str(clone / ".venv/bin/python"))
    running = str(clone / ".venv/bin/python")
    assert shlex.split(installation.program("eval")) == [running, str(clone / "eval.py")]
    assert shlex.split(installation.install("hf"))[-2:] == ["-e", f"{clone}[hf]"]
    (clone / "pyproject.toml").unlink()  # installed, and no clone
    script = str(clone / ".venv/bin/xlstm-eval")
    assert shlex.split(installation.program("eval")) == [script]


def test_what_may_be_typed_next_is_said_by_one_mechanism():
    for file in FILES:
        said = [text for text in messages(file) if text.startswith("next:")]
        assert not said or file.stem == "installation", (file, said)


def test_every_extra_that_a_message_names_exists():
    known = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    known = set(re.findall(r"^(\w+) = ", known.split("\n[")[0], re.MULTILINE))
    named = {
        name
        for file in FILES
        for name in re.findall(r"\binstall\(['\"](\w+)['\"]\)", file.read_text())
    }
    assert named and named <= known
