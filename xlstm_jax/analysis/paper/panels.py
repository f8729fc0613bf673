"""Panels of figures that have the paper's numbers alone, for evaluations too: nothing is fitted
here, so that scipy is not needed.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from xlstm_jax.analysis import figure_style
from xlstm_jax.analysis.paper import values


def papers_extrapolation(axes: Axes) -> None:
    """What the paper prints of its figure 7: the ends of the curves."""
    ends = (values.EXTRAPOLATION_TRAINED_AT, values.EXTRAPOLATION_CONTEXT)
    for number, name in enumerate(values.MODELS):
        both = (values.SLIMPAJAMA["1.3B"][name], values.EXTRAPOLATION[name])
        axes.plot(ends, both, **figure_style.style(number), label=name)
    axes.set(
        xlabel="context (tokens)",
        ylabel="perplexity per token",
        title="the paper: 1.3B, both ends",
        yscale="log",
    )
    axes.yaxis.set_major_formatter(figure_style.plain_numbers())
    figure_style.lengths_axis(axes, ends)
    axes.axvline(ends[0], linestyle=":", color="gray", label=f"trained at {ends[0]:,}")
    figure_style.dress(axes)


def accuracy_by_size(axes: Axes) -> None:
    """Table 3: the mean over six tasks."""
    for number, model in enumerate(values.MODELS):
        rows = [values.rows_of("table3_300B", size)[model] for size in values.SLIMPAJAMA]
        axes.plot(
            [1e6 * row["params_M"] for row in rows],
            [row["average_acc"] for row in rows],
            **figure_style.style(number),
            label=model,
        )
    axes.set(xlabel="parameters", ylabel="accuracy (%)", title="the paper: mean of six tasks")
    axes.set_xscale("log")
    axes.set_xticks((2e8, 5e8, 1e9), ("200M", "500M", "1B"))
    axes.xaxis.set_minor_formatter("")
    figure_style.dress(axes)


def paloma_by_source(axes: Axes, size: str) -> None:
    """Tables 4 and 9: perplexity by source, relative to that of xLSTM[1:0]."""
    found = values.PALOMA[size]
    base = values.MODELS.index("xLSTM[1:0]")
    for number, model in enumerate(values.MODELS):
        if number == base:
            continue
        column = values.MODELS.index(model)
        axes.plot(
            [100 * (row[column] / row[base] - 1) for row in found.values()],
            range(len(found)),
            **figure_style.style(number) | {"linestyle": "none"},
            label=model,
        )
    axes.axvline(0, color=figure_style.colour(base), linewidth=1.2, label="xLSTM[1:0]")
    axes.set_yticks(range(len(found)), found)
    axes.invert_yaxis()
    axes.set(
        xlabel="perplexity above that of xLSTM[1:0] (%)",
        title=f"the paper: PALOMA by source, {size}",
    )
    axes.set_xlim(right=30)  # room for the legend
    figure_style.dress(axes)


def paloma_average(axes: Axes) -> None:
    """Table 4: the mean over its sources against parameters."""
    for number, model in enumerate(values.MODELS):
        sizes = values.TABLES["table4_paloma_ppl"]["rows"]
        axes.plot(
            [1e6 * values.rows_of("table3_300B", size)[model]["params_M"] for size in sizes],
            [values.rows_of("table4_paloma_ppl", size)[model]["Average"] for size in sizes],
            **figure_style.style(number),
            label=model,
        )
    axes.set(
        xlabel="parameters", ylabel="perplexity per token", title="the paper: mean of 12 sources"
    )
    logarithmic(axes, (2e8, 5e8, 1e9), ("200M", "500M", "1B"), (12, 14, 16, 18, 20, 22, 24))
    figure_style.dress(axes)


def paloma_wins(axes: Axes) -> None:
    """In how many of PALOMA's 571 domains xLSTM[1:0] of 1.3B is better."""
    wins = values.TABLES["paloma_wins_1p3B_xlstm10_of_571"]
    bars = axes.barh(range(len(wins)), list(wins.values()), color=figure_style.BLUE, height=0.6)
    counts = [f"{count}" for count in wins.values()]
    axes.bar_label(bars, counts, label_type="center", color="white", fontsize=8)
    axes.set_yticks(range(len(wins)), [f"than {model}" for model in wins])
    axes.set(xlabel="domains, of 571", title="xLSTM[1:0] better, 1.3B", xlim=(0, 571))
    figure_style.dress(axes)


def logarithmic(axes: Axes, x: Sequence[float], names: Sequence[str], y: Sequence[float]) -> None:
    """Both axes logarithmic, with these ticks."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(x, names)
    axes.set_yticks(y, [f"{tick:g}" for tick in y])
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_minor_formatter("")
