"""How well a fit describes what was measured."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from xlstm_jax.progress import counted


class Quality(NamedTuple):
    """Of predictions against measurements.

    Attributes:
        r2: 1 minus the residuals' sum of squares over that around the mean; 1 is perfect, 0 no
            better than the mean.
        rmse, mae: root mean square and mean absolute residual, in the unit of what was measured.
        largest: residual of the greatest size, with its sign.
        runs: how many.
    """

    r2: float
    rmse: float
    mae: float
    largest: float
    runs: int

    def __str__(self) -> str:
        return (
            f"R2 {self.r2:.5f}, RMSE {self.rmse:.4g}, MAE {self.mae:.4g}, largest residual "
            f"{self.largest:+.4g}, {counted(self.runs, 'run')}"
        )


def quality_of(predicted: Float[np.ndarray, " R"], measured: Float[np.ndarray, " R"]) -> Quality:
    """The quality of R predictions; residuals are measured minus predicted."""
    residuals = np.asarray(measured, float) - np.asarray(predicted, float)
    spread = np.sum((measured - np.mean(measured)) ** 2)
    r2 = 1 - np.sum(residuals**2) / spread if spread > 0 else float("nan")
    return Quality(
        float(r2),
        float(np.sqrt(np.mean(residuals**2))),
        float(np.mean(np.abs(residuals))),
        float(residuals[np.argmax(np.abs(residuals))]),
        len(residuals),
    )
