"""What belongs to a checkpoint beside its tensors: its tokenizer, which nobody guesses, and how it
was trained and evaluated; folders that are whole or not there.
"""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.generation import small_tokenizers
from tests.interop.test_convert import (
    SEVEN_B,
    original_folder,
    run_folder,
    small_model,
    write_tiny_tokenizer,
)
from tests.interop.test_interop import import_params, read, shapes_of
from xlstm_jax.config import Config, DataConfig, EvalConfig
from xlstm_jax.errors import UserError
from xlstm_jax.interop import __main__ as command
from xlstm_jax.interop import convert, folders, tensor_files
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.runs.checkpoints import write_params


@pytest.fixture
def theirs(tmp_path):
    """A folder of transformers' that came without a tokenizer."""
    original_folder(tmp_path / "theirs", "large")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    return tmp_path / "theirs"


def test_a_folder_without_a_tokenizer_is_refused_with_what_to_give(theirs, tmp_path):
    for use in (open_checkpoint, lambda name: import_checkpoint(name, str(tmp_path / "ours"))):
        with pytest.raises(UserError, match="holds no tokenizer.json.*--tokenizer=FILE"):
            use(str(theirs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    (theirs / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(UserError, match="AutoTokenizer.from_pretrained"):
        open_checkpoint(str(theirs))


def test_a_tokenizer_that_is_given_goes_along(theirs, tmp_path, capsys):
    write_tiny_tokenizer(tmp_path / "given.json")
    arguments = [f"--source={theirs}", f"--tokenizer={tmp_path / 'given.json'}"]
    assert command.main(["interop", "import", *arguments, f"--output={tmp_path / 'ours'}"]) == 0
    assert "trained on contexts of 2,048 tokens, evaluated on 2,048" in " ".join(
        capsys.readouterr().out.split()
    )
    (tmp_path / "given.json").unlink()
    (tmp_path / "ours").rename(tmp_path / "moved to é")
    assert open_checkpoint(str(tmp_path / "moved to é")).tokenizer.vocab_size == 3


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(theirs, tmp_path):
    small_tokenizers.write(tmp_path / "large.json")
    for tokenizer in (str(tmp_path / "large.json"), "byte"):
        with pytest.raises(UserError, match="ids, the model of"):
            import_checkpoint(str(theirs), str(tmp_path / "ours"), tokenizer)
    small_tokenizers.write(theirs / "tokenizer.json")
    with pytest.raises(UserError, match="has 297 ids, the model of"):
        open_checkpoint(str(theirs))


@pytest.mark.parametrize(
    ("fields", "format"), [(SEVEN_B, "huggingface"), (SEVEN_B, "xlstm-large"), ({}, "xlstm")]
)
def test_an_export_and_import_keeps_how_it_was_trained_and_evaluated(
    tmp_path, capsys, fields, format
):
    model = small_model(**fields)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(model))
    data = DataConfig(context_length=256, reset_at_document=True)
    evaluation = EvalConfig(context_length=1024)
    write_params(tmp_path / "run", Config(model=model, data=data, eval=evaluation), params)
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"), format=format)
    for config in (
        open_checkpoint(str(tmp_path / "theirs")).config,
        import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours")),
    ):
        assert dataclasses.replace(config.data, tokenizer="byte") == data
        assert config.eval == evaluation
    arguments = [f"--source={tmp_path / 'theirs'}", f"--output={tmp_path / 'again'}"]
    assert command.main(["interop", "import", *arguments]) == 0
    assert "contexts of 256 tokens, evaluated on 1,024" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "theirs" / folders.RECORD).write_text("[]")
    with pytest.raises(UserError, match="xlstm_jax.json"):
        open_checkpoint(str(tmp_path / "theirs"))


def test_a_paper_model_is_used_with_the_context_that_its_configuration_names(tmp_path):
    original_folder(tmp_path / "theirs", "paper")
    config = import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert config.data.context_length == 80


def test_a_moved_run_takes_its_tokenizer_along(tmp_path):
    small_tokenizers.write(tmp_path / "tokenizer.json")
    model = small_model(**SEVEN_B)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(model))
    data = DataConfig(tokenizer=str(tmp_path / "tokenizer.json"))
    write_params(tmp_path / "run", Config(model=model, data=data), params)
    (tmp_path / "tokenizer.json").rename(tmp_path / "run" / "tokenizer.json")
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"))
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert fields["eos_token_id"] == 0  # that of this tokenizer
    assert (tmp_path / "theirs" / "tokenizer_config.json").is_file()


def test_a_mistyped_folder_is_no_name_on_the_hub(theirs, monkeypatch):
    monkeypatch.chdir(theirs.parent.parent)
    with pytest.raises(UserError, match="does not exist .did you mean '.*theirs'"):
        open_checkpoint(f"{theirs.parent.name}/thiers")


def test_a_step_is_refused_where_there_are_none(theirs):
    write_tiny_tokenizer(theirs / "tokenizer.json")
    with pytest.raises(UserError, match="--step is 3, but .* is no run"):
        open_checkpoint(str(theirs), step=3)


def test_bfloat16_in_several_files_in_a_folder_with_a_space(tmp_path):
    config, tensors, _, _ = read("large")
    path = tmp_path / "mit Leerzeichen é"
    original_folder(path, "large")
    (path / tensor_files.FILE).unlink()
    listed = [tensor_files.Tensor(k, t.shape, lambda t=t: t) for k, t in tensors.items()]
    tensor_files.write_folder(path, listed, ml_dtypes.bfloat16, 20_000)
    assert len(list(path.glob("*.safetensors"))) > 1
    import_checkpoint(str(path), str(tmp_path / "auch mit"))
    opened = open_checkpoint(str(tmp_path / "auch mit"))
    rounded = {
        name: tensor.astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, tensor in tensors.items()
    }
    expected = import_params("large", config, rounded)
    jax.tree.map(np.testing.assert_array_equal, opened.params, expected)


@pytest.mark.parametrize("action", ["import", "export"])
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, action):
    original_folder(tmp_path / "theirs", "large")
    run_folder(tmp_path / "run")
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    if action == "import":
        monkeypatch.setattr(folders, "copy_tokenizer", full)  # after the parameters
        with pytest.raises(UserError, match="can't be written .No space left on device"):
            import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "out"))
    else:
        monkeypatch.setattr(convert.folders, "write_tokenizer", full)
        with pytest.raises(UserError, match="can't be written .No space left on device"):
            export_checkpoint(str(tmp_path / "run"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
