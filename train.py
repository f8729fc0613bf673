"""Trains a model, or goes on with a run.

    python train.py --config=configs/NAME.py[:variant] --workdir=DIR [--config.section.key=value ...]

The same command resumes a run that was stopped. xlstm_jax/config.py lists all keys.
"""

import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.training.loop import train

FLAGS = {"workdir": "folder of the run; made if it does not exist"}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS, with_config=True)
        config = command_line.config_of(flags)
        train(config, command_line.text(flags, "workdir", "runs/NAME"))

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
