"""The recipes of docs/architecture.md, followed word by word in a copy of the project: every file
is written, every line added, every command run.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
STEPS = 3  # that the recipes' configurations train


class Piece(NamedTuple):
    """A block of code and the line above it, which says what is to be done with it."""

    what: str
    language: str
    code: str

    @property
    def file(self) -> str:
        return re.search(r"`([^`]+)`", self.what)[1]


def recipes() -> dict[str, list[Piece]]:
    """The code blocks of each section "To add ...", in order."""
    found = {}
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        if title.startswith("To add "):
            found[title] = [
                Piece(text[: block.start()].rstrip().rpartition("\n")[2], *block.groups())
                for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
            ]
    return found


def beside_its_like(line: str, text: str) -> str:
    """The text with a line more: behind the last statement that begins with the same word."""
    start = re.match(r"\w+\W", line)[0]
    lines = text.splitlines()
    last = max(number for number, other in enumerate(lines) if other.startswith(start))
    if lines[last].endswith("("):  # an import of many names
        last = lines.index(")", last)
    return "\n".join([*lines[: last + 1], line, *lines[last + 1 :]]) + "\n"


def changed(difference: str, text: str) -> str:
    """The text with the lines "-" replaced by the lines "+"."""
    old, new = (
        "".join(f"{line[1:]}\n" for line in difference.splitlines() if line[0] == sign)
        for sign in "-+"
    )
    assert text.count(old) == 1, old
    return text.replace(old, new)


def run(command: str, folder: pathlib.Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "python"
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def follow(piece: Piece, folder: pathlib.Path) -> None:
    if piece.language == "sh":
        for command in piece.code.splitlines():
            run(command, folder)
        return
    file = folder / piece.file
    if piece.language == "diff":
        file.write_text(changed(piece.code, file.read_text()))
    elif "beside its like" in piece.what:
        for line in filter(None, piece.code.splitlines()):
            file.write_text(beside_its_like(line, file.read_text()))
    else:
        assert not file.exists(), "the recipe's file is there already"
        file.write_text(piece.code)


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> pathlib.Path:
    """A copy of the project in which all recipes were followed, one after another."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("xlstm_jax", "pallas_kernels", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py"):
        shutil.copy(ROOT / name, folder)
    for pieces in recipes().values():
        for piece in pieces:
            follow(piece, folder)
    return folder


def events(folder: pathlib.Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").open()]


def test_there_are_three_recipes_and_each_ends_in_training():
    titles = {title: pieces[-1] for title, pieces in recipes().items()}
    assert list(titles) == ["To add a block", "To add a task", "To add a metric"]
    assert all(last.code.startswith("python train.py ") for last in titles.values())


@pytest.mark.slow
@pytest.mark.parametrize("run", ["average", "sine", "sine_accuracy"])
def test_a_recipe_trains_three_steps_and_evaluates(followed, run):
    steps = {(event["step"], event["split"]) for event in events(followed, run)}
    assert steps >= {(1, "train"), (STEPS, "train"), (STEPS, "validation")}
    assert (followed / "runs" / run / "loss.png").is_file()


@pytest.mark.slow
def test_the_metric_of_the_recipe_is_measured_in_training_and_on_held_out_data(followed):
    for event in events(followed, "sine_accuracy"):
        assert 0 <= event["accuracy"] <= 1


@pytest.mark.slow
def test_a_model_with_the_block_of_the_recipe_writes_text(followed):
    assert (followed / "runs" / "average" / "samples.txt").read_text().startswith(f"step {STEPS}\n")


@pytest.mark.slow
def test_the_task_of_the_recipe_is_evaluated_on_the_same_waves_in_any_batches(followed):
    run("python eval.py --workdir=runs/sine --batch_size=7 --output=runs/sevens", followed)
    whole, sevens = (
        json.loads((followed / folder / "results.json").read_text())["suites"]["perplexity"]
        for folder in (f"runs/sine/eval/{STEPS}", "runs/sevens")
    )
    assert sevens["held_out"]["validation"]["loss"] == pytest.approx(
        whole["held_out"]["validation"]["loss"], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", ["average", "sine"])
def test_the_evaluation_of_a_recipe_leaves_its_results(followed, run):
    assert (followed / "runs" / run / "eval" / str(STEPS) / "results.json").is_file()


@pytest.mark.slow
def test_what_the_recipes_add_passes_the_lint(followed):
    """But for the order of the imports, which it puts right."""
    shutil.copy(ROOT / "pyproject.toml", followed)
    for arguments in (["check", "--fix"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "xlstm_jax", "configs"],
            cwd=followed,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
