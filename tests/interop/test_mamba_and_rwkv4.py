"""MambaForCausalLM and RwkvForCausalLM: published fields and names, and what has no counterpart, by
name.
"""

import dataclasses

import numpy as np
import pytest

from tests.interop.test_transformers_formats import MODELS
from tests.interop.transformers_folders import frozen, logits_of, write_folder
from xlstm_jax.errors import UserError
from xlstm_jax.interop import mamba, rwkv4
from xlstm_jax.interop.format import Wish
from xlstm_jax.interop.formats import FORMATS
from xlstm_jax.interop.opening import open_checkpoint

# config.json of the published state-spaces/mamba-130m-hf and RWKV/rwkv-4-169m-pile, shortened
MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "conv_kernel": 4,
    "d_inner": 1536,
    "d_model": 768,
    "expand": 2,
    "hidden_act": "silu",
    "hidden_size": 768,
    "intermediate_size": 1536,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 24,
    "num_hidden_layers": 24,
    "rms_norm": True,
    "state_size": 16,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 48,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 50280,
}
RWKV4 = {
    "architectures": ["RwkvForCausalLM"],
    "attention_hidden_size": 768,
    "context_length": 1024,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "model_type": "rwkv",
    "num_hidden_layers": 12,
    "rescale_every": 6,
    "tie_word_embeddings": False,
    "vocab_size": 50277,
}


def test_published_configurations_are_read():
    config = mamba.import_config(MAMBA)
    assert (config.dim, config.num_blocks, config.vocab_size) == (768, 24, 50280)
    assert (config.norm, config.norm_eps, config.tie_embeddings) == ("rms", 1e-5, True)
    assert config.mamba == type(config.mamba)()  # the defaults are the authors'
    config = rwkv4.import_config(RWKV4)
    assert (config.dim, config.num_blocks, config.vocab_size) == (768, 12, 50277)
    assert (config.norm, config.norm_bias, config.embedding_norm) == ("layer", True, True)
    assert not config.tie_embeddings and config.rwkv4_channel.hidden_dim(768) == 3072
    assert rwkv4.FORMAT.context_length(RWKV4) == 1024


def test_the_old_name_of_mambas_embedding_is_read(tmp_path):
    _, fields, tensors, tokens, logits = frozen("mamba")
    old = {key.replace("embeddings", "embedding"): tensor for key, tensor in tensors.items()}
    assert "backbone.embedding.weight" in old
    opened = open_checkpoint(write_folder(tmp_path / "theirs", fields, old))
    np.testing.assert_allclose(logits_of(opened, tokens), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("published", "change", "named"),
    [
        (MAMBA, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (MAMBA, {"use_conv_bias": False}, "use_conv_bias = False"),
        (MAMBA, {"intermediate_size": 1500}, "intermediate_size is 1500; .* 2 x 768"),
        (MAMBA, {"expand": 1.5, "intermediate_size": 1152}, "expand .* 1.5; it must be a whole"),
        (MAMBA, {"time_step_rank": "many"}, "time_step_rank .* 'many'"),
        (MAMBA, {"state_size": 0}, "model.mamba.state_dim is 0; it must be at least 1"),
        (MAMBA, {"time_step_min": 1.0}, "model.mamba.step_range is .*the shortest first"),
        (RWKV4, {"attention_hidden_size": 512}, "attention_hidden_size is 512; .* which is 768"),
        (RWKV4, {"intermediate_size": 0}, "model.rwkv4_channel.factor is 0"),
        (RWKV4, {"hidden_size": 0, "attention_hidden_size": None}, "model.dim is 0"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(published, change, named):
    module = mamba if published is MAMBA else rwkv4
    with pytest.raises(UserError, match=f"can't be converted: .*{named}"):
        module.import_config(published | change)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mamba", {"norm": "layer"}, "norm = 'layer'"),
        ("mamba", {"mixers": {"mamba": {"up_factor": 1.5}}}, "up_factor = 1.5"),
        ("mamba", {"embedding_norm": True}, "embedding_norm = True"),
        ("mamba", {"blocks": "mamba+mlp"}, "the model has blocks 'mamba.mlp'; the format has mam"),
        ("rwkv4", {"norm_bias": False}, "norm_bias = False"),
        ("rwkv4", {"embedding_norm": False}, "embedding_norm = False"),
        ("rwkv4", {"logit_soft_cap": 30.0}, "logit_soft_cap = 30.0"),
    ],
)
def test_a_model_that_theirs_can_not_hold_is_refused(name, change, reason):
    with pytest.raises(UserError, match=f"can't be converted: .*{reason}"):
        model = dataclasses.replace(MODELS[name], **change)
        FORMATS[name].export_fields(model, Wish(32, "float32", 0))
