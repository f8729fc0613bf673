"""A whole run, in this process: its folder, its last lines, resuming, starting from parameters, and
who waits for whom.
"""

import itertools
import json
import re

import jax
import numpy as np
import pytest

from xlstm_jax.command_line import printable
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.run import evaluate_run
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import read_params
from xlstm_jax.runs.folder import find_run
from xlstm_jax.runs.params import language_model_params
from xlstm_jax.training import loop, report, starting
from xlstm_jax.training.metrics import read_records


def losses(workdir, split="train"):
    return {
        record["step"]: record["loss"]
        for record in read_records(find_run(workdir).metrics)
        if record["split"] == split
    }


@pytest.fixture(scope="module")
def module_tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def finished(tiny, module_tmp, capsys):
    """A run of six steps with everything switched on, made once: (workdir, its configuration, what
    it printed).
    """
    workdir = module_tmp / "finished"
    config = tiny(
        {"eval.every": 3, "checkpoint.every": 3, "eval.sample_tokens": 30, "log.tensorboard": True}
    )
    printed = module_tmp / "printed.txt"
    if not printed.exists():
        loop.train(config, workdir)
        printed.write_text(capsys.readouterr().out)
    return workdir, config, printed.read_text()


def test_a_run_leaves_the_promised_files(finished):
    workdir, config, _ = finished
    assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "data.json", "metrics.jsonl", "tensorboard", "checkpoints", "loss.png",
        "samples.txt", ".lock",
    }  # fmt: skip
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"3", "6"}
    first = read_records(workdir / "metrics.jsonl")[0]
    assert first.keys() >= {"step", "split", "loss", "tokens", "grad_norm", "learning_rate"}
    assert list(losses(workdir)) == [1, 2, 3, 4, 5, 6] and list(losses(workdir, "validation")) == [
        3,
        6,
    ]


def test_it_learns(finished):
    seen = losses(finished[0])
    assert seen[6] < seen[1]


def test_it_ends_with_the_held_out_line_a_sample_and_the_figure(finished):
    workdir, _, printed = finished
    lines = printed.splitlines()
    [number] = [k for k, line in enumerate(lines) if line.startswith("held-out loss")]
    assert re.fullmatch(
        r"held-out loss \d\.\d{3} nats, \d\.\d{3} bits per byte \(gzip -9: \d\.\d\d\)",
        lines[number],
    )
    assert lines[number + 1] == "sample:"
    figure, *commands, longer = lines[-5:]
    assert figure == str(workdir / "loss.png")
    assert [line.partition("python")[2] or line for line in commands] == [
        "next:",
        f" eval.py --workdir={workdir}",
        f" -m xlstm_jax.generation --checkpoint={workdir} --prompt='def '",
    ]
    sample = printed.split("sample:\n")[1].rsplit("\n", 6)[0]
    assert printable((workdir / "samples.txt").read_bytes().decode()) == f"step 6\n{sample}\n"


def test_control_characters_of_a_sample_do_not_reach_the_terminal(
    tiny, tmp_path, capsys, monkeypatch, no_op_step
):
    monkeypatch.setattr(loop, "sample_of", lambda *_: "def \x1b[2J")
    config = tiny({"train.steps": 2, "eval.max_tokens": 50, "eval.sample_tokens": 1})
    loop.train(config, tmp_path)
    assert "sample:\ndef \\x1b[2J\n" in capsys.readouterr().out
    assert (tmp_path / "samples.txt").read_text() == "step 2\ndef \x1b[2J\n"


def test_every_step_is_shown_on_one_line(finished):
    shown = re.findall(
        r"^step (\d)/6  loss \S+  grad norm \S+  lr \S+(?:  \S+ tokens/s)?(?:  .+ left)?$",
        finished[2],
        re.MULTILINE,
    )
    assert shown == list("123456")


def test_a_held_out_line_in_the_middle_is_called_one(finished):
    lines = [line for line in finished[2].splitlines() if line.startswith("step 3/6  ")]
    assert lines[1:] and all(line.startswith("step 3/6  held-out: loss ") for line in lines[1:])


