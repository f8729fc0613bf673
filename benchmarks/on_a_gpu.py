"""What a GPU shows and nothing else does: results against float64 on the device, training steps,
kernels beside public ones, inference, two loss curves; in order of importance, within a budget.

    python -m benchmarks.on_a_gpu                       # 540 s; make on-a-gpu
    python -m benchmarks.on_a_gpu --stages=step,inference --budget=300
    python -m benchmarks.on_a_gpu --tiny                # on a CPU: whether everything runs
    python -m benchmarks.on_a_gpu --prepare=h100:1x1x1 --output=DIR   # without a GPU, then there:
    python -m benchmarks.on_a_gpu --prepared=DIR

Each stage (benchmarks/gpu_stages.py) is a process with a time limit: one that hangs or dies costs
its own results. First, programs are compiled side by side, into one compilation cache, and stages
run that time nothing; then one stage after the other is timed. Results are printed and written as
they come. What does not fit into the budget is left out from the end; --stages takes it up.

Compiling the steps takes minutes, even of 16 cores: on a GPU XLA tries the tiles of every product.
`--prepare` compiles them, the curves and inference elsewhere, for a topology of `train.py --aot`;
`--prepared` has the stages run these. All their products are cuBLAS's then, and steps are not
compared with the XLA forms, which is what the curves do.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu_stages import DEVICE_LINE, ROW_LINE, Stage, chosen, curves, groups, stages
from benchmarks.provenance import ROOT
from xlstm_jax import command_line
from xlstm_jax.errors import UserError
from xlstm_jax.parallel.xla_flags import DRIVER

FLAGS = {
    "budget": "seconds in all, by default 540",
    "stages": f"some of them, in this order, commas between: {', '.join(groups())}",
    "output": "folder of the results, by default runs/on_a_gpu; nothing in it is overwritten",
    "tiny": "without a value: sizes for a CPU, no numbers to keep",
    "prepare": "a topology such as h100:1x1x1: write its programs to --output and measure nothing",
    "prepared": "folder of such programs",
    "jobs": "processes that compile side by side, by default one for two CPUs; 1: each stage "
    "compiles for itself",
}
BUDGET = 540
SIDE_BY_SIDE = 0.5  # of the budget at most, before stages are timed
LAST_LINES = 12  # of the output of a stage that failed
GRACE = 2.0  # seconds from SIGTERM to SIGKILL


@dataclasses.dataclass
class Outcome:
    """What became of a stage.

    Attributes:
        status: "waiting", "running", "finished", "failed", "ended at its limit" or "left out".
        seconds: that it ran, without what was compiled ahead.
        last_lines: of its output, where it did not finish.
    """

    stage: str
    status: str = "waiting"
    seconds: float | None = None
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    last_lines: list[str] = dataclasses.field(default_factory=list)


class Results:
    """The results file and the log beside it. The file is whole at any time."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any], names: Sequence[str]):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = _unused(folder)
        self._log = self.file.with_suffix(".log").open("w")
        self._started, self._lock = time.monotonic(), threading.RLock()
        self.about, self.outcomes = dict(about), {name: Outcome(name) for name in names}
        self.write()

    def write(self) -> None:
        """Replaces the file by what is known now."""
        with self._lock:
            outcomes = [dataclasses.asdict(outcome) for outcome in self.outcomes.values()]
            found = {**self.about, "curves": curves(self.rows()), "stages": outcomes}
            beside = self.file.with_suffix(".new")
            beside.write_text(json.dumps(found, indent=1) + "\n")
            os.replace(beside, self.file)

    def rows(self) -> list[dict[str, Any]]:
        """Of all stages."""
        return [row for outcome in self.outcomes.values() for row in outcome.rows]

    def say(self, line: str) -> None:
        """One line for the terminal and the log."""
        with self._lock:
            line = f"[{time.monotonic() - self._started:6.1f} s] {line}"
            print(line, flush=True)
            print(line, file=self._log, flush=True)

    def take(self, name: str, line: str) -> None:
        """A line of a stage's output: a result, what it runs on, or something for the log."""
        with self._lock:
            if line.startswith(ROW_LINE):
                row = json.loads(line.removeprefix(ROW_LINE))
                self.outcomes[name].rows.append(row)
                self.say(f"{name}: {shown(row)}")
                self.write()
            elif line.startswith(DEVICE_LINE):
                self.about |= json.loads(line.removeprefix(DEVICE_LINE))
            else:
                print(f"{name}: {line}", file=self._log, flush=True)
                last = self.outcomes[name].last_lines
                last.append(line)
                del last[:-LAST_LINES]

    def ended(self, name: str, status: str, seconds: float | None = None) -> None:
        """A stage has ended, or was left out."""
        with self._lock:
            outcome = self.outcomes[name]
            outcome.status, outcome.seconds = status, seconds
            if status in ("finished", "left out"):
                outcome.last_lines = []
            took = "" if seconds is None else f" after {seconds:.1f} s"
            self.say("\n    ".join([f"{name}: {status}{took}", *outcome.last_lines]))
            self.write()


