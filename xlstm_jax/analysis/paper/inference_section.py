"""Times of inference on the page: the model of arXiv 2510.02228, fitted to our own measurements."""

from collections.abc import Sequence

from xlstm_jax.analysis.paper.markdown import table_of
from xlstm_jax.analysis.paper.results import Row
from xlstm_jax.analysis.scaling.inference import HEADER, fit_all, table_lines, timing_of

FIGURE = "paper_inference.png"
COMMAND = "python -m benchmarks.inference_times --output=docs/results/inference.jsonl"
TITLE = "## Times of inference"
MODEL = (
    "arXiv 2510.02228 models the time to the first token as FLOPs / rate + overhead, and that of a "
    "step as bytes / rate + overhead."
)


def inference_section(rows: Sequence[Row]) -> list[str]:
    """The fits and their figure; without rows the command that makes them."""
    if not rows:
        return [TITLE, f"{MODEL} Not measured yet: `{COMMAND}`, minutes on a quiet machine."]
    timings = [timing_of(dict(row), "times of inference") for row in rows]
    devices = ", ".join(sorted({timing.device for timing in timings}))
    return [
        TITLE,
        f"{MODEL} Fitted to our own measurements on {devices} (`{COMMAND}`), in float32 where it "
        "is a CPU; intervals are of 200 bootstrap refits. On an H100 the paper's repository finds "
        "1.6e14 to 4.1e14 FLOP/s for xLSTM of 160M to 7B parameters, 2.0e14 to 3.7e14 for "
        "Transformers.",
        f"![times of inference]({FIGURE})",
        table_of(HEADER, table_lines(fit_all(timings))),
    ]
