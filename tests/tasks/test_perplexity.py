"""Perplexity and bits per byte: every token once, sums that do not lose digits."""

import gzip
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import Config, task_of
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import TokenSource, open_split
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import make_mesh
from xlstm_jax.parallel.mesh import MeshConfig
from xlstm_jax.tasks.config import EvalConfig
from xlstm_jax.tasks.evaluation import evaluate, make_eval_step
from xlstm_jax.tasks.perplexity import (
    Perplexity,
    check_scored,
    gzip_bits_per_byte,
    scored_bytes,
)
from xlstm_jax.tasks.task import HeldOut
from xlstm_jax.training.loop import train


class Uniform(nn.Module):
    """Knows nothing: log(257) nats for every token."""

    def hidden(self, tokens, state=None, *, segments=None, train=False):
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


def score(source, reset=False, **keys) -> Perplexity:
    data = DataConfig(reset_at_document=reset)
    task = task_of(Config(data=data, eval=EvalConfig(**keys)))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step, params = make_eval_step(task, Uniform()), {"unused": jnp.zeros(())}
    with jax.set_mesh(mesh):
        totals = evaluate(step, params, task.held_out_of(source), 2, mesh)
    result = task.perplexity(totals)
    assert task.summary(totals) == result.values()
    return result


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


def test_gzip_stands_beside_the_loss_over_the_same_text(source):
    text = b"na\xc3\xafve textanother documentthird"
    whole = 8 * len(gzip.compress(text, 9)) / 32
    assert gzip_bits_per_byte(source, None) == gzip_bits_per_byte(source, 35) == whole
    # ten targets are ten bytes, the twelfth is the end of the first text of eleven
    for max_tokens, size in ((10, 10), (12, 11)):
        expected = 8 * len(gzip.compress(text[:size], 9)) / size
        assert gzip_bits_per_byte(source, max_tokens) == expected


def test_with_resets_first_tokens_count_neither_as_nats_nor_as_bytes(source):
    result = score(source, reset=True, context_length=7)
    assert result.tokens == 32 + 3 - 3  # of each of three texts the first token
    assert result.text_bytes == 32 - 3
    assert result.bits_per_byte == pytest.approx(32 * math.log2(257) / 29, rel=1e-6)
    limited = score(source, reset=True, context_length=7, max_tokens=14)
    # targets: 11 bytes, the end, and the first two bytes of the next text; less two first ones
    assert (limited.tokens, limited.text_bytes) == (12, 11 + 2 - 2)


def test_half_a_character_is_as_many_bytes_as_it_has(tmp_path):
    (tmp_path / "text.txt").write_text("€uro")  # three bytes for its sign
    source = open_split(DataConfig(validation_path=str(tmp_path)), "validation", 320)
    assert [scored_bytes(source, count) for count in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert scored_bytes(source, None, reset_at_document=True) == 5


def test_the_windows_are_told(source):
    assert score(source, context_length=7).context_length == 7
    assert score(source).context_length == DataConfig().context_length


def test_a_notebook_shows_what_people_read():
    result = Perplexity(nats=1301.0, tokens=1000, text_bytes=1000, context_length=64)
    assert repr(result) == (
        "Perplexity(loss 1.301 nats, 1.877 bits per byte, perplexity 3.673; 1,000 tokens in "
        "windows of 64)"
    )
    assert repr(Perplexity(9.0, 10)) == ("Perplexity(loss 0.900 nats, perplexity 2.46; 10 tokens)")


@pytest.mark.parametrize("texts", [["naïve text"], ["a", "b", "c"]])
def test_what_has_no_token_that_counts_is_refused_at_the_start(tmp_path, texts):
    """One token and resets: it is the first of its document."""
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    source = open_split(DataConfig(validation_path=str(tmp_path)), "validation", 320)
    with pytest.raises(UserError, match="no token to score.*raise eval.max_tokens"):
        check_scored(source, 1)
    check_scored(source, 2)
    path = str(tmp_path)
    data = DataConfig(path=path, validation_path=path, context_length=2)
    task_of(Config(data=data, eval=EvalConfig(max_tokens=1))).check()  # without resets all count


def test_training_refuses_it_too(tmp_path):
    (tmp_path / "text.txt").write_text("a text that is longer than a sample")
    text = str(tmp_path / "text.txt")
    data = DataConfig(path=text, validation_path=text, context_length=8, reset_at_document=True)
    with pytest.raises(UserError, match="no token to score"):
        train(Config(data=data, eval=EvalConfig(max_tokens=1)), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_sums_over_batches_are_float64():
    step = jax.jit(lambda params, batch: {"loss": (batch[0, 0], jnp.float32(1))})
    values = (2**24, *[1] * 10)
    nats, tokens = evaluated(step, [np.float32([[value]]) for value in values])["loss"]
    assert (nats, tokens) == (2**24 + 10, 11)  # float32 would have stayed at 2^24


def evaluated(step, batches):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return evaluate(step, None, HeldOut(lambda rows: iter(batches), 1), 1, mesh)


def test_a_batch_is_read_after_the_next_one_was_dispatched():
    events = []

    class Result:
        def __init__(self, number):
            self.number = number

        def __float__(self):
            events.append(("read", self.number))
            return 1.0

    def step(params, batch):
        number = int(batch[0, 0])
        events.append(("dispatched", number))
        return {"loss": (Result(number), 1.0)}

    evaluated(step, [np.array([[number]]) for number in range(3)])
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
    with pytest.raises(UserError, match="nothing to evaluate on"):
        evaluated(None, [])
