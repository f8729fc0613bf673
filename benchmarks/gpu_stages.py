"""The stages of `benchmarks.on_a_gpu` in order of importance, and the process of one.

    python -m benchmarks.gpu_stages step:125m-1_0           # one stage alone
    python -m benchmarks.gpu_stages step:125m-1_0 --ahead   # compiles what it runs
    python -m benchmarks.gpu_stages step:125m-1_0 --prepared=DIR   # with programs of `on_a_gpu`

A stage prints its results, one line of JSON each, among whatever else it prints. It fails when one
of its results does, behind the others. Everything has tiny sizes too, for a CPU.
"""

import difflib
import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.provenance import provenance
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import xla_flags

ROW_LINE, DEVICE_LINE = "@row ", "@device "
PREPARED = "--prepared="
CURVE_WINDOW = 20  # steps
LIMIT = 120.0


class Stage(NamedTuple):
    """A process of the plan.

    Attributes:
        timed: it measures time, and runs when nothing else does.
        ahead: command that compiles what it runs; empty where nothing does.
        limit: seconds.
        least: seconds that must be left of the budget to begin it.
    """

    name: str
    command: tuple[str, ...]
    timed: bool = True
    ahead: tuple[str, ...] = ()
    limit: float = LIMIT
    least: float = 20.0


class Work(NamedTuple):
    """What the process of a stage does.

    Attributes:
        module: its file. The process imports it and no other, because kernels.py sets variables of
            the environment that training is not to have.
        function: gives the rows; FUNCTION_ahead, where there is one, compiles its programs.
        arguments: of both, before `tiny`.
        flags: list of `xlstm_jax.parallel.xla_flags`.
    """

    module: str
    function: str
    arguments: tuple[Any, ...] = ()
    ahead: bool = True
    timed: bool = True
    limit: float = LIMIT
    flags: str | None = None

    @property
    def prepares(self) -> bool:
        """Whether its programs are compiled without the device. Those that decode are not: XLA
        compiles them in seconds, and chooses the products of one token by timing them.
        """
        return self.module == "gpu_models" and self.arguments != ("decode",)

    def call(self, suffix: str, **options: Any) -> Any:
        module = importlib.import_module(f"benchmarks.{self.module}")
        return getattr(module, self.function + suffix)(*self.arguments, **options)


FLOAT64_PARTS = 10  # processes
STEPS = ("125m [1:0]", "125m [7:1]", "1.3b [1:0]", "1.42b as 7b")
MLSTM = ("8x256x512-T8192", "16x128x256-T8192", "4x1024x1024-T8192", "4x512x512-T8192")
SLSTM = ("12x64-T2048", "4x192-T2048")
TUNED = ("8x256x512-T2048", "4x1024x1024-T2048", "4x384x384-T2048", "16x128x256-T2048")


def works(tiny: bool) -> dict[str, Work]:
    """Name -> work, in order of importance. The part of a name before the colon is its group."""
    first, found = (slice(1) if tiny else slice(None)), {}
    for part in range(FLOAT64_PARTS)[first]:
        parts = 1 if tiny else FLOAT64_PARTS
        found[f"float64:{part}"] = Work(
            "gpu_checks", "float64", (part, parts), ahead=False, timed=False
        )
    found["float64:around"] = Work("gpu_checks", "around_the_cells", ahead=False, timed=False)
    found["triton"] = Work("gpu_checks", "triton", ahead=False, timed=False)
    for name in STEPS[first]:
        found[f"step:{slug(name)}"] = Work("gpu_models", "step", (name,), flags="TRAINING")
    for name in (*MLSTM[first], *SLSTM[first]):
        found[f"kernels:{name}"] = Work("gpu_kernels", "kernel", (name,))
    found["kernels:around"] = Work("gpu_kernels", "around", ahead=False)
    gla = ("simple GLA",), MLSTM[first]
    found["rivals:simple-gla"] = Work("gpu_kernels", "rival", gla, ahead=False, limit=60.0)
    for kind in ("decode", "prefill"):
        found[f"inference:{kind}"] = Work("gpu_models", "inference", (kind,), flags="WRITING")
    for form in ("kernels", "xla"):
        found[f"curves:{form}"] = Work(
            "gpu_models", "curve", (form,), timed=False, flags="TRAINING"
        )
    for name in TUNED[first]:
        found[f"tune:{name}"] = Work("gpu_kernels", "tune", (name,))
    found["rivals:chunks"] = Work("gpu_kernels", "rival", (None, MLSTM[first]), ahead=False)
    return found


