"""What the formats llama, gpt2, mamba and rwkv4 share: frozen logits, both ways to the bit, several
files, smaller types, and which format a model goes out in. `make parity` compares with the living
originals.
"""

import json

import ml_dtypes
import numpy as np
import pytest

from tests.interop.transformers_folders import frozen, logits_of, random_run, write_folder
from xlstm_jax.errors import UserError
from xlstm_jax.interop import tensor_files
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.folders import open_source
from xlstm_jax.interop.formats import format_of
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models import ModelConfig

NAMES = ("llama", "gpt2", "mamba", "rwkv4")
MODELS = {
    "llama": ModelConfig(
        vocab_size=257,
        dim=16,
        num_blocks=2,
        blocks="attention+mlp",
        norm="rms",
        mixers={
            "attention": {"num_heads": 4, "num_groups": 2, "theta": 500.0},
            "mlp": {"activation": "silu", "factor": 8 / 3},
        },
    ),
    "gpt2": ModelConfig(
        vocab_size=257,
        dim=16,
        num_blocks=2,
        blocks="attention+mlp",
        norm_bias=True,
        positions="learned",
        max_positions=32,
        tie_embeddings=True,
        mixers={
            "attention": {"num_heads": 2, "theta": None, "bias": True},
            "mlp": {"activation": "gelu_tanh", "gated": False, "factor": 4.0, "bias": True},
        },
    ),
    "mamba": ModelConfig(
        vocab_size=257,
        dim=16,
        num_blocks=2,
        blocks="mamba",
        norm="rms",
        mixers={"mamba": {"state_dim": 5, "bias": True, "up_factor": 3.0}},
    ),
    "rwkv4": ModelConfig(
        vocab_size=257,
        dim=16,
        num_blocks=2,
        blocks="rwkv4+rwkv4_channel",
        norm_bias=True,
        embedding_norm=True,
        mixers={"rwkv4_channel": {"factor": 2.5}},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(tmp_path, name):
    _, fields, tensors, tokens, logits = frozen(name)
    opened = open_checkpoint(write_folder(tmp_path / "theirs", fields, tensors))
    np.testing.assert_allclose(logits_of(opened, tokens), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, name):
    _, fields, tensors, _, _ = frozen(name)
    theirs = write_folder(tmp_path / "theirs", fields, tensors, bytes_per_file=5_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    config = import_checkpoint(theirs, str(tmp_path / "ours"))
    assert export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back")) == name
    back = tensor_files.read_folder(tmp_path / "back")
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back[key].tobytes() == np.ascontiguousarray(tensor).tobytes(), key
    written = open_source(str(tmp_path / "back"))
    assert written.config == open_source(theirs).config == config.model
    if written.context_length is not None:  # a Mamba's fields name none
        assert written.context_length == config.data.context_length


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_out_in_its_format_and_comes_back(tmp_path, name):
    run = random_run(tmp_path / "run", MODELS[name])
    assert format_of(MODELS[name]) == name
    assert export_checkpoint(run, str(tmp_path / "theirs")) == name
    tokens = np.random.default_rng(0).integers(0, 257, (2, 20))
    np.testing.assert_array_equal(
        logits_of(open_checkpoint(str(tmp_path / "theirs")), tokens),
        logits_of(open_checkpoint(run), tokens),
    )
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert written["eos_token_id"] == 256 and written["dtype"] == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_in_several_files_is_read_and_written(tmp_path, name):
    _, fields, tensors, _, _ = frozen(name)
    write_folder(tmp_path / "theirs", fields, tensors, ml_dtypes.bfloat16, 3_000)
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back"), dtype="bfloat16")
    back = tensor_files.read_folder(tmp_path / "back")
    for key, tensor in tensors.items():
        assert back[key].tobytes() == tensor.astype(ml_dtypes.bfloat16).tobytes(), key


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama", "model.layers.1.self_attn.k_proj.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("mamba", "backbone.layers.1.mixer.A_log"),
        ("rwkv4", "rwkv.blocks.0.pre_ln.bias"),
    ],
)
def test_a_tensor_that_is_missing_is_named(tmp_path, name, missing):
    _, fields, tensors, _, _ = frozen(name)
    rest = {key: tensor for key, tensor in tensors.items() if key != missing}
    with pytest.raises(UserError, match=f"{missing} is missing"):
        open_checkpoint(write_folder(tmp_path / "theirs", fields, rest))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "model.layers.0.mlp.up_proj.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias"),
        ("mamba", "backbone.layers.0.mixer.conv1d.weight"),
        ("rwkv4", "rwkv.blocks.1.attention.time_mix_key"),
    ],
)
def test_a_tensor_of_another_shape_is_named(tmp_path, name, key):
    _, fields, tensors, _, _ = frozen(name)
    with pytest.raises(UserError, match=rf"{key} has shape \(7,\) instead of"):
        open_checkpoint(
            write_folder(tmp_path / "theirs", fields, tensors | {key: np.zeros(7, np.float32)})
        )


@pytest.mark.parametrize("name", NAMES)
def test_no_field_of_a_wrong_type_is_anything_but_a_named_refusal(name):
    format, fields, *_ = frozen(name)
    read = format.import_config(fields)
    refused = 0
    for key in fields:
        for value in ("x", -1, [], {}, float("nan")):
            try:
                changed = format.import_config(fields | {key: value})
            except UserError as error:
                assert "can't be converted" in str(error)
                refused += 1
            else:  # a field that does not change what is computed, or one that may be empty
                assert changed == read or (key, value) == ("rope_parameters", {}), (key, value)
    assert refused > 25


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"embedding_norm": True}, "embedding_norm = True"),
        ({"final_norm": False}, "final_norm = False"),
        ({"residual": False}, "residual = False"),
        ({"logit_soft_cap": 30.0}, "logit_soft_cap = 30.0"),
        ({"norm": "none"}, "norm = 'none'"),
    ],
)
def test_a_model_that_no_format_can_hold_is_refused_with_the_reason_of_each(change, reason):
    model = ModelConfig(
        **{"blocks": "attention+mlp", "norm": "rms", "mixers": {"mlp": {"activation": "silu"}}}
        | change
    )
    with pytest.raises(UserError, match=f"no format .* llama: .*{reason}.*; gpt2: "):
        format_of(model)


def test_blocks_that_no_format_has_are_refused():
    with pytest.raises(UserError, match="no format of other projects has the blocks"):
        format_of(ModelConfig(blocks="attention,mlp"))
