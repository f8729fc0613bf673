"""The maps to and from the originals: frozen logits, round trips, refusals. `make parity` compares
with the living originals.
"""

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
from xlstm_jax.interop import large, mapping, paper, tensor_files
from xlstm_jax.models import build_model

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
KINDS = {"paper": paper, "large": large}


def read(name: str):
    """(config, tensors, tokens, logits) of a frozen original."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        values = json.loads(str(file["config"]))
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        tensors = {
            key.removeprefix("tensor/"): file[key]
            for key in file.files
            if key.startswith("tensor/")
        }
        return ModelConfig(**values), tensors, file["tokens"], file["logits"]


def shapes_of(config: ModelConfig):
    init = build_model(config).init
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))[
        "params"
    ]


def import_params(name: str, config: ModelConfig, tensors):
    return mapping.import_params(KINDS[name].table(config), config, tensors, shapes_of(config))


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_the_originals(name):
    config, tensors, tokens, logits = read(name)
    ours, _ = jax.jit(build_model(config).apply)(
        {"params": import_params(name, config, tensors)}, tokens
    )
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_ours_to_theirs_to_ours_is_the_same(name):
    config, _, _, _ = read(name)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 2, leaf.shape).astype(np.float32), shapes_of(config)
    )
    tensors = mapping.export_params(KINDS[name].table(config), config, params)
    jax.tree.map(np.testing.assert_array_equal, import_params(name, config, tensors), params)


@pytest.mark.parametrize("name", KINDS)
def test_theirs_to_ours_to_theirs_is_the_same(name):
    config, tensors, _, _ = read(name)
    table = KINDS[name].table(config)
    params = import_params(name, config, tensors)
    exported = mapping.export_params(table, config, params)
    assert exported.keys() == tensors.keys()
    rounding = mapping.rounding_tensors(table, config)
    assert bool(rounding) == (name == "paper")
    for key, tensor in tensors.items():
        # w is kept as 1 + w, which rounds: another w with the same 1 + w comes back, unless the
        # first one was kept
        if key in rounding:
            np.testing.assert_array_equal(1 + exported[key], 1 + tensor, err_msg=key)
        else:
            np.testing.assert_array_equal(exported[key], tensor, err_msg=key)
    exported = mapping.export_params(table, config, params, {key: tensors[key] for key in rounding})
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)


def test_a_kept_norm_weight_is_used_only_where_it_still_holds():
    config, tensors, _, _ = read("paper")
    table, params = paper.table(config), import_params("paper", config, tensors)
    name, scale = (
        "xlstm_block_stack.post_blocks_norm.weight",
        params["backbone"]["final_norm"]["scale"],
    )
    scale[3] = 1.75
    exported = mapping.export_params(table, config, params, {name: tensors[name]})[name]
    assert exported[3] == 0.75
    np.testing.assert_array_equal(np.delete(exported, 3), np.delete(tensors[name], 3))


@pytest.mark.parametrize("name", KINDS)
def test_what_does_not_fit_is_named(name):
    config, tensors, _, _ = read(name)
    first, second, *_ = tensors
    wrong = {key: value for key, value in tensors.items() if key != first} | {
        "extra.weight": np.zeros(3)
    }
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
    return paper.export_full_config(config, context_length=80)


def test_a_configuration_without_a_field_is_refused():
    fields = paper_fields(read("paper")[0])
    del fields["slstm_block"]["slstm"]["num_heads"]
    with pytest.raises(UserError, match="no field 'num_heads'"):
        paper.import_config(fields)
    fields = large.export_pypi_config(read("large")[0])
    del fields["embedding_dim"]
    with pytest.raises(UserError, match="no field 'embedding_dim'"):
        large.import_pypi_config(fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_bias", True), ("norm_reduction_force_float32", False), ("v_dim_factor", 2.0)],
)
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
    [
        ("paper", {"gate_soft_cap": 15.0}, "gate_soft_cap"),
        ("large", {"logit_soft_cap": None}, "logit_soft_cap"),
    ],
)
def test_a_model_that_theirs_can_not_be_is_refused(name, change, field):
    config = dataclasses.replace(read(name)[0], **change)
    with pytest.raises(UserError, match=field):
        paper.export_config(config, 80) if name == "paper" else large.export_config(config)


def test_fused_tensors_are_the_rows_of_single_ones():
    config, tensors, _, _ = read("large")
    single = [
        tensor_files.Tensor(name, tensor.shape, lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]
    fused = {tensor.name: tensor.make() for tensor in large.fuse(single)}
    assert len(fused) == len(tensors) - 6 * config.num_blocks
    q = tensors["backbone.blocks.0.mlstm_layer.q.weight"]
    np.testing.assert_array_equal(
        fused["backbone.blocks.0.mlstm_layer.qkv_opreact.weight"][: len(q)], q
    )
    split = large.split_fused(config, fused)
    assert split.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(split[name], tensor, err_msg=name)

    del fused["backbone.blocks.0.mlstm_layer.qkv_opreact.weight"]
    fused["backbone.blocks.0.ffn.proj_up_gate_z.weight"] = np.zeros((3, 2))
    with pytest.raises(
        UserError,
        match="qkv_opreact.weight is missing; .*proj_up_gate_z.weight has shape \\(3, 2\\)",
    ):
        large.split_fused(config, fused)


def test_a_weight_mode_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="weight_mode is 'other'"):
        large.import_config({**large.export_config(read("large")[0]), "weight_mode": "other"})
