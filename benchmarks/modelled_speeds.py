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

import re

from benchmarks import modelled_rows
from benchmarks.modelled_rows import DEVICE, HOW, ROOT, TOPOLOGY, Row
from xlstm_jax.analysis.hlo import MADE_WHEN_LOADED
from xlstm_jax.analysis.paper.catalogue import LONG_RUNS, TRAINED
from xlstm_jax.config import load
from xlstm_jax.training.aot import StepReport, compile_step

FILE = modelled_rows.RESULTS / "speeds.jsonl"
REMAT = "block"
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


def row_of(config: str) -> Row | None:
    """The speed that the step's model gives, as a row; without one a line and None."""
    batch = sequences(config)
    keys = {"data.batch_size": batch, "model.remat": REMAT}
    loaded = load(str(ROOT / "configs" / config), keys)
    report = compile_step(loaded, TOPOLOGY)
    if not report.fits or report.model is None:
        print(f"{config}: {'; '.join(report.lines())}")
        return None
    context = loaded.data.context_length
    return {
        "config": config,
        "device": DEVICE,
        "tokens_per_second": round(batch * context / report.model.milliseconds * 1e3),
        "how": _how(report),
        "batch": batch,
        "context": context,
        "remat": REMAT,
    }


def _how(report: StepReport) -> str:
    absent = "cuDNN's attention" if MADE_WHEN_LOADED & report.kernels.keys() else ""
    return f"{HOW}, {absent} left out" if absent else HOW


def is_of(row: Row, config: str) -> bool:
    """Whether a row is of this configuration's model, and modelled."""
    return row["how"].startswith(HOW) and model_of(row["config"]) == model_of(config)


def main() -> None:
    """Makes the rows that are missing."""
    modelled_rows.make(__doc__, FILE, configurations(), is_of, row_of)


if __name__ == "__main__":
    main()
