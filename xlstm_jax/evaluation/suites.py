"""The suites of eval.py, each from an opened model to a report."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.data.loader import TokenSource, open_named_split
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation import downstream, paper_values, report
from xlstm_jax.evaluation.extrapolation import CONTEXTS, extrapolate
from xlstm_jax.evaluation.paloma import by_source, evaluate_paloma
from xlstm_jax.evaluation.perplexity import make_eval_step, perplexity_of
from xlstm_jax.evaluation.report import Report
from xlstm_jax.evaluation.scoring import Scorer
from xlstm_jax.evaluation.speed import BATCHES, LENGTHS, time_batches, time_lengths
from xlstm_jax.generation.generator import Generator
from xlstm_jax.interop.opening import Opened, open_checkpoint
from xlstm_jax.parallel import batch_sharding, filled_rows, make_mesh, replicated
from xlstm_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """What the suites can be told; None leaves it to the run's configuration or the suite.

    Attributes:
        split: "validation", "train", or the name of one of data.validation_sets.
        data: text, a folder of text or of token shards, instead of the run's own.
        contexts, lengths, batches: of extrapolation and generation.
        tasks, task_folder, limit: of downstream; limit also bounds PALOMA's documents per file.
        paloma: folder of the data set.
    """

    split: str = "validation"
    data: str | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    contexts: tuple[int, ...] = CONTEXTS
    lengths: tuple[int, ...] = LENGTHS
    batches: tuple[int, ...] = BATCHES
    tasks: tuple[str, ...] = ("paper",)
    task_folder: str | None = None
    limit: int | None = None
    paloma: str | None = None


class Evaluation:
    """An opened model, spread over all devices, and what the suites share."""

    def __init__(self, checkpoint: str, step: int | None, options: Options):
        self.options = options
        self.mesh = make_mesh(MeshConfig())
        self.opened: Opened = open_checkpoint(checkpoint, step, replicated(self.mesh))
        config = self.opened.config
        data = config.data
        if options.data is not None:
            data = dataclasses.replace(
                data, path=options.data, validation_path=None, validation_sets=None
            )
        rows = options.batch_size or config.eval.batch_size
        evaluation = dataclasses.replace(
            config.eval,
            max_tokens=options.max_tokens or config.eval.max_tokens,
            batch_size=filled_rows(self.mesh, rows),
        )
        self.config = dataclasses.replace(config, data=data, eval=evaluation)
        self.place = functools.partial(
            jax.device_put, device=batch_sharding(self.mesh, evaluation.batch_size)
        )

    @property
    def about(self) -> dict[str, object]:
        """What stands with every result."""
        device = self.mesh.devices.flat[0]
        model = self.config.model
        return {
            "model": f"{model.num_blocks} blocks of {model.dim}, {count_parameters(self.opened.params):,} parameters",
            "step": self.opened.step,
            "checkpoint": str(self.opened.folder),
            "devices": f"{self.mesh.size} x {device.device_kind}",
            "jax": jax.__version__,
        }

    @functools.cached_property
    def source(self) -> TokenSource:
        """The tokens of the wanted split."""
        source = open_named_split(
            self.config.data, self.options.split, self.config.model.vocab_size
        )
        print(*source.description, sep="\n", flush=True)
        return source

    @functools.cached_property
    def scorer(self) -> Scorer:
        """For suites of single texts."""
        return Scorer(
            self.opened.model, self.opened.params, self.config.eval.batch_size, self.place
        )


def perplexity(evaluation: Evaluation) -> Report:
    """Loss, perplexity and bits per byte of a split, every token once, over all devices."""
    config, source = evaluation.config, evaluation.source
    eval_step = make_eval_step(evaluation.opened.model, config.data.reset_at_document)
    result = perplexity_of(
        eval_step, evaluation.opened.params, source, config=config, mesh=evaluation.mesh
    )
    gzip_size = source.gzip_bits_per_byte()
    split, step = evaluation.options.split, evaluation.opened.step
    print(
        (
            f"{split}, step {step}: {result.line(gzip_size)}; perplexity {result.perplexity:.3f}, "
            f"{result.tokens:,} tokens"
        ),
        flush=True,
    )
    bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f}"
    rows = [
        (
            f"this model, {split}",
            f"{result.tokens:,}",
            f"{result.loss:.4f}",
            f"{result.perplexity:.3f}",
            bits,
        )
    ]
    if gzip_size is not None:
        rows.append(("gzip -9, same text", "", "", "", f"{gzip_size:.3f}"))
    rows += [
        (label, "", "", f"{value:.2f}", "")
        for label, value in report.paper_rows(_size(evaluation), paper_values.SLIMPAJAMA)
    ]
    values = {
        **result.values(),
        **dataclasses.asdict(result),
        "split": split,
        "gzip_bits_per_byte": gzip_size,
    }
    header = ("", "tokens", "nats/token", "perplexity", "bits/byte")
    return Report(_of_split("perplexity", split), header, rows, values, (report.PAPER_NOTE,))


def extrapolation(evaluation: Evaluation) -> Report:
    """Perplexity against context length and position."""
    config = evaluation.config
    curves = extrapolate(
        evaluation.opened.model,
        evaluation.opened.params,
        evaluation.source,
        evaluation.options.contexts,
        batch_size=config.eval.batch_size,
        mesh=evaluation.mesh,
        reset_at_document=config.data.reset_at_document,
        max_tokens=config.eval.max_tokens,
    )
    for curve in curves:
        print(
            (
                f"context {curve.context:>6,}: perplexity {curve.perplexity:.3f} over "
                f"{curve.tokens:,} tokens"
            ),
            flush=True,
        )
    rows = [
        ("this model", f"{curve.context:,}", f"{curve.perplexity:.3f}", f"{curve.tokens:,}")
        for curve in curves
    ]
    rows += [
        (f"paper: {model} 1.3B", "16,384", f"{value:.2f}", "")
        for model, value in paper_values.EXTRAPOLATION.items()
    ]
    values = {
        "contexts": [
            {**dataclasses.asdict(curve), "perplexity": curve.perplexity} for curve in curves
        ]
    }
    note = f"Trained at {config.data.context_length:,} tokens; the same tokens for every context. {report.PAPER_NOTE}"
    name = _of_split("extrapolation", evaluation.options.split)
    figure = f"{name.replace('/', '_')}.png"
    figures = {figure: report.extrapolation_figure(curves, config.data.context_length)}
    return Report(
        name,
        ("", "context", "perplexity", "tokens"),
        rows,
        values,
        (note, f"![]({figure})"),
        figures,
    )


def generation(evaluation: Evaluation) -> Report:
    """Time against generated tokens, and throughput against the batch."""
    model, params = evaluation.opened.model, evaluation.opened.params
    lengths = time_lengths(model, params, evaluation.options.lengths)
    batches = time_batches(model, params, evaluation.options.batches)
    rows = []
    for timing in (*lengths, *batches):
        shown = (
            ("out of memory", "")
            if timing.seconds is None
            else (f"{timing.seconds:.3f}", f"{timing.tokens_per_second:,.1f}")
        )
        rows.append((str(timing.batch), f"{timing.tokens:,}", *shown))
        print(
            (
                f"batch {timing.batch:>3}, {timing.tokens:>5,} tokens: {shown[0]} s, {shown[1]} "
                f"tokens/s"
            ),
            flush=True,
        )
    values = {
        name: [
            {**timing._asdict(), "tokens_per_second": timing.tokens_per_second}
            for timing in timings
        ]
        for name, timings in (("lengths", lengths), ("batches", batches))
    }
    note = "Prompt of 16 tokens included, compilation not. The paper's figure 9 has the same panels and prints no numbers."
    figures = {"generation.png": report.speed_figure(lengths, batches)}
    return Report(
        "generation",
        ("batch", "tokens", "seconds", "tokens/s"),
        rows,
        values,
        (note, "![](generation.png)"),
        figures,
    )


def paloma(evaluation: Evaluation) -> Report:
    """Token-weighted perplexity per source, and per domain in the JSON."""
    options = evaluation.options
    if options.paloma is None:
        raise UserError(
            "--paloma is missing; give the folder of the data set allenai/paloma "
            "(SOURCE/val/*.jsonl.gz)"
        )
    domains = evaluate_paloma(
        evaluation.scorer, evaluation.opened.tokenizer, options.paloma, max_documents=options.limit
    )
    sources, size = by_source(domains), _size(evaluation)
    printed = {
        folder: {model: values[k] for model, values in paper_values.PALOMA[size].items()}
        for k, folder in enumerate(paper_values.PALOMA_SOURCES.values())
    }
    rows = []
    for domain in sources:
        print(
            (
                f"{domain.source}: perplexity {domain.perplexity:.3f}, {domain.bits_per_byte:.3f} "
                f"bits per byte"
            ),
            flush=True,
        )
        paper = [
            f"{printed[domain.source][model]:.2f}" if domain.source in printed else ""
            for model in paper_values.PALOMA[size]
        ]
        rows.append(
            (
                domain.source,
                f"{domain.tokens:,}",
                f"{domain.perplexity:.3f}",
                f"{domain.bits_per_byte:.3f}",
                *paper,
            )
        )
    header = (
        "source",
        "tokens",
        "perplexity",
        "bits/byte",
        *(f"paper: {model} {size}" for model in paper_values.PALOMA[size]),
    )
    values = {
        "sources": [domain.values() for domain in sources],
        "domains": [domain.values() for domain in domains],
    }
    return Report(
        "paloma", header, rows, values, (f"Windows of 2,048 tokens. {report.PAPER_NOTE}",)
    )


def downstream_tasks(evaluation: Evaluation) -> Report:
    """Tasks of the lm-evaluation-harness; the paper's six by default."""
    options, opened = evaluation.options, evaluation.opened
    generator = Generator(opened.model, opened.params, opened.tokenizer)
    results = downstream.evaluate_tasks(
        evaluation.scorer,
        generator,
        options.tasks,
        include_path=options.task_folder,
        limit=options.limit,
    )
    rows = []
    for task, metrics in results.items():
        for metric, value in metrics.items():
            if isinstance(value, float) and "stderr" not in metric:
                name = metric.removesuffix(",none")
                print(f"{task}: {name} {value:.4f}", flush=True)
                rows.append((task, name, f"{value:.4f}"))
    values = {"tasks": results, "paper_average": downstream.paper_average(results)}
    notes: tuple[str, ...] = ()
    if values["paper_average"] is not None:
        rows.append(("average of the paper's six", "%", f"{values['paper_average']:.2f}"))
        size = _size(evaluation)
        for label, numbers in report.paper_rows(size, paper_values.TASKS):
            rows += [
                (label, column, f"{value:.2f}")
                for column, value in zip(paper_values.TASK_COLUMNS, numbers, strict=True)
            ]
        notes = (
            "The paper's values are in percent, each the best of three precisions.",
            report.PAPER_NOTE,
        )
    return Report("downstream", ("", "metric", "value"), rows, values, notes)


SUITES: dict[str, Callable[[Evaluation], Report]] = {
    "perplexity": perplexity,
    "extrapolation": extrapolation,
    "generation": generation,
    "paloma": paloma,
    "downstream": downstream_tasks,
}


def _of_split(suite: str, split: str) -> str:
    """Under which name results stand, so that those of several splits stay beside each other."""
    return suite if split == "validation" else f"{suite}/{split}"


def _size(evaluation: Evaluation) -> str:
    return report.paper_size(evaluation.config.model)
