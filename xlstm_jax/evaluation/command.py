"""Evaluates a run, an imported model or a Hugging Face checkpoint.

    python eval.py --workdir=RUN [--suite=perplexity,extrapolation,generation,paloma,downstream]
    python eval.py --checkpoint=HF_DIR --data=FOLDER --suite=extrapolation --contexts=2048,16384

Where the package is installed, xlstm-eval is the same program. Results go to RUN/eval/<step>/:
results.json, results.md and figures.
"""

import re
import sys
from collections.abc import Sequence

from absl import flags

from xlstm_jax import command_line
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.options import Options
from xlstm_jax.evaluation.run import evaluate_suites

FLAGS = {
    "workdir": "folder of a training run or of an imported model",
    "checkpoint": "instead of it: a Hugging Face folder, or a name on the hub (NX-AI/xLSTM-7b)",
    "suite": (
        "some of perplexity (the default), frequencies (how often training had a token), "
        "extrapolation, generation, paloma, downstream, separated by commas"
    ),
    "step": "of the checkpoint; the newest one by default",
    "output": "folder of the results; RUN/eval/<step> by default",
    "split": (
        "perplexity, frequencies, extrapolation: validation (the default), train, or the name of "
        "one of the run's data.validation_sets"
    ),
    "data": (
        "perplexity, frequencies, extrapolation: instead of the run's own data, text (all of it is "
        "scored) or token shards (--split, or the only one)"
    ),
    "max_tokens": (
        "perplexity, frequencies, extrapolation: score the first tokens only; by default "
        "eval.max_tokens of the run, and all of --data"
    ),
    "context_length": (
        "perplexity, frequencies: tokens of the windows; eval.context_length of the run by "
        "default, or data.context_length"
    ),
    "batch_size": (
        "perplexity, frequencies, extrapolation, paloma, downstream: rows at once; "
        "eval.batch_size of the run by default"
    ),
    "contexts": (
        "extrapolation: context lengths; by default that of training and 2, 4, 8, 16, 32 times as "
        "many, as far as there are tokens"
    ),
    "lengths": "generation: numbers of tokens; 64,128,256,512,1024,2048 by default",
    "batches": "generation: batch sizes; 1,2,4,8,16,32,64,128 by default",
    "paloma": "paloma: folder of the data set, SOURCE/val/*.jsonl.gz",
    "tasks": (
        "downstream: names of the harness's tasks; by default 'paper', the paper's six, or all of "
        "--task_folder"
    ),
    "task_folder": "downstream: folder with task files of your own",
    "limit": "downstream, paloma: the first so many documents of each task or file",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as a command line says; returns the process's exit status."""
    argv = sys.argv if argv is None else argv

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


def options_of(values: flags.FlagValues) -> Options:
    """The suites' options; what is not given keeps its default.

    Raises:
        UserError: a value is not what it must be.
    """
    given = {name: values[name].value for name in ("split", "data", "task_folder", "paloma")}
    counts = ("max_tokens", "context_length", "batch_size", "limit")
    given |= {name: command_line.number(values, name) for name in counts}
    given |= {
        name: _counts(name, values[name].value) for name in ("contexts", "lengths", "batches")
    }
    given["tasks"] = tuple(values["tasks"].value.split(",")) if values["tasks"].value else None
    return Options(**given)


def _counts(name: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not all(re.fullmatch("[1-9][0-9]{0,17}", part) for part in text.split(",")):
        raise UserError(f"--{name} is {text!r}; it must be whole numbers separated by commas")
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
