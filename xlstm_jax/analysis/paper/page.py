"""docs/paper.md: the paper's tables row by row, what is reproduced here, what is ready, what is
open.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_jax.analysis.paper import values
from xlstm_jax.analysis.paper.catalogue import (
    ARENA,
    FORMAL,
    LONG_RUNS,
    RECALL,
    SEARCH,
    SHORT_RUNS,
    TRAINED,
    UNPRINTED,
    Entry,
)
from xlstm_jax.analysis.paper.costs import Cost, cost_of, fitting
from xlstm_jax.analysis.paper.figures import FIGURES
from xlstm_jax.analysis.paper.inference_section import inference_section
from xlstm_jax.analysis.paper.markdown import (
    HERE,
    OPEN,
    READY,
    REDUCED,
    hours_text,
    paragraphs,
    table_of,
    words_of,
)
from xlstm_jax.analysis.paper.results import PLACES, Results
from xlstm_jax.analysis.paper.small import accuracies, hours_of_all
from xlstm_jax.analysis.paper.small_section import own_table, small_section

TITLE = "# The paper, table by table"
DRAWN = {table: name for name, (_, tables) in FIGURES.items() for table in tables}
# tables of paper_values.json that are not drawn, and why: none at present
REFUSED: Mapping[str, str] = {}
NAMES = {
    "table1_15B": "table 1",
    "table2_components": "table 2, above",
    "table2_gating": "table 2, below",
    "table8_matrix_memory": "table 8",
}


def markdown(results: Results, root: pathlib.Path) -> str:
    """The page, from rows and configuration files alone."""
    parts = [
        TITLE,
        _introduction(root),
        _summary(results),
        *_trained_sections(results),
        *_long_runs(results),
        *small_section(results, FORMAL, _image(FORMAL.tables[0])),
        *small_section(results, ARENA, _image(ARENA.tables[0])),
        *_figure_6(results),
        *_unprinted(results),
        *inference_section(results.inference),
    ]  # fmt: skip
    return paragraphs("\n\n".join(part for part in parts if part)) + "\n"


def _introduction(root: pathlib.Path) -> str:
    compiled, fit = fitting(root)
    return (
        "What arXiv 2405.04517 prints, row by row, and ours beside it. Written by "
        "`python -m xlstm_jax.analysis.paper` from the paper's numbers "
        "(`xlstm_jax/analysis/paper/paper_values.json`), the configuration files, and rows of "
        f"results: {', '.join(f'`{place}`' for place in PLACES)}. A file of rows that any of the "
        "project's commands wrote may be put there; `--evaluations='xLSTM[1:0]=RUN/eval/600000'` "
        "adds what `eval.py` found.\n\n"
        f"* **{HERE}**: reproduced with this code. **{REDUCED}**: by models or on data far smaller "
        "than the paper's, as the column beside it says: compare orders, not numbers. What the "
        "paper printed never stands in a column of ours.\n"
        f"* **{READY}**: the command is there, its configuration loads and has the paper's size "
        "and steps, it has not been run. DIR is a folder of your choice; SlimPajama has to be "
        "prepared first ([data](data.md)).\n"
        f"* **{OPEN}**: with the reason.\n\n"
        "Device hours are tokens over tokens/s of one device, without what many devices lose to "
        "the links between them. *Measured* was measured. *Modelled* is the step as XLA compiles "
        "it for that GPU (`python -m benchmarks.modelled_speeds`, minutes for a model), its time "
        "by the model of [performance](performance.md), which was within 2 % of the two training "
        "steps that it was fitted to and within 6 % of a third (xLSTM[1:0], 125M), and has not "
        "been checked on other mixers; `model.remat` is `block`, which keeps least and takes "
        "longest. *By FLOPs* takes the speed of another size "
        "of the family to reach the same share of the peak. Memory: "
        f"{compiled} steps of the paper's runs were compiled for pods, of which {fit} fit "
        "([scaling](scaling.md))."
    )


def _summary(results: Results) -> str:
    """How much of what is where."""
    lines = []
    for table, entries in TRAINED.items():
        done = sum(entry.trained in results.trained for entry in entries)
        lines.append([NAMES[table], f"{len(entries)}", f"{done}", "", f"{len(entries)}", ""])
    runs = [(entry.label, size) for size, entries in LONG_RUNS.items() for entry in entries]
    whole = {(row["model"], row["size"]) for row in results.evaluations if not row["reduced"]}
    reduced = {row["model"] for row in results.evaluations if row["reduced"]}
    done = len(whole & set(runs))
    lines.append(
        ["tables 3, 4, 9, figures 7, 8: runs", f"{len(runs)}", f"{len(reduced)}", f"{done or ''}",
         f"{len(runs)}", ""]
    )  # fmt: skip
    for small in (FORMAL, ARENA):
        own = accuracies(results, small.file)
        cells = sum(len(row) for row in own.values.values())
        here = (f"{cells}", "") if "reduced" in own.title else ("0", f"{cells or ''}")
        printed = sum(
            value is not None
            for table in small.tables
            for model, row in values.rows_of(table).items()
            for column, value in row.items()
            if model != "random" and column != "rank_printed"
        )
        lines.append([f"{small.what}: numbers", f"{printed}", *here, "all", ""])
    lines.append(["figure 6: runs", f"{len(SHORT_RUNS)}", "0", "", f"{len(SHORT_RUNS)}", ""])
    without = [one for one in UNPRINTED if one.command]
    lines.append(
        ["without numbers", f"{len(UNPRINTED)}", "", "", f"{len(without)}",
         f"{len(UNPRINTED) - len(without)}"]
    )  # fmt: skip
    return table_of(
        ("what", "rows of the paper:", f"{REDUCED}:", f"{HERE}:", f"{READY}:", f"{OPEN}:"), lines
    )


def _trained_sections(results: Results) -> list[str]:
    """Tables 1, 2 and 8."""
    sections = [
        ("Table 1: perplexity, 350M parameters, 15B tokens", ["table1_15B"]),
        (
            "Tables 2 and 8: ablations, 400M parameters, 15B tokens",
            ["table2_components", "table2_gating", "table8_matrix_memory"],
        ),
    ]
    parts = []
    for title, tables in sections:
        parts += [f"## {title}", _image(tables[0])]
        for table in tables:
            parts.append(_trained_table(results, table))
    return parts


def _trained_table(results: Results, table: str) -> str:
    printed = values.TABLES[table]
    if isinstance(printed, dict):
        of_paper = {name: row["ppl_v2"] for name, row in values.rows_of(table).items()}
    else:
        of_paper = {row[0]: row[-1] for row in printed}
    lines = []
    for entry in TRAINED[table]:
        row = results.trained.get(entry.trained)
        state, ours, scale = READY, "", ""
        if row is not None:
            state = f"{REDUCED}; {READY}"
            ours = "diverged" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
            scale = _scale(row)
        value = of_paper[entry.label]
        paper = "not a number" if value is None else f"*{value:,.2f}*"
        cost = cost_of(entry, results.speeds)
        lines.append([entry.words, paper, ours, scale, state, *_ready(entry, cost)])
    return table_of(
        ("row", "*the paper's perplexity*:", "ours:", "our scale", "state", "full run",
         "device hours:", "speed"), lines,
    )  # fmt: skip


def _scale(row: Mapping[str, Any]) -> str:
    inner = row["without_embeddings"]
    size = "" if inner is None else f"{inner / 1e6:.1f}M parameters, "
    return f"{size}{row['tokens']:,} tokens of {row['data']}, {row['tokenizer']}"


def _ready(entry: Entry, cost: Cost) -> list[str]:
    """The cells of a run: command, hours, how they are known."""
    how = cost.how if cost.hours is None else f"{cost.how}, {cost.device}"
    return [f"`{entry.command}`", hours_text(cost.hours), how]


def _long_runs(results: Results) -> list[str]:
    """The 300B runs, and the tables that are made of them."""
    lines = []
    for size, entries in LONG_RUNS.items():
        for entry in entries:
            suites = sorted(
                row["suite"] for row in results.evaluations
                if (row["model"], row["size"]) == (entry.label, size) and not row["reduced"]
            )  # fmt: skip
            state = f"{HERE}: {', '.join(suites)}" if suites else READY
            cost = cost_of(entry, results.speeds)
            lines.append([size, entry.label, state, *_ready(entry, cost)])
    runs = table_of(("size", "model", "state", "full run", "device hours:", "speed"), lines)
    return [
        "## Tables 3, 4, 9 and figures 7, 8: 300B tokens, four sizes",
        "The same twenty runs are behind all of them; what each reached is then read by `python "
        "eval.py --workdir=DIR --suite=perplexity,extrapolation,downstream,paloma --paloma=FOLDER` "
        "([evaluation](evaluation.md)).",
        runs,
        "**Table 3**: perplexity on SlimPajama, downstream tasks; figure 8 are its perplexities.",
        _image("table3_300B"),
        _by_size(results, "table3_300B"),
        "**Tables 4 and 9**: perplexity on PALOMA.",
        _image("table4_paloma_ppl"),
        _by_size(results, "table4_paloma_ppl"),
        _by_size(results, "table9_paloma_toxic_ppl"),
        _wins(),
        "**Figure 7**: perplexity at longer contexts than that of training, 1.3B.",
        _image("fig7_extrapolation_ppl"),
        _extrapolation(results),
    ]


def _by_size(results: Results, table: str) -> str:
    """A table of the paper that has rows for each size and model; ours below."""
    columns = values.TABLES[table]["columns"]
    printed = [
        (size, model, row)
        for size in values.SLIMPAJAMA
        for model, row in values.rows_of(table, size).items()
    ]
    by_column = [values.as_printed(row[column] for *_, row in printed) for column in columns]
    lines = [
        [size, model, *(f"*{shown}*" for shown in row)]
        for (size, model, _), row in zip(printed, zip(*by_column, strict=True), strict=True)
    ]
    for row in _own_rows(results, columns):
        found = {**row["values"], "params_M": row["parameters"] / 1e6}
        scale = "ours, reduced scale" if row["reduced"] else "ours"
        shown = ("" if column not in found else f"{found[column]:.4g}" for column in columns)
        lines.append([scale, f"{row['model']}, {_tokens(row)}", *shown])
    return table_of(("size", "model", *(f"{words_of(column)}:" for column in columns)), lines)


def _own_rows(results: Results, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Our evaluations that have some of the columns; the suites of one model in one row."""
    found: dict[tuple, dict[str, Any]] = {}
    for row in results.evaluations:
        own = dict(row["values"])
        if row["suite"] == "perplexity":
            own = {"slimpajama_ppl": own["perplexity"]}
        if set(own) & set(columns):
            key = (row["model"], row["parameters"], row["tokens"])
            there = found.setdefault(key, {**row, "values": {}})
            there["values"] |= own
    return list(found.values())


