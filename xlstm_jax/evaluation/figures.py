"""The figures of the suites."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from xlstm_jax.analysis.figure_style import BLUE, ORANGE, lengths_axis
from xlstm_jax.analysis.paper.panels import papers_extrapolation
from xlstm_jax.evaluation.extrapolation import Curve, gains
from xlstm_jax.evaluation.frequencies import Bin
from xlstm_jax.evaluation.speed import Timing


def extrapolation_figure(
    curves: Sequence[Curve], trained_at: int | None, *, beside_paper: bool
) -> Figure:
    """Our own perplexity against the context, and what each position gains by the longest context.

    Args:
        curves: sorted by context.
        trained_at: context of training, where it is known: marked, and what gains are against.
        beside_paper: also draw the paper's models, on a panel of their own: their text is another
            one, so that only the shapes of the curves compare.
    """
    panels = 3 if beside_paper else 2
    figure = Figure(figsize=(5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels)
    _own(axes[0], curves, trained_at)
    _gains(axes[1], curves, trained_at)
    if beside_paper:
        papers_extrapolation(axes[2])
    return figure


def frequency_figure(bins: Sequence[Bin]) -> Figure:
    """Perplexity by how often a token is in the training data, and how many tokens that is of."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    scored = [found for found in bins if found.tokens]
    bars = axes.bar(range(len(scored)), [found.perplexity for found in scored], color=BLUE)
    axes.bar_label(bars, [f"{found.tokens:,}" for found in scored], fontsize=8)
    names = [found.name for found in scored]
    axes.set_xticks(range(len(scored)), names, rotation=20, ha="right")
    axes.set(
        xlabel="times that the training data have the token",
        ylabel="perplexity per token",
        title="by frequency; above each bar the number of tokens",
        yscale="log",
    )
    return figure


def _own(axes, curves: Sequence[Curve], trained_at: int | None) -> None:
    contexts = [curve.context for curve in curves]
    axes.plot(contexts, [curve.perplexity for curve in curves], marker="o", color=BLUE)
    axes.set(
        xlabel="context (tokens)",
        ylabel="perplexity per token",
        title="this model, the same tokens at each context",
    )
    lengths_axis(axes, contexts)
    _mark_training(axes, trained_at)


def _gains(axes, curves: Sequence[Curve], trained_at: int | None) -> None:
    """Against the context of training; where that is not among the curves, against the shortest."""
    longest = curves[-1]
    shorter = [curve for curve in curves if curve.context < longest.context]
    if not shorter:
        axes.set_title("one context only: nothing to compare")
        axes.set_axis_off()
        return
    base = next((curve for curve in shorter if curve.context == trained_at), shorter[0])
    found = gains(longest, base)
    edges = [found[0].first - 1 or 1, *(gain.last for gain in found)]
    if found[0].last == base.context:
        edges[0] = base.context // 2  # nothing can differ there: half a doubling is enough room
    axes.stairs([gain.nats for gain in found], edges, baseline=None, color=BLUE, linewidth=2)
    sure = [gain for gain in found if gain.error is not None]
    if sure:
        axes.errorbar(
            [((gain.first - 1 or edges[0]) * gain.last) ** 0.5 for gain in sure],
            [gain.nats for gain in sure],
            [1.96 * gain.error for gain in sure],
            fmt="none",
            ecolor=BLUE,
            capsize=3,
            label="95 % interval over windows",
        )
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(
        xlabel=f"position in windows of {longest.context:,} tokens",
        ylabel=f"nats per token, minus those at context {base.context:,}",
        title="what more context changes (below 0: it helps)",
    )
    _mark_training(axes, trained_at)


def _mark_training(axes, trained_at: int | None) -> None:
    if trained_at is not None:
        axes.axvline(trained_at, linestyle=":", color="gray", label=f"trained at {trained_at:,}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def speed_figure(lengths: Sequence[Timing], batches: Sequence[Timing]) -> Figure:
    """The two panels of the paper's figure 9."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        [timing.tokens for timing in lengths],
        [timing.seconds for timing in lengths],
        marker="o",
        color=BLUE,
    )
    left.set(xlabel="generated tokens", ylabel="seconds", title="batch 1, prompt of 16 tokens")
    left.set_ylim(bottom=0)
    good = [timing for timing in batches if timing.seconds is not None]
    right.plot(
        [timing.batch for timing in good],
        [timing.tokens_per_second for timing in good],
        marker="o",
        color=BLUE,
    )
    for timing in batches:
        if timing.seconds is None:
            right.axvline(timing.batch, linestyle="--", color=ORANGE)
            right.annotate(
                "out of memory",
                (timing.batch, 0),
                (-4, 6),
                textcoords="offset points",
                ha="right",
                rotation=90,
                color=ORANGE,
            )
    tokens = f", {batches[0].tokens} tokens each" if batches else ""
    right.set(xlabel=f"texts at once{tokens}", ylabel="tokens/s", title="throughput")
    right.set_ylim(bottom=0)
    lengths_axis(right, [timing.batch for timing in batches])
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
