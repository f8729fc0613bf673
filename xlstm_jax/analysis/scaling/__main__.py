"""Fits scaling laws to tables of runs.

    python -m xlstm_jax.analysis.scaling fit RUNS.csv [MORE.jsonl ...] [--form=gamma,line]
        [--columns=params=N,loss=val_loss] [--output=DIR]
    python -m xlstm_jax.analysis.scaling fit published --huber_delta=0.1

Columns: params, tokens, loss; for some forms also flops or budget; model names the family.
"published" are the losses of arXiv 2510.02228. The full grid of starts takes about a minute.
"""

import pathlib
import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.analysis.scaling.fitting import FORMS, Settings, fit_families, write
from xlstm_jax.analysis.scaling.table import Run, published_runs, read_runs
from xlstm_jax.errors import UserError

PUBLISHED = "published"
FLAGS = {
    "form": (
        "some of gamma (the default; L = E + (A N^-a + B D^-b)^g), plain (without g), line "
        "(perplexity against parameters), isoflop (needs budget), overtraining (needs flops)"
    ),
    "columns": "column=its name in the file, separated by commas, where names differ",
    "huber_delta": "gamma, plain: residuals of ln L beyond it count linearly; 0.001 by default",
    "ratios": "overtraining: tokens per parameter, for example 22,44,110",
    "output": "folder for fits.json and figures; by default nothing is written",
}
USED_BY = {"huber_delta": ("gamma", "plain"), "ratios": ("overtraining",)}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        sources, rest = _sources(argv)
        flags = command_line.parse([argv[0], *rest], __doc__, FLAGS)
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
        runs = _runs(sources, _columns(flags["columns"].value))
        print(f"{len(runs)} runs; fitting {', '.join(forms)}", flush=True)
        fits = fit_families(runs, forms, settings)
        for fit in fits:
            print(*fit.lines(), sep="\n", flush=True)
        if flags["output"].value:
            write(pathlib.Path(flags["output"].value), fits)
            print(pathlib.Path(flags["output"].value) / "fits.json", flush=True)

    return command_line.run(command)


def _sources(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, flags) behind the action."""
    action, rest = (argv[1] if len(argv) > 1 else ""), argv[2:]
    if action.startswith("-"):  # --help
        return [], [action, *rest]
    if action != "fit":
        raise UserError(f"{action!r} is no action; write `fit RUNS.csv` (--help shows examples)")
    files = [argument for argument in rest if not argument.startswith("-")]
    flags = [argument for argument in rest if argument.startswith("-")]
    if not files and not {"--help", "-h", "--helpfull"} & set(flags):
        raise UserError(f"no runs are given; name .csv or .jsonl files, or {PUBLISHED!r}")
    return files, flags


def _runs(sources: Sequence[str], names: dict[str, str]) -> list[Run]:
    runs: list[Run] = []
    for source in sources:
        if source == PUBLISHED:
            runs += [run for family in published_runs().values() for run in family]
        else:
            runs += read_runs(source, names)
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