def shown(row: Mapping[str, Any]) -> str:
    """A result in one line, without its lists."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        if isinstance(value, Mapping):
            return "(" + " ".join(f"{name} {text(x)}" for name, x in value.items()) + ")"
        return str(value)

    return ", ".join(f"{k} {text(v)}" for k, v in row.items() if not isinstance(v, list))


def _unused(folder: pathlib.Path) -> pathlib.Path:
    number, file = 1, folder / "on_a_gpu.json"
    while file.exists() or file.with_suffix(".log").exists():
        number += 1
        file = folder / f"on_a_gpu_{number}.json"
    return file


class Processes:
    """Runs commands, each with a time limit; none outlives the `with` block."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends what runs, and lets nothing more begin."""
        self._stopped = True
        for process in list(self._running):
            _end(process, 0)

    def run(
        self,
        command: Sequence[str],
        limit: float,
        take: Callable[[str], None],
        environment: Mapping[str, str],
    ) -> int | None:
        """The exit status, or None where the limit ended the process and all that it started."""
        if self._stopped:
            return None
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._running.add(process)
        reader = threading.Thread(target=_read, args=(process.stdout, take), daemon=True)
        reader.start()
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process, GRACE)  # and what it started
            self._running.discard(process)
        reader.join(GRACE)
        return status


def _read(stream: Any, take: Callable[[str], None]) -> None:
    for line in stream:
        take(line.rstrip("\n"))


