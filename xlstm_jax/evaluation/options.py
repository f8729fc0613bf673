"""What the suites can be told, and what of it can be wrong before a model is opened."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence

from xlstm_jax.data import shards
from xlstm_jax.data.corpus import STDLIB
from xlstm_jax.data.splits import SYNTHETIC
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import downstream, paloma, report
from xlstm_jax.evaluation.extrapolation import check_contexts

NAMES = ("perplexity", "frequencies", "extrapolation", "generation", "paloma", "downstream")
OF_SPLITS = ("perplexity", "frequencies", "extrapolation")
# Every option, and the suites that read it.
USED_BY = {
    "split": OF_SPLITS,
    "data": OF_SPLITS,
    "max_tokens": OF_SPLITS,
    "context_length": ("perplexity", "frequencies"),
    "batch_size": (*OF_SPLITS, "paloma", "downstream"),
    "contexts": ("extrapolation",),
    "lengths": ("generation",),
    "batches": ("generation",),
    "paloma": ("paloma",),
    "tasks": ("downstream",),
    "task_folder": ("downstream",),
    "limit": ("paloma", "downstream"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the suites can be told; None leaves it to the run's configuration or the suite.

    Attributes:
        split: "validation", "train", or the name of one of data.validation_sets.
        data: text, a folder of text or of token shards, instead of the run's own. Of text all is
            scored; of token shards `split`, or their only one.
        context_length: of perplexity and frequencies: tokens of the windows.
        contexts, lengths, batches: of extrapolation and generation.
        tasks, task_folder, limit: of downstream; limit also bounds PALOMA's documents per file.
        paloma: folder of the data set.
    """

    split: str | None = None
    data: str | None = None
    max_tokens: int | None = None
    context_length: int | None = None
    batch_size: int | None = None
    contexts: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    batches: tuple[int, ...] | None = None
    tasks: tuple[str, ...] | None = None
    task_folder: str | None = None
    limit: int | None = None
    paloma: str | None = None


def check(suites: Sequence[str], options: Options, output: str | None) -> None:
    """Refuses what would fail, or would be ignored, in any of the suites, before a model is opened.

    Raises:
        UserError: an unknown suite, an option that no chosen suite reads, a value that can't be, or
            something that a suite needs and that is not there.
    """
    for name in suites:
        if name not in NAMES:
            raise UserError(f"--suite has {name!r}; it must be some of {','.join(NAMES)}")
    for name, readers in USED_BY.items():
        if getattr(options, name) is not None and not set(readers) & set(suites):
            raise UserError(
                f"--{name} is of no use with --suite={','.join(suites)}; it belongs to "
                f"{', '.join(readers)}"
            )
    for name in ("max_tokens", "context_length", "batch_size", "limit"):
        if getattr(options, name) == 0:
            raise UserError(f"--{name} is 0; it must be at least 1")
    if output is not None:
        report.check_folder(pathlib.Path(output))
    if options.contexts is not None:
        check_contexts(options.contexts)
    if options.data is not None:
        _check_data(options)
    if "paloma" in suites:
        _check_paloma(options)
    if "downstream" in suites:
        _check_downstream(options)


def _check_data(options: Options) -> None:
    path = options.data
    if path not in (STDLIB, SYNTHETIC) and not pathlib.Path(path).exists():
        raise UserError(
            f"--data {path!r} does not exist; give text, a folder of text or of token shards, or "
            f"{STDLIB!r}"
        )
    has_splits = path == SYNTHETIC or shards.is_prepared(path)
    if options.split is not None and not has_splits:
        raise UserError(
            f"--split is {options.split!r}, but --data {path!r} is text, all of which is scored; "
            f"leave --split out"
        )
    if has_splits and options.split not in (None, "train", "validation"):
        raise UserError(
            f"--split is {options.split!r}, but --data {path!r} has train and validation only"
        )


def _check_paloma(options: Options) -> None:
    if options.paloma is None:
        raise UserError(
            "--paloma is missing; give the folder of the data set allenai/paloma "
            "(SOURCE/val/*.jsonl.gz)"
        )
    print("looking through PALOMA's files", flush=True)
    paloma.check_paloma(options.paloma, options.limit)


def _check_downstream(options: Options) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(downstream.MISSING)
    if options.task_folder is not None and not pathlib.Path(options.task_folder).is_dir():
        raise UserError(
            f"--task_folder {options.task_folder!r} does not exist; give a folder with task files "
            f"of the lm-evaluation-harness (*.yaml)"
        )
    print("loading the tasks and their data", flush=True)
    downstream.check_tasks(options.tasks, options.task_folder)
