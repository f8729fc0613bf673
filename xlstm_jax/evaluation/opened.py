"""An opened model, spread over all devices, with the options of its evaluation."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax

from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import Config, task_of
from xlstm_jax.data import shards
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.corpus import STDLIB
from xlstm_jax.data.loader import TokenSource, open_named_split
from xlstm_jax.data.splits import SYNTHETIC
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import report
from xlstm_jax.evaluation.extrapolation import default_contexts, shared_targets, with_trained
from xlstm_jax.evaluation.options import OF_SPLITS, Options
from xlstm_jax.evaluation.paloma import WINDOW
from xlstm_jax.evaluation.scoring import Scorer
from xlstm_jax.evaluation.speed import LENGTHS, PROMPT, TOKENS_PER_BATCH
from xlstm_jax.generation.session import room_of
from xlstm_jax.interop.folders import has_record, is_run
from xlstm_jax.interop.opening import Opened, open_checkpoint
from xlstm_jax.parallel import batch_sharding, filled_rows, make_mesh, replicated
from xlstm_jax.parallel.mesh import MeshConfig
from xlstm_jax.progress import counted
from xlstm_jax.tasks.perplexity import check_scored, target_count
from xlstm_jax.tasks.task import Task


class Evaluation:
    """What the suites share.

    Raises:
        UserError: there is no such checkpoint, or an option does not fit it.
    """

    def __init__(self, checkpoint: str, step: int | None, options: Options):
        if step is not None and not is_run(checkpoint):
            raise UserError(
                f"--step is {step}, but {checkpoint!r} is no run with several checkpoints; leave "
                f"it out"
            )
        print(f"opening {checkpoint}", flush=True)
        self.options = options
        self.mesh = make_mesh(MeshConfig())
        self.opened: Opened = open_checkpoint(checkpoint, step, replicated(self.mesh))
        config = self.opened.config
        rows = options.batch_size or config.eval.batch_size
        # eval.max_tokens is meant for the run's own held-out text: of a text that is given, all
        own_limit = config.eval.max_tokens if options.data is None else None
        evaluation = dataclasses.replace(
            config.eval,
            max_tokens=options.max_tokens or own_limit,
            context_length=options.context_length or config.eval.context_length,
            batch_size=filled_rows(self.mesh, rows),
        )
        data, self.split, self.label = _data_of(config.data, options)
        self.config: Config = dataclasses.replace(config, data=data, eval=evaluation)
        self.place = functools.partial(
            jax.device_put, device=batch_sharding(self.mesh, evaluation.batch_size)
        )
        about = self.about
        print(
            f"model: {about['model']}, step {about['step']}, on {about['devices']}",
            flush=True,
        )

    def check(self, suites: Sequence[str]) -> None:
        """Refuses what a suite would refuse later, now that the model is known.

        Raises:
            UserError: the model's task has no text, the model has learned too few positions, or the
                split does not exist, has no token that counts, or is shorter than a window.
        """
        if not task_of(self.opened.config).writes_text:
            self._check_own_data(suites)
            return
        self._check_positions(suites)
        if not set(suites) & set(OF_SPLITS):
            return
        source = self.source  # opened here, whatever the suites need of it
        if self.config.data.reset_at_document:
            check_scored(source, self.config.eval.max_tokens)
        if "frequencies" in suites:
            if self.opened.step == 0:
                raise UserError(
                    "--suite has 'frequencies', which counts the tokens of the training data, but "
                    f"the model in {str(self.opened.folder)!r} was not trained here: give a run"
                )
            _ = self.training_source
        if "extrapolation" in suites:
            shared_targets(source, self.contexts, self.config.eval.max_tokens)

    def _check_own_data(self, suites: Sequence[str]) -> None:
        """A model without text is evaluated on what its task holds out."""
        task = self.config.task.name
        for suite in suites:
            if suite != "perplexity":
                raise UserError(
                    f"--suite has {suite!r}, which needs a model of text, but this one was trained "
                    f"for the task {task!r}; use --suite=perplexity, which gives the task's own "
                    "numbers"
                )
        for name in ("split", "data", "max_tokens", "context_length"):
            if getattr(self.options, name) is not None:
                raise UserError(
                    f"--{name} is {getattr(self.options, name)!r}, but the task {task!r} has its "
                    "own held-out data, all of which is evaluated; leave it out"
                )
        self.task.check()

    def _check_positions(self, suites: Sequence[str]) -> None:
        """No suite may read more tokens at once than the model has learned positions."""
        if (most := self.config.model.max_positions) is None:
            return
        evaluation = self.config.eval
        of_windows = (
            "--context_length",
            lambda: evaluation.context_length or self.config.data.context_length,
        )
        windows = {
            "perplexity": of_windows,
            "frequencies": of_windows,
            "extrapolation": ("--contexts", lambda: max(self.contexts)),
            "generation": ("--lengths", lambda: PROMPT + max(*self.lengths, TOKENS_PER_BATCH)),
            "paloma": ("another model; its windows can't be shorter", lambda: WINDOW),
        }
        for suite in set(suites) & windows.keys():
            remedy, tokens = windows[suite]
            if tokens() > most:
                raise UserError(
                    f"--suite has {suite!r}, which reads {tokens():,} tokens at once, but this "
                    f"model has learned {most:,} positions (model.max_positions); use "
                    f"{remedy if remedy.startswith('another') else f'a smaller {remedy}'}"
                )

    @property
    def about(self) -> dict[str, object]:
        """What stands with every result."""
        device = self.mesh.devices.flat[0]
        model = self.config.model
        blocks = counted(model.num_blocks, "block")
        parameters = count_parameters(self.opened.params)
        return {
            "model": f"{blocks} of {model.dim}, {parameters:,} parameters",
            "step": self.opened.step,
            "checkpoint": str(self.opened.folder),
            "devices": f"{self.mesh.size} x {device.device_kind}",
            "jax": jax.__version__,
        }

    @functools.cached_property
    def task(self) -> Task:
        """What the model was trained for, on the data that are asked for."""
        return task_of(self.config)

    @functools.cached_property
    def source(self) -> TokenSource:
        """The tokens of the wanted split."""
        print(f"reading the tokens of {self.label}", flush=True)
        source = open_named_split(self.config.data, self.split, self.config.model.vocab_size)
        lines = (line.removeprefix(f"{self.split}: ") for line in source.description)
        print(*(f"{self.label}: {line}" for line in lines), sep="\n", flush=True)
        return source

    @functools.cached_property
    def training_source(self) -> TokenSource:
        """The tokens that the run was trained on, whatever it is evaluated on."""
        data, vocab_size = self.opened.config.data, self.config.model.vocab_size
        return open_named_split(data, "train", vocab_size)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """What suites of single texts score with."""
        return Scorer(
            self.opened.model, self.opened.params, self.config.eval.batch_size, self.place
        )

    @property
    def trained_at(self) -> int | None:
        """The context length of training; None for checkpoints of others, which do not say."""
        known = self.opened.step > 0 or has_record(self.opened.folder)
        return self.config.data.context_length if known else None

    @property
    def contexts(self) -> tuple[int, ...]:
        """The contexts of extrapolation: what was asked for, or multiples of the context of
        training.
        """
        if self.options.contexts is not None:
            return with_trained(self.options.contexts, self.trained_at)
        targets = target_count(self.source, self.config.eval.max_tokens)
        longest = min(targets, room_of(self.config.model, None))
        return default_contexts(self.config.data.context_length, longest)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of generation: what was asked for, or those of the paper's figure that the model can
        write.
        """
        room = room_of(self.config.model, None) - PROMPT
        return self.options.lengths or tuple(n for n in LENGTHS if n <= room) or LENGTHS[:1]

    @property
    def has_papers_tokenizer(self) -> bool:
        """Whether the paper's perplexities per token can stand beside this model's."""
        return is_papers_tokenizer(self.opened.tokenizer)

    @property
    def size(self) -> str:
        """The size of the paper's models whose numbers stand beside this one's."""
        return report.paper_size(self.config.model)

    def name_of(self, suite: str) -> str:
        """The name under which results stand, chosen so that those of several splits and texts stay
        beside each other.
        """
        return suite if self.label == "validation" else f"{suite}/{self.label}"


