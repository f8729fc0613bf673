"""How the paper's runs fit on pods that are not here: one row per model and topology,
docs/scaling.md.

    make scaling-table                               # all rows; hours, and it can be stopped
    python -m benchmarks.scaling --only "1.3b.*v5p"  # some rows, by regular expression
    python -m benchmarks.scaling --table             # the document alone, from the rows there are

A row is the fewest accumulation steps with which a step of the paper's global batch fits, all
devices on the axis fsdp, remat "block"; found with at most three compiles. Rows are JSON files in
benchmarks/results/scaling. GPU rows need the extra cuda13.
"""

import argparse
import dataclasses
import datetime
import json
import math
import pathlib
import re

import jax

from xlstm_jax.config import Config, load
from xlstm_jax.errors import UserError
from xlstm_jax.training.aot import StepReport, compile_step

ROOT = pathlib.Path(__file__).parents[1]
ROWS = ROOT / "benchmarks/results/scaling"
DOCUMENT = ROOT / "docs/scaling.md"
XLSTM = [
    f"xlstm_{size}.py:{kind}-15b"
    for size in ("125m", "350m", "760m", "1.3b", "2.7b")
    for kind in ("1_0", "7_1")
]
COMPARED = (
    *("llama", "gpt3", "mamba", "rwkv4", "rwkv5", "rwkv6", "retnet", "gla", "hgrn", "hgrn2"),
    *("h3", "hyena"),
)
LSTMS = [f"ablations.py:{name}" for name in ("lstm", "lstm_residual", "lstm_block", "xlstm_0_1")]
MODELS = [*XLSTM, "xlstm_7b.py", *(f"{name}.py:350m-15b" for name in COMPARED), *LSTMS]
TOPOLOGIES = ("a100:1x1x8", "h100:1x1x8", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")
COMPILES = 3
ROOM = 0.95  # share of a device's memory that a program may take: the rest is the runtime's


def configuration(model: str, accumulation_steps: int) -> Config:
    """The paper's run on a pod."""
    keys = {
        "model.remat": "block",
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "train.accumulation_steps": accumulation_steps,
    }
    return load(str(ROOT / "configs" / model), keys)


def next_try(report: StepReport, most: int) -> int | None:
    """Accumulation steps to try after a report: as many as its numbers ask for if it did not fit,
    None if nothing is left to try.

    What shrinks with them is what is above the state: 16 bytes per parameter are in it, the
    gradient and its sum included.
    """
    if report.fits or report.accumulation_steps >= most:
        return None
    fixed = report.arguments or 0
    factor = max(2.0, (report.needed - fixed) / max(ROOM * report.memory - fixed, 1))
    steps = report.accumulation_steps
    while steps < min(most, report.accumulation_steps * factor):
        steps *= 2
    return min(steps, most)


def find_row(model: str, topology: str) -> dict:
    """The row of one model and topology: the last report of at most three, and what was tried."""
    devices = math.prod(int(size) for size in topology.partition(":")[2].split("x"))
    rows = configuration(model, 1).data.batch_size
    if rows % devices:
        raise UserError(f"a batch of {rows} can't be dealt out to {devices} devices")
    steps, tried, report = 1, [], None
    for _ in range(COMPILES):
        report = compile_step(configuration(model, steps), topology)
        tried.append({"accumulation_steps": steps, "fits": report.fits, "needed": report.needed})
        if (steps := next_try(report, rows // devices)) is None:
            break
    # the report's own "model" is of the step's time, of which the table says nothing
    return {
        **dataclasses.asdict(dataclasses.replace(report, model=None)),
        "model": model,
        "tried": tried,
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def row_file(model: str, topology: str) -> pathlib.Path:
    """Where a row is kept."""
    return ROWS / f"{model.replace('.py', '').replace(':', '_')}_{topology.replace(':', '_')}.json"


HEAD = """# How the paper's runs fit

Written by `make scaling-table` (`python -m benchmarks.scaling`) on a machine without accelerators:
every row is the real training step (forward, backward, AdamW) of the paper's global batch, compiled
by the device's own compiler. All devices are on the axis `fsdp`, remat "block". Rows that are not
in the table have not been compiled. Nothing here was run: the table says nothing about speed.

| model | devices | accumulation steps | fits | arguments | temporaries | peak | of | \
collectives per step | kernels per step | compile |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def gigabytes(size: float | None) -> str:
    """For the table."""
    return "?" if size is None else f"{size / 1e9:.2f} GB"


def table_row(row: dict) -> str:
    """One line of the table."""
    name = row["model"].removeprefix("xlstm_").replace(".py", "").replace(":", " ")
    fits = "yes" if row["fits"] else f"no: needs {gigabytes(row['needed'])}"
    sizes = " | ".join(
        gigabytes(row[key]) for key in ("arguments", "temporaries", "peak", "memory")
    )
    kernels = ", ".join(f"{number} {backend}" for backend, number in (row["kernels"] or {}).items())
    kernels = "?" if row["kernels"] is None else kernels or "none"
    moved = None if row["collectives"] is None else sum(row["collectives"].values())
    return (
        f"| {name} | {row['topology']} | {row['accumulation_steps']} | {fits} | {sizes} | "
        f"{gigabytes(moved)} | "
        f"{kernels} | {row['seconds']:.0f} s |\n"
    )


def write_document() -> None:
    """docs/scaling.md from the rows that exist."""
    files = [row_file(model, topology) for model in MODELS for topology in TOPOLOGIES]
    DOCUMENT.write_text(
        HEAD + "".join(table_row(json.loads(file.read_text())) for file in files if file.exists())
    )


def main() -> None:
    """Makes the rows that are missing, then the document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on MODEL TOPOLOGY")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    given = parser.parse_args()
    ROWS.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        for topology in TOPOLOGIES:
            if (
                given.table
                or row_file(model, topology).exists()
                or not re.search(given.only, f"{model} {topology}")
            ):
                continue
            try:
                row = find_row(model, topology)
            except UserError as error:
                print(f"{model} {topology}: {error}", flush=True)
                continue
            row_file(model, topology).write_text(json.dumps(row, indent=2) + "\n")
            print(f"{model} {topology}: {row['tried']}", flush=True)
    write_document()
    print(DOCUMENT)


if __name__ == "__main__":
    main()
