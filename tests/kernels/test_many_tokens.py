"""The measure for comparisons over many tokens: it forgives the kink of max(|n·q|, exp(-m)) and
nothing else, and it sees one wrong chunk.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kernels import arguments, cotangents_of, programs, results
from pallas_kernels.testing import many_tokens
from pallas_kernels.testing.many_tokens import STRETCH, Difference
from pallas_kernels.testing.specs import Spec

SPEC = Spec("2x16x16-T1024", 1024, 16, 16, B=2, state=False)
NAMES = ("h", "dq", "dk", "dv", "di", "df")


@pytest.fixture(scope="module")
def forms():
    """Results of the XLA form with two chunk lengths, in bfloat16."""
    inputs, cotangent = arguments(SPEC)
    both = cotangents_of(SPEC, inputs, cotangent)
    return [
        results(programs(SPEC, "chunkwise", chunk_size=size)[1], inputs, both) for size in (64, 128)
    ]


def test_two_right_forms_are_within_the_limits(forms):
    difference = many_tokens.difference(SPEC, *forms)
    assert difference.within(many_tokens.limits(SPEC)), difference
    assert min(difference) > 0


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_chunk_is_seen(forms, name):
    """64 tokens of one row and head are halved: of 4,096, and the overall norm alone would hide
    them among a million.
    """
    array, middle = NAMES.index(name), slice(6 * STRETCH, 7 * STRETCH)
    spoilt = tuple(
        tuple(x.at[1, middle, 0].multiply(0.5) if i == array else x for i, x in enumerate(arrays))
        for arrays in forms[0]
    )
    difference = many_tokens.difference(SPEC, spoilt, forms[1])
    assert difference.stretch > many_tokens.limits(SPEC).stretch, difference
    assert not difference.within(many_tokens.limits(SPEC))


def test_what_is_no_number_is_seen(forms):
    (h, *rest), masked = forms[0]
    spoilt = ((h.at[0, 5, 0, 0].set(jnp.nan), *rest), masked)
    assert math.isnan(many_tokens.difference(SPEC, spoilt, forms[1]).overall)
    assert not Difference(0.0, math.nan, 0.0).within(Difference(1.0, 1.0, 1.0))


def test_the_distance_to_the_kink_is_that_of_the_paper_s_equations():
    """n = f n + i k and |n·q| against 1, in float64 and without a stabiliser."""
    q, k, _, i, f = arguments(SPEC.but(T=40, dtype="float32"))[0]
    distance = many_tokens.kink_distance(q, k, i, f)
    q, k, i, f = (np.asarray(x, np.float64) for x in (q, k, i, f))
    n, expected = 0, []
    for t in range(40):
        n = n / (1 + np.exp(-f[:, t, :, None])) + np.exp(i[:, t, :, None]) * k[:, t]
        expected.append(np.abs(np.log(np.abs((n * q[:, t]).sum(-1)) / 4)))
    np.testing.assert_allclose(distance, np.stack(expected, 1), rtol=0, atol=1e-9)


def test_tokens_at_the_kink_get_no_gradient_and_others_keep_it():
    """One token with q·k = sqrt(K) and i = 0: |n·q| = exp(-m) exactly; the other head's is twice
    that.
    """
    one = jnp.full((1, 1, 2, 16), 0.5).at[0, 0, 1].mul(2)
    zeros = jnp.zeros((1, 1, 2))
    got = many_tokens.away_from_kink(SPEC, (one, jnp.full_like(one, 0.5), one, zeros, zeros), one)
    np.testing.assert_array_equal(got[0, 0, :, 0], [0, 1])
    sigmoid = SPEC.but(input_gate="sigmoid")
    assert many_tokens.away_from_kink(sigmoid, (), one) is one


def test_a_form_on_the_other_side_of_the_kink_is_right(forms):
    """h·0.97 at one token's gradients, as a flipped branch gives them, where dh is 0: only the
    cotangent without the kink decides about the largest entry.
    """
    (everything, masked) = forms[0]
    flipped = [x.at[0, 100, 0].multiply(0.8) if x.ndim == 4 else x for x in everything]
    difference = many_tokens.difference(SPEC, (tuple(flipped), masked), forms[1])
    assert difference.within(many_tokens.limits(SPEC)), difference


def test_the_slstm_is_compared_without_stretches():
    spec = Spec("slstm", 8, 0, 8, B=1, state=False)
    x = jax.random.normal(jax.random.key(0), (1, 8, 2, 8))
    difference = many_tokens.difference(spec, ((x,), (1.1 * x,)), ((x,), (x,)))
    assert difference == pytest.approx((0.1, 0.0, 0.0))