def _tokens(row: Mapping[str, Any]) -> str:
    if row["tokens"] is None:
        return "tokens not known"
    return f"{row['tokens']:,} tokens of {row['data']}"


def _wins() -> str:
    wins = values.TABLES["paloma_wins_1p3B_xlstm10_of_571"]
    shown = ", ".join(f"{model} in *{count}*" for model, count in wins.items())
    return (
        f"Of PALOMA's 571 domains the paper's xLSTM[1:0] of 1.3B is better than {shown}. Ours: "
        f"{READY}, `eval.py --suite=paloma` writes each domain to results.json."
    )


def _extrapolation(results: Results) -> str:
    lines = [
        [f"{model}, 1.3B", "*the paper*", "16,384", f"*{value:.2f}*"]
        for model, value in values.EXTRAPOLATION.items()
    ]
    for row in results.evaluations:
        if row["suite"].startswith("extrapolation"):
            scale = REDUCED if row["reduced"] else HERE
            lines += [
                [f"{row['model']}, {row['parameters']:,} parameters", scale, f"{int(n):,}",
                 f"{value:.3f}"] for n, value in row["values"].items()
            ]  # fmt: skip
    return table_of(("model", "whose", "context (tokens):", "perplexity:"), lines)


def _figure_6(results: Results) -> list[str]:
    lines = []
    for entry in SHORT_RUNS:
        cost = cost_of(entry, results.speeds)
        lines.append([entry.label, READY, *_ready(entry, cost)])
    return [
        "## Figure 6: perplexity against parameters, 15B tokens",
        "The paper prints no numbers of it. RWKV-5, RWKV-6 and HGRN2 have such variants too.",
        table_of(("run", "state", "full run", "device hours:", "speed"), lines),
    ]


def _unprinted(results: Results) -> list[str]:
    lines = [
        [
            one.figure,
            one.what,
            READY if one.command else OPEN,
            f"`{one.command}`" if one.command else "",
            hours_text(hours_of_all(results, one.grid) if one.grid else None),
            one.ours,
        ]
        for one in UNPRINTED
    ]
    return [
        "## Figures and tables whose numbers the paper does not print, or we do not have",
        table_of(("paper", "what", "state", "full run", "device hours:", "ours"), lines),
        *filter(None, (own_table(results, small) for small in (SEARCH, RECALL))),
    ]


def _image(table: str) -> str:
    name = DRAWN[table]
    return f"![{name.removesuffix('.png').replace('_', ' ')}]({name})"
