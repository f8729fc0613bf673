"""The loss as a function of parameters N and training tokens D.

    L(N, D) = E + (A N^-alpha + B D^-beta)^gamma

With gamma = 1 this is the form of Hoffmann et al. 2022; the outer exponent is that of the xLSTM
scaling laws (arXiv 2510.02228). Fitted as there: the logarithm of L against that of the measured
loss, Huber's loss, L-BFGS-B from every point of a grid of starts.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from xlstm_jax.analysis.scaling.bootstrap import Interval, intervals
from xlstm_jax.analysis.scaling.quality import Quality, quality_of
from xlstm_jax.errors import UserError
from xlstm_jax.installation import install
from xlstm_jax.progress import counted

# The starts of arXiv 2510.02228: of a = ln A, b = ln B, e = ln E and of the exponents.
GRID: Mapping[str, Sequence[float]] = {
    "a": (0, 5, 10, 15, 20),
    "b": (0, 5, 10, 15, 20),
    "e": (-1, -0.5, 0, 0.5, 1),
    "alpha": (0, 0.2, 0.5, 1),
    "beta": (0, 0.2, 0.5, 1),
    "gamma": (0, 0.5, 1, 1.5),
}
NAMES = tuple(GRID)
HUBER_DELTA = 1e-3  # of Hoffmann et al.; the fits that arXiv 2510.02228 prints take 0.1 or more
POLISHED = 20  # of the best starts, followed to the end
# How little a step of the minimiser has to gain, relatively, for it to stop: from a start of the
# grid, in a refit whose digits nobody reads, and where only rounding ends it.
ROUGH, FOR_INTERVALS, TO_THE_END = 1e-6, 1e-10, 1e-32


class ParametricFit(NamedTuple):
    """Fitted coefficients.

    Attributes:
        a, b, e: logarithms of A, B and E.
        objective: mean Huber loss of the residuals of ln L.
    """

    a: float
    b: float
    e: float
    alpha: float
    beta: float
    gamma: float
    objective: float

    @property
    def irreducible(self) -> float:
        """E: the loss without end of parameters and tokens, in nats."""
        return float(np.exp(self.e))

    def loss(self, params, tokens) -> Float[np.ndarray, "..."]:
        """The loss in nats at N parameters and D tokens."""
        log_n, log_d = np.log(np.asarray(params, float)), np.log(np.asarray(tokens, float))
        inner = np.logaddexp(self.a - self.alpha * log_n, self.b - self.beta * log_d)
        return np.exp(np.logaddexp(self.gamma * inner, self.e))

    def coefficients(self) -> Float[np.ndarray, " 6"]:
        """a, b, e, alpha, beta, gamma."""
        return np.array(self[:6])


def fit_parametric(
    params: Float[np.ndarray, " R"],
    tokens: Float[np.ndarray, " R"],
    loss: Float[np.ndarray, " R"],
    *,
    outer_exponent: bool = True,
    huber_delta: float = HUBER_DELTA,
    grid: Mapping[str, Sequence[float]] = GRID,
) -> ParametricFit:
    """The best fit to R runs from the whole grid of starts.

    Every start is followed until it hardly gets better, and the best `POLISHED` ones then to the
    last digit: starts that lead nowhere cost little.

    Args:
        params: of each run.
        tokens: of each run.
        loss: of each run, in nats.
        outer_exponent: fit gamma too; else it is 1.
        huber_delta: residuals of ln L beyond it count linearly.
        grid: starts of each coefficient; that of gamma is unused without the outer exponent.

    Raises:
        UserError: fewer runs than coefficients, or values that are not positive.
    """
    data = _logarithms(params, tokens, loss)
    count = 6 if outer_exponent else 5
    if len(data[0]) < count:
        raise UserError(
            f"{counted(len(data[0]), 'run')} can't determine {count} coefficients; give at least "
            f"{count}"
        )
    starts = itertools.product(
        *(grid[name] for name in NAMES[:5]), grid["gamma"] if outer_exponent else (1.0,)
    )
    with _one_thread():
        rough = [
            _minimise(np.array(start, float), data, huber_delta, outer_exponent, tolerance=ROUGH)
            for start in starts
        ]
        rough.sort(key=lambda fit: fit.objective)
        polished = [
            _minimise(fit.coefficients(), data, huber_delta, outer_exponent)
            for fit in _different(rough)
        ]
    return min(polished, key=lambda fit: fit.objective)


def fit_from(
    start: ParametricFit,
    params: Float[np.ndarray, " R"],
    tokens: Float[np.ndarray, " R"],
    loss: Float[np.ndarray, " R"],
    *,
    outer_exponent: bool = True,
    huber_delta: float = HUBER_DELTA,
) -> ParametricFit:
    """The minimum next to known coefficients: for runs that are nearly those of another fit."""
    with _one_thread():
        data = _logarithms(params, tokens, loss)
        return _minimise(start.coefficients(), data, huber_delta, outer_exponent)


def parametric_intervals(
    fit: ParametricFit,
    params: Float[np.ndarray, " R"],
    tokens: Float[np.ndarray, " R"],
    loss: Float[np.ndarray, " R"],
    *,
    outer_exponent: bool = True,
    huber_delta: float = HUBER_DELTA,
    **options,
) -> dict[str, Interval]:
    """Bootstrap intervals of the coefficients, and of "E"; every refit starts from `fit`. `options`
    are those of `bootstrap.intervals`.
    """
    data = _logarithms(params, tokens, loss)

    def refit(drawn: np.ndarray) -> np.ndarray:
        part = tuple(column[drawn] for column in data)
        again = _minimise(
            fit.coefficients(), part, huber_delta, outer_exponent, tolerance=FOR_INTERVALS
        )
        return np.array([*again.coefficients(), again.irreducible])

    with _one_thread():
        found = intervals(refit, [np.arange(len(data[0]))], **options)
    names = [*NAMES, "E"]
    if not outer_exponent:
        names.remove("gamma")
        del found[5]
    return dict(zip(names, found, strict=True))


def quality(fit: ParametricFit, params, tokens, loss) -> Quality:
    """How well a fit describes runs, in nats."""
    return quality_of(fit.loss(params, tokens), np.asarray(loss, float))


Logarithms = tuple[np.ndarray, np.ndarray, np.ndarray]  # of N, D and L


def _logarithms(params, tokens, loss) -> Logarithms:
    columns = tuple(np.asarray(column, np.float64) for column in (params, tokens, loss))
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
        raise UserError("parameters, tokens and losses must be finite numbers above 0")
    return tuple(np.log(column) for column in columns)


def _one_thread() -> AbstractContextManager:
    """The minimiser's matrices are 6 by 6: threads waiting for each other are 35 times the work."""
    try:
        import threadpoolctl
    except ImportError:
        raise UserError(f"fitting needs threadpoolctl: {install('analysis')}") from None
    return threadpoolctl.threadpool_limits(1, "blas")


