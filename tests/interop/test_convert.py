"""Whole checkpoints in and out, through the commands: every bit, the configuration and the
tokenizer.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
import tokenizers

from tests.interop.test_interop import FIXTURES, read, shapes_of
from xlstm_jax.config import Config
from xlstm_jax.data.tokenizer import END_OF_TEXT, ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop import __main__ as command
from xlstm_jax.interop import folders, large, paper, tensor_files
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.models import ModelConfig
from xlstm_jax.runs.checkpoints import write_params

assert FIXTURES.is_dir()


def original_folder(
    path: pathlib.Path, name: str, weight_mode: str = "single", bytes_per_file: int = 10**9
) -> dict:
    """A checkpoint as the other project writes it; returns its tensors."""
    config, tensors, _, _ = read(name)
    path.mkdir()
    listed = [
        tensor_files.Tensor(key, tensor.shape, lambda tensor=tensor: tensor)
        for key, tensor in tensors.items()
    ]
    if weight_mode == "fused":
        listed = list(large.fuse(listed))
    tensor_files.write_folder(path, listed, np.float32, bytes_per_file)
    fields = (
        large.export_config(config, weight_mode)
        if name == "large"
        else paper.export_full_config(config, 80)
    )
    (path / "config.json").write_text(json.dumps(fields))
    write_tiny_tokenizer(path / "tokenizer.json")
    return {tensor.name: tensor.make() for tensor in listed}


def write_tiny_tokenizer(path: pathlib.Path) -> None:
    """Of fewer ids than any model has."""
    words = tokenizers.models.WordLevel({END_OF_TEXT: 0, "a": 1, "?": 2}, unk_token="?")
    tokenizers.Tokenizer(words).save(str(path))


@pytest.mark.parametrize(
    ("name", "weight_mode", "bytes_per_file"),
    [("large", "single", 20_000), ("large", "fused", 10**9), ("paper", "single", 10**9)],
)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, name, weight_mode, bytes_per_file, capsys):
    tensors = original_folder(tmp_path / "theirs", name, weight_mode, bytes_per_file)
    arguments = [f"--source={tmp_path / 'theirs'}", f"--output={tmp_path / 'ours'}"]
    assert command.main(["interop", "import", *arguments]) == 0
    arguments = [f"--source={tmp_path / 'ours'}", f"--output={tmp_path / 'back'}"]
    assert (
        command.main(
            [
                "interop",
                "export",
                *arguments,
                *([f"--weight_mode={weight_mode}"] if weight_mode == "fused" else []),
            ]
        )
        == 0
    )
    *_, named, writes, scores = capsys.readouterr().out.splitlines()
    assert named == "next:" and writes.endswith(f" --checkpoint={tmp_path}/back --prompt='def '")
    assert scores.endswith(f" --checkpoint={tmp_path}/back --data=FILE")
    back = tensor_files.read_folder(tmp_path / "back")
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back[key].tobytes() == np.ascontiguousarray(tensor).tobytes(), key
    assert folders.open_source(str(tmp_path / "back")).config == read(name)[0]


def test_xlstm_large_has_its_own_names(tmp_path):
    config, tensors, _, _ = read("large")
    original_folder(tmp_path / "theirs", "large")
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back"), format="xlstm-large")
    stored = tensor_files.read_folder(tmp_path / "back")
    assert "embedding.weight" in stored and "backbone.embeddings.weight" not in stored
    source = folders.open_source(str(tmp_path / "back"))
    assert source.config == config and source.kind == "xlstm-large"
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(source.tensors[key], tensor)


SEVEN_B = {
    "blocks": "mlstm_7b+mlp",
    "norm": "rms",
    "norm_eps": 1e-6,
    "logit_soft_cap": 30.0,
    "mixers": {
        "mlstm_7b": {"num_heads": 2},
        "mlp": {"activation": "silu", "whole_first": True},
    },
}


def small_model(**fields) -> ModelConfig:
    """One block; the paper's mLSTM where no other is named."""
    fields = {"mixers": {"mlstm": {"num_heads": 2}}} | fields
    return ModelConfig(vocab_size=320, dim=64, num_blocks=1, **fields)


def run_folder(path: pathlib.Path, **fields) -> ModelConfig:
    config = small_model(**fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes_of(config)
    )
    write_params(path, Config(model=config), params)
    return config


def test_an_export_has_a_tokenizer_that_agrees_with_the_byte_tokenizer(tmp_path):
    run_folder(tmp_path / "run", **SEVEN_B)
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"))
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert fields["architectures"] == ["xLSTMForCausalLM"] and fields["eos_token_id"] == 256
    text = "naïve 漢字\n\t\x00 def f(x): <|endofTEXT|>"
    ours = load_tokenizer(str(tmp_path / "theirs" / "tokenizer.json"))
    assert ours.end_of_text == 256
    np.testing.assert_array_equal(ours.encode(text), ByteTokenizer().encode(text))
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    assert plain.decode(plain.encode(text).ids) == text


def test_tokenizer_files_travel_along(tmp_path):
    run_folder(tmp_path / "run", **SEVEN_B)
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"))
    config = import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert config.data.tokenizer == str(tmp_path / "ours" / "tokenizer.json")
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "again"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_a_smaller_type_is_written_where_it_is_asked_for(tmp_path):
    run_folder(tmp_path / "run")
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"), dtype="bfloat16")
    assert {
        str(tensor.dtype) for tensor in tensor_files.read_folder(tmp_path / "theirs").values()
    } == {"bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["move"], "'move' is no action"),
        (["import", "--source=nowhere/at/all", "--output=x"], "does not exist"),
        (["import", "--output=x"], "--source is missing"),
        (["export", "--source={run}", "--output={run}"], "not empty"),
        (["export", "--source={run}", "--output=x", "--format=gguf"], "--format is 'gguf'"),
        (["export", "--source={run}", "--output=x", "--format=huggingface"], "has blocks 'mlstm'"),
        (["export", "--source={run}", "--output=x", "--weight_mode=fused"], "does not have"),
        (["import", "--source={run}", "--output=x"], "a run of this project"),
        (["import", "--source={run}", "--output=/proc/no/x"], "'/proc/no/x' can't be written"),
        (
            ["export", "--source={run}", "--output={run}/config.json/x"],
            "config.json' is a file; give a folder",
        ),
    ],
)
def test_what_can_not_be_done_is_one_line(tmp_path, capsys, arguments, message):
    run_folder(tmp_path / "run")
    assert (
        command.main(
            [
                "interop",
                *(argument.replace("{run}", str(tmp_path / "run")) for argument in arguments),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_with_wrong_tensors_is_refused_by_name_and_leaves_nothing(tmp_path):
    tensors = original_folder(tmp_path / "theirs", "large")
    name = "lm_head.weight"
    wrong = {**tensors, "extra.weight": np.zeros(2, np.float32)}
    del wrong[name]
    tensor_files.write_file(
        tmp_path / "theirs" / "model.safetensors",
        [tensor_files.Tensor(k, t.shape, lambda t=t: t) for k, t in wrong.items()],
        np.float32,
    )
    with pytest.raises(UserError, match="lm_head.weight is missing; extra.weight is unknown"):
        import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()
