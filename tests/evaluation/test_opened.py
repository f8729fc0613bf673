"""What is known of a checkpoint decides in which windows it is scored, and what is said of them."""

import json
import shutil

import pytest

from tests.evaluation.conftest import ATTENTION, random_model
from xlstm_jax import progress
from xlstm_jax.config import Config, from_json
from xlstm_jax.data.config import DataConfig
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.opened import Evaluation
from xlstm_jax.evaluation.options import Options
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.folders import write_record
from xlstm_jax.runs.checkpoints import write_params


@pytest.mark.slow
def test_a_runs_windows_travel_with_its_parameters(run_folder, tmp_path):
    """Exported and imported again, it is scored as before, and its trained length is known."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    config = json.loads((run / "config.json").read_text())
    config["eval"]["context_length"] = 8
    (run / "config.json").write_text(json.dumps(config))
    write_record(run, from_json((run / "config.json").read_text()))
    export_checkpoint(str(run), str(tmp_path / "theirs"))
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "imported"))
    for name in ("run", "theirs", "imported"):
        evaluation = Evaluation(str(tmp_path / name), None, Options())
        assert evaluation.task.window == 8, name
        assert evaluation.trained_at == 16, name


def test_of_other_checkpoints_the_trained_length_is_not_claimed(run_folder):
    evaluation = Evaluation(str(run_folder), None, Options(contexts=(32, 64), context_length=4))
    assert evaluation.trained_at is None and evaluation.contexts == (32, 64)
    assert evaluation.task.window == 4


def test_a_step_of_what_has_one_only_is_refused(tmp_path):
    with pytest.raises(UserError, match="--step is 3, but .* is no run"):
        Evaluation(str(tmp_path), 3, Options())


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("perplexity", {"context_length": 25}, "25 tokens at once, .*a smaller --context_length"),
        ("extrapolation", {"contexts": (16, 32)}, "32 tokens at once, .*a smaller --contexts"),
        ("generation", {"lengths": (9,), "batches": (1,)}, "80 tokens at once, .*--lengths"),
        ("paloma", {}, "2,048 tokens at once, but this model has learned 24 positions"),
    ],
)
def test_windows_beyond_the_learned_positions_are_refused(
    tmp_path, text_file, suite, options, message
):
    text = str(text_file)
    data = DataConfig(path=text, validation_path=text, context_length=16)
    write_params(tmp_path, Config(model=ATTENTION, data=data), random_model(ATTENTION)[1])
    evaluation = Evaluation(str(tmp_path), None, Options(**options))
    with pytest.raises(UserError, match=message):
        evaluation.check([suite])
    fits = Evaluation(str(tmp_path), None, Options())
    fits.check(["perplexity", "extrapolation"])
    assert fits.contexts == (16,)


def test_long_work_shows_how_far_it_is(monkeypatch, capsys):
    """In a log file as lines of their own, with the time left; short work shows nothing."""
    with progress.bar(10, "perplexity", "tokens") as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0)
    monkeypatch.setattr(progress, "LINES_EVERY_SECONDS", 0)
    with progress.bar(10, "perplexity", "tokens") as bar:
        bar.update(5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("perplexity: 50% of 10 tokens, ") and "time left" in lines[-1]
    assert not any("\r" in line for line in lines)
