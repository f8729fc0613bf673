"""Perplexity and bits per byte: every token once, sums that do not lose digits."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import Config, DataConfig, EvalConfig, MeshConfig
from xlstm_jax.data.loader import TokenSource, open_split
from xlstm_jax.evaluation.perplexity import (
    Perplexity,
    evaluate,
    make_eval_step,
    perplexity_of,
    scored_bytes,
)
from xlstm_jax.parallel import make_mesh


class Uniform(nn.Module):
    """Knows nothing: log(257) nats for every token."""

    def hidden(self, tokens, state=None, *, segment_ids=None, train=False):
        return jnp.zeros((*tokens.shape, 1)), state

    def head_kernel(self):
        return jnp.zeros((1, 257))

    @nn.nowrap
    def logits(self, y, kernel):
        return y @ kernel


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> TokenSource:
    folder = tmp_path_factory.mktemp("text")
    for number, text in enumerate(("naïve text", "another document", "third")):
        (folder / f"{number}.txt").write_text(text)
    config = DataConfig(path="unused", validation_path=str(folder))
    return open_split(config, "validation", 320)


def score(source, **keys) -> Perplexity:
    config = Config(eval=EvalConfig(batch_size=2, **keys))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        return perplexity_of(
            make_eval_step(Uniform(), False),
            {"unused": jnp.zeros(())},
            source,
            config=config,
            mesh=mesh,
        )


@pytest.mark.parametrize("context_length", [1, 5, 7, 64])
def test_every_token_is_scored_once_whatever_the_windows(source, context_length):
    result = score(source, context_length=context_length)
    assert result.tokens == len(source.tokens) - 1 == 32 + 3  # 32 bytes and three ends of text
    assert result.loss == pytest.approx(math.log(257), rel=1e-6)
    assert result.perplexity == pytest.approx(257, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(35 * math.log2(257) / 32, rel=1e-6)


def test_fewer_tokens_count_their_own_bytes(source):
    result = score(source, context_length=4, max_tokens=10)
    assert result.tokens == 10
    assert scored_bytes(source, 10) == 10
    # the first text has 11 bytes, the twelfth token is its end
    assert scored_bytes(source, 12) == 11
    assert scored_bytes(source, None) == scored_bytes(source, 35) == source.bytes == 32


def test_sums_over_batches_are_float64():
    step = jax.jit(lambda params, batch: (batch, jnp.int32(1)))
    batches = [jnp.float32(2**24), *[jnp.float32(1.0)] * 10]
    assert evaluate(step, None, batches).nats == 2**24 + 10  # float32 would have stayed at 2^24


def test_a_batch_is_read_after_the_next_one_was_dispatched():
    events = []

    class Result:
        def __init__(self, number):
            self.number = number

        def __float__(self):
            events.append(("read", self.number))
            return 1.0

        def __int__(self):
            return 1

    def step(params, number):
        events.append(("dispatched", number))
        return Result(number), Result(number)

    evaluate(step, None, range(3))
    assert events == [
        ("dispatched", 0),
        ("dispatched", 1),
        ("read", 0),
        ("dispatched", 2),
        ("read", 1),
        ("read", 2),
    ]


def test_the_line_has_exactly_its_form():
    result = Perplexity(nats=1301.0, tokens=1000, text_bytes=1000)
    assert (
        result.line(2.0812)
        == f"loss 1.301 nats, {1.301 / math.log(2):.3f} bits per byte (gzip -9: 2.08)"
    )
    assert result.line(2.0812) == "loss 1.301 nats, 1.877 bits per byte (gzip -9: 2.08)"
    assert result.line() == "loss 1.301 nats, 1.877 bits per byte"
    assert Perplexity(nats=np.log(9.98) * 5, tokens=5).line() == "loss 2.301 nats, perplexity 9.98"


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        evaluate(None, None, [])
