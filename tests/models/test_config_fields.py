"""Every setting of a model changes the program or is refused; dropout acts in training only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig, SequenceModel, build_model, mixers
from xlstm_jax.models.config import check_model, model_keys, read_model

SMALL = {"dim": 16, "num_blocks": 1, "vocab_size": 23}
# by mixer, a stack that has it
BASES = {name: SMALL | {"blocks": name} for name in mixers.names()} | {
    "mlstm": SMALL | {"blocks": "mlstm", "mlstm": {"num_heads": 2}},
    "mlstm_7b": SMALL
    | {"blocks": "mlstm_7b", "mlstm_7b": {"num_heads": 2, "qk_factor": 0.5}, "norm": "rms"},
    "slstm": SMALL | {"blocks": "slstm", "slstm": {"num_heads": 2}},
    "attention": SMALL | {"blocks": "attention", "attention": {"num_heads": 2}},
    "rwkv5": SMALL | {"blocks": "rwkv5", "rwkv5": {"head_dim": 8}},
    "rwkv6": SMALL | {"blocks": "rwkv6", "rwkv6": {"head_dim": 8}},
    "retnet": SMALL | {"blocks": "retnet", "retnet": {"num_heads": 2}},
    "hgrn2": SMALL | {"blocks": "hgrn2", "hgrn2": {"head_dim": 8}},
    "gla": SMALL | {"blocks": "gla", "gla": {"num_heads": 2}},
}

# A value other than the default for every key, by its name without the mixer's.
CHANGES = {
    "blocks": "slstm+mlp",
    "vocab_size": 29,
    "dim": 24,
    "num_blocks": 2,
    "norm": "none",
    "norm_bias": True,
    "norm_eps": 1e-1,
    "residual": False,
    "final_norm": False,
    "embedding_norm": True,
    "positions": "learned",
    "max_positions": 40,
    "tie_embeddings": True,
    "dropout": 0.5,
    "logit_soft_cap": 0.5,
    "dtype": "bfloat16",
    "remat": "block",
    "num_heads": 4,
    "num_groups": 1,
    "theta": 10.0,
    "up_factor": 8.0,
    "conv_width": 3,
    "qkv_block_size": 8,
    "qk_factor": 1.0,
    "input_gate": "sigmoid",
    "input_gate_bias": -3.0,
    "input_gate_bias_std": 0.4,
    "forget_gate_bias": (1.0, 2.0),
    "gate_soft_cap": 2.0,
    "eps": 0.5,
    "backend": "recurrent",
    "chunk_size": 4,
    "recurrent_init": "uniform",
    "recurrent_gradient_clip": 1e-6,
    "activation": "relu2",
    "gated": False,
    "factor": 8.0,
    "hidden": 24,
    "round_to": 7,
    "whole_first": True,
    "bias": True,
    "state_dim": 5,
    "rank": 3,
    "step_range": (1e-2, 1e-1),
    "key_factor": 2.0,
    "value_factor": 1.0,
    "head_dim": 4,
    "gate_rank": 5,
    "mix_rank": 5,
    "decay_rank": 5,
    "gate_temperature": 2.0,
    "input_gate_from": "bias",
    "forget_gate_from": "fixed",
    "dense": True,
    "order": 3,
    "filter_hidden": 9,
    "filter_layers": 1,
    "filter_waves": 2,
    "filter_frequency": 3.0,
    "filter_length": 100,
}
# For mixers to which the value above is no change: on a CPU a scan is "recurrent" by itself.
INSTEAD = {(name, "backend"): "associative" for name in ("mamba", "rwkv4", "hgrn")}
INSTEAD |= {("lstm", "forget_gate_bias"): 1.0, ("hyena", "conv_width"): 4}
# Keys that only act together with another one, or on another size.
TOGETHER = {
    "max_positions": {"positions": "learned"},
    "positions": {"max_positions": 40},
    "hidden": {"factor": None},
    "whole_first": {"factor": 4.01},  # 64.16: 64 when cut first, else 128
}
# On a CPU a forced "recurrent" is what the sLSTM takes anyway, and ten tokens are one block, which
# every form of attention takes at once.
NO_CHANGE = {("slstm", "backend"), ("attention", "backend")}

TOKENS = jnp.arange(20).reshape(2, 10)


def traces(config: ModelConfig) -> tuple[str, str]:
    """The programs that initialise the parameters and that compute loss and gradient; nothing is
    compiled.
    """
    return traces_of(build_model(config), TOKENS)


def traces_of(model: nn.Module, x: jax.Array) -> tuple[str, str]:
    def loss(variables):
        y, _ = model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.square(y).sum()

    init, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), x)
    return str(init), str(jax.make_jaxpr(jax.value_and_grad(loss))(nn.meta.unbox(variables)))


base_traces = functools.cache(traces)  # most keys of a mixer have the same base


def changed(mixer: str, changes: dict) -> dict:
    own = {field.name for field in dataclasses.fields(mixers.find(mixer).section)}
    base = BASES[mixer]
    of_mixer = {key: value for key, value in changes.items() if key in own}
    return (
        base
        | {key: value for key, value in changes.items() if key not in own}
        | {mixer: base.get(mixer, {}) | of_mixer}
    )


CASES = [
    (name, field.name) for name in BASES for field in dataclasses.fields(mixers.find(name).section)
]
CASES += [
    ("mlstm", field.name) for field in dataclasses.fields(ModelConfig) if field.name != "mixers"
]


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "key"), sorted(set(CASES) - NO_CHANGE))
def test_each_key_changes_the_program_or_is_refused(mixer, key):
    before = changed(mixer, TOGETHER.get(key, {}))
    value = INSTEAD[mixer, key] if (mixer, key) in INSTEAD else CHANGES[key]
    after = changed(mixer, TOGETHER.get(key, {}) | {key: value})
    assert before != after, f"CHANGES[{key!r}] is the value of the base: the test changes nothing"
    try:
        config = read_model(after)
        check_model(config)
    except UserError as error:
        assert key in str(error)
    else:
        if key not in ("positions", "max_positions"):  # one is refused without the other
            together = {} if key == "hidden" else TOGETHER.get(key, {})
            assert traces(config) != base_traces(read_model(changed(mixer, together)))


@functools.cache
def traces_of_vectors(config: ModelConfig) -> tuple[str, str]:
    return traces_of(SequenceModel(config, outputs=3), jnp.ones((2, 10, 3)))


OWN_KEYS = sorted(field.name for field in dataclasses.fields(ModelConfig) if field.name != "mixers")


@pytest.mark.slow
@pytest.mark.parametrize("key", OWN_KEYS)
def test_each_key_changes_a_model_of_vectors_or_is_refused(key):
    base = SMALL | {"vocab_size": ModelConfig.vocab_size, "mlstm": {"num_heads": 2}}
    try:
        found = traces_of_vectors(read_model(base | {key: CHANGES[key]}))
    except UserError as error:
        assert f"model.{key} is" in str(error)
    else:
        assert found != traces_of_vectors(read_model(base))


@pytest.mark.parametrize(
    "key",
    "vocab_size embedding_norm positions max_positions tie_embeddings logit_soft_cap".split(),
)
def test_a_model_of_vectors_refuses_settings_of_tokens(key):
    config = ModelConfig(**{key: CHANGES[key]})
    with pytest.raises(UserError, match=f"config key model.{key} is .*reads and writes vectors"):
        SequenceModel(config, outputs=3)


@pytest.mark.parametrize("key", ["norm_bias", "norm_eps", "final_norm", "embedding_norm"])
def test_without_norms_their_settings_are_refused(key):
    with pytest.raises(UserError, match=f"config key model.{key} is .*leaves out all norms"):
        check_model(ModelConfig(norm="none", **{key: CHANGES[key]}))
    check_model(ModelConfig(norm="none"))


def test_no_key_is_forgotten():
    names = {key.name.split(".")[-1] for key in model_keys()}
    assert names == CHANGES.keys()
    assert BASES.keys() == set(mixers.names())


def test_every_key_says_what_it_means():
    assert all(key.meaning for key in model_keys())


@pytest.mark.slow
def test_dropout_is_off_unless_training(config, random_variables, jitted):
    config = dataclasses.replace(config, dropout=0.5)
    model, variables = jitted(config), random_variables(config)
    without, _ = jitted(dataclasses.replace(config, dropout=0.0)).apply(variables, TOKENS)
    evaluated, _ = model.apply(variables, TOKENS, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(evaluated, without)
    first, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(0)})
    second, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(first - second).max() > 0
