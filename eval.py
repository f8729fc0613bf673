"""Evaluates a run, an imported model or a Hugging Face checkpoint.

    python eval.py --workdir=RUN [--suite=perplexity,extrapolation,generation,paloma,downstream]
    python eval.py --checkpoint=HF_DIR --data=FOLDER --suite=extrapolation --contexts=2048,16384

Results go to RUN/eval/<step>/: results.json, results.md and figures.
"""

import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.command import FLAGS, options_of
from xlstm_jax.evaluation.run import evaluate_suites


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS)
        checkpoint = flags["checkpoint"].value or command_line.text(flags, "workdir", "runs/NAME")
        if flags["checkpoint"].value and flags["workdir"].value:
            raise UserError("--workdir and --checkpoint are both given; give one of them")
        suites = (flags["suite"].value or "perplexity").split(",")
        evaluate_suites(
            checkpoint,
            suites,
            options_of(flags),
            command_line.number(flags, "step"),
            flags["output"].value,
        )

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
