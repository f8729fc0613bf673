"""Causality, and packed documents against separate ones: logits and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

TOKENS = jax.random.randint(jax.random.key(2), (2, 19), 0, 23)


@pytest.mark.slow
def test_no_logit_depends_on_a_later_token(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    logits, _ = model.apply(variables, TOKENS)
    changed, _ = model.apply(variables, TOKENS.at[:, 8].add(1) % 23)
    assert_allclose(changed[:, :8], logits[:, :8], rtol=1e-6, atol=1e-6)
    # ... and every later one on every earlier: the recurrence reaches the end.
    difference = np.abs(changed - logits)[:, 8:].max(axis=-1)
    assert (difference > 0).all()


def per_token_loss(model, variables, tokens, segments=None):
    logits, _ = model.apply(variables, tokens, segments=segments)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), (tokens[..., None] + 1) % 23, axis=-1)[
        ..., 0
    ]


@pytest.mark.slow
def test_packed_documents_equal_separate_ones(config, random_variables, jitted):
    model, variables = jitted(config), random_variables(config)
    borders = [0, 6, 7, 19]
    ids = jnp.asarray(np.repeat([4, 2, 9], np.diff(borders)))[None]
    tokens = TOKENS[:1]

    def packed(variables):
        losses = per_token_loss(model, variables, tokens, ids)
        return losses.sum(), losses

    def separate(variables):
        losses = [
            per_token_loss(model, variables, tokens[:, a:b])
            for a, b in zip(borders, borders[1:], strict=False)
        ]
        losses = jnp.concatenate(losses, axis=1)
        return losses.sum(), losses

    (_, packed_losses), packed_gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))(
        variables
    )
    (_, separate_losses), separate_gradient = jax.jit(jax.value_and_grad(separate, has_aux=True))(
        variables
    )
    assert_allclose(packed_losses, separate_losses, rtol=1e-4, atol=1e-5)
    # Attention does not depend on the keys' bias: its gradient is 0 but for rounding, of which the
    # largest gradient is the scale.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(separate_gradient))
    jax.tree.map(
        lambda a, b: assert_allclose(
            a, b, rtol=1e-3, atol=max(2e-4 * np.abs(b).max(), 1e-7 * largest)
        ),
        packed_gradient,
        separate_gradient,
    )


@pytest.mark.slow
def test_an_earlier_document_does_not_move_a_later_one(config, random_variables, jitted):
    config = dataclasses.replace(config, tie_embeddings=False)  # tied, every row is an output too
    model, variables = jitted(config), random_variables(config)
    ids = jnp.repeat(jnp.array([[1, 2]]), 9, axis=1)
    tokens = TOKENS[:1, :18]

    def second_document(embedding, tokens):
        params = {**variables["params"], "embedding": {"embedding": embedding}}
        return per_token_loss(model, {"params": params}, tokens, ids)[:, 9:].sum()

    embedding = variables["params"]["embedding"]["embedding"]
    other = tokens.at[:, :9].set((tokens[:, :9] + 5) % 23)
    np.testing.assert_array_equal(
        second_document(embedding, tokens), second_document(embedding, other)
    )
    gradient = jax.jit(jax.grad(second_document))(embedding, tokens)
    untouched = np.setdiff1d(np.arange(23), np.asarray(tokens[:, 9:]))
    np.testing.assert_array_equal(gradient[untouched], 0)
