"""Texts in, texts out: prompts of different lengths, streaming, stops; sessions stand exactly where
the text ends.
"""

import jax
import numpy as np
import pytest

from tests.generation.test_session import assert_same
from xlstm_jax.config import ModelConfig
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.generation import Generator, Sampling, generator, session, take
from xlstm_jax.models import build_model
from xlstm_jax.training.state import init_params

TEXTS = ["ab", "a longer one"]
RULES = Sampling(temperature=2.0, top_k=200)


@pytest.fixture(scope="module")
def texts() -> Generator:
    model = build_model(ModelConfig(vocab_size=257, dim=16, num_blocks=1, num_heads=2))
    params = jax.jit(lambda: init_params(model, seed=0))()
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"] * 20
    return Generator(model, params, ByteTokenizer())


def test_rows_stream_their_text_and_stand_behind_it(texts):
    shown = ["", ""]

    def on_text(row, text):
        shown[row] += text

    written = texts.write(texts.read(TEXTS), 20, sampling=RULES, on_text=on_text)
    assert written.texts == shown
    for row, tokens in enumerate(written.tokens):
        assert len(tokens) == 20 or tokens[-1] == 256
        # an end of text began each
        assert written.session.position[row] == 1 + len(TEXTS[row]) + len(tokens)


def test_seeds_belong_to_rows_and_not_to_places(texts):
    start = texts.read(TEXTS)
    first = texts.write(start, 12, sampling=RULES, seeds=[3, 4])
    second = texts.write(take(start, [1, 0]), 12, sampling=RULES, seeds=[4, 3])
    assert first.tokens == second.tokens[::-1]
    with pytest.raises(UserError, match="seeds"):
        texts.write(start, 5, seeds=[1])
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed {seed} can't be used"):
            texts.write(start, 5, seeds=[1, seed])


@pytest.mark.slow
def test_after_a_stop_string_the_session_has_read_up_to_it_and_no_further(texts):
    start = texts.read(TEXTS)
    free = texts.write(start, 20, sampling=RULES, stop_at_end_of_text=False)
    stop = free.texts[0][5:7]  # somewhere inside the first block
    written = texts.write(start, 20, sampling=RULES, stop=(stop,), stop_at_end_of_text=False)
    assert written.ended[0] and written.texts[0] == free.texts[0][: free.texts[0].index(stop)]
    assert written.tokens[0] == free.tokens[0][: len(written.tokens[0])]
    again = session.read(texts.model, texts.params, written.tokens, start, at_least=generator.BLOCK)
    assert_same(written.session, again)


def test_two_turns_are_one_text(texts):
    first = texts.read(TEXTS)
    both = texts.read(["ab and more", "a longer one goes on"])
    assert_same(texts.read([" and more", " goes on"], first), both)


@pytest.mark.slow
def test_ids_beyond_the_tokenizer_are_never_drawn(texts):
    model = build_model(ModelConfig(vocab_size=320, dim=16, num_blocks=1, num_heads=2))
    padded = Generator(model, jax.jit(lambda: init_params(model, seed=0))(), ByteTokenizer())
    written = padded.write(
        padded.read(["a"] * 8), 16, sampling=Sampling(temperature=50.0), stop_at_end_of_text=False
    )
    drawn = np.array(written.tokens)
    assert drawn.shape == (8, 16) and 200 < drawn.max() <= 256
