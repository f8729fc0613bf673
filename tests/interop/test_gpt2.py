"""GPT2LMHeadModel: learned positions, one tensor for queries, keys and values, published names, and
what has no counterpart, by name.
"""

import dataclasses

import numpy as np
import pytest

from tests.interop.test_transformers_formats import MODELS
from tests.interop.transformers_folders import frozen, logits_of, write_folder
from xlstm_jax.errors import UserError
from xlstm_jax.interop import gpt2
from xlstm_jax.interop.opening import open_checkpoint

# config.json of the published gpt2, shortened
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "vocab_size": 50257,
}


def test_the_published_configuration_is_read():
    config = gpt2.import_config(PUBLISHED)
    assert (config.dim, config.num_blocks, config.vocab_size) == (768, 12, 50257)
    assert (config.norm, config.norm_bias, config.norm_eps) == ("layer", True, 1e-5)
    assert (config.positions, config.max_positions) == ("learned", 1024)
    assert config.tie_embeddings and config.dropout == 0.1
    assert (config.attention.num_heads, config.attention.theta) == (12, None)
    assert config.attention.bias and config.mlp.bias and not config.mlp.gated
    assert (config.mlp.hidden, config.mlp.activation) == (3072, "gelu_tanh")
    assert gpt2.FORMAT.context_length(PUBLISHED) == 1024
    assert gpt2.import_config({"model_type": "gpt2"}) == config  # transformers' defaults


def test_the_published_names_are_read(tmp_path):
    """Without "transformer.", with the causal masks that old versions stored, without the head."""
    _, fields, tensors, tokens, logits = frozen("gpt2")
    published = {
        key.removeprefix("transformer."): tensor
        for key, tensor in tensors.items()
        if key != "lm_head.weight"
    }
    for number in range(2):
        published[f"h.{number}.attn.bias"] = np.ones((1, 1, 48, 48), np.float32)
        published[f"h.{number}.attn.masked_bias"] = np.float32(-1e4).reshape(())
    opened = open_checkpoint(write_folder(tmp_path / "theirs", fields, published))
    assert opened.config.model.tie_embeddings
    np.testing.assert_allclose(logits_of(opened, tokens), logits, rtol=0, atol=1e-5)


def test_queries_keys_and_values_are_the_thirds_of_one_tensor(tmp_path):
    _, fields, tensors, _, _ = frozen("gpt2")
    opened = open_checkpoint(write_folder(tmp_path / "theirs", fields, tensors))
    attention = opened.params["backbone"]["block_1"]["attention"]
    for kind, ours in (("weight", "kernel"), ("bias", "bias")):
        thirds = np.split(tensors[f"transformer.h.1.attn.c_attn.{kind}"], 3, axis=-1)
        for name, third in zip(("query", "key", "value"), thirds, strict=True):
            np.testing.assert_array_equal(attention[name][ours], third)


def test_a_fused_tensor_of_another_size_is_named(tmp_path):
    _, fields, tensors, _, _ = frozen("gpt2")
    wrong = {
        "transformer.h.0.attn.c_attn.weight": np.zeros((16, 47), np.float32),
        "transformer.h.1.attn.c_attn.bias": np.zeros(3, np.float32),
    }
    with pytest.raises(
        UserError,
        match=r"h.0.attn.c_attn.weight has shape \(16, 47\) instead of 48 columns; "
        r".*h.1.attn.c_attn.bias has shape \(3,\) instead of 48 columns",
    ):
        open_checkpoint(write_folder(tmp_path / "theirs", fields, tensors | wrong))


def test_a_hidden_size_of_its_own_and_a_head_of_its_own(tmp_path):
    _, fields, tensors, tokens, _ = frozen("gpt2")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    for number in range(2):
        prefix = f"transformer.h.{number}.mlp."
        for name, cut in (("c_fc.weight", np.s_[:, :40]), ("c_fc.bias", np.s_[:40])):
            tensors[prefix + name] = tensors[prefix + name][cut]
        tensors[prefix + "c_proj.weight"] = tensors[prefix + "c_proj.weight"][:40]
    changed = fields | {"n_inner": 40, "tie_word_embeddings": False}
    opened = open_checkpoint(write_folder(tmp_path / "theirs", changed, tensors))
    assert opened.config.model.mlp.hidden == 40
    np.testing.assert_array_equal(opened.params["lm_head"]["kernel"].T, tensors["lm_head.weight"])
    # a head + 1 adds the sum of the hidden state to every logit
    assert np.isfinite(logits_of(opened, tokens)).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation_function": "relu"}, "activation_function .* 'relu'; it must be one of silu"),
        ({"scale_attn_weights": False}, "scale_attn_weights = False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"add_cross_attention": True}, "add_cross_attention = True"),
        ({"n_head": 5}, "model.dim is 768, which does not fall into model.attention.num_heads 5"),
        ({"n_positions": 0}, "model.max_positions is 0; it must be at least 1"),
        ({"resid_pdrop": 1.0}, "model.dropout is 1.0; it must be below 1"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(change, named):
    with pytest.raises(UserError, match=f"can't be converted: .*{named}"):
        gpt2.import_config(PUBLISHED | change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm": "rms", "norm_bias": False}, "norm = 'rms'"),
        ({"norm_bias": False}, "norm_bias = False"),
        ({"positions": "none", "max_positions": None}, "positions = 'none'"),
        ({"attention": {"theta": 1e4}}, "theta = 10000.0"),
        ({"attention": {"bias": False}}, "the attention has bias = False"),
        ({"attention": {"num_groups": 1}}, "num_groups = 1; the format has as many as heads, 2"),
        ({"mlp": {"gated": True}}, "gated = True"),
        ({"mlp": {"bias": False}}, "the feed-forward layer has bias = False"),
    ],
)
def test_a_model_that_is_no_gpt2_is_refused(change, reason):
    model = MODELS["gpt2"]
    mixers = {
        name: dataclasses.replace(section, **change.get(name, {}))
        for name, section in model.mixers.items()
    }
    own = {key: value for key, value in change.items() if key not in mixers}
    with pytest.raises(UserError, match=reason):
        gpt2.export_config(dataclasses.replace(model, mixers=mixers, **own))
