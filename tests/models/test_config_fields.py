"""Every field of `ModelConfig` changes the model or is refused; dropout acts in training only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax import config_checks
from xlstm_jax.config import Config, ModelConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models import build_model

BASE = {
    "paper": ModelConfig(dim=16, num_blocks=4, num_heads=2, vocab_size=23, slstm_positions=(1,)),
    "7b": ModelConfig(dim=16, num_blocks=4, num_heads=2, vocab_size=23, block="7b"),
    "slstm": ModelConfig(dim=16, num_blocks=2, num_heads=2, vocab_size=23, ratio="0:1"),
}

CHANGES = {
    "vocab_size": 29,
    "dim": 24,
    "num_blocks": 6,
    "num_heads": 4,
    "block": "7b",
    "ratio": "1:1",
    "slstm_positions": (0,),
    "up_factor": 4.0,
    "conv_width": 3,
    "qkv_block_size": 8,
    "qk_factor": 1.0,
    "ffn_factor": 8.0,
    "input_gate": "sigmoid",
    "input_gate_bias": -3.0,
    "input_gate_bias_std": 0.4,
    "forget_gate_bias": (1.0, 2.0),
    "slstm_recurrent_init": "uniform",
    "gate_soft_cap": 2.0,
    "logit_soft_cap": 0.5,
    "norm_eps": 1e-1,
    "cell_eps": 0.5,
    "tie_embeddings": True,
    "dropout": 0.5,
    "dtype": "bfloat16",
    "remat": "block",
    "mlstm_backend": "recurrent",
    "slstm_backend": "recurrent",
    "chunk_size": 4,
    "recurrent_gradient_clip": 1e-6,
}

TOKENS = jnp.arange(20).reshape(2, 10)


def fingerprint(config: ModelConfig):
    """The trace of loss and gradient, and its values at the initial parameters (noise on R, which starts at 0)."""
    model = build_model(config)
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))
    variables = jax.tree.map(lambda leaf: leaf + 0.01, variables)

    def loss(variables):
        logits, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.square(logits).sum()

    trace = str(jax.make_jaxpr(jax.value_and_grad(loss))(variables))
    return trace, jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(variables))


@pytest.fixture(scope="module")
def base_fingerprints():
    return {name: fingerprint(config) for name, config in BASE.items()}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
@pytest.mark.parametrize("base", BASE)
def test_each_field_changes_something_or_is_refused(base, field, base_fingerprints):
    changed = dataclasses.replace(BASE[base], **{field: CHANGES[field]})
    if changed == BASE[base]:
        pytest.fail(f"CHANGES[{field!r}] is the value of the base configuration: the test changes nothing")
    try:
        config_checks.check(Config(model=changed))
    except UserError as error:
        assert f"model.{field}" in str(error)
        return
    trace, values = fingerprint(changed)
    base_trace, base_values = base_fingerprints[base]
    same_values = jax.tree.structure(values) == jax.tree.structure(base_values) and all(
        a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(base_values), strict=True)
    )
    assert trace != base_trace or not same_values


def test_dropout_is_off_unless_training(config, random_variables, jitted):
    config = dataclasses.replace(config, dropout=0.5)
    model, variables = jitted(config), random_variables(config)
    without, _ = jitted(dataclasses.replace(config, dropout=0.0)).apply(variables, TOKENS)
    evaluated, _ = model.apply(variables, TOKENS, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(evaluated, without)
    first, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(0)})
    second, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(first - second).max() > 0
