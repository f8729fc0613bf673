"""Scaling laws: plans series of runs, trains them, and fits laws to tables of runs.

    python -m xlstm_jax.analysis.scaling plan --flops=6e18,1e19,3e19 --output=DIR
        [--config=configs/scaling.py] [--preset=dclm] [--models=xLSTM,Llama] [--sizes=5]
        [--ratio=20] [--spread=3] [--counting=published] [--config.SECTION.KEY=VALUE ...]
    python -m xlstm_jax.analysis.scaling run DIR [--runs=3]
    python -m xlstm_jax.analysis.scaling fit DIR [RUNS.csv ...] [--form=gamma,line]
        [--columns=params=N,loss=val_loss] [--output=DIR]
    python -m xlstm_jax.analysis.scaling fit published --huber_delta=0.1
    python -m xlstm_jax.analysis.scaling inference TIMES.jsonl [--output=DIR]

plan writes plan.jsonl and commands.sh, a train.py command per line; run carries them out one after
the other, and the same command goes on. fit takes folders of plans or runs, .csv and .jsonl files
with the columns params, tokens, loss (for some forms flops or budget; model names the family);
"published" are the losses of arXiv 2510.02228. The full grid of starts takes about a minute.
inference fits the time to the first token and of a step to what `python -m
benchmarks.inference_times` measured.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

from xlstm_jax import command_line, config_files, config_flags
from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.flops import COUNTINGS, counting_of
from xlstm_jax.analysis.scaling import figures, inference
from xlstm_jax.analysis.scaling.fitting import FORMS, Settings, fit_families, write
from xlstm_jax.analysis.scaling.plan import COMMANDS, Grid, plan_lines, plan_series, write_plan
from xlstm_jax.analysis.scaling.reading import COUNTING, read, unfinished_line
from xlstm_jax.analysis.scaling.running import run_plan
from xlstm_jax.analysis.scaling.table import Run, by_model, published_runs
from xlstm_jax.errors import UserError
from xlstm_jax.installation import module, next_lines, program, shell_line
from xlstm_jax.interrupts import Preempted
from xlstm_jax.progress import counted

NAME = "analysis.scaling"
PUBLISHED = "published"
SERIES = "configs/scaling.py"
COUNTING_FLAG = (
    f"how FLOPs are counted: {', '.join(COUNTINGS)}, or names of mixers' own countings; "
    f"{COUNTING} by default"
)
PLAN_FLAGS = {
    "flops": "budgets of compute, with commas between, for example 6e18,1e19,3e19",
    "output": "folder of the plan, in which its runs will lie too",
    "preset": "of the config file's series, by default dclm: the paper's scale; cpu: 2 cores",
    "models": "some of the series' families, for example Llama; all by default",
    "sizes": "of each family at each budget, 5 by default, at least 3",
    "ratio": "tokens per parameter around which sizes lie, 20 by default",
    "spread": "how many times smaller and larger than that sizes are, 3 by default",
    "counting": COUNTING_FLAG,
}
RUN_FLAGS = {"runs": "how many are trained in this call; by default all that are left"}
FIT_FLAGS = {
    "form": (
        "some of gamma (the default; L = E + (A N^-a + B D^-b)^g), plain (without g), line "
        "(perplexity against parameters), isoflop (needs budget), overtraining (needs flops)"
    ),
    "columns": "column=its name in the file, separated by commas, where names differ",
    "huber_delta": "gamma, plain: residuals of ln L beyond it count linearly; 0.001 by default",
    "ratios": "overtraining: tokens per parameter, for example 22,44,110",
    "counting": COUNTING_FLAG + "; for folders of runs without a plan",
    "output": "folder for fits.json, runs.jsonl and figures; by default nothing is written",
}
INFERENCE_FLAGS = {"output": "folder for inference.png; by default nothing is written"}
USED_BY = {"huber_delta": ("gamma", "plain"), "ratios": ("overtraining",)}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        action, words, rest = _taken_apart(argv)
        ACTIONS[action](words, [argv[0], *rest])

    try:
        return command_line.run(command)
    except Preempted as saved:
        print(saved, file=sys.stderr, flush=True)
        return saved.status


def _plan(words: Sequence[str], argv: Sequence[str]) -> None:
    flags = command_line.parse(argv, __doc__, PLAN_FLAGS, config_flags.without_config)
    if words:
        raise UserError(f"{words[0]!r} is not understood; plan takes flags as --name=value")
    budgets = _numbers("flops", command_line.text(flags, "flops", "1e19"))
    folder = pathlib.Path(command_line.text(flags, "output", "runs/scaling")).expanduser()
    given = config_flags.take_apart(argv)
    overrides = {key: config_flags.parse(key, text) for key, text in given.overrides.items()}
    file = given.file or SERIES
    series = config_files.series(file, flags["preset"].value or "dclm")
    for family in (chosen := (flags["models"].value or ",".join(series)).split(",")):
        if family not in series:
            raise UserError(f"--models has {family!r}; there are {', '.join(series)}")
    counting = flags["counting"].value or COUNTING
    counting_of(counting)
    sizes = command_line.number(flags, "sizes", 3)
    grid = Grid() if sizes is None else Grid(sizes)
    for name in ("ratio", "spread"):
        if flags[name].value is not None:
            [number, *more] = _numbers(name, flags[name].value)
            if more or (name == "spread" and number <= 1):
                above = " above 1" if name == "spread" else ""
                raise UserError(f"--{name} is {flags[name].value!r}; it must be one number{above}")
            grid = grid._replace(**{name: number})
    families = {family: series[family] for family in chosen}
    print(f"counting the shapes of {', '.join(families)} ...", flush=True)
    planned = plan_series(file, families, budgets, counting, grid, overrides)
    write_plan(folder, planned, program("train"))
    print(*plan_lines(planned), folder / COMMANDS, sep="\n")
    print(*next_lines(shell_line(module(NAME), "run", folder)), sep="\n", flush=True)


def _run(words: Sequence[str], argv: Sequence[str]) -> None:
    flags = command_line.parse(argv, __doc__, RUN_FLAGS)
    if len(words) != 1:
        raise UserError("run takes one folder, that of the plan; write for example `run DIR`")
    most = command_line.number(flags, "runs", 1)
    if failed := run_plan(pathlib.Path(words[0]).expanduser(), most):
        raise UserError(f"{len(failed)} of the runs failed, see above: {', '.join(failed)}")
    print(*next_lines(shell_line(module(NAME), "fit", words[0], form="isoflop")), sep="\n")


def _fit(words: Sequence[str], argv: Sequence[str]) -> None:
    flags = command_line.parse(argv, __doc__, FIT_FLAGS)
    if not words:
        raise UserError(f"no runs are given; name folders, .csv or .jsonl files, or {PUBLISHED!r}")
    forms = list(dict.fromkeys((flags["form"].value or "gamma").split(",")))
    if unknown := [form for form in forms if form not in FORMS]:
        raise UserError(f"--form has {unknown[0]!r}; it must be some of {','.join(FORMS)}")
    for name, readers in USED_BY.items():
        if flags[name].value is not None and not set(readers) & set(forms):
            raise UserError(f"--{name} is of no use with --form={','.join(forms)}")
    ratios = _numbers("ratios", flags["ratios"].value)
    if "overtraining" in forms and not ratios:
        raise UserError("--ratios is missing; give for example --ratios=22,44,110")
    settings = Settings(ratios=ratios)
    if flags["huber_delta"].value is not None:
        [delta] = _numbers("huber_delta", flags["huber_delta"].value) or [0.0]
        settings = settings._replace(huber_delta=delta)
    counting = flags["counting"].value or COUNTING
    counting_of(counting)
    runs = _runs(words, _columns(flags["columns"].value), counting)
    families = ", ".join(f"{len(own)} {name}" for name, own in by_model(runs).items() if name)
    named = f" ({families})" if families else ""
    print(f"{counted(len(runs), 'run')}{named}; fitting {', '.join(forms)}", flush=True)
    fits, refused = fit_families(runs, forms, settings)
    for fit in fits:
        print(*fit.lines(), sep="\n", flush=True)
    for reason in refused:
        print(f"not fitted: {reason}", flush=True)
    if flags["output"].value:
        folder = pathlib.Path(flags["output"].value).expanduser()
        write(folder, fits, runs)
        print(folder / "fits.json", flush=True)
    else:
        _say_how_to_keep("fit", words, argv, "fits")


def _inference(words: Sequence[str], argv: Sequence[str]) -> None:
    flags = command_line.parse(argv, __doc__, INFERENCE_FLAGS)
    if not words:
        raise UserError("no times are given; name .jsonl files of benchmarks.inference_times")
    results = inference.fit_all(inference.read_timings(words))
    for line in inference.table_lines(results):
        print(*filter(None, line), sep="; ", flush=True)
    if flags["output"].value:
        folder = pathlib.Path(flags["output"].value).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        figure_style.save(figures.inference_figure(results), folder / "inference.png")
        print(folder / "inference.png", flush=True)
    else:
        _say_how_to_keep("inference", words, argv, "inference")


def _say_how_to_keep(action: str, words: Sequence[str], argv: Sequence[str], name: str) -> None:
    """The same command with an --output, where what was printed is not written."""
    again = shell_line(module(NAME), action, *words, *argv[1:], output=f"runs/{name}")
    print("nothing is written without --output", *next_lines(again), sep="\n", flush=True)


ACTIONS: dict[str, Callable[[Sequence[str], Sequence[str]], None]] = {
    "plan": _plan,
    "run": _run,
    "fit": _fit,
    "inference": _inference,
}


def _taken_apart(argv: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """(action, words, flags) of a command line."""
    action, rest = (argv[1] if len(argv) > 1 else ""), list(argv[2:])
    if action.startswith("-"):  # --help
        return "fit", [], [action, *rest]
    if action not in ACTIONS:
        what = f"{action!r} is no action" if action else "no action is given"
        raise UserError(f"{what}; there are {', '.join(ACTIONS)} (--help shows examples)")
    words = [argument for argument in rest if not argument.startswith("-")]
    return action, words, [argument for argument in rest if argument.startswith("-")]


def _runs(sources: Sequence[str], names: dict[str, str], counting: str) -> list[Run]:
    runs: list[Run] = []
    for source in sources:
        if source == PUBLISHED:
            runs += [run for family in published_runs().values() for run in family]
            continue
        found = read(source, names, counting)
        runs += found.runs
        if found.unfinished:
            print(unfinished_line(found.unfinished), flush=True)
    if not runs:
        raise UserError(f"{', '.join(sources)}: none of the runs is finished; train them first")
    return runs


def _columns(text: str | None) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",")] if text else []
    if bad := ["".join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise UserError(f"--columns has {bad[0]!r}; it must be column=name,column=name")
    return {name: theirs for name, _, theirs in pairs}


def _numbers(name: str, text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"--{name} is {text!r}; it must be numbers above 0")
    return numbers


if __name__ == "__main__":
    sys.exit(main(sys.argv))
