"""The maps to and from the originals: frozen logits, round trips, refusals. `make parity` compares with the living originals."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.config import ModelConfig
from xlstm_jax.errors import UserError
from xlstm_jax.interop import large, mapping, paper
from xlstm_jax.models import build_model

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
KINDS = {"paper": paper, "large": large}


def read(name: str):
    """(config, tensors, tokens, logits) of a frozen original."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        values = json.loads(str(file["config"]))
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        tensors = {key.removeprefix("tensor/"): file[key] for key in file.files if key.startswith("tensor/")}
        return ModelConfig(**values), tensors, file["tokens"], file["logits"]


def shapes_of(config: ModelConfig):
    init = build_model(config).init
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))["params"]


def import_params(name: str, config: ModelConfig, tensors):
    return mapping.import_params(KINDS[name].table(config), config, tensors, shapes_of(config))


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_the_originals(name):
    config, tensors, tokens, logits = read(name)
    ours, _ = jax.jit(build_model(config).apply)({"params": import_params(name, config, tensors)}, tokens)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_ours_to_theirs_to_ours_is_the_same(name):
    config, _, _, _ = read(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape).astype(np.float32), shapes_of(config))
    tensors = mapping.export_params(KINDS[name].table(config), config, params)
    jax.tree.map(np.testing.assert_array_equal, import_params(name, config, tensors), params)


@pytest.mark.parametrize("name", KINDS)
def test_theirs_to_ours_to_theirs_is_the_same(name):
    config, tensors, _, _ = read(name)
    exported = mapping.export_params(KINDS[name].table(config), config, import_params(name, config, tensors))
    assert exported.keys() == tensors.keys()
    for key, tensor in tensors.items():
        residual = name == "paper" and "norm" in key  # w is kept as 1 + w, which rounds
        np.testing.assert_allclose(exported[key], tensor, rtol=0, atol=1e-7 if residual else 0, err_msg=key)


@pytest.mark.parametrize("name", KINDS)
def test_what_does_not_fit_is_named(name):
    config, tensors, _, _ = read(name)
    first, second, *_ = tensors
    wrong = {key: value for key, value in tensors.items() if key != first} | {"extra.weight": np.zeros(3)}
    with pytest.raises(UserError, match=f"{first} is missing; extra.weight is unknown"):
        import_params(name, config, wrong)
    with pytest.raises(UserError, match=f"{second} has shape \\(7,\\) instead of"):
        import_params(name, config, {**tensors, second: np.zeros(7)})


@pytest.mark.parametrize("name", KINDS)
def test_configurations_go_there_and_back(name):
    config, _, _, _ = read(name)
    if name == "large":
        assert large.import_config(large.export_config(config)) == config
    else:
        assert paper.import_config(paper_fields(config)) == config


def paper_fields(config: ModelConfig) -> dict:
    """What `dataclasses.asdict` of their configuration has beside the fields that are exported."""
    fields = paper.export_config(config, context_length=80)
    fields |= {"bias": False, "add_post_blocks_norm": True, "add_embedding_dropout": False}
    fields["slstm_block"]["slstm"] |= {"function": "slstm", "group_norm_weight": True, "dropout": config.dropout}
    return fields


def test_a_configuration_without_a_field_is_refused():
    fields = large.export_config(read("large")[0])
    del fields["hidden_size"]
    with pytest.raises(UserError, match="no field 'hidden_size'"):
        large.import_config(fields)
    fields = paper_fields(read("paper")[0])
    del fields["slstm_block"]["slstm"]["num_heads"]
    with pytest.raises(UserError, match="no field 'num_heads'"):
        paper.import_config(fields)


@pytest.mark.parametrize(("field", "value"), [("use_bias", True), ("weight_mode", "fused"), ("v_dim_factor", 2.0)])
def test_a_large_configuration_without_counterpart_is_refused(field, value):
    config, _, _, _ = read("large")
    with pytest.raises(UserError, match=f"{field} = {value!r}; only"):
        large.import_config({**large.export_config(config), field: value})


def test_a_paper_configuration_without_counterpart_is_refused():
    config, _, _, _ = read("paper")
    with pytest.raises(UserError, match="bias = True"):
        paper.import_config({**paper_fields(config), "bias": True})
    fields = paper_fields(config)
    fields["slstm_block"]["slstm"]["num_heads"] = 8
    with pytest.raises(UserError, match="differ in num_heads"):
        paper.import_config(fields)


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [("paper", {"gate_soft_cap": 15.0}, "gate_soft_cap"), ("large", {"logit_soft_cap": None}, "logit_soft_cap")],
)
def test_a_model_that_theirs_can_not_be_is_refused(name, change, field):
    config = dataclasses.replace(read(name)[0], **change)
    with pytest.raises(UserError, match=field):
        paper.export_config(config, 80) if name == "paper" else large.export_config(config)
