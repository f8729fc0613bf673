"""The paper's tables: each is drawn or refused by name, every command on the page loads, the page
is what the command writes from the rows that are committed, ours never stands for the paper's.
"""

import importlib
import json
import math
import pathlib
import re
import shlex
import sys

import pytest

from tests.analysis.paper import rows
from xlstm_jax import config_files
from xlstm_jax.analysis.paper import __main__ as command
from xlstm_jax.analysis.paper import evaluations, page, panels, results, values
from xlstm_jax.analysis.paper.catalogue import LONG_RUNS, TRAINED, Entry
from xlstm_jax.analysis.paper.costs import cost_of, loaded
from xlstm_jax.analysis.paper.figures import FIGURES
from xlstm_jax.analysis.paper.small import accuracies
from xlstm_jax.config import load
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.suites import SUITES
from xlstm_jax.experiments.grid import narrowed, runs_of

ROOT = pathlib.Path(__file__).parents[3]
PAGE = (ROOT / command.PAGE).read_text()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    return rows.write(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def found(clone):
    return results.read(clone)


@pytest.fixture(scope="module")
def text(found):
    return page.markdown(found, ROOT)


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}")[2].partition("\n## ")[0]


def lines(text: str, beginning: str) -> list[list[str]]:
    """The cells of the lines of tables that begin so."""
    start = f"| {beginning} |"
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(start)
    ]


def test_every_table_of_the_paper_is_drawn_or_refused_by_name(monkeypatch):
    assert set(values.TABLES) == set(page.DRAWN) | set(page.REFUSED)
    assert set(page.DRAWN.values()) <= set(FIGURES)
    for table in page.DRAWN:
        assert f"]({page.DRAWN[table]})" in PAGE
    command.check_known()
    monkeypatch.setattr(values, "TABLES", {**values.TABLES, "table11": {}})
    with pytest.raises(UserError, match=r"has \['table11'\], which no figure draws"):
        command.check_known()


def test_every_row_of_the_trained_tables_has_its_run():
    for table, entries in TRAINED.items():
        printed = values.TABLES[table]
        labels = list(printed["rows"]) if isinstance(printed, dict) else [r[0] for r in printed]
        assert [entry.label for entry in entries] == labels, table
    for size, entries in LONG_RUNS.items():
        assert [entry.label for entry in entries] == list(
            values.TABLES["table3_300B"]["rows"][size]
        )


def test_every_command_on_the_page_loads():
    commands = set(re.findall(r"`(python [^`]+)`", PAGE))
    trained, grids = 0, 0
    for text in commands:
        _, *words = shlex.split(text)
        if words[0] == "train.py":
            flags = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
            assert flags.pop("workdir") == "DIR"
            config = flags.pop("config")
            keys = {key.removeprefix("config."): float(value) for key, value in flags.items()}
            load(config, keys)
            trained += 1
        elif words[:2] == ["-m", "xlstm_jax.experiments"]:
            file = f"configs/{words[2]}.py"
            experiment = config_files.experiment(file, "paper")
            flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
            assert flags.pop("preset") == "paper"
            models = flags["models"].split(",") if "models" in flags else None
            experiment = narrowed(experiment, models=models)
            cell, model = experiment.cells[0], next(iter(experiment.models))
            dim = experiment.dims[cell][0]
            variant = experiment.variant.format(cell=cell, model=model, dim=dim)
            assert load(f"{file}:{variant}", {}) and not experiment.reduced
            grids += 1
        elif words[0] == "eval.py":
            suites = next(word for word in words if word.startswith("--suite="))
            assert set(suites.removeprefix("--suite=").split(",")) <= set(SUITES)
        else:
            assert importlib.util.find_spec(words[1]), text
    assert trained > 60 and grids == 2 + 3 + 11 + 6


def test_the_runs_are_the_papers(found):
    for entry in TRAINED["table1_15B"]:
        config = loaded(entry.config, entry.flags)
        assert config.optimizer.learning_rate == pytest.approx(1e-3), entry
        assert cost_of(entry, []).tokens == 14_769_192_960
    for size, entries in LONG_RUNS.items():
        for entry in entries:
            assert cost_of(entry, []).tokens == 314_572_800_000, size


def test_the_page_is_what_the_command_writes():
    written = page.markdown(results.read(ROOT), ROOT)
    assert written == PAGE, "run python -m xlstm_jax.analysis.paper (make paper) and commit"


