"""metrics.jsonl, the console line, speed and loss.png."""

import json
import math
import sys
import types

import pytest

from tests.training.board import board_events
from xlstm_jax.errors import UserError
from xlstm_jax.progress import duration
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training.console import console_line
from xlstm_jax.training.figure import draw_loss
from xlstm_jax.training.metrics import MetricsWriter, read_records
from xlstm_jax.training.timing import Speed, WallTime


@pytest.fixture
def folder(tmp_path):
    return find_run(tmp_path)


def steps(folder):
    return [record["step"] for record in read_records(folder.metrics)]


def test_each_event_is_one_json_object_on_disk_at_once(folder):
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        writer.write(1, "train", {"loss": 2.5, "tokens_per_second": None})
        assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [
            {"step": 1, "split": "train", "loss": 2.5}
        ]


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint_and_repeats_nothing(folder):
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        for step in range(1, 6):
            writer.write(step, "train", {"loss": 1.0})
        writer.write(3, "validation", {"loss": 2.0})
    with MetricsWriter(folder, 3, tensorboard=False) as writer:
        assert steps(folder) == [1, 2, 3, 3]
        writer.write(3, "validation", {"loss": 7.0})
        writer.write(4, "train", {"loss": 1.0})
    assert steps(folder) == [1, 2, 3, 3, 4]


def test_the_half_line_of_a_killed_run_is_dropped(folder):
    folder.metrics.write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "spl')
    with MetricsWriter(folder, 2, tensorboard=False) as writer:
        writer.write(2, "train", {"loss": 1.0})
    assert steps(folder) == [1, 2]


