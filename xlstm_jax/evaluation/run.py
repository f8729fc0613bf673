"""Evaluation of a finished or running run, or of another project's checkpoint."""

import pathlib
from collections.abc import Sequence

import jax

from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import report
from xlstm_jax.evaluation.perplexity import Perplexity
from xlstm_jax.evaluation.suites import SUITES, Evaluation, Options


def evaluate_suites(
    checkpoint: str,
    suites: Sequence[str],
    options: Options,
    step: int | None = None,
    output: str | None = None,
) -> dict[str, report.Report]:
    """Runs suites and writes their results to `output`, by default RUN/eval/<step>/; each as soon
    as it is there.

    Raises:
        UserError: no such suite or checkpoint, or something that a suite needs is missing.
    """
    if unknown := [name for name in suites if name not in SUITES]:
        raise UserError(f"--suite has {unknown[0]!r}; it must be some of {','.join(SUITES)}")
    evaluation = Evaluation(checkpoint, step, options)
    folder = (
        pathlib.Path(output)
        if output
        else evaluation.opened.folder / "eval" / str(evaluation.opened.step)
    )
    results = {}
    for name in suites:
        with jax.set_mesh(evaluation.mesh):
            results[name] = SUITES[name](evaluation)
        report.write(folder, evaluation.about, [results[name]])
    print(folder / report.MARKDOWN, flush=True)
    return results


def evaluate_run(
    workdir: str, split: str = "validation", step: int | None = None, max_tokens: int | None = None
) -> Perplexity:
    """The perplexity suite alone: scores a split with a checkpoint, under the run's own
    configuration.
    """
    values = evaluate_suites(
        workdir, ["perplexity"], Options(split=split, max_tokens=max_tokens), step
    )["perplexity"].values
    return Perplexity(values["nats"], values["tokens"], values["text_bytes"])