def test_ours_stands_beside_the_papers_with_its_scale(text):
    table = section(text, "Table 1")
    [llama] = lines(table, "Llama")
    assert llama[1:5] == [
        "*14.25*", "6.50", "1.6M parameters, 512,000 tokens of stdlib, byte",
        "here, reduced scale; ready",
    ]  # fmt: skip
    [mamba] = lines(table, "Mamba")
    assert mamba[2:5] == ["", "", "ready"]
    [nothing] = lines(section(text, "Tables 2"), "no gates, nothing forgotten")
    assert nothing[1:3] == ["not a number", "diverged"]


def test_our_evaluations_are_rows_of_their_own(text):
    own = section(text, "Tables 3")
    [row] = [cells for cells in lines(own, "ours, reduced scale") if "5.5" in cells]
    assert row[1] == "xLSTM[1:0], 1,000,000 tokens of stdlib" and row[2:4] == ["0.4", "5.5"]
    [whole, *_] = lines(own, "ours")
    assert whole[1].startswith("Llama, 314,572,800,000") and "24.5" in whole
    [done] = [cells for cells in lines(own, "125M") if "configs/llama.py:125m-300b" in cells[3]]
    assert done[2] == "here: paloma"
    assert [cells[2:] for cells in lines(own, "xLSTM[1:0], 400,000 parameters")] == [
        ["256", "5.500"], ["512", "5.250"],
    ]  # fmt: skip


def test_experiments_are_chosen_by_held_out_data(found, text):
    own = accuracies(found, "formal.py")
    assert own.title == "ours, reduced scale: 1,500 steps, 2 seeds"
    cell = own.values["xLSTM[0:1]"]["parity"]
    assert cell.mean == pytest.approx(0.905) and cell.seeds == 2
    assert cell.spread == pytest.approx(0.01 / math.sqrt(2))
    assert lines(section(text, "Figures 4"), "xLSTM[0:1]")[-1][1] in ("0.90±0.01", "0.91±0.01")
    assert accuracies(found, "lra.py").values == {}


def test_a_row_of_an_experiment_has_its_state_and_its_own_command(text):
    formal = section(text, "Figures 4")
    run = "`python -m xlstm_jax.experiments formal --preset=paper --models="
    assert lines(formal, "Llama")[0][-3:] == ["here, reduced scale; ready", f"{run}llama`", "1.2"]
    assert lines(formal, "Hyena")[0][-3:] == ["ready", f"{run}hyena`", ""]
    runs = len(runs_of(config_files.experiment("configs/formal.py", "paper")))
    assert f"is {runs:,} runs of small models" in formal.replace("\n", " ")
    arena = section(text, "Table 6")
    assert lines(arena, "random")[0][-3:] == ["chance", "", ""]
    assert lines(arena, "xLSTM")[0][-2].endswith("--models=xlstm_1_0,xlstm_0_1`")


def test_the_hours_of_a_grid_are_told_where_those_of_every_model_are_known(text):
    assert "Device hours: not known" in section(text, "Figures 4").replace("\n", " ")
    unprinted = section(text, "Figures and tables whose")
    assert lines(unprinted, "figure 2, left")[0][-2] == "12"  # three models of 4 hours
    assert lines(unprinted, "figures 5, 13 to 16")[0][-2] == ""


def test_device_hours_say_where_they_come_from(found, text):
    [xlstm] = lines(section(text, "Table 1"), "xLSTM[1:0]")
    assert xlstm[-2:] == ["61", "modelled, H100"]  # 14.77e9 / 67,000 / 3600
    [gate] = lines(section(text, "Tables 2"), "forget gate")
    assert gate[-2:] == ["61", "modelled, of xLSTM[1:0], H100"]
    large = cost_of(Entry("", "xlstm_760m.py:1_0-300b"), found.speeds)
    small = cost_of(Entry("", "xlstm_350m.py:1_0-300b"), found.speeds)
    assert large.how == "by FLOPs, from xlstm_350m.py:1_0 (modelled)"
    assert large.hours / small.hours == pytest.approx(large.flops / small.flops)
    assert cost_of(Entry("", "mamba.py:350m-15b"), found.speeds).hours is None


