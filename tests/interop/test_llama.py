"""LlamaForCausalLM: the base of its rotary positions in either spelling, biases, tied embeddings,
and what has no counterpart, by name.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests.interop.test_transformers_formats import MODELS
from tests.interop.transformers_folders import (
    exported,
    frozen,
    logits_of,
    random_run,
    write_folder,
)
from xlstm_jax.errors import UserError
from xlstm_jax.interop import llama
from xlstm_jax.interop.convert import export_checkpoint
from xlstm_jax.interop.opening import open_checkpoint

FIELDS = frozen("llama").fields
PLAIN = {name: value for name, value in FIELDS.items() if name != "rope_parameters"}
# config.json of Llama 2 7B (transformers 4.31), and of TinyLlama, shortened
LLAMA_2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


def test_a_public_configuration_is_read():
    config = llama.import_config(LLAMA_2)
    assert (config.dim, config.num_blocks, config.vocab_size) == (4096, 32, 32000)
    assert (config.norm, config.norm_eps, config.tie_embeddings) == ("rms", 1e-5, False)
    assert (config.attention.num_heads, config.attention.num_groups) == (32, None)
    assert config.attention.theta == 10000.0 and not config.attention.bias
    assert (config.mlp.hidden, config.mlp.gated, config.mlp.activation) == (11008, True, "silu")
    assert llama.FORMAT.context_length(LLAMA_2) == 4096
    # what is absent has transformers' defaults
    assert llama.import_config({"model_type": "llama"}) == dataclasses.replace(
        config, norm_eps=1e-6
    )


@pytest.mark.parametrize(
    ("spelling", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 500000.0}, 500000.0),
        ({"rope_theta": 500000.0, "rope_scaling": None}, 500000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0),
        ({"rope_theta": 500.0, "rope_parameters": {"rope_theta": 500.0}}, 500.0),
        ({"rope_theta": 500.0, "rope_scaling": {"rope_type": "default"}}, 500.0),
    ],
)
def test_theta_is_read_where_transformers_4_and_5_write_it(spelling, theta):
    assert llama.import_config(PLAIN | spelling).attention.theta == theta


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling has type = 'linear'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            "rope_parameters has rope_type = 'llama3'",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "factor = 2.0"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            "rope_theta is 10000.0 and rope_parameters.rope_theta is 500000.0; they must be equal",
        ),
        ({"rope_theta": 0.0}, "model.attention.theta is 0.0; it must be above 0"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"hidden_act": "quick_gelu"}, "hidden_act .* 'quick_gelu'; it must be one of silu, "),
        ({"head_dim": 16}, "head_dim is 16 and num_attention_heads 4; .* hidden_size, which is 16"),
        ({"num_key_value_heads": 3}, "num_groups is 3, which does not divide"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None},
            "model.dim is 16, which does not",
        ),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"hidden_size": 0}, ""),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(change, named):
    with pytest.raises(UserError, match=f"can't be converted: .*{named}"):
        llama.import_config(PLAIN | change)


@pytest.mark.parametrize("theirs", ["gelu", "gelu_new", "gelu_pytorch_tanh", "swish", "relu2"])
def test_other_activations_that_we_have_are_read(theirs):
    config = llama.import_config(FIELDS | {"hidden_act": theirs})
    written = llama.export_config(config, 64)
    assert llama.import_config(written) == config


def test_biases_of_attention_and_of_the_feed_forward_layer_go_both_ways(tmp_path):
    mixers = {
        "attention": dataclasses.replace(MODELS["llama"].attention, bias=True),
        "mlp": dataclasses.replace(MODELS["llama"].mlp, bias=True),
    }
    run = random_run(tmp_path / "run", dataclasses.replace(MODELS["llama"], mixers=mixers))
    export_checkpoint(run, str(tmp_path / "theirs"))
    first, second = open_checkpoint(run), open_checkpoint(str(tmp_path / "theirs"))
    assert second.config.model.attention.bias and second.config.model.mlp.bias
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)


@pytest.mark.parametrize("stored", ["both", "embedding alone"])
def test_tied_embeddings_are_stored_once_or_twice(tmp_path, stored):
    """transformers stores them once."""
    _, fields, tensors, tokens, _ = frozen("llama")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    untied = open_checkpoint(write_folder(tmp_path / "untied", fields, tensors))
    if stored != "both":
        del tensors["lm_head.weight"]
    tied = write_folder(tmp_path / "tied", fields | {"tie_word_embeddings": True}, tensors)
    opened = open_checkpoint(tied)
    assert opened.config.model.tie_embeddings and "lm_head" not in opened.params
    np.testing.assert_allclose(
        logits_of(opened, tokens), logits_of(untied, tokens), rtol=1e-6, atol=1e-6
    )
    out = exported(llama.FORMAT, opened.config.model, opened.params)
    np.testing.assert_array_equal(out["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_rotary_frequencies_that_old_versions_stored_are_left_out(tmp_path):
    _, fields, tensors, tokens, logits = frozen("llama")
    old = {
        f"model.layers.{number}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)
        for number in range(2)
    }
    opened = open_checkpoint(write_folder(tmp_path / "theirs", fields, tensors | old))
    np.testing.assert_allclose(logits_of(opened, tokens), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm": "layer"}, "norm = 'layer'"),
        ({"positions": "learned", "max_positions": 8}, "positions = 'learned'"),
        ({"attention": {"theta": None}}, "theta = None; the format has rotary"),
        ({"mlp": {"gated": False}}, "gated = False"),
        ({"blocks": "attention+mlp,mlp", "num_blocks": 2}, "blocks 'mlp'; the format has"),
    ],
)
def test_a_model_that_is_no_llama_is_refused(change, reason):
    model = MODELS["llama"]
    mixers = {
        name: dataclasses.replace(section, **change.get(name, {}))
        for name, section in model.mixers.items()
    }
    own = {key: value for key, value in change.items() if key not in mixers}
    with pytest.raises(UserError, match=reason):
        llama.export_config(dataclasses.replace(model, mixers=mixers, **own), 64)
