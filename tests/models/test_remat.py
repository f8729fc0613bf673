"""`model.remat`: what is kept for the backward pass decides what is computed again; no gradient
changes.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models.test_registry import TOKENS, small, strewn, trees_are_close
from xlstm_jax.errors import UserError
from xlstm_jax.models import build_model
from xlstm_jax.models.config import check_model
from xlstm_jax.models.remat import KEPT, RICHEST_FIRST, names_of, richest_first, stack_of

# everything that has a name, in one block
ALL = small("mlstm+slstm+mlstm_7b+attention+mlp")
IDS = strewn(small("mlstm"))


def gradient_of(config, stacked=False):
    module = build_model(config, stacked=stacked)

    def loss(params):
        logits, _ = module.apply({"params": params}, TOKENS, segments=IDS)
        return (jax.nn.logsumexp(logits, axis=-1) * (IDS >= 0)).mean()

    return jax.value_and_grad(loss)


@functools.cache
def shapes_of(blocks):
    module = build_model(small(blocks))
    return jax.eval_shape(
        lambda: nn.meta.unbox(module.init(jax.random.key(0), TOKENS[:, :1]))["params"]
    )


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), shapes_of(ALL.blocks)
    )


@pytest.fixture(scope="module")
def expected(params):
    return jax.jit(gradient_of(ALL))(params)


@pytest.mark.slow
@pytest.mark.parametrize("remat", RICHEST_FIRST)
def test_no_gradient_changes(remat, params, expected):
    found = jax.jit(gradient_of(dataclasses.replace(ALL, remat=remat)))(params)
    trees_are_close(found, expected, 2e-5)


@functools.cache
def kept(config) -> int:
    """Bytes that wait for the backward pass; nothing is compiled."""
    module = build_model(config)

    def residuals(params):
        def logits(params):
            return module.apply({"params": params}, TOKENS, segments=IDS)[0]

        return jax.tree.leaves(jax.vjp(logits, params)[1])

    leaves = jax.eval_shape(residuals, shapes_of(config.blocks))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


@pytest.mark.slow
def test_each_name_keeps_something_and_the_richest_setting_the_most():
    sizes = {name: kept(dataclasses.replace(ALL, remat=name)) for name in ("block", *KEPT)}
    assert all(size > sizes["block"] for name, size in sizes.items() if name != "block")
    ladder = [kept(dataclasses.replace(ALL, remat=remat)) for remat in RICHEST_FIRST]
    assert ladder == sorted(ladder, reverse=True) and len(set(ladder)) == len(ladder)
    assert ladder[0] < kept(ALL)  # "none"


def scans(config) -> int:
    """Loops over the tokens in the gradient's program."""
    return str(jax.make_jaxpr(gradient_of(config))(shapes_of(config.blocks))).count(" scan[")


@pytest.mark.parametrize("name", ["mlstm", "slstm", "mlstm_7b"])
def test_a_cell_that_is_kept_is_not_computed_again(name):
    remats = {remat: scans(small(name, remat=remat)) for remat in ("none", "cell", "block")}
    assert remats["none"] == remats["cell"] < remats["block"]


def test_what_enters_a_kept_cell_is_not_kept_with_it():
    """q, k and v go round the cell's name."""
    sizes = [kept(small("mlstm_7b", remat=remat)) for remat in ("cell", "cell+qkv")]
    rows, dim = TOKENS.size, ALL.dim
    assert sizes[1] - sizes[0] == 4 * rows * (2 * dim // 2 + 2 * dim)  # q, k, v and output gate


def test_what_cannot_be_kept_is_refused_by_its_name():
    assert names_of("cell + qkv") == ("cell", "qkv")
    with pytest.raises(UserError, match=r"model.remat is 'cell\+qvk', of which 'qvk' is nothing"):
        check_model(small("mlstm", remat="cell+qvk"))
    with pytest.raises(UserError, match="'block' is nothing that can be kept"):
        check_model(small("mlstm", remat="block+cell"))


def test_only_a_gpu_has_kept_blocks_one_by_one(monkeypatch):
    layout = (("mlstm",),) * 6

    def is_stacked(remat, number=6):
        return stack_of(layout[:1] * number, remat, stacked=True).is_stacked

    assert is_stacked("cell+qkv") and richest_first(layout) == RICHEST_FIRST
    monkeypatch.setattr("xlstm_jax.models.remat.platform", lambda: "gpu")
    assert not is_stacked("cell+qkv") and not is_stacked("none")
    assert richest_first(layout) == ("none", *RICHEST_FIRST)
    assert is_stacked("block") and is_stacked("auto") and is_stacked("cell+qkv", 96)