def slug(name: str) -> str:
    """ "125m [1:0]" as "125m-1_0"."""
    return name.replace(" [", "-").replace("]", "").replace(":", "_").replace(" ", "-")


def groups() -> list[str]:
    """The names that --stages takes."""
    return list(dict.fromkeys(name.partition(":")[0] for name in works(tiny=False)))


def stages(tiny: bool, prepared: str | None = None) -> list[Stage]:
    """The plan; `prepared` is a folder of programs that were compiled without the device."""
    found = []
    for name, work in works(tiny).items():
        command = (sys.executable, "-m", "benchmarks.gpu_stages", name, *["--tiny"] * tiny)
        ahead = (*command, "--ahead") if work.ahead else ()
        if prepared and work.prepares:
            command, ahead = (*command, PREPARED + prepared), ()
        least = 1.0 if tiny else 20.0
        found.append(Stage(name, command, work.timed, ahead, work.limit, least))
    return found


def chosen(plan: Sequence[Stage], names: str | None) -> list[Stage]:
    """Those of some groups, or single stages, in the order of the names.

    Raises:
        UserError: there is no such group or stage.
    """
    if names is None:
        return list(plan)
    wanted = names.split(",")
    known = {x for stage in plan for x in (stage.name, stage.name.partition(":")[0])}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--stages has {name!r}, which is no stage{hint} There are {', '.join(groups())}, "
                f"and single ones: {', '.join(stage.name for stage in plan)}"
            )
    found = [x for name in wanted for x in plan if name in (x.name, x.name.partition(":")[0])]
    return list({x.name: x for x in found}.values())


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far the two curves are apart, in nats; empty until both are there.

    `largest` is of means over CURVE_WINDOW steps: single steps go apart by chance, since rounding
    is amplified from step to step.
    """
    found = {row["curve"]: row["losses"] for row in rows if "curve" in row}
    if len(found) < 2:
        return {}
    kernels, xla = found["kernels"], found["xla"]
    size = min(CURVE_WINDOW, len(xla))

    def means(losses: Sequence[float]) -> list[float]:
        return [sum(losses[i : i + size]) / size for i in range(0, len(losses) - size + 1, size)]

    apart = [abs(x - y) for x, y in zip(means(kernels), means(xla), strict=True)]
    first = next((i for i, (x, y) in enumerate(zip(kernels, xla, strict=True)) if x != y), -1)
    return {
        "largest": max(apart),
        "last": apart[-1],
        "first_step_that_differs": first + 1,
        "steps": len(xla),
    }


def main(argv: Sequence[str]) -> int:
    """One stage in this process."""
    folders = [x.removeprefix(PREPARED) for x in argv[1:] if x.startswith(PREPARED)]
    options, names = set(argv[1:]) & {"--tiny", "--ahead"}, [x for x in argv[1:] if x[:2] != "--"]
    tiny = "--tiny" in options
    known = works(tiny)
    if len(names) != 1 or names[0] not in known or len(options) + len(folders) + 2 != len(argv):
        print(
            f"error: give one of {', '.join(known)}, with --tiny, --ahead or {PREPARED}DIR",
            file=sys.stderr,
        )
        return 2
    work = known[names[0]]
    if work.flags:
        xla_flags.set_for_gpus(getattr(xla_flags, work.flags))
    print(DEVICE_LINE + json.dumps(provenance()), flush=True)
    if "--ahead" in options:
        work.call("_ahead", tiny=tiny)
        return 0
    more = {"prepared": pathlib.Path(folders[0])} if folders and work.prepares else {}
    failed = 0
    for row in work.call("", tiny=tiny, **more):
        print(ROW_LINE + json.dumps(row), flush=True)
        failed += "failed" in row
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