def _end(process: subprocess.Popen, grace: float) -> None:
    """Ends a process and its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)


def drive(plan: Sequence[Stage], results: Results, *, budget: float, jobs: int) -> None:
    """Runs the stages; `results` has what became of each."""
    end = time.monotonic() + budget
    # a later process finds there what an earlier one compiled
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "on_a_gpu"))
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}
    with Processes() as processes:

        def run(stage: Stage, environment: Mapping[str, str]) -> None:
            started, name = time.monotonic(), stage.name
            results.outcomes[name].status = "running"
            status = processes.run(
                stage.command,
                min(stage.limit, end - started),
                lambda line: results.take(name, line),
                environment,
            )
            word = "finished" if status == 0 else "failed"
            results.ended(
                name,
                "ended at its limit" if status is None else word,
                time.monotonic() - started,
            )

        if jobs > 1:
            _side_by_side(plan, results, processes, run, environment, end, budget, jobs)
        waiting = [stage for stage in plan if results.outcomes[stage.name].status == "waiting"]
        for number, stage in enumerate(waiting):
            if end - time.monotonic() < stage.least:
                for rest in waiting[number:]:
                    results.ended(rest.name, "left out")
                return
            run(stage, environment)


def _side_by_side(
    plan: Sequence[Stage],
    results: Results,
    processes: Processes,
    run: Callable[[Stage, Mapping[str, str]], None],
    environment: Mapping[str, str],
    end: float,
    budget: float,
    jobs: int,
) -> None:
    """Stages without timing, and the compilation of the others, in the order of the plan; what has
    not begun when its share of the budget is over is left to the stages themselves.
    """
    shared = {**environment, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # they share the memory
    last_start = end - budget * (1 - SIDE_BY_SIDE)

    def work(stage: Stage) -> None:
        started = time.monotonic()
        if started > last_start:
            return
        if not stage.timed:
            run(stage, shared)
        elif stage.ahead:
            status = processes.run(
                stage.ahead,
                last_start - started,  # a step whose blocks stand apart takes over 100 s on an H200
                lambda line: results.take(stage.name, line),
                shared,
            )
            word = {0: "compiled ahead", None: "not compiled ahead in time"}
            took = f" ({time.monotonic() - started:.1f} s)"
            results.say(f"{stage.name}: {word.get(status, 'not compiled ahead: it failed')}{took}")

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        list(pool.map(work, plan))
    except BaseException:  # Ctrl-C, too: nobody waits for the limits then
        processes.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status: 1 where a stage failed or was ended."""
    status = 0

    def command() -> None:
        nonlocal status
        words = ["--tiny=yes" if word == "--tiny" else word for word in argv]
        flags = command_line.parse(words, __doc__, FLAGS)
        budget = command_line.number(flags, "budget", 1) or BUDGET
        jobs = command_line.number(flags, "jobs", 1) or max(1, (os.cpu_count() or 1) // 2)
        tiny = flags.tiny is not None
        if tiny and flags.tiny != "yes":
            raise UserError(f"--tiny is {flags.tiny!r}; give --tiny alone, or leave it out")
        if flags.prepare:
            wanted = {stage.name for stage in chosen(stages(tiny), flags.stages)}
            prepare(flags.prepare, flags.output, wanted, tiny=tiny)
            return
        if not tiny and not DRIVER.exists():
            raise UserError("this machine has no NVIDIA driver; --tiny runs everything on a CPU")
        if flags.prepared and not pathlib.Path(flags.prepared).is_dir():
            raise UserError(f"--prepared is {flags.prepared!r}, which is no folder")
        plan = chosen(stages(tiny, flags.prepared), flags.stages)
        about = {"command": " ".join(["python -m benchmarks.on_a_gpu", *argv[1:]])}
        folder = pathlib.Path(flags.output or ROOT / "runs" / "on_a_gpu")
        results = Results(folder, about, [stage.name for stage in plan])
        results.say(f"{len(plan)} stages, {budget} s, {jobs} side by side: {results.file}")
        drive(plan, results, budget=budget, jobs=jobs)
        for line in summary(results):
            results.say(line)
        bad = [x for x in results.outcomes.values() if x.status not in ("finished", "left out")]
        status = 1 if bad else 0

    return command_line.run(command) or status


def prepare(topology: str, output: str | None, wanted: Container[str], *, tiny: bool) -> None:
    """Compiles what `--prepared` takes of the wanted stages for a GPU that is not here; tiny: for
    this CPU.
    """
    if not output:
        raise UserError("--prepare needs --output, the folder for its programs")
    # imports jax, which the driver itself does without
    from benchmarks.gpu_models import prepare as programs
    from benchmarks.prepared import SUFFIX
    from xlstm_jax.parallel.topology import absent_devices

    folder = pathlib.Path(output)
    if there := sorted(folder.glob(f"*{SUFFIX}")):
        raise UserError(f"--output {output} has programs already, such as {there[0].name}")
    devices = None if tiny else absent_devices(topology)
    if devices and len(devices) > 1:
        raise UserError(f"--prepare is {topology!r}, {len(devices)} devices; programs are for one")
    started = time.monotonic()
    for name in programs(folder, devices, wanted, tiny=tiny):
        print(f"[{time.monotonic() - started:6.1f} s] prepared {name}", flush=True)


def summary(results: Results) -> Iterator[str]:
    """The lines at the end: what was measured beside its target, and what is missing."""
    for row in results.rows():
        for name, target in row.get("target", {}).items():
            verdict = "reached" if row[name] >= target else "missed"
            yield f"{row['case']}: {name} {row[name]:,.4g}, target {target:,}: {verdict}"
    found = curves(results.rows())
    if found:
        yield f"curves: {shown(found)}"
    by_status: dict[str, list[str]] = {}
    for outcome in results.outcomes.values():
        by_status.setdefault(outcome.status, []).append(outcome.stage)
    for status, names in by_status.items():
        yield f"{status}: {', '.join(names)}"
    yield f"wrote {results.file}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
