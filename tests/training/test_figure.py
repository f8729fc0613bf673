"""loss.png shows how a run ends, every set it was evaluated on, and accuracies where there are
some.
"""

import numpy as np
import pytest

from xlstm_jax.training.figure import figure_of, smoothed


def events(steps=400, every=10, **more):
    """A loss that falls from 6 to 1.3, as metrics.jsonl has it."""
    loss = {step: 1.3 + 4.7 * np.exp(-(step - 1) / 20) for step in (1, *range(every, steps, every))}
    return [{"step": step, "split": "train", "loss": value} | more for step, value in loss.items()]


def held_out(split="validation", **numbers):
    return [
        {"step": step, "split": split, "loss": 1.5 - step / 4000} | numbers for step in (200, 400)
    ]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_end_of_the_run_rules_the_axis_and_not_its_first_step():
    [axes] = figure_of(events() + held_out()).axes
    low, high = axes.get_ylim()
    assert 1.2 < low < 1.3 and 1.5 < high < 2.5
    assert "at 6" in axes.get_title(loc="left")  # where the curve begins is said instead


def test_there_is_a_smoothed_curve_over_that_of_single_steps_and_one_of_each_set():
    numbers = events() + held_out() + held_out("validation/books") + held_out("skipped")
    [axes] = figure_of(numbers, "nats per token").axes
    assert labels(axes) == [
        "training, a step",
        "training, smoothed",
        "held out",
        "held out: books",
    ]
    assert len({line.get_color() for line in axes.lines}) == 3  # one of training, one of each set
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "loss (nats per token)")


def test_accuracies_have_a_panel_of_their_own_and_equal_ones_one_curve():
    numbers = {"accuracy": 0.75, "sequence_accuracy": 0.75, "scaled_accuracy": 0.5}
    loss, accuracy = figure_of(events(accuracy=0.6) + held_out(**numbers)).axes
    assert labels(accuracy) == [
        "training, accuracy",
        "held out, accuracy",
        "held out, scaled accuracy",
    ]
    low, high = accuracy.get_ylim()
    assert low < 0 and high > 1
    assert not loss.get_xlabel() and accuracy.get_xlabel() == "training step"


@pytest.mark.parametrize(
    "records",
    [
        [],
        events(steps=2),
        [{"step": 1, "split": "train", "loss": "nan"}],
        [{"step": 1, "split": "validation", "loss": 1.0}],
    ],
)
def test_a_run_without_much_to_show_has_a_figure_too(records, tmp_path):
    figure_of(records).savefig(tmp_path / "loss.png")


def test_the_ticks_of_a_short_run_are_steps():
    [axes] = figure_of(events(steps=4, every=1)).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_smoothing_keeps_a_constant_and_a_straight_beginning_and_calms_what_jumps():
    constant, line = np.full(100, 3.0), np.arange(100.0)
    assert smoothed(constant) == pytest.approx(constant)
    assert smoothed(line)[:90] == pytest.approx(line[:90])
    jumping = np.resize([0.0, 1.0], 100)
    assert np.std(smoothed(jumping)[10:]) < 0.1
