"""What arXiv 2405.04517 prints, from `paper_values.json`: the only copy of its numbers."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

TABLES: Mapping[str, Any] = json.loads(
    pathlib.Path(__file__).with_name("paper_values.json").read_text()
)

# (dim, num_blocks) of the paper's xLSTMs -> name of the size
SIZES = {(768, 24): "125M", (1024, 48): "350M", (1536, 48): "760M", (2048, 48): "1.3B"}
# the models of tables 3, 4 and 9
MODELS = ("RWKV-4", "Llama", "Mamba", "xLSTM[1:0]", "xLSTM[7:1]")

# Table 4 and 9: the paper's name of a source -> its folder in allenai/paloma.
PALOMA_SOURCES = {
    "C4": "c4_en",
    "MC4-EN": "mc4",
    "Wikitext103": "wikitext_103",
    "PTB": "ptb",
    "RedPajama": "redpajama",
    "RefinedWeb": "falcon-refinedweb",
    "Dolma": "dolma-v1_5",
    "M2D2-S2ORC": "m2d2_s2orc_unsplit",
    "M2D2-Wikipedia": "m2d2_wikipedia_unsplit",
    "C4-Domains": "c4_100_domains",
    "Dolma-Subreddits": "dolma_100_subreddits",
    "Dolma-Coding": "dolma_100_programing_languages",
    "TwitterAAE": "twitterAAE_HELM_fixed",
    "Manosphere": "manosphere_meta_sep",
    "4chan": "4chan_meta_sep",
    "Gab": "gab",
}
# Table 3: the paper's columns as the tasks are called in the harness. Every value is the best of
# three precisions; accuracies are in percent.
TASK_COLUMNS = {
    "lambada_ppl": "lambada_openai perplexity",
    "lambada_acc": "lambada_openai",
    "hellaswag_acc_norm": "hellaswag",
    "piqa_acc": "piqa",
    "arc_easy_acc": "arc_easy",
    "arc_challenge_acc_norm": "arc_challenge",
    "winogrande_acc": "winogrande",
    "average_acc": "average",
}
EXTRAPOLATION_TRAINED_AT, EXTRAPOLATION_CONTEXT = 2048, 16384  # figure 7


def rows_of(table: str, size: str | None = None) -> dict[str, dict[str, float | None]]:
    """The rows of a table with columns: name of the row -> column -> value.

    Args:
        size: of the tables 3, 4 and 9, which have such rows for each of four sizes.
    """
    rows = TABLES[table]["rows"]
    return {
        name: dict(zip(TABLES[table]["columns"], values, strict=True))
        for name, values in (rows if size is None else rows[size]).items()
    }


def by_model(table: str, names: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Model -> name -> value of a table, for the columns that have a name; what was not printed is
    left out.

    Args:
        names: column -> how it is called here.
    """
    return {
        model: {name: found[column] for column, name in names.items() if found[column] is not None}
        for model, found in rows_of(table).items()
    }


def as_printed(column: Iterable[float | None]) -> list[str]:
    """The values of a column with as many decimals as the paper prints in it; "" for none."""
    column = list(column)
    digits = max(len(f"{value:g}".partition(".")[2]) for value in column if value is not None)
    return ["" if value is None else f"{value:,.{digits}f}" for value in column]


# Table 3: size -> model -> perplexity on SlimPajama, and of its tasks the values of TASK_COLUMNS
SLIMPAJAMA = {
    size: {model: row["slimpajama_ppl"] for model, row in rows_of("table3_300B", size).items()}
    for size in TABLES["table3_300B"]["rows"]
}
TASKS = {
    size: {
        model: [row[column] for column in TASK_COLUMNS]
        for model, row in rows_of("table3_300B", size).items()
    }
    for size in SLIMPAJAMA
}
# Tables 4 and 9: size -> source -> perplexities in the order of MODELS
PALOMA = {
    size: {
        source: [rows[model][source] for model in MODELS]
        for rows in (rows_of("table4_paloma_ppl", size), rows_of("table9_paloma_toxic_ppl", size))
        for source in rows[MODELS[0]]
        if source in PALOMA_SOURCES
    }
    for size in SLIMPAJAMA
}
# Figure 7: perplexity at a context of 16,384, models of 1.3B parameters trained at 2,048. The
# values between are drawn there, not printed; that at 2,048 is the one of table 3.
EXTRAPOLATION = {model: row["at_16384"] for model, row in rows_of("fig7_extrapolation_ppl").items()}