def test_every_figure_is_drawn_with_and_without_ours(found, tmp_path):
    empty = results.read(tmp_path)
    for name, (draw, tables) in FIGURES.items():
        alone, beside = draw(empty), draw(found)
        assert (alone is None) == (not tables), name
        titles = [axes.get_title() for axes in beside.axes]
        if name in ("paper_table_1.png", "paper_figures_4_12.png", "paper_figure_7.png"):
            assert any("reduced scale" in title for title in titles), titles
        if name == "paper_table_3.png":
            assert len(beside.axes) == len(alone.axes) + 1


def test_the_command_writes_the_page_and_takes_evaluations(clone, tmp_path, capsys):
    run = tmp_path / "run"
    folder = run / "eval" / "400"
    folder.mkdir(parents=True)
    data = {"path": "/somewhere/else/slimpajama", "batch_size": 8, "context_length": 256}
    (run / "config.json").write_text(json.dumps({"data": data}))
    about = {"model": "3 blocks of 128, 408,976 parameters", "step": 400, "devices": "1 x cpu"}
    tasks = {"lambada_openai": {"perplexity,none": 54.5, "acc,none": 0.25}}
    suites = {
        "perplexity": {"perplexity": 5.125, "about": about},
        "downstream": {"tasks": tasks, "paper_average": None, "limit": None, "about": about},
        "generation": {"about": about},
    }
    (folder / "results.json").write_text(json.dumps({"suites": suites}))
    argv = ["paper", f"--clone={clone}", f"--evaluations=Mamba={folder}"]
    assert command.main(argv) == 0
    evaluations.add(clone, evaluations.rows_of_folder("Mamba", folder, values.SLIMPAJAMA))
    added = [row for row in results.read(clone).evaluations if row["model"] == "Mamba"]
    assert [row["suite"] for row in added] == ["perplexity", "downstream"]  # once
    assert added[0]["tokens"] == 400 * 8 * 256 and added[0]["reduced"]
    assert added[0]["data"] == "else/slimpajama"
    assert added[1]["values"] == {"lambada_ppl": 54.5, "lambada_acc": 25.0}
    text = (clone / "docs" / "paper.md").read_text()
    [row] = [cells for cells in lines(text, "ours, reduced scale") if "54.5" in cells]
    assert row[1] == "Mamba, 819,200 tokens of else/slimpajama" and "5.125" in row
    assert all((clone / "docs" / name).stat().st_size > 5_000 for name in FIGURES)


def test_a_model_of_a_papers_size_trained_as_long_is_not_reduced(tmp_path):
    folder = tmp_path / "eval" / "600000"
    folder.mkdir(parents=True)
    data = {"path": "data/slimpajama-gpt2", "batch_size": 256, "context_length": 2048}
    (tmp_path / "config.json").write_text(json.dumps({"data": data}))
    about = {"model": "24 blocks of 768, 163,810,000 parameters", "step": 600_000, "devices": ""}
    suites = {"perplexity": {"perplexity": 14.7, "about": about}}
    (folder / "results.json").write_text(json.dumps({"suites": suites}))
    [row] = evaluations.rows_of_folder("xLSTM[1:0]", folder, values.SLIMPAJAMA)
    assert row["size"] == "125M" and not row["reduced"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--evaluations=Transformer=DIR", "it must be MODEL=FOLDER, MODEL one of GPT-3, Llama"),
        ("--evaluations=Llama=nowhere", "is no file of results; give a folder that eval.py wrote"),
        ("--clone=nowhere", "has no folder docs"),
    ],
)
def test_what_is_wrong_is_said(clone, flag, message, capsys):
    given = [flag] if "clone" in flag else [f"--clone={clone}", flag]
    assert command.main(["paper", *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "docs/results/mine.jsonl, line 2 is no JSON"),
        ('{"loss": 1}', "docs/results/mine.jsonl, line 2 is a row of no kind"),
        ('{"params": 1, "tokens": -1, "loss": 2}', "line 2: tokens is -1"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, line, message):
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    (folder / "mine.jsonl").write_text(json.dumps(rows.SPEED) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        results.read(tmp_path)


def test_evaluations_need_no_scipy(monkeypatch):
    """eval.py draws the paper's figure 7; only the fits need the extra `analysis`."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    for name in [name for name in sys.modules if name.startswith("xlstm_jax.analysis.scaling")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.reload(values)
    importlib.reload(panels)