GOOD = '{"step": %d, "split": "train", "loss": 1.0}'
BROKEN = {
    "cut in the middle": b'{"step": 2, "spl',
    "no UTF-8": b"\xff\xfe\x00",
    "a number": b"17",
    "a list": b"[]",
    "no step": b'{"split": "train", "loss": 1.0}',
    "a step that is text": b'{"step": "2", "split": "train"}',
    "somebody's note": b"# lowered the rate here",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_skipped_said_and_kept_and_all_others_stay(folder, broken, capsys):
    lines = [(GOOD % 1).encode(), BROKEN[broken], (GOOD % 3).encode(), (GOOD % 4).encode()]
    folder.metrics.write_bytes(b"\n".join(lines) + b"\n")
    assert steps(folder) == [1, 3, 4]
    with MetricsWriter(folder, 3, tensorboard=False) as writer:
        writer.write(4, "train", {"loss": 2.0})
    assert steps(folder) == [1, 3, 4]
    assert folder.metrics.read_bytes().splitlines()[:3] == lines[:3]
    said = f"{folder.metrics}: line 2 can't be read and is skipped; it stays in the file"
    assert capsys.readouterr().err.splitlines() == [said]
    draw_loss(folder)


def test_a_file_of_which_nothing_is_to_be_dropped_is_not_written_anew(folder):
    folder.metrics.write_text(GOOD % 1 + "\n\n" + GOOD % 2 + "\n")
    before = folder.metrics.stat()
    with MetricsWriter(folder, 2, tensorboard=False):
        pass
    after = folder.metrics.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_tensorboard_has_the_curves_the_configuration_and_a_sample_and_no_clutter(folder):
    folder.config.write_text('{"model": {"dim": 8}}')
    with MetricsWriter(folder, 0, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": 2.5, "started": 1.7e9, "tokens": 64, "mfu": None})
        writer.after_sample(6, "def f():\n    pass")
    shown = {
        value.tag: (event.step, value)
        for event in board_events(folder.tensorboard)
        for value in event.summary.value
    }
    assert shown.keys() == {"train/loss", "config/text_summary", "sample/text_summary"}
    assert shown["train/loss"][0] == 1 and shown["train/loss"][1].simple_value == 2.5
    step, sample = shown["sample/text_summary"]
    assert step == 6 and sample.tensor.string_val == [b"    def f():\n        pass"]
    assert b'"dim": 8' in shown["config/text_summary"][1].tensor.string_val[0]


def test_a_loss_that_is_no_number_is_drawn_without_a_warning(folder, caplog):
    with MetricsWriter(folder, 0, tensorboard=True) as writer:
        writer.write(1, "train", {"loss": math.nan, "grad_norm": math.inf})
    values = [value for event in board_events(folder.tensorboard) for value in event.summary.value]
    shown = {value.tag: value.simple_value for value in values}
    assert math.isnan(shown["train/loss"]) and shown["train/grad_norm"] == math.inf
    assert caplog.records == []


def test_tensorboard_does_not_show_what_lies_beyond_the_step_that_a_run_goes_on_from(folder):
    with MetricsWriter(folder, 3, tensorboard=True):
        pass
    sessions = [event for event in board_events(folder.tensorboard) if event.session_log.status]
    assert [(event.step, event.session_log.status) for event in sessions] == [(4, 1)]


def test_speed_leaves_out_compilation_and_pauses():
    now = [0.0]
    speed = Speed(steps=10, clock=lambda: now[0])
    now[0] = 100.0  # compilation and the first step
    speed.count(50)
    assert speed.read(1) == (None, None)
    for _ in range(2):
        now[0] += 2.0
        speed.count(50)
    assert speed.read(3) == (25.0, 14.0)
    speed.pause()
    now[0] += 1000.0  # an evaluation and the step behind it
    speed.count(50)
    now[0] += 2.0
    speed.count(50)
    assert speed.read(5) == (25.0, 10.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "n/a"),
        (0.4, "0s"),
        (52, "52s"),
        (185, "3m 05s"),
        (7620, "2h 07m"),
        (4 * 86400 + 3 * 3600, "4d 03h"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


VALUES = {
    "loss": 1.25,
    "grad_norm": 0.5,
    "learning_rate": 1e-3,
    "tokens_per_second": 12345.6,
    "mfu": None,
    "skipped": 0,
}


def test_the_console_line_says_what_a_person_wants_to_know_and_nothing_else():
    assert console_line(20, 1000, VALUES, 61) == (
        "step   20/1000  loss 1.2500  grad norm 0.50  lr 1.00e-03  12,346 tokens/s  1m 01s left"
    )
    assert console_line(1, 1000, {**VALUES, "tokens_per_second": None}, None) == (
        "step    1/1000  loss 1.2500  grad norm 0.50  lr 1.00e-03"
    )
    assert "  MFU 41.3%  " in console_line(20, 1000, {**VALUES, "mfu": 0.4132}, 61)
    assert console_line(20, 1000, {**VALUES, "skipped": 2}, 61).endswith("  2 skipped")


def test_the_rate_of_one_device_is_shown_where_there_are_several():
    assert "12,346 tokens/s (3,086 per device)" in console_line(20, 1000, VALUES, 61, devices=4)


def test_the_console_line_fits_100_columns():
    many = {**VALUES, "tokens_per_second": 123_456_789.0, "mfu": 0.4132, "skipped": 12345}
    line = console_line(1_000_000, 2_000_000, many, 86400 * 9, devices=4096)
    assert len(line) <= 100
    for part in ("loss 1.2500", "123,456,789 tokens/s", "9d 00h left", "12345 skipped"):
        assert part in line


def test_goodput_is_the_share_of_training_in_the_time_since_the_first_start():
    now = [1000.0]
    first = WallTime([], clock=lambda: now[0])
    now[0] += 2
    with first.spent_on("compile"):
        now[0] += 10
    now[0] += 28
    values = first.values()
    assert (
        values["started"],
        values["compile_seconds"],
        values["train_seconds"],
        values["goodput"],
    ) == (1000.0, 10, 30, 0.75)
    now[0] += 60  # the machines are gone
    again = WallTime([{"loss": 1.0}, values, {"split": "validation"}], clock=lambda: now[0])
    now[0] += 20
    assert again.values() | {"goodput": 0.5} == {**values, "train_seconds": 50, "goodput": 0.5}
    assert again.values()["goodput"] == 50 / 120


def test_weights_and_biases_gets_the_events_where_a_project_is_named(folder, monkeypatch):
    calls = []

    class FakeRun:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(**given):
        calls.append((given["project"], given["resume"], given["config"]))
        return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    folder.config.write_text('{"model": {"dim": 8}}')
    with MetricsWriter(folder, 0, tensorboard=False, wandb="cells") as writer:
        writer.write(3, "train", {"loss": 2.5})
    assert calls == [
        ("cells", "allow", {"model": {"dim": 8}}),
        (3, {"train/loss": 2.5}),
        "finished",
    ]


def test_without_wandb_the_way_to_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"log\.wandb is 'cells'.*python -m pip install -e .*\[wandb\]'"
    ):
        MetricsWriter(folder, 0, tensorboard=False, wandb="cells")


def test_the_loss_figure_is_drawn_from_the_events(folder):
    with MetricsWriter(folder, 0, tensorboard=False) as writer:
        writer.write(1, "train", {"loss": 2.5})
        writer.write(1, "validation", {"loss": 2.6})
    draw_loss(folder)
    assert folder.loss_figure.read_bytes().startswith(b"\x89PNG")