def test_evaluating_the_run_gives_the_loss_that_training_logged(finished, capsys):
    workdir, _, _ = finished
    # Not to the last bit: the evaluation takes all eight devices, the run had one, and float32 sums
    # depend on who adds what.
    assert evaluate_run(workdir).loss == pytest.approx(losses(workdir, "validation")[6], rel=1e-6)
    assert evaluate_run(workdir, step=3).loss == pytest.approx(
        losses(workdir, "validation")[3], rel=1e-6
    )
    assert re.search(
        r"validation, step 3: loss \S+ nats, \S+ bits per byte \(gzip -9: \S+\); perplexity \S+\n",
        capsys.readouterr().out,
    )


def test_another_split_or_fewer_tokens_can_be_evaluated(finished):
    workdir, _, _ = finished
    assert evaluate_run(workdir, "train", max_tokens=50).tokens == 50
    with pytest.raises(UserError, match="there is no split 'test'"):
        evaluate_run(workdir, "test")


@pytest.mark.slow
def test_jaxs_checks_find_nothing_in_a_run(tiny, finished, tmp_path):
    """No result of any program is NaN, no tracer is left behind; the losses are the same."""
    with jax.debug_nans(True), jax.checking_leaks():
        loop.train(tiny({"eval.every": 3, "eval.sample_tokens": 30}), tmp_path)
    for split in ("train", "validation"):
        assert losses(tmp_path, split) == losses(finished[0], split)