def objective(
    coefficients: Float[np.ndarray, " 6"], data: Logarithms, huber_delta: float
) -> tuple[float, Float[np.ndarray, " 6"]]:
    """The mean Huber loss of the residuals of ln L, and its exact gradient.

    Written out rather than differentiated by JAX: with some forty runs a call takes 30
    microseconds, and there are a million of them. A test compares it with JAX's gradient.
    """
    a, b, e, alpha, beta, gamma = coefficients
    log_n, log_d, log_loss = data
    of_params, of_tokens = a - alpha * log_n, b - beta * log_d
    inner = np.logaddexp(of_params, of_tokens)
    residual = np.logaddexp(gamma * inner, e) - log_loss
    slope = np.clip(residual, -huber_delta, huber_delta)
    value = np.mean(slope * (residual - slope / 2))
    # how the prediction moves with its two terms, and the inner sum with its own two
    reducible = special.expit(gamma * inner - e)
    share = special.expit(of_params - of_tokens)
    moves = slope * reducible * gamma / len(log_loss)
    by_params, by_tokens = moves * share, moves * (1 - share)
    gradient = (
        by_params.sum(),
        by_tokens.sum(),
        np.sum(slope * (1 - reducible)) / len(log_loss),
        -by_params @ log_n,
        -by_tokens @ log_d,
        np.sum(slope * reducible * inner) / len(log_loss),
    )
    return float(value), np.array(gradient)


def _minimise(
    start: Float[np.ndarray, " 6"],
    data: Logarithms,
    huber_delta: float,
    outer_exponent: bool,
    *,
    tolerance: float = TO_THE_END,
) -> ParametricFit:
    """The minimum that L-BFGS-B reaches from one start; it stops where a step gains relatively less
    than `tolerance`.
    """
    free = 6 if outer_exponent else 5
    # Residuals are some hundredths, so that the objective is tiny: the minimiser's tolerances, of
    # which one is absolute, need numbers near 1.
    scale = 1 / min(huber_delta, 0.01) ** 2

    def function(moved: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(np.concatenate([moved, start[free:]]), data, huber_delta)
        return scale * value, scale * gradient[:free]

    options = {
        "ftol": tolerance,
        "gtol": min(tolerance, 1e-6),
        "maxiter": 200 if tolerance == ROUGH else 10_000,
        "maxfun": 100_000,
        "maxls": 200,
    }
    with np.errstate(all="ignore"):
        found = optimize.minimize(
            function, start[:free], jac=True, method="L-BFGS-B", options=options
        )
    value = found.fun / scale if np.isfinite(found.fun) else np.inf
    return ParametricFit(*map(float, found.x), *map(float, start[free:]), float(value))


def _different(fits: Iterable[ParametricFit]) -> list[ParametricFit]:
    """The first `POLISHED` fits that did not arrive where an earlier one did."""
    chosen: list[ParametricFit] = []
    for fit in fits:
        near = (np.allclose(fit[:6], other[:6], rtol=1e-3, atol=1e-3) for other in chosen)
        if not any(near):
            chosen.append(fit)
        if len(chosen) == POLISHED:
            break
    return chosen
