"""A model that has not learned text is not asked for text."""

import pytest

from xlstm_jax.config import default_config_dict, from_config_dict
from xlstm_jax.errors import UserError
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training.console import next_commands


@pytest.fixture
def run(tmp_path):
    """The folder of a run that learned a formal language; its configuration."""
    config = from_config_dict(default_config_dict(), {"task.name": "formal"})
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "checkpoints").mkdir()
    return tmp_path, config


def test_generation_and_suites_of_text_refuse_it_naming_task_and_results(run):
    folder, _ = run
    with pytest.raises(UserError, match="task 'formal', whose model is none of text.*metrics"):
        open_checkpoint(str(folder))


def test_its_next_commands_are_none_of_text(run):
    folder, config = run
    lines = next_commands(find_run(folder), folder, config, writes_text=False)
    assert [line.partition(":")[0] for line in lines] == ["next", "  # to train longer"]