def test_a_finished_run_is_evaluated_again_and_not_changed(finished, capsys):
    workdir, config, printed = finished
    before = (workdir / "metrics.jsonl").read_text()
    loop.train(config, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before
    again = capsys.readouterr().out
    assert "resumed from step 6" in again
    assert "finished: all 6 steps are done; what follows is evaluated anew" in again
    assert again.split("\nheld-out")[1] == printed.split("\nheld-out")[1]


class Stop(Exception):
    """Stands for whatever ends a process."""


def stop_at(monkeypatch, step):
    original, read_so_far = report.read_metrics, itertools.count(1)

    def read(metrics):
        if next(read_so_far) == step:
            raise Stop
        return original(metrics)

    monkeypatch.setattr(report, "read_metrics", read)


ALL_ON = {
    "train.accumulation_steps": 2,
    "model.dropout": 0.1,
    "model.dtype": "bfloat16",
    "data.reset_at_document": True,
    "data.workers": 2,
}


@pytest.mark.parametrize("overrides", [{}, pytest.param(ALL_ON, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_with_the_same_losses_to_the_last_bit(
    tiny, tmp_path, monkeypatch, overrides
):
    config = tiny({"checkpoint.every": 2, **overrides})
    loop.train(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stop):
            loop.train(config, tmp_path / "stopped")
    assert max(losses(tmp_path / "stopped")) == 3
    loop.train(config, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "undisturbed")
    assert losses(tmp_path / "stopped", "validation") == losses(
        tmp_path / "undisturbed", "validation"
    )


MESHES = [
    {"mesh.data": 8},
    {"mesh.fsdp": 4, "mesh.tensor": 2},
    {},
    {
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "train.accumulation_steps": 2,
        "model.remat": "block",
    },
]


@pytest.mark.slow
def test_a_run_goes_on_on_one_mesh_after_another_with_the_same_samples(
    tiny, tmp_path, monkeypatch, capsys
):
    """Two steps on all devices as data, on fsdp and tensor, on one device and on all axes."""
    keys = {"data.batch_size": 8, "checkpoint.every": 2, "train.steps": 8}
    loop.train(tiny(keys), tmp_path / "one device")
    for mesh in MESHES[:-1]:
        with monkeypatch.context() as patch:
            stop_at(patch, 4)
            with pytest.raises(Stop):
                loop.train(tiny(keys | mesh), tmp_path / "run")
    loop.train(tiny(keys | MESHES[-1]), tmp_path / "run")
    assert re.findall(r"resumed from step (\d)", capsys.readouterr().out) == list("246")
    run, expected = (losses(tmp_path / name) for name in ("run", "one device"))
    assert list(expected) == list(range(1, 9))
    np.testing.assert_allclose([run[step] for step in expected], list(expected.values()), rtol=1e-5)
    # with eval.batch_size 4 on 8 devices
    held_out = [losses(tmp_path / name, "validation")[8] for name in ("run", "one device")]
    np.testing.assert_allclose(*held_out, rtol=1e-5)
    kept = json.loads((tmp_path / "run/checkpoints/8/run/metadata").read_text())
    assert kept["config"] == json.loads(tiny(keys | MESHES[-1]).to_json())


def test_a_steps_metrics_are_read_after_the_next_step_was_dispatched(tiny, tmp_path, monkeypatch):
    events, make_train_step, read_metrics, read = (
        [],
        loop.make_train_step,
        report.read_metrics,
        itertools.count(1),
    )

    def recording_make(*args):
        step, dispatched = make_train_step(*args), iter(range(1, 100))

        def recording_step(state, batch):
            result = step(state, batch)
            events.append(("dispatched", next(dispatched)))
            return result

        return recording_step

    def recording_read(metrics):
        events.append(("read", next(read)))
        return read_metrics(metrics)

    monkeypatch.setattr(loop, "make_train_step", recording_make)
    monkeypatch.setattr(report, "read_metrics", recording_read)
    loop.train(tiny(), tmp_path)
    for step in range(1, 6):
        assert events.index(("read", step)) > events.index(("dispatched", step + 1))
    assert [step for kind, step in events if kind == "read"] == [1, 2, 3, 4, 5, 6]


def test_a_step_whose_loss_is_no_number_is_shown_with_its_samples_and_the_run_goes_on(
    tiny, tmp_path, no_op_step, capsys
):
    no_op_step["at"] = 4
    loop.train(tiny({"checkpoint.every": 2}), tmp_path)
    assert (
        "step 4/6  SKIPPED: loss nan  grad norm nan  samples 12 to 15  1 skipped so far"
        in capsys.readouterr().out
    )
    [event] = [
        record
        for record in read_records(tmp_path / "metrics.jsonl")
        if record["split"] == "skipped"
    ]
    assert (event["step"], event["loss"], event["first_sample"], event["last_sample"]) == (
        4,
        "nan",
        12,
        15,
    )
    assert list(losses(tmp_path)) == [1, 2, 3, 5, 6]


@pytest.mark.slow
def test_a_run_without_a_good_step_ends_and_names_the_samples(tiny, tmp_path, monkeypatch):
    init_state = starting.init_state

    def broken(*args):
        state = init_state(*args)
        return state._replace(params=jax.tree.map(lambda x: x * np.nan, state.params))

    monkeypatch.setattr(starting, "init_state", broken)
    with pytest.raises(
        UserError,
        match=r"step 3: 3 steps in a row were skipped \(train\.max_skipped 3\), the loss is nan; "
        r".* are 0 to 11",
    ):
        loop.train(tiny({"train.max_skipped": 3}), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_run_starts_from_the_parameters_of_another(tiny, finished, tmp_path, capsys, no_op_step):
    workdir, _, _ = finished
    config = tiny({"checkpoint.init_from": str(workdir), "train.steps": 2})
    loop.train(config, tmp_path)
    assert f"parameters of step 6 of {workdir}" in capsys.readouterr().out
    abstract = language_model_params(
        build_model(config.model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    (old, given), (new, kept) = read_params(workdir, abstract), read_params(tmp_path, abstract)
    assert (old, new) == (6, 2)
    jax.tree.map(np.testing.assert_array_equal, kept, given)


@pytest.mark.parametrize(
    ("key", "value", "leaf"),
    [("model.dim", 32, "backbone/"), ("model.vocab_size", 384, "embedding")],
)
def test_parameters_that_do_not_fit_leave_no_folder_behind(
    tiny, finished, tmp_path, key, value, leaf
):
    config = tiny({"checkpoint.init_from": str(finished[0]), key: value})
    with pytest.raises(
        UserError, match=rf"{leaf}\S* has the shape \[.*\] instead of \[.*configuration equal"
    ):
        loop.train(config, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_data_that_have_changed_since_the_checkpoint_are_refused(tiny, tmp_path, no_op_step):
    text = tmp_path / "text.txt"
    text.write_text("a few words " * 40)
    config = tiny({"data.path": str(text), "train.steps": 2})
    loop.train(config, tmp_path / "run")
    text.write_text("a few words " * 41)
    with pytest.raises(UserError, match="have changed since the run began: 'train' differs"):
        loop.train(config, tmp_path / "run")
    (tmp_path / "run/data.json").unlink()  # the checkpoint knows it too
    with pytest.raises(UserError, match="data have changed since step 2"):
        loop.train(config, tmp_path / "run")
