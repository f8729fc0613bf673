"""What the layers of a mixer share: one module of the stack makes it, each layer gets its own row
(`Mixer.stack`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.models import ModelConfig, mixers
from xlstm_jax.models.backbone import Backbone
from xlstm_jax.models.mixer import Depth, Mixer


@dataclasses.dataclass(frozen=True)
class NoSettings:
    pass


class Numbers(nn.Module):
    """Rows 1, 2, ..."""

    settings: Any
    dim: int
    count: int

    @nn.compact
    def __call__(self):
        return self.param("numbers", lambda key: jnp.arange(1.0, self.count + 1))


class Digit(nn.Module):
    """Writes the layer's number behind what was written before."""

    settings: Any
    dim: int
    depth: Depth
    train: bool = False

    @nn.compact
    def __call__(self, x, state=None, segments=None, *, share):
        return 10 * x + share, ()


class Nothing(nn.Module):
    settings: Any
    dim: int
    depth: Depth
    train: bool = False

    def __call__(self, x, state=None, segments=None):
        return x, ()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_each_layer_gets_its_row_in_the_order_of_the_stack(monkeypatch, stacked, remat):
    digit = Mixer(NoSettings, Digit, lambda *_: 0, stack=Numbers)
    monkeypatch.setitem(mixers._TABLE, "digit", digit)
    monkeypatch.setitem(mixers._TABLE, "nothing", Mixer(NoSettings, Nothing, lambda *_: 0))
    config = ModelConfig(
        blocks="digit,nothing,digit+digit",
        num_blocks=6,
        dim=2,
        norm="none",
        final_norm=True,
        residual=False,
        dtype="float32",
        remat=remat,
    )
    backbone = Backbone(config, stacked)
    x = jnp.zeros((1, 1, 2))
    variables = nn.meta.unbox(backbone.init(jax.random.key(0), x))
    numbers = variables["params"]["digit_stack"]["numbers"]
    np.testing.assert_array_equal(numbers, np.arange(1, 7))
    y, _ = backbone.apply(variables, x)
    np.testing.assert_array_equal(y, np.full((1, 1, 2), 123456))

    def total(variables):
        return backbone.apply(variables, x)[0].sum()

    gradient = jax.grad(total)(variables)["params"]["digit_stack"]["numbers"]
    np.testing.assert_array_equal(gradient, 2 * 10.0 ** np.arange(5, -1, -1))
