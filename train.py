"""Trains a model, or goes on with a run.

    python train.py --config=configs/NAME.py[:variant] --workdir=DIR [--config.section.key=value ...] [--profile=10:12]

The same command resumes a run that was stopped. xlstm_jax/config.py lists all keys. The exit status is 2 for a mistake in the call or the
data, and 75 after SIGTERM, when the run is saved and the same command goes on with it.
"""

import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.training.loop import train
from xlstm_jax.training.preemption import EXIT_PREEMPTED, Preempted

FLAGS = {
    "workdir": "folder of the run; made if it does not exist",
    "profile": "first and last step of a trace for TensorBoard, like 10:12",
}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS, with_config=True)
        config = command_line.config_of(flags)
        train(config, command_line.text(flags, "workdir", "runs/NAME"), command_line.span(flags, "profile"))

    try:
        return command_line.run(command)
    except Preempted as saved:
        print(saved, file=sys.stderr, flush=True)
        return EXIT_PREEMPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv))
