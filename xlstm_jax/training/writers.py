"""The callbacks that every run has: what it writes while it goes on.

Each may fail at any time, which is said once and ends nothing (`outlets`).
"""

from collections.abc import Mapping

from xlstm_jax.parallel import is_first_process
from xlstm_jax.training.callbacks import Callback, Run
from xlstm_jax.training.metrics import MetricsWriter
from xlstm_jax.training.outlets import Trouble, replace_file


class LossFigure(Callback):
    """Draws loss.png after each evaluation, from metrics.jsonl; in the first process alone."""

    def before_training(self, run: Run) -> None:
        self._run, self._trouble = run, Trouble(run.folder.loss_figure.name)

    def after_evaluation(self, step: int, summaries: Mapping[str, Mapping[str, float]]) -> None:
        self._draw()

    def after_training(self, summary: Mapping[str, float]) -> None:
        self._draw()

    def _draw(self) -> None:
        if is_first_process():
            with self._trouble.caught():
                # here, because matplotlib takes half a second of a command's start
                from xlstm_jax.training.figure import draw_loss

                draw_loss(self._run.folder, self._run.task.loss_unit)


class SampleFile(Callback):
    """Writes samples.txt; in the first process alone."""

    def before_training(self, run: Run) -> None:
        self._file = run.folder.samples

    def after_sample(self, step: int, text: str) -> None:
        if is_first_process():
            with Trouble(self._file.name).caught():
                replace_file(self._file, f"step {step}\n{text}\n".encode())


def writers_of(run: Run) -> list[Callback]:
    """A run's own writers. The figure comes after the file that it is drawn from.

    Raises:
        UserError: `log.wandb` names a project, but wandb is not installed.
    """
    log = run.config.log
    metrics = MetricsWriter(run.folder, run.start, tensorboard=log.tensorboard, wandb=log.wandb)
    return [metrics, LossFigure(), SampleFile()]
