"""Runs an experiment of the paper, a grid of training runs, and reports on it.

    python -m xlstm_jax.experiments NAME [--preset=small] [--workdir=runs/experiments]
        [--cells=A,B] [--models=A,B] [--dims=32,64] [--learning_rates=1e-2,1e-3] [--seeds=2]
        [--together=6] [--part=3/8] [--config.SECTION.KEY=VALUE ...]
    python -m xlstm_jax.experiments report NAME [--preset=small] [--workdir=runs/experiments]

NAME is a file of configs/ that has an experiment, for example formal, mqar, nns. Runs follow one
another; what was stopped goes on with the same command. With --together=6 up to six runs of one
cell and model, which differ in learning rate and seed, are trained in one program. With --part=3/8
this process does every eighth run or group, for a cluster's array of jobs: all of them write to one
--workdir.
"""

import math
import pathlib
import re
import sys
from collections.abc import Sequence

from xlstm_jax import command_line, config_files, config_flags, interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.experiments.grid import Experiment, groups_of, narrowed, part_of, runs_of
from xlstm_jax.experiments.report import missing, report
from xlstm_jax.experiments.running import config_of, run_grid
from xlstm_jax.installation import module, next_lines, shell_line
from xlstm_jax.interrupts import Preempted
from xlstm_jax.parallel.host_memory import keep_freed_memory
from xlstm_jax.paths import check_can_be_written
from xlstm_jax.training.console import end_of_output

FLAGS = {
    "preset": "small (the default): what two CPU cores can do; paper: as printed",
    "workdir": "below it lies NAME/PRESET with a folder for each run; runs/experiments by default",
    "cells": "what is learned, some of the experiment's: languages, sizes of a problem",
    "models": "some of the experiment's",
    "dims": "model.dim, instead of the experiment's",
    "learning_rates": "instead of the experiment's",
    "seeds": "number of runs of each learning rate",
    "together": "runs of one cell and model that are trained in one program, at most; 1 by default",
    "part": "3/8: the third of eight processes that share the runs",
}
OF_REPORTS = ("preset", "workdir")


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        action, name, rest = _taken_apart(argv)
        flags = command_line.parse([argv[0], *rest], __doc__, FLAGS, config_flags.without_config)
        keep_freed_memory()
        preset = flags.preset or "small"
        file = _file_of(name)
        experiment: Experiment = config_files.experiment(file, preset)
        folder = (
            pathlib.Path(flags.workdir or "runs/experiments").expanduser() / _stem(file) / preset
        )
        arguments = config_flags.take_apart([argv[0], *rest])
        given = {key: flags[key].value for key in OF_REPORTS}
        if action == "report":
            unread = [n for n in FLAGS if n not in OF_REPORTS and flags[n].value is not None]
            unread += [f"config.{key}" for key in arguments.overrides]
            if unread:
                raise UserError(f"--{unread[0]} is of no use for a report; leave it out")
            for line in report(experiment, folder).splitlines():
                sentence = len(line) > command_line.WIDTH and not line.startswith("|")
                print(*(command_line.wrapped(line, "") if sentence else [line]), sep="\n")
            train = [shell_line(module("experiments"), name, **given)]
            left = next_lines(*train * bool(missing(experiment, folder)))
            print(f"\n{folder}", *left, sep="\n", flush=True)
            return
        if arguments.file is not None:
            raise UserError("--config names a file, but the experiment has one; leave it out")
        overrides = {
            key: config_flags.parse(key, text) for key, text in arguments.overrides.items()
        }
        check_can_be_written("--workdir", folder)
        experiment = _narrowed(experiment, flags)
        together = command_line.number(flags, "together", 1) or 1
        groups = part_of(groups_of(runs_of(experiment), together), _part(flags.part))
        configs = {
            run: config_of(experiment, file, run, overrides) for group in groups for run in group
        }
        try:
            run_grid(experiment, _stem(file), preset, configs, folder, together)
            shown = shell_line(module("experiments"), "report", name, **given)
            print("all runs of this call are done", *next_lines(shown), sep="\n")
        finally:
            end_of_output()

    try:
        return command_line.run(command, "the same command goes on")
    except Preempted as saved:
        print(saved, file=sys.stderr, flush=True)
        return saved.status


def _taken_apart(argv: Sequence[str]) -> tuple[str, str, list[str]]:
    """(action, name, flags) of a command line."""
    words = [argument for argument in argv[1:] if not argument.startswith("-")]
    rest = [argument for argument in argv[1:] if argument.startswith("-")]
    if {"--help", "-h", "--helpfull"} & set(rest):
        return "run", "", ["--help"]
    action = "report" if words[:1] == ["report"] else "run"
    words = words[action == "report" :]
    if len(words) != 1:
        what = "no experiment is named" if not words else f"{words[1]!r} is not understood"
        raise UserError(f"{what}; write for example `formal --preset=small`, flags as --name=value")
    return action, words[0], rest


def _file_of(name: str) -> str:
    """The config file of an experiment: a path, or the name of one of the project's own."""
    return name if name.endswith(".py") else f"configs/{name}.py"


def _stem(file: str) -> str:
    return pathlib.Path(file).stem


def _narrowed(experiment: Experiment, flags) -> Experiment:
    rates = _numbers("learning_rates", flags.learning_rates)
    return narrowed(
        experiment,
        cells=_words(flags.cells),
        models=_words(flags.models),
        dims=None
        if flags.dims is None
        else [command_line.whole("--dims", text, 1) for text in flags.dims.split(",")],
        learning_rates=rates,
        seeds=command_line.number(flags, "seeds", 1),
    )


def _words(text: str | None) -> list[str] | None:
    return None if text is None else list(dict.fromkeys(text.split(",")))


def _numbers(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise UserError(f"--{name} is {text!r}; it must be numbers above 0 with commas between")
    return numbers


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--part is {text!r}; it must be NUMBER/PARTS, for example 3/8")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    interrupts.leave(main(sys.argv))
