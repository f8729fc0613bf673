"""What was measured here, from files of rows: JSON lines that the project's commands write.

what                    written by                                     told by its fields
trained models          python -m benchmarks.compare                   row, perplexity
experiments             python -m xlstm_jax.experiments report         experiment, metric
evaluations             python -m xlstm_jax.analysis.paper
                        --evaluations=MODEL=FOLDER                     suite, model
scaling laws            python -m xlstm_jax.analysis.scaling fit       params, tokens, loss
times of inference      python -m benchmarks.inference_times           kind, prefill, seconds
speeds of training      python -m benchmarks.modelled_speeds; a
                        person, of a run                               config, tokens_per_second
steps of small models   python -m benchmarks.modelled_grids            grid, model, hours
"""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xlstm_jax.analysis.record_files import records
from xlstm_jax.analysis.scaling.table import Run, run_of_record
from xlstm_jax.errors import UserError

Row = Mapping[str, Any]
PLACES = ("benchmarks/results/comparison.jsonl", "docs/results/*.jsonl")
# kind -> the fields by which its rows are told; the first that fits counts
KINDS = {
    "experiments": ("experiment", "preset", "metric", "value"),
    "trained": ("row", "perplexity", "tokens"),
    "evaluations": ("suite", "model", "values"),
    "speeds": ("config", "tokens_per_second", "how"),
    "grids": ("grid", "model", "step_ms", "hours"),
    "inference": ("kind", "params", "prefill", "batch", "seconds"),
    "runs": ("params", "tokens", "loss"),
}


class Results(NamedTuple):
    """All rows, by kind.

    Attributes:
        trained: name of the row in configs/comparison.py -> row.
        experiments: (experiment, preset) -> its rows.
        evaluations: one for each model, size and suite.
        speeds: tokens/s of training steps, and how they are known; of a configuration the last
            one counts.
        grids: device hours of each model of an experiment.
        inference: times of prompts read and tokens written.
        runs: of series for scaling laws.
    """

    trained: Mapping[str, Row]
    experiments: Mapping[tuple[str, str], Sequence[Row]]
    evaluations: Sequence[Row]
    speeds: Sequence[Row]
    grids: Sequence[Row]
    inference: Sequence[Row]
    runs: Sequence[Run]


def read(root: pathlib.Path, places: Iterable[str] = PLACES) -> Results:
    """The rows of all files in the places (globs below the root).

    Raises:
        UserError: a line is no row of any kind.
    """
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    runs = []
    for path in sorted(path for place in places for path in root.glob(place)):
        for where, row in records(path, str(path.relative_to(root))):
            kind = _kind(row, where)
            if kind == "runs":
                runs.append(run_of_record(row, where))
            else:
                found[kind].append(row)
    experiments: dict[tuple[str, str], list[Row]] = {}
    for row in found["experiments"]:
        value = math.nan if row["value"] is None else row["value"]
        experiments.setdefault((row["experiment"], row["preset"]), []).append(
            {**row, "value": value}
        )
    return Results(
        trained={row["row"]: row for row in found["trained"]},
        experiments=experiments,
        evaluations=found["evaluations"],
        speeds=found["speeds"],
        grids=found["grids"],
        inference=found["inference"],
        runs=runs,
    )


def _kind(row: Row, where: str) -> str:
    for kind, fields in KINDS.items():
        if all(field in row for field in fields):
            return kind
    kinds = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in KINDS.items())
    raise UserError(f"{where} is a row of no kind that is known here ({kinds})")
