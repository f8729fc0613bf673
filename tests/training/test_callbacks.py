"""What `train` tells callbacks: when, with which numbers, and whose errors end a run."""

import json

import jax
import numpy as np
import pytest

from tests.training.conftest import CONFIG_FILE, ROOT
from xlstm_jax import config_files
from xlstm_jax.config import as_config
from xlstm_jax.errors import UserError
from xlstm_jax.runs.checkpoints import read_params
from xlstm_jax.training import Callback, Run, train, writers
from xlstm_jax.training.metrics import read_records

STEPS = {"train.steps": 4, "eval.every": 2, "checkpoint.every": 2}


class Recorder(Callback):
    """Keeps every call, and what lay in the folder then."""

    def __init__(self):
        self.calls, self.metrics, self.summaries, self.params = [], {}, {}, {}

    def _note(self, *call):
        self.calls.append(call)

    def before_training(self, run: Run):
        self.run = run
        self._note("begin", run.start)

    def after_step(self, step, metrics):
        self.metrics[step] = dict(metrics)
        events = read_records(self.run.folder.metrics)
        self._note("step", step, (step, "train") in {(e["step"], e["split"]) for e in events})

    def after_evaluation(self, step, summaries):
        self.summaries[step] = summaries
        self._note("evaluation", step, self.run.folder.loss_figure.exists())

    def before_checkpoint(self, step, params):
        self.params[step] = jax.device_get(params)
        self._note("checkpoint", step, (self.run.folder.checkpoints / str(step)).exists())

    def after_sample(self, step, text):
        self._note("sample", step, text in self.run.folder.samples.read_text())

    def after_training(self, summary):
        self.summary = summary
        self._note("end")

    def close(self):
        self._note("close")


@pytest.fixture
def recorder():
    return Recorder()


@pytest.mark.slow
def test_hooks_are_called_in_order_after_the_runs_own_writers(tiny, tmp_path, recorder):
    config = tiny({**STEPS, "log.every": 3, "eval.sample_tokens": 3})
    summary = train(config, tmp_path, callbacks=[recorder])
    assert recorder.calls == [
        ("begin", 0),
        ("step", 1, True),
        ("step", 2, False),  # told, but with log.every = 3 not recorded
        ("evaluation", 2, True),
        ("checkpoint", 2, False),
        ("step", 3, True),
        ("step", 4, True),
        ("evaluation", 4, True),
        ("checkpoint", 4, False),
        ("sample", 4, True),
        ("end",),
        ("close",),
    ]
    assert recorder.run.config == config and recorder.run.folder.root == tmp_path.resolve()
    own = {"loss", "tokens", "grad_norm", "learning_rate", "skipped", "skipped_in_a_row"}
    of_shown_steps = {"tokens_per_second", "mfu", "train_seconds"}
    assert recorder.metrics[2].keys() > own and not recorder.metrics[2].keys() & of_shown_steps
    assert recorder.metrics[3].keys() > own | of_shown_steps
    [third] = [e for e in read_records(recorder.run.folder.metrics) if e["step"] == 3]
    assert third["loss"] == recorder.metrics[3]["loss"]
    assert recorder.summary == summary == recorder.summaries[4]["validation"]


@pytest.mark.slow
def test_a_checkpoint_has_the_parameters_that_were_shown(tiny, tmp_path, recorder):
    train(tiny(STEPS), tmp_path, callbacks=[recorder])
    for step in (2, 4):
        shown = recorder.params[step]
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shown)
        found = read_params(str(tmp_path), wanted, step)
        jax.tree.map(np.testing.assert_array_equal, found[1], shown)


def test_a_skipped_step_is_told_with_its_samples(tiny, tmp_path, recorder, no_op_step):
    no_op_step["at"] = 3
    train(tiny(STEPS), tmp_path, callbacks=[recorder])
    told = recorder.metrics[3]
    assert (told["skipped_in_a_row"], told["first_sample"], told["last_sample"]) == (1, 8, 11)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["after_step", "after_evaluation", "after_training"])
def test_what_a_callback_raises_reaches_the_caller_and_the_run_can_go_on(
    hook, tiny, tmp_path, no_op_step
):
    def broken(*_):
        raise ZeroDivisionError("mine")

    faulty, witness = Callback(), Recorder()
    setattr(faulty, hook, broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tiny(STEPS), tmp_path, callbacks=[witness, faulty])
    assert witness.calls[-1] == ("close",)
    recorder = Recorder()
    train(tiny(STEPS), tmp_path, callbacks=[recorder])
    saved = 4 if hook == "after_training" else 0  # before_checkpoint comes before the first one
    assert recorder.calls[0] == ("begin", saved) and recorder.calls[-2:] == [("end",), ("close",)]
    recorded = [
        e["step"] for e in read_records(tmp_path / "metrics.jsonl") if e["split"] == "train"
    ]
    assert recorded == [1, 2, 3, 4]


def test_all_callbacks_are_closed_though_one_of_them_fails(tiny, tmp_path, no_op_step):
    class Faulty(Callback):
        def close(self):
            raise ZeroDivisionError("mine")

    first, last = Recorder(), Recorder()
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tiny(STEPS), tmp_path, callbacks=[first, Faulty(), last])
    assert first.calls[-1] == last.calls[-1] == ("close",)


def test_what_metrics_jsonl_could_not_take_is_tried_again_before_a_checkpoint(
    tiny, tmp_path, monkeypatch, no_op_step, capsys
):
    """A run that is resumed at the checkpoint would not write those lines again."""
    own = writers.writers_of

    def writers_that_fail_at_first(run):
        [metrics, *others] = own(run)
        append, there = metrics._metrics._file.append, tmp_path / "metrics.jsonl"

        def fail(data):
            if b'"validation"' in data and not there.exists():
                raise OSError(28, "No space left on device")
            append(data)

        monkeypatch.setattr(metrics._metrics._file, "append", fail)
        return [metrics, *others]

    class Killed(Callback):
        def before_checkpoint(self, step, params):
            raise KeyError(step)

    monkeypatch.setattr("xlstm_jax.training.loop.writers_of", writers_that_fail_at_first)
    with pytest.raises(KeyError):
        train(tiny({**STEPS, "log.every": 9}), tmp_path, callbacks=[Killed()])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_a_configuration_may_be_given_in_each_of_its_forms(tiny, corpus, tmp_path, no_op_step):
    config = tiny({"train.steps": 2})
    assert as_config(config) is config
    values = config_files.read(str(CONFIG_FILE))
    values.data.path, values.train.steps = str(corpus), 2
    assert as_config(values) == config
    assert as_config("configs/quickstart.py") == as_config(ROOT / "configs/quickstart.py")
    train(values, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text()) == json.loads(config.to_json())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([3], {}), "the configuration is of type list; give what xlstm_jax.config.load returns"),
        ((None, [print]), r"callbacks\[0\] is <built-in function print>; give a list of objects"),
        ((None, [Callback]), r"callbacks\[0\] is <class .*Callback'>; give a list of objects"),
        ((None, Callback()), r"callbacks is <.*Callback object .*>; give a list of objects"),
    ],
)
def test_what_is_neither_is_refused_before_anything_is_made(given, message, tiny, tmp_path):
    config, callbacks = given
    with pytest.raises(UserError, match=message):
        train(tiny() if config is None else config, tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()
