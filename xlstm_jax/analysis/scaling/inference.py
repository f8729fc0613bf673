"""How long inference takes, as arXiv 2510.02228 models it: the time to the first token is compute,
FLOPs / rate + overhead; a step that writes one token is memory, bytes / rate + overhead.

Rate (FLOP/s or bytes/s that are reached) and overhead (seconds a call) are fitted to measured times
of one model: relative residuals, least squares with both numbers at or above zero. (Without that
bound the repository's fit of the xLSTM's step time ends at a negative rate.)
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from xlstm_jax.analysis.record_files import records
from xlstm_jax.analysis.scaling.bootstrap import Interval, intervals
from xlstm_jax.analysis.scaling.quality import Quality, quality_of
from xlstm_jax.errors import UserError

FIRST_TOKEN, TOKEN = "first_token", "token"
KINDS = {FIRST_TOKEN: "time to first token", TOKEN: "time of a step"}
FLOAT32 = 4  # bytes of a parameter where a row does not say what a step moves
NUMBERS = ("params", "batch", "prefill", "seconds")


class Timing(NamedTuple):
    """A measured time.

    Attributes:
        kind: FIRST_TOKEN: a prompt was read and a token written; TOKEN: one more was written.
        model: its family.
        params: with embeddings.
        batch: texts at once.
        prefill: tokens of each text that were read before.
        seconds: of the whole batch.
        flops, bytes: that it takes; where a row lacks them 2 params for every token of the
            prompts, and every parameter once in float32.
        device: that it was measured on.
    """

    kind: str
    model: str
    params: float
    batch: float
    prefill: float
    seconds: float
    flops: float
    bytes: float
    device: str = ""

    @property
    def work(self) -> float:
        """What the time is said to go with: FLOPs or bytes."""
        return self.flops if self.kind == FIRST_TOKEN else self.bytes


class InferenceFit(NamedTuple):
    """seconds = work / rate + overhead.

    Attributes:
        rate: FLOP/s, or bytes/s.
        overhead: seconds.
    """

    rate: float
    overhead: float

    def __call__(self, work: Any) -> Float[np.ndarray, "..."]:
        """Seconds."""
        return np.asarray(work, float) / self.rate + self.overhead


class InferenceIntervals(NamedTuple):
    """Bootstrap intervals."""

    rate: Interval
    overhead: Interval


def fit_inference(work: Float[np.ndarray, " R"], seconds: Float[np.ndarray, " R"]) -> InferenceFit:
    """The rate and the overhead of measured times.

    Raises:
        UserError: fewer than three times, numbers that are not positive, all of the same work, or
            times that do not grow with the work, so that they have no rate.
    """
    work, seconds = (np.asarray(column, np.float64) for column in (work, seconds))
    if len(work) < 3:
        raise UserError(f"a rate and an overhead need three times at least; there are {len(work)}")
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in (work, seconds)):
        raise UserError("times of inference and their work must be finite numbers above 0")
    if np.ptp(work) < 1e-9 * work.max():
        raise UserError("all times are of the same work; measure other batches or prompts too")
    scale = work.max()  # both columns of about one size
    (slope, overhead), _ = nnls(np.stack([work / scale, np.ones_like(work)], 1) / seconds[:, None],
                                np.ones_like(work))  # fmt: skip
    if slope == 0:
        raise UserError(
            "the times do not grow with the work, so that no rate follows from them: measure "
            "longer prompts or larger batches"
        )
    return InferenceFit(float(scale / slope), float(overhead))


def inference_intervals(
    work: Float[np.ndarray, " R"], seconds: Float[np.ndarray, " R"], **options: Any
) -> InferenceIntervals:
    """Bootstrap intervals; `options` are those of `bootstrap.intervals`. Draws from which no rate
    follows are left out.
    """
    work, seconds = np.asarray(work, float), np.asarray(seconds, float)
    fit_inference(work, seconds)  # refuses what can't be fitted

    def refit(drawn: np.ndarray) -> np.ndarray:
        try:
            return np.array(fit_inference(work[drawn], seconds[drawn]))
        except UserError:
            return np.array([np.nan, np.nan])

    return InferenceIntervals(*intervals(refit, [np.arange(len(work))], **options))


def quality(fit: InferenceFit, work: Any, seconds: Any) -> Quality:
    """How well a fit describes times, in logarithms: RMSE 0.01 is one percent."""
    return quality_of(np.log(fit(work)), np.log(np.asarray(seconds, float)))


def timing_of(row: dict[str, Any], where: str) -> Timing:
    """A timing from a line of a file.

    Raises:
        UserError: a number is missing or not above 0; `where` names the line.
    """
    if row.get("kind") not in KINDS:
        raise UserError(f"{where}: kind is {row.get('kind')!r}; it must be {' or '.join(KINDS)}")
    for name in NUMBERS:
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{where}: {name} is {value!r}; it must be a number above 0")
    flops = row.get("flops") or 2.0 * row["params"] * row["prefill"] * row["batch"]
    moved = row.get("bytes") or float(FLOAT32 * row["params"])
    numbers = {name: float(row[name]) for name in NUMBERS}
    about = {name: str(row.get(name, "")) for name in ("model", "device")}
    return Timing(row["kind"], **about, **numbers, flops=float(flops), bytes=float(moved))


def read_timings(paths: Iterable[str]) -> list[Timing]:
    """The timings of files of JSON lines.

    Raises:
        UserError: no such file, or a line is no timing.
    """
    return [
        timing_of(row, where)
        for path in paths
        for where, row in records(pathlib.Path(path).expanduser(), path)
    ]


class Fitted(NamedTuple):
    """The fit of one model's times of one kind, or why there is none.

    Attributes:
        timings: that it is of.
        fit, found, quality: None where `refused` says why.
    """

    kind: str
    model: str
    params: float
    timings: Sequence[Timing]
    fit: InferenceFit | None = None
    found: InferenceIntervals | None = None
    quality: Quality | None = None
    refused: str = ""

    @property
    def unit(self) -> str:
        """Of the rate."""
        return "FLOP/s" if self.kind == FIRST_TOKEN else "bytes/s"


def fit_all(timings: Sequence[Timing], draws: int = 200) -> list[Fitted]:
    """A fit for each model, size and kind, in the order of the kinds and of their first time."""
    groups: dict[tuple[str, str, float], list[Timing]] = {}
    for kind in KINDS:
        for timing in timings:
            if timing.kind == kind:
                groups.setdefault((kind, timing.model, timing.params), []).append(timing)
    results = []
    for (kind, model, params), own in groups.items():
        work = np.array([timing.work for timing in own])
        seconds = np.array([timing.seconds for timing in own])
        try:
            fit = fit_inference(work, seconds)
            found = inference_intervals(work, seconds, draws=draws)
        except UserError as error:
            results.append(Fitted(kind, model, params, own, refused=str(error)))
            continue
        good = quality(fit, work, seconds)
        results.append(Fitted(kind, model, params, own, fit, found, good))
    return results


def table_lines(results: Sequence[Fitted]) -> list[list[str]]:
    """Cells of a table: what, model, parameters, rate, overhead, quality."""
    lines = []
    for one in results:
        first = [KINDS[one.kind], one.model, f"{one.params:,.0f}"]
        if one.fit is None:
            lines.append([*first, f"not fitted: {one.refused}", "", ""])
            continue
        low, high = one.found.overhead
        lines.append(
            [
                *first,
                f"{one.fit.rate:.3g} {one.unit} ({one.found.rate.low:.3g} to "
                f"{one.found.rate.high:.3g})",
                f"{1e3 * one.fit.overhead:.3g} ms ({1e3 * low:.3g} to {1e3 * high:.3g})",
                f"{100 * one.quality.rmse:.1f} % of {one.quality.runs}",
            ]
        )
    return lines


HEADER = ("what", "model", "parameters", "rate (95 %)", "overhead (95 %)", "residuals, RMSE")
