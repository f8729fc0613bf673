"""The README's Python examples run as pasted, and print what they say."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(example, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    return capsys.readouterr().out.strip()


@pytest.mark.slow
def test_language_model_example(capsys, monkeypatch):
    assert run(EXAMPLES[0], capsys, monkeypatch) == "(2, 1, 320)"


@pytest.mark.slow
def test_sine_wave_example(capsys, monkeypatch):
    assert float(run(EXAMPLES[1], capsys, monkeypatch)) < 0.01


def test_there_are_no_other_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
