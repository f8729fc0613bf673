"""Trains a model, or goes on with a run.

    python train.py --config=configs/NAME.py[:VARIANT] --workdir=DIR
                    [--config.SECTION.KEY=VALUE ...] [--profile=10:12]
    python train.py --config=configs/NAME.py[:VARIANT] --aot=v5p:4x4x4
                    [--aot-details=FILE] [--workdir=DIR] [--config.SECTION.KEY=VALUE ...]

Where the package is installed, xlstm-train is the same program, and --config=NAME[:VARIANT] does.

The same command goes on with a run that was stopped; --help lists all keys. The exit status is 0 at
the end, 2 for a mistake in the call or the data, 75 after SIGTERM and 130 after Ctrl-C. Both save
the step that is being done, and the same command goes on with it; a second Ctrl-C ends at once.

With --aot nothing is trained: the training step is compiled for devices that are not there, and its
memory, collectives and kernels are reported, with the time that each kernel should take.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from xlstm_jax import command_line, config_flags, interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.interrupts import Preempted
from xlstm_jax.parallel.topology import EXAMPLES
from xlstm_jax.parallel.xla_flags import TRAINING, set_for_gpus
from xlstm_jax.training.aot import report_on
from xlstm_jax.training.console import end_of_output
from xlstm_jax.training.loop import train

FLAGS = {
    "workdir": "folder of the run; made if it does not exist",
    "profile": "first and last step of a trace for TensorBoard, like 10:12",
    "aot": f"devices to compile for instead of training: {EXAMPLES}; the report is also written "
    "to the workdir, by default runs/aot",
    "aot-details": "file for all kernels of that step, as JSON: shapes, bytes, FLOPs, modelled "
    "time, source lines",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as a command line says; returns the process's exit status."""
    argv = sys.argv if argv is None else argv

    def command() -> None:
        flags = command_line.parse(
            argv, __doc__, FLAGS, config_flags.without_config, config_flags.listing()
        )
        set_for_gpus(TRAINING)
        config = config_flags.read(argv)
        if (topology := flags.aot) is not None:
            details = flags["aot-details"].value
            name = config_flags.name(argv)
            report_on(config, topology, flags.workdir or "runs/aot", name, details)
            return
        if flags["aot-details"].value is not None:
            raise UserError("--aot-details belongs to --aot, which is missing")
        workdir = command_line.text(flags, "workdir", "runs/NAME")
        try:
            train(config, workdir, profile=command_line.span(flags, "profile"))
        finally:
            end_of_output()

    try:
        return command_line.run(command)
    except Preempted as saved:
        print(saved, file=sys.stderr, flush=True)
        return saved.status


def program() -> NoReturn:
    """`main` as a process of its own, whose end is not kept up by a service that hangs."""
    interrupts.leave(main())


if __name__ == "__main__":
    program()
