"""From a table of runs to fits, each with intervals, quality and a figure."""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from xlstm_jax.analysis.scaling import figures, isoflop, parametric, power_law
from xlstm_jax.analysis.scaling.bootstrap import DRAWS, Interval
from xlstm_jax.analysis.scaling.quality import Quality
from xlstm_jax.analysis.scaling.table import Run, by_model, column, write_table
from xlstm_jax.errors import UserError


class Settings(NamedTuple):
    """What fits can be told.

    Attributes:
        ratios: tokens per parameter of over-training lines.
        draws: of the bootstrap.
    """

    huber_delta: float = parametric.HUBER_DELTA
    ratios: Sequence[float] = ()
    draws: int = DRAWS
    grid: Mapping[str, Sequence[float]] = parametric.GRID


class Fit(NamedTuple):
    """One fit to the runs of one family.

    Attributes:
        name: such as "gamma, xLSTM".
        numbers: name -> (fitted value, its interval or None).
    """

    name: str
    numbers: dict[str, tuple[float, Interval | None]]
    quality: Quality | None
    figure: Figure | None = None

    def lines(self) -> list[str]:
        """For the terminal."""
        shown = [self.name if self.quality is None else f"{self.name}: {self.quality}"]
        for name, (value, interval) in self.numbers.items():
            within = "" if interval is None else f"  (95 %: {interval})"
            shown.append(f"  {name:>12} {value:.5g}{within}")
        return shown


def fit_gamma(family: str, runs: Sequence[Run], settings: Settings) -> list[Fit]:
    """L = E + (A N^-alpha + B D^-beta)^gamma."""
    return [_parametric("gamma", family, runs, settings, outer_exponent=True)]


def fit_plain(family: str, runs: Sequence[Run], settings: Settings) -> list[Fit]:
    """L = E + A N^-alpha + B D^-beta."""
    return [_parametric("plain", family, runs, settings, outer_exponent=False)]


def _parametric(
    form: str, family: str, runs: Sequence[Run], settings: Settings, outer_exponent: bool
) -> Fit:
    data = [column(runs, name) for name in ("params", "tokens", "loss")]
    options = {"outer_exponent": outer_exponent, "huber_delta": settings.huber_delta}
    fit = parametric.fit_parametric(*data, grid=settings.grid, **options)
    found = parametric.parametric_intervals(fit, *data, draws=settings.draws, **options)
    values = {**fit._asdict(), "E": fit.irreducible}
    return Fit(
        f"{form}, {family}",
        {name: (float(values[name]), interval) for name, interval in found.items()},
        parametric.quality(fit, *data),
        figures.parametric_figure(fit, *data, family or "all runs"),
    )


def fit_line(family: str, runs: Sequence[Run], settings: Settings) -> list[Fit]:
    """Perplexity against parameters, all runs on one line."""
    x, y = column(runs, "params"), np.exp(column(runs, "loss"))
    law, found = (
        power_law.fit_power_law(x, y),
        power_law.power_law_intervals(x, y, draws=settings.draws),
    )
    lines = {family or "all runs": (x, y, law)}
    drawn = figures.power_law_figure(lines, "parameters", "perplexity")
    quality = power_law.quality(lines.values())
    return [Fit(f"line, {family}", _of_law(law, found), quality, drawn)]


def fit_isoflop(family: str, runs: Sequence[Run], settings: Settings) -> Iterator[Fit]:
    """The best parameters against the budget, then the best tokens."""
    budget, loss = column(runs, "budget"), column(runs, "loss")
    for what in ("params", "tokens"):
        x = column(runs, what)
        fit = isoflop.fit_isoflop(budget, x, loss)
        found = isoflop.isoflop_intervals(budget, x, loss, draws=settings.draws)
        numbers = _of_law(fit.law, found)
        for parabola in fit.parabolas:
            beyond = "" if parabola.is_inside else ", beyond the runs"
            numbers[f"best at {parabola.budget:.2g}{beyond}"] = (parabola.optimum, None)
        drawn = figures.isoflop_figure(
            fit, budget, x, loss, {"params": "parameters", "tokens": "tokens"}[what]
        )
        quality = isoflop.quality(fit, budget, x, loss)
        yield Fit(f"isoflop {what}, {family}", numbers, quality, drawn)


def fit_over_training(family: str, runs: Sequence[Run], settings: Settings) -> list[Fit]:
    """Loss against compute at equal tokens per parameter."""
    params, tokens, flops, loss = (
        column(runs, name) for name in ("params", "tokens", "flops", "loss")
    )
    laws = power_law.over_training(params, tokens, flops, loss, settings.ratios)
    numbers: dict[str, tuple[float, Interval | None]] = {}
    lines = {}
    for ratio, law in laws.items():
        chosen = power_law.at_ratio(params, tokens, ratio)
        x, y = flops[chosen], loss[chosen]
        found = power_law.power_law_intervals(x, y, draws=settings.draws)
        numbers[f"at {ratio:g}"] = (law.exponent, found and found.exponent)
        lines[f"{ratio:g} tokens per parameter"] = (x, y, law)
    drawn = figures.power_law_figure(
        lines, "FLOPs of the whole training", "held-out loss (nats per token)"
    )
    quality = power_law.quality(lines.values())
    return [Fit(f"overtraining exponents, {family}", numbers, quality, drawn)]


FORMS: dict[str, Callable[[str, Sequence[Run], Settings], Iterable[Fit]]] = {
    "gamma": fit_gamma,
    "plain": fit_plain,
    "line": fit_line,
    "isoflop": fit_isoflop,
    "overtraining": fit_over_training,
}


def fit_families(
    runs: Sequence[Run], forms: Sequence[str], settings: Settings
) -> tuple[list[Fit], list[str]]:
    """Every form for every family of models, and for those that can't be fitted the reason.

    Raises:
        UserError: nothing can be fitted.
    """
    fits: list[Fit] = []
    refused: list[str] = []
    for family, members in by_model(runs).items():
        for form in forms:
            try:
                for fit in FORMS[form](family, members, settings):
                    fits.append(fit)  # one by one: those before an error stay
            except UserError as error:
                refused.append(f"{form}, {family}: {error}" if family else f"{form}: {error}")
    if not fits:
        raise UserError("; ".join(refused))
    return fits, refused


def write(folder: pathlib.Path, fits: Sequence[Fit], runs: Sequence[Run]) -> None:
    """Writes fits.json, the runs that were fitted as runs.jsonl, and a figure for each fit that has
    one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "runs.jsonl", runs)
    values: dict[str, Any] = {}
    for fit in fits:
        quality = None if fit.quality is None else fit.quality._asdict()
        numbers = {
            name: {"value": value, "interval": interval and list(interval)}
            for name, (value, interval) in fit.numbers.items()
        }
        values[fit.name] = {"numbers": numbers, "quality": quality}
        if fit.figure is not None:
            safe = "".join(letter if letter.isalnum() else "_" for letter in fit.name)
            unfinished = folder / f"{safe}.png.tmp"
            fit.figure.savefig(unfinished, dpi=150, format="png")
            unfinished.replace(folder / f"{safe}.png")
    unfinished = folder / "fits.json.tmp"
    unfinished.write_text(json.dumps(values, indent=1) + "\n")
    unfinished.replace(folder / "fits.json")


def _of_law(
    law: power_law.PowerLaw, found: power_law.PowerLawIntervals | None
) -> dict[str, tuple[float, Interval | None]]:
    return {
        "coefficient": (law.coefficient, found and found.coefficient),
        "exponent": (law.exponent, found and found.exponent),
    }
