"""How much faster runs are that are trained in one program (`xlstm_jax.experiments --together`).

    python -m benchmarks.together --config=configs/formal.py:parity-llama-small [--runs=4]

Rounds of steps alternate between one run alone and all in one program, side by side (vmap) and one
after another. The median of a round's time and CPU time for each step of a run is printed, and how
many times as fast that is as alone. Of a CPU's own times those with freed memory kept count, as the
experiments keep it; MALLOC_ARENA_MAX=8 in the environment shows them without.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from xlstm_jax import command_line, config_flags
from xlstm_jax.config import Config, task_of
from xlstm_jax.experiments.together import make_joint_step
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.host_memory import keep_freed_memory
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import init_state
from xlstm_jax.training.step import make_train_step

FLAGS = {"runs": "in one program; 4 by default"}
ROUNDS, STEPS, BATCHES = 5, 4, 4


def measure(config: Config, runs: int) -> None:
    """Prints the times of each way."""
    task = task_of(config)
    model, schedule = task.model(stacked=True), make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    batches = [task.batch(0, step, range(config.data.batch_size)) for step in range(BATCHES)]
    with jax.set_mesh(make_mesh(config.mesh)):
        one = jax.jit(lambda: init_state(task, model, optimizer, config.train))()
        several = jax.tree.map(lambda leaf: np.stack([leaf] * runs), one)
        alone = make_train_step(task, model, optimizer, schedule, config.train)
        ways = {"alone": _steps(lambda state, batch, _: alone(state, batch), one, batches)}
        for name, side_by_side in (("one after another", False), ("side by side", True)):
            joint = make_joint_step(task, model, [config] * runs, side_by_side=side_by_side)
            ways[name] = _steps(joint, jax.tree.map(jax.numpy.array, several), batches)
        found = {name: [] for name in ways}
        for steps in ways.values():
            steps()  # compiles
        for _ in range(ROUNDS):
            for name, steps in ways.items():
                found[name].append(steps())
    device = jax.devices()[0].device_kind
    print(f"{runs} runs, {ROUNDS} x {STEPS} steps, {device}; milliseconds for a step of a run")
    before = None
    for name, times in found.items():
        share = 1 if name == "alone" else runs
        wall, cpu = (1e3 * statistics.median(part) / share for part in zip(*times, strict=True))
        before = before or (wall, cpu)
        print(
            f"{name:18} {wall:7.1f} ({before[0] / wall:.2f}x)   CPU {cpu:7.1f} "
            f"({before[1] / cpu:.2f}x)",
            flush=True,
        )


def _steps(step: Callable, state, batches: Sequence) -> Callable[[], tuple[float, float]]:
    """Does some steps and returns seconds and CPU seconds of one."""
    held = {"state": state, "number": 0}

    def run() -> tuple[float, float]:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            held["number"] += 1
            batch = batches[held["number"] % len(batches)]
            held["state"], metrics = step(held["state"], batch, np.int32(held["number"]))
        jax.block_until_ready(metrics)
        return (time.perf_counter() - started) / STEPS, (time.process_time() - cpu) / STEPS

    return run


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        flags = command_line.parse(argv, __doc__, FLAGS, config_flags.without_config)
        keep_freed_memory()
        measure(config_flags.read(argv), command_line.number(flags, "runs", 2) or 4)

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