def _data_of(data: DataConfig, options: Options) -> tuple[DataConfig, str, str]:
    """(data, split, name for people) that the options ask for."""
    if options.data is None:
        split = options.split or "validation"
        return data, split, split
    path = options.data
    label = path if path in (STDLIB, SYNTHETIC) else pathlib.Path(path).resolve().name
    if path == SYNTHETIC or shards.is_prepared(path):
        split = options.split or _only_split(path)
        data = dataclasses.replace(data, path=path, validation_path=None, validation_sets=None)
        return data, split, f"{label}/{split}"
    # as a held-out text of its own, which is taken whole
    return (
        dataclasses.replace(data, validation_path=path, validation_sets=None),
        "validation",
        label,
    )


def _only_split(path: str) -> str:
    """The split of token shards that is meant where none is named: validation, or the only one."""
    there = [
        split
        for split in ("validation", "train")
        if (pathlib.Path(path) / split / shards.MANIFEST).is_file()
    ]
    return there[0] if there else "validation"


def is_papers_tokenizer(tokenizer: Tokenizer) -> bool:
    """Whether perplexities per token can stand beside the paper's at all: the tokenizer is GPT-2's.

    The file itself comes in several forms, so that what it does is looked at.
    """
    return tokenizer.encode("Hello world!").tolist() == [15496, 995, 0]
