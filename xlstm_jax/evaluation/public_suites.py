"""The suites that others publish: PALOMA, and the tasks of the lm-evaluation-harness."""

from xlstm_jax import progress
from xlstm_jax.analysis.paper import values as paper_values
from xlstm_jax.evaluation import downstream, report
from xlstm_jax.evaluation.opened import Evaluation
from xlstm_jax.evaluation.paloma import by_source, evaluate_paloma, files_of
from xlstm_jax.evaluation.report import Report
from xlstm_jax.generation.generator import Generator
from xlstm_jax.progress import counted

LIMITED_NOTE = (
    "Only the first {limit:,} documents were scored; the paper's numbers, which are over all of "
    "them, do not stand beside these."
)


def paloma(evaluation: Evaluation) -> Report:
    """Token-weighted perplexity per source, and per domain in the JSON."""
    options, size = evaluation.options, evaluation.size
    files = files_of(options.paloma)
    print(f"paloma: {counted(len(files), 'file')}; compiling first", flush=True)
    with progress.bar(sum(file.stat().st_size for file in files), "paloma", "bytes") as bar:
        domains = evaluate_paloma(
            evaluation.scorer,
            evaluation.opened.tokenizer,
            options.paloma,
            max_documents=options.limit,
            on_file=bar.update,
        )
    sources = by_source(domains)
    models, notes = [], ["Windows of 2,048 tokens."]
    if not evaluation.has_papers_tokenizer:
        notes.append(report.OTHER_TOKENIZER_NOTE)
    elif options.limit is not None:
        notes.append(LIMITED_NOTE.format(limit=options.limit))
    else:
        models = list(paper_values.MODELS)
        notes.append(report.PAPER_NOTE)
    folders = paper_values.PALOMA_SOURCES
    printed = {folders[name]: row for name, row in paper_values.PALOMA[size].items()}
    rows = []
    for domain in sources:
        print(
            f"{domain.source}: perplexity {domain.perplexity:.3f}, {domain.bits_per_byte:.3f} "
            f"bits per byte over {counted(domain.tokens, 'token')}",
            flush=True,
        )
        theirs = [f"{value:.2f}" for value in printed.get(domain.source, ())] if models else []
        rows.append(
            (
                domain.source,
                f"{domain.tokens:,}",
                f"{domain.perplexity:.3f}",
                f"{domain.bits_per_byte:.3f}",
                *(theirs or [""] * len(models)),
            )
        )
    paper_columns = (f"paper: {model} {size}" for model in models)
    header = ("source", "tokens", "perplexity", "bits/byte", *paper_columns)
    values = {
        "sources": [domain.values() for domain in sources],
        "domains": [domain.values() for domain in domains],
    }
    return Report("paloma", header, rows, values, notes)


def downstream_tasks(evaluation: Evaluation) -> Report:
    """Tasks of the lm-evaluation-harness; the paper's six by default."""
    options, opened = evaluation.options, evaluation.opened
    print("downstream: scoring the tasks; compiling first", flush=True)
    results = downstream.evaluate_tasks(
        evaluation.scorer,
        Generator(opened.model, opened.params, opened.tokenizer),
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
    average = downstream.paper_average(results)
    notes: tuple[str, ...] = ()
    if average is not None:
        rows.append(("average of the paper's six", "%", f"{average:.2f}"))
    if options.limit is not None:
        notes = (LIMITED_NOTE.format(limit=options.limit),)
    elif average is not None:
        for label, numbers in report.paper_rows(evaluation.size, paper_values.TASKS):
            rows += [
                (label, column, f"{value:.2f}")
                for column, value in zip(paper_values.TASK_COLUMNS.values(), numbers, strict=True)
            ]
        notes = ("The paper's values are in percent, each the best of three precisions.",)
    values = {"tasks": results, "paper_average": average, "limit": options.limit}
    return Report("downstream", ("", "metric", "value"), rows, values, notes)
