"""The suites of eval.py, each from an opened model to a report."""

import dataclasses
import math
from collections.abc import Callable

from xlstm_jax import progress
from xlstm_jax.analysis.paper import values as paper_values
from xlstm_jax.evaluation import figures, report
from xlstm_jax.evaluation.extrapolation import extrapolate, shared_targets
from xlstm_jax.evaluation.frequencies import by_frequency, occurrences
from xlstm_jax.evaluation.opened import Evaluation
from xlstm_jax.evaluation.public_suites import downstream_tasks, paloma
from xlstm_jax.evaluation.report import Report
from xlstm_jax.evaluation.speed import (
    BATCHES,
    PROMPT,
    TOKENS_PER_BATCH,
    Timing,
    time_batches,
    time_lengths,
)
from xlstm_jax.progress import counted
from xlstm_jax.tasks.evaluation import evaluate, make_eval_step
from xlstm_jax.tasks.perplexity import gzip_bits_per_byte, target_count


def perplexity(evaluation: Evaluation) -> Report:
    """Loss, perplexity and bits per byte of a split, every token once, over all devices; of a task
    without text its own summary.
    """
    if not evaluation.task.writes_text:
        return task_summary(evaluation)
    config, source, label = evaluation.config, evaluation.source, evaluation.label
    held_out, max_tokens = evaluation.task.held_out_of(source), config.eval.max_tokens
    context = held_out.time
    targets, total = target_count(source, max_tokens), len(source.tokens) - 1
    part = "all" if targets == total else f"the first {targets:,} of"
    print(
        f"perplexity: {part} {counted(total, 'token')} in windows of {context:,}; compiling first",
        flush=True,
    )
    eval_step = make_eval_step(evaluation.task, evaluation.opened.model)
    with progress.bar(targets, "perplexity", "tokens") as bar:
        totals = evaluate(
            eval_step,
            evaluation.opened.params,
            held_out,
            config.eval.batch_size,
            evaluation.mesh,
            on_batch=lambda batch: bar.update(int((batch.segment_ids >= 0).sum())),
        )
    result = evaluation.task.perplexity(totals)
    gzip_size = gzip_bits_per_byte(source, max_tokens)
    print(
        f"{label}, step {evaluation.opened.step}: {result.line(gzip_size)}; perplexity "
        f"{result.perplexity:.3f}",
        f"  over {counted(result.tokens, 'token')}, windows of {context:,}",
        sep="\n",
        flush=True,
    )
    bits = "" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f}"
    row = (f"{result.tokens:,}", f"{context:,}", f"{result.loss:.4f}", f"{result.perplexity:.3f}")
    rows = [(f"this model, {label}", *row, bits)]
    if gzip_size is not None:
        rows.append(("gzip -9, the same text", "", "", "", "", f"{gzip_size:.3f}"))
    note = report.OTHER_TOKENIZER_NOTE
    if evaluation.has_papers_tokenizer:
        note = report.PAPER_NOTE
        rows += [
            (name, "", "2,048", "", f"{value:.2f}", "")
            for name, value in report.paper_rows(evaluation.size, paper_values.SLIMPAJAMA)
        ]
    values = {
        **result.values(),
        **dataclasses.asdict(result),
        "split": label,
        "gzip_bits_per_byte": gzip_size,
    }
    header = ("", "tokens", "context", "nats/token", "perplexity", "bits/byte")
    return Report(evaluation.name_of("perplexity"), header, rows, values, (note,))


