"""Evaluation of a finished or running run, or of another project's checkpoint."""

import pathlib
import sys
from collections.abc import Sequence

import jax

from xlstm_jax.config import task_of
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import options as options_lib
from xlstm_jax.evaluation import report
from xlstm_jax.evaluation.opened import Evaluation
from xlstm_jax.evaluation.options import Options
from xlstm_jax.evaluation.suites import SUITES
from xlstm_jax.installation import module, next_lines, program, shell_line
from xlstm_jax.tasks.perplexity import Perplexity


def evaluate_suites(
    checkpoint: str,
    suites: Sequence[str],
    options: Options,
    step: int | None = None,
    output: str | None = None,
    *,
    advice: bool = True,
) -> dict[str, report.Report]:
    """Runs suites and writes their results to `output`, by default RUN/eval/<step>/; each as soon
    as it is there.

    What can be wrong with an option of any suite is found before the first one runs.

    Args:
        advice: whether the commands that may follow are printed at the end.

    Raises:
        UserError: no such suite or checkpoint, something that a suite needs is missing, an option
            would be ignored, or results could not be written.
    """
    suites = list(dict.fromkeys(suites))
    options_lib.check(suites, options, output)
    evaluation = Evaluation(checkpoint, step, options)
    about = evaluation.about
    if output:
        folder = pathlib.Path(output)
        report.check_subject(folder, about)
    else:
        folder = evaluation.opened.folder / "eval" / str(evaluation.opened.step)
        report.check_folder(folder)
    evaluation.check(suites)
    results: dict[str, report.Report] = {}
    unwritten: list[report.Report] = []
    for name in suites:
        with jax.set_mesh(evaluation.mesh):
            results[name] = SUITES[name](evaluation)
        unwritten = _write(folder, about, [*unwritten, results[name]])
    if unwritten:
        names = ", ".join(result.suite for result in unwritten)
        raise UserError(
            f"the results of {names} could not be written to {str(folder)!r}; they are printed "
            f"above"
        )
    follows = next_commands(checkpoint, step, evaluation, suites) if advice else []
    print(folder / report.MARKDOWN, *next_lines(*follows), sep="\n", flush=True)
    return results


def next_commands(
    checkpoint: str, step: int | None, evaluation: Evaluation, suites: Sequence[str]
) -> list[str]:
    """What a person may type after an evaluation: of a model of text longer contexts, where its own
    held-out text was scored and they were not, and text that it writes.
    """
    if not task_of(evaluation.opened.config).writes_text:
        return []
    own = "perplexity" in suites and evaluation.options.data is None
    contexts = shell_line(program("eval"), workdir=checkpoint, step=step, suite="extrapolation")
    text = shell_line(module("generation"), checkpoint=checkpoint, step=step, prompt="def ")
    return [contexts, text] if own and "extrapolation" not in suites else [text]


def _write(
    folder: pathlib.Path, about: dict[str, object], results: list[report.Report]
) -> list[report.Report]:
    """The results that could not be written, to be tried again after the next suite: a full disk
    does not cost the suites that are still to run.
    """
    try:
        report.write(folder, about, results)
    except OSError as error:
        print(f"{folder} can't be written to: {error}", file=sys.stderr, flush=True)
        return results
    return []


def evaluate_run(
    workdir: str, split: str = "validation", step: int | None = None, max_tokens: int | None = None
) -> Perplexity:
    """The perplexity suite alone: scores a split of text with a checkpoint, under the run's own
    configuration.
    """
    values = evaluate_suites(
        workdir, ["perplexity"], Options(split=split, max_tokens=max_tokens), step, advice=False
    )["perplexity"].values
    names = ("nats", "tokens", "text_bytes", "context_length")
    return Perplexity(*(values[name] for name in names))
