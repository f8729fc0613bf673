"""The notebooks run, and what they show is theirs."""

import pathlib
import shutil

import nbformat
import pytest

from notebooks import execute

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = execute.notebooks()
ALL_BYTES = 1_500_000  # a clone carries them for ever

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_six_and_they_stay_small():
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")
    assert sum(path.stat().st_size for path in NOTEBOOKS) < ALL_BYTES


@each
def test_outputs_are_those_of_the_code(path):
    assert execute.faults(path) == []


@each
def test_it_says_first_what_it_needs_and_how_long_it_takes(path):
    first = nbformat.read(path, as_version=4).cells[0].source
    assert first.startswith(f"# {path.name[0]}. ")
    assert "*Needs*" in first and "*Takes*" in first


@each
def test_the_page_of_the_notebooks_lists_it(path):
    assert f"](../notebooks/{path.name})" in (ROOT / "docs" / "notebooks.md").read_text()


@pytest.mark.slow
@each
def test_it_runs_when_it_is_shortened(path):
    execute.executed(path, short=True)


# What the checks above would notice.


@pytest.fixture
def notebook(tmp_path):
    """A notebook without a fault, and a function that writes it with a change."""
    path = shutil.copy(NOTEBOOKS[0], tmp_path)

    def changed(change):
        content = nbformat.read(path, as_version=4)
        change([cell for cell in content.cells if cell.cell_type == "code"])
        nbformat.write(content, path)
        return execute.faults(pathlib.Path(path))

    return changed


def test_code_that_was_changed_after_it_ran_is_noticed(notebook):
    def change(cells):
        cells[1].source += "\nprint(1)"

    assert notebook(change) == ["its code has changed since it was executed"]


def test_cells_that_ran_in_another_order_are_noticed(notebook):
    def change(cells):
        cells[0].execution_count, cells[1].execution_count = 2, 1

    assert notebook(change) == ["its cells were not executed once each, from the first to the last"]


def test_errors_are_noticed(notebook):
    def change(cells):
        cells[0].outputs = [nbformat.v4.new_output("error", ename="E", evalue="no", traceback=[])]

    assert notebook(change) == ["it shows an error or a warning: 'no'"]


@pytest.mark.parametrize("text", ["run: /home/ann/runs/7", "'/tmp/x/run'", "(/opt/a.b/c)"])
def test_paths_of_a_machine_are_noticed(notebook, text):
    def change(cells):
        cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]

    (fault,) = notebook(change)
    assert fault.startswith("it shows a path of the machine that executed it: /")


@pytest.mark.parametrize(
    "text", ["12 tokens/s", "loss/accuracy", "a / b", "https://arxiv.org/abs/1"]
)
def test_other_strokes_are_no_paths(notebook, text):
    def change(cells):
        cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]

    assert notebook(change) == []


def test_a_notebook_without_figures_and_one_that_is_large_are_noticed(notebook):
    def change(cells):
        for cell in cells:
            cell.outputs = []
        text = "x" * execute.MOST_BYTES
        cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]

    without, large = notebook(change)
    assert without == "it shows no figure"
    assert large.endswith("bytes, and 300,000 are enough; draw smaller figures")