def task_summary(evaluation: Evaluation) -> Report:
    """What a task says of each of its held-out and test sets, over all devices, and what guesses
    reach.
    """
    task, rows, values = evaluation.task, [], {}
    eval_step = make_eval_step(task, evaluation.opened.model)
    for name, held_out in {**task.held_out(), **task.test_sets()}.items():
        print(f"{name}: evaluating; compiling first", flush=True)
        totals = evaluate(
            eval_step,
            evaluation.opened.params,
            held_out,
            evaluation.config.eval.batch_size,
            evaluation.mesh,
        )
        values[name] = task.summary(totals)
        print(f"{name}, step {evaluation.opened.step}: {task.line(values[name])}", flush=True)
        rows += [(name, measure, f"{value:.4f}") for measure, value in values[name].items()]
    guesses = task.guesses()
    for name, found in guesses.items():
        rows += [(f"guess: {name}", measure, f"{value:.4f}") for measure, value in found.items()]
    notes = task.description()
    found = {"held_out": values, "guesses": guesses}
    heading = f"The task {evaluation.config.task.name}"  # whose measures are hardly perplexities
    header = ("", "measure", "value")
    return Report("perplexity", header, rows, found, notes, heading=heading)


def frequencies(evaluation: Evaluation) -> Report:
    """Perplexity by how often the run's training data have a token."""
    config, source, label = evaluation.config, evaluation.source, evaluation.label
    held_out = evaluation.task.held_out_of(source)
    print("frequencies: counting the tokens of the training data", flush=True)
    counts = occurrences(evaluation.training_source, config.model.vocab_size)
    targets = target_count(source, config.eval.max_tokens)
    print(f"frequencies: {counted(targets, 'token')}; compiling first", flush=True)
    with progress.bar(targets, "frequencies", "tokens") as bar:
        bins = by_frequency(
            evaluation.opened.model,
            evaluation.opened.params,
            held_out,
            counts,
            batch_size=config.eval.batch_size,
            mesh=evaluation.mesh,
            reset_at_document=config.data.reset_at_document,
            on_batch=lambda batch: bar.update(int((batch.segment_ids >= 0).sum())),
        )
    rows = []
    for found in bins:
        shown = "" if found.perplexity is None else f"{found.perplexity:.3f}"
        tokens = counted(found.tokens, "token")
        print(f"{found.name} times in training: {tokens}, perplexity {shown}")
        rows.append((found.name, f"{found.kinds:,}", f"{found.tokens:,}", shown))
    total = sum(found.tokens for found in bins)
    overall = math.exp(min(700.0, sum(found.nats for found in bins) / total))
    rows.append(("all", f"{len(counts):,}", f"{total:,}", f"{overall:.3f}"))
    name = evaluation.name_of("frequencies")
    figure = f"{name.replace('/', '_')}.png"
    header = ("times in training", "different tokens", f"tokens of {label}", "perplexity")
    values = {"bins": [{**b._asdict(), "perplexity": b.perplexity} for b in bins]}
    note = (
        f"The training data have {counts.sum():,} tokens. Losses are grouped by the token that is "
        "predicted. The paper's figure 2 has such groups, without saying where they end."
    )
    drawn = {figure: figures.frequency_figure(bins)}
    return Report(name, header, rows, values, (note, f"![]({figure})"), drawn)


