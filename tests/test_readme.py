"""The README's Python examples run as pasted, and print what they say."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(example, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    return capsys.readouterr().out.strip()


@pytest.mark.slow
def test_language_model_example(capsys, monkeypatch):
    assert run(EXAMPLES[1], capsys, monkeypatch) == "(2, 1, 320)"


@pytest.mark.slow
def test_sine_wave_example(capsys, monkeypatch):
    assert float(run(EXAMPLES[2], capsys, monkeypatch)) < 0.01


@pytest.mark.slow
def test_training_example(tmp_path):
    """In a process of its own, which has one device."""
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[0]],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    assert (tmp_path / "runs/notebook/checkpoints/10").is_dir()


def test_there_are_no_other_examples():
    assert len(EXAMPLES) == 3


def test_the_measured_numbers_are_those_of_the_page_that_has_them_all():
    def rows(page):
        cells = re.findall(r"^\| *(?:xLSTM)?(\[\d:\d\][^\n]*)", page.read_text(), re.MULTILINE)
        return [[cell.strip() for cell in row.split("|") if cell.strip()] for row in cells]

    all_of_them = rows(ROOT / "docs/performance.md")
    shown = rows(ROOT / "README.md")
    assert len(shown) == 3
    for row in shown:
        [whole] = [other for other in all_of_them if other[:2] == row[:2] and "%" in other[-1]]
        assert set(row) <= set(whole)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
