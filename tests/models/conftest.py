"""Small models of every block kind, with random values in every parameter."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.models.backbone import growing_mixers

# Every block kind; the convolution absent and present; both input gates. Runs of one and of two
# equal blocks.
CONFIGS = {
    "paper": ModelConfig(
        dim=16,
        num_blocks=3,
        vocab_size=23,
        blocks="slstm+mlp,2*mlstm",
        mixers={"slstm": {"num_heads": 2}, "mlstm": {"num_heads": 2}},
    ),
    "without_conv": ModelConfig(
        dim=16,
        num_blocks=2,
        vocab_size=23,
        blocks="mlstm,slstm+mlp",
        mixers={
            "slstm": {"num_heads": 2, "conv_width": 0},
            "mlstm": {"num_heads": 2, "conv_width": 0},
        },
    ),
    "sigmoid_gate": ModelConfig(
        dim=16,
        num_blocks=1,
        vocab_size=23,
        mixers={"mlstm": {"num_heads": 2, "input_gate": "sigmoid"}},
    ),
    "7b": ModelConfig(
        norm="rms",
        dim=16,
        num_blocks=2,
        vocab_size=23,
        logit_soft_cap=30.0,
        norm_eps=1e-6,
        blocks="mlstm_7b+mlp",
        mixers={
            "mlstm_7b": {"input_gate_bias": 0.0, "input_gate_bias_std": 0.1, "num_heads": 2},
            "mlp": {"activation": "silu", "whole_first": True},
        },
    ),
    "llama": ModelConfig(
        norm="rms",
        dim=16,
        num_blocks=2,
        vocab_size=23,
        blocks="attention+mlp",
        mixers={
            "attention": {"num_heads": 4, "num_groups": 2},
            "mlp": {"activation": "silu", "factor": 8 / 3},
        },
    ),
    "gpt": ModelConfig(
        norm_bias=True,
        dim=16,
        num_blocks=2,
        vocab_size=23,
        blocks="attention+mlp",
        positions="learned",
        max_positions=64,
        tie_embeddings=True,
        mixers={
            "attention": {"num_heads": 2, "theta": None, "bias": True},
            "mlp": {"activation": "gelu_tanh", "gated": False, "factor": 4.0, "bias": True},
        },
    ),
}


# Settings of mixers whose defaults do not fit a model of dim 64.
SETTINGS: dict[str, dict] = {
    "hgrn2": {"head_dim": 16},
    "hyena": {"filter_hidden": 16},
    "rwkv5": {"head_dim": 16},
    "rwkv6": {"head_dim": 16},
}

QUICK = ("paper", "7b", "llama")  # what the others change is between them


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONFIGS]
)
def config(request) -> ModelConfig:
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def random_variables():
    """Function config -> unboxed variables whose every leaf is its initial value plus noise, so
    that nothing is 0 or 1.
    """
    cache = {}

    def make(config: ModelConfig, scale: float = 0.3):
        if (config, scale) not in cache:
            init = jax.jit(build_model(config).init)
            variables = nn.meta.unbox(init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
            leaves, treedef = jax.tree.flatten(variables)
            keys = jax.random.split(jax.random.key(1), len(leaves))
            noisy = [
                leaf + scale * jax.random.normal(key, leaf.shape)
                for key, leaf in zip(keys, leaves, strict=True)
            ]
            cache[config, scale] = jax.tree.unflatten(treedef, noisy)
        return cache[config, scale]

    return make


class Jitted:
    """A model whose `apply` is compiled once per shape."""

    def __init__(self, config: ModelConfig):
        model = build_model(config)
        self.init_state = functools.partial(model.init_state, cache_length=32)
        # what to begin with in order to go on: nothing, but for memories that grow
        self.beginning = self.init_state if growing_mixers(config) else lambda batch_size: None
        self.apply = jax.jit(model.apply, static_argnames="train")


@pytest.fixture(scope="session")
def jitted():
    """Function config -> `Jitted` model."""
    return functools.cache(Jitted)