def extrapolation(evaluation: Evaluation) -> Report:
    """Perplexity against context length and position."""
    config, contexts = evaluation.config, evaluation.contexts
    max_tokens, trained_at = config.eval.max_tokens, evaluation.trained_at
    targets = shared_targets(evaluation.source, contexts, max_tokens)
    print(
        f"extrapolation: {targets:,} tokens, the same at {len(contexts)} contexts from "
        f"{contexts[0]:,} to {contexts[-1]:,}; compiling first",
        flush=True,
    )
    with progress.bar(targets * len(contexts), "extrapolation", "tokens") as bar:
        curves = extrapolate(
            evaluation.opened.model,
            evaluation.opened.params,
            evaluation.source,
            contexts,
            batch_size=config.eval.batch_size,
            mesh=evaluation.mesh,
            reset_at_document=config.data.reset_at_document,
            max_tokens=max_tokens,
            on_tokens=bar.update,
        )
    rows = []
    for curve in curves:
        tokens = int(curve.tokens.sum())
        trained = ", that of training" if curve.context == trained_at else ""
        print(
            f"context {curve.context:>6,}: perplexity {curve.perplexity:.3f} over {tokens:,} "
            f"tokens{trained}",
            flush=True,
        )
        rows.append(
            (
                f"this model{trained}",
                f"{curve.context:,}",
                f"{curve.perplexity:.3f}",
                f"{tokens:,}",
            )
        )
    known = "Context of training: not known." if trained_at is None else ""
    if trained_at is not None:
        known = f"Trained at {trained_at:,} tokens."
        if trained_at not in contexts:
            known += f" It does not divide {max(contexts):,}, so it is not among the contexts."
    notes = [f"{known} The same tokens for every context.", report.OTHER_TOKENIZER_NOTE]
    if evaluation.has_papers_tokenizer:
        notes[-1] = report.PAPER_NOTE
        at = f"{paper_values.EXTRAPOLATION_CONTEXT:,}"
        rows += [
            (f"paper: {model} 1.3B", at, f"{value:.2f}", "")
            for model, value in paper_values.EXTRAPOLATION.items()
        ]
    values = {"trained_at": trained_at, "contexts": [curve.values() for curve in curves]}
    name = evaluation.name_of("extrapolation")
    figure = f"{name.replace('/', '_')}.png"
    drawn = figures.extrapolation_figure(
        curves, trained_at, beside_paper=evaluation.has_papers_tokenizer
    )
    header = ("", "context", "perplexity", "tokens")
    return Report(name, header, rows, values, (*notes, f"![]({figure})"), {figure: drawn})


def generation(evaluation: Evaluation) -> Report:
    """Time against generated tokens, and throughput against the batch."""
    model, params = evaluation.opened.model, evaluation.opened.params
    lengths = evaluation.lengths
    batches = evaluation.options.batches or BATCHES
    rows, timings = [], {}
    for name, count, heading, measured in (
        (
            "lengths",
            len(set(lengths)),
            f"one text after a prompt of {PROMPT} tokens",
            time_lengths(model, params, lengths),
        ),
        (
            "batches",
            len(set(batches)),
            f"{TOKENS_PER_BATCH} tokens in each of several texts at once",
            time_batches(model, params, batches),
        ),
    ):
        print(f"generation: {heading}; {counted(count, 'row')}, compiling first", flush=True)
        print(f"{'texts':>8}  {'tokens each':>11}  {'seconds':>13}  {'tokens/s':>10}", flush=True)
        timings[name] = []
        for timing in measured:
            timings[name].append(timing)
            shown = _shown(timing)
            print(
                f"{timing.batch:>8,}  {timing.tokens:>11,}  {shown[0]:>13}  {shown[1]:>10}",
                flush=True,
            )
            rows.append((heading, f"{timing.batch:,}", f"{timing.tokens:,}", *shown))
    values = {
        name: [
            {**timing._asdict(), "tokens_per_second": timing.tokens_per_second}
            for timing in measured
        ]
        for name, measured in timings.items()
    }
    note = (
        f"Each time is the median of three, a prompt of {PROMPT} tokens included, compilation not. "
        "The paper's figure 9 has the same panels and prints no numbers."
    )
    return Report(
        "generation",
        ("what", "texts", "tokens each", "seconds", "tokens/s"),
        rows,
        values,
        (note, "![](generation.png)"),
        {"generation.png": figures.speed_figure(timings["lengths"], timings["batches"])},
    )


def _shown(timing: Timing) -> tuple[str, str]:
    if timing.seconds is None:
        return "out of memory", ""
    return f"{timing.seconds:.3f}", f"{timing.tokens_per_second:,.1f}"


SUITES: dict[str, Callable[[Evaluation], Report]] = {
    "perplexity": perplexity,
    "frequencies": frequencies,
    "extrapolation": extrapolation,
    "generation": generation,
    "paloma": paloma,
    "downstream": downstream_tasks,
}
