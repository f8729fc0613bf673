"""How fast an H100 should train the paper's models, rows of docs/results/speeds.jsonl: what
docs/paper.md takes its device hours from.

    python -m benchmarks.modelled_speeds                  # an environment with jax[cuda13]
    python -m benchmarks.modelled_speeds --only "rwkv.*350m" --again

Each model's own training step (forward, backward, AdamW) is compiled for one H100 that is not
there, as `train.py --aot=h100:1x1x1` does, and timed by the model of xlstm_jax.analysis.compiled:
modelled, not measured (docs/performance.md). The batch is what one device of a pod has. All have
`model.remat` "block", the slowest setting, since what "auto" tries takes many minutes to compile.
A minute or two a model, 4 GB; rows that are there are kept, so that it can be stopped.
"""

import argparse
import datetime
import json
import pathlib
import re

import jax

from benchmarks.provenance import commit
from xlstm_jax.analysis.hlo import MADE_WHEN_LOADED
from xlstm_jax.analysis.paper.catalogue import LONG_RUNS, TRAINED
from xlstm_jax.config import load
from xlstm_jax.training.aot import StepReport, compile_step

ROOT = pathlib.Path(__file__).parents[1]
FILE = ROOT / "docs/results/speeds.jsonl"
TOPOLOGY, DEVICE, HOW, REMAT = "h100:1x1x1", "H100", "modelled", "block"
# sequences of a device, by size; models of another name are of 350M
SEQUENCES = {"125m": 32, "350m": 16, "760m": 8, "1.3b": 8}


def configurations() -> list[str]:
    """One run of each model that has a speed of its own, those of 350M first."""
    entries = [entry for entries in TRAINED.values() for entry in entries]
    entries += [entry for entries in LONG_RUNS.values() for entry in entries]
    found: dict[str, str] = {}
    for entry in entries:
        if entry.like is None:
            found.setdefault(model_of(entry.config), entry.config)
    return list(found.values())


def model_of(config: str) -> str:
    """A configuration's name without the length of its run, which has no say in its speed."""
    return re.sub(r"-(15b|300b)$", "", config)


def sequences(config: str) -> int:
    """Of one device's batch."""
    return next((number for size, number in SEQUENCES.items() if size in config), 16)


def row_of(config: str, report: StepReport, batch: int, context: int) -> dict:
    """The speed that the step's model gives, as a row."""
    absent = "cuDNN's attention" if MADE_WHEN_LOADED & report.kernels.keys() else ""
    return {
        "config": config,
        "device": DEVICE,
        "tokens_per_second": round(batch * context / report.model.milliseconds * 1e3),
        "how": f"{HOW}, {absent} left out" if absent else HOW,
        "batch": batch,
        "context": context,
        "remat": REMAT,
        "commit": commit(),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def write(row: dict) -> None:
    """Adds it, instead of what was modelled of the same model before."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    kept = [one for one in rows if not _modelled(one, row["config"])]
    FILE.write_text("".join(json.dumps(one) + "\n" for one in [*kept, row]))


def _modelled(row: dict, config: str) -> bool:
    """Whether a row is of this configuration's model, and modelled."""
    return row["how"].startswith(HOW) and model_of(row["config"]) == model_of(config)


def main() -> None:
    """Makes the rows that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on FILE:VARIANT")
    parser.add_argument("--again", action="store_true", help="rows that are there too")
    given = parser.parse_args()
    for config in configurations():
        rows = [json.loads(line) for line in FILE.read_text().splitlines()]
        there = any(_modelled(row, config) for row in rows)
        if not re.search(given.only, config) or (there and not given.again):
            continue
        batch = sequences(config)
        keys = {"data.batch_size": batch, "model.remat": REMAT}
        loaded = load(str(ROOT / "configs" / config), keys)
        report = compile_step(loaded, TOPOLOGY)
        if not report.fits or report.model is None:
            print(f"{config}: {'; '.join(report.lines())}", flush=True)
            continue
        row = row_of(config, report, batch, loaded.data.context_length)
        write(row)
        print(f"{config}: {row['tokens_per_second']:,} tokens/s, {row['how']}", flush=True)


if __name__ == "__main__":
    main()
