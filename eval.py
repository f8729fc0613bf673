"""Evaluates a run with its own configuration: loss, perplexity and bits per byte of a split.

python eval.py --workdir=DIR [--split=validation] [--step=N] [--max_tokens=N]
"""

import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.evaluation.run import evaluate_run

FLAGS = {
    "workdir": "folder of a training run or of an imported model",
    "split": "validation (the default) or train",
    "step": "of the checkpoint; the newest one by default",
    "max_tokens": "score the first tokens only; eval.max_tokens of the run by default",
}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS)
        workdir = command_line.text(flags, "workdir", "runs/NAME")
        split = flags["split"].value or "validation"
        evaluate_run(workdir, split, command_line.number(flags, "step"), command_line.number(flags, "max_tokens"))

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
