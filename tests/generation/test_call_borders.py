"""Where one call ends and the next one begins changes nothing: spaces, characters of several
bytes, stop strings, what is streamed.
"""

import asyncio
import concurrent.futures
import logging

import jax
import numpy as np
import pytest

from tests.generation import small_tokenizers
from tests.generation.conftest import initial_params
from tests.generation.test_session import assert_same
from xlstm_jax.command_line import printable
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.generation import Generator, Sampling
from xlstm_jax.generation.session import TAIL
from xlstm_jax.generation.text import TextStream, continuing
from xlstm_jax.models import ModelConfig, build_model

RULES = Sampling(temperature=1.5)
COUNT = 40
STARTS = ("import", "naïve os 漢", "")


@pytest.fixture(scope="module", params=["metaspace", pytest.param("llama", marks=pytest.mark.slow)])
def tokenizer(request, tmp_path_factory):
    return small_tokenizers.load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def writer(tokenizer) -> Generator:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_blocks=1, mixers={"mlstm": {"num_heads": 2}}
    )
    model = build_model(config)
    params = initial_params(model, seed=0)
    # all words are likely, and so are the bytes of some characters
    kernel = params["lm_head"]["kernel"] * 10
    likely = [tokenizer.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é漢".encode()]
    params["lm_head"]["kernel"] = kernel.at[:, [*range(1, 8), *likely]].multiply(3)
    return Generator(model, params, tokenizer)


def written_in(writer, start, parts, seed, stop=()):
    """(text, tokens, ended) of one row, written in calls of so many tokens each."""
    session, text, streamed, tokens, ended = writer.read([start]), "", "", [], False
    for count in parts:
        if ended:
            break

        def on_text(row, new):
            nonlocal streamed
            streamed += new

        written = writer.write(
            session, count, sampling=RULES, seeds=[seed], stop=stop, on_text=on_text
        )
        session, (ended,) = written.session, written.ended
        text, tokens = text + written.texts[0], tokens + written.tokens[0]
    assert streamed == text
    return text + writer.held(session)[0], tokens, ended


@pytest.mark.parametrize("start", STARTS)
def test_prompt_and_text_are_what_their_tokens_are_together(writer, tokenizer, start):
    """A word behind a word has its space, one at the beginning of a document has none."""
    session = writer.read([start])
    for goes_on in ("import os", "é more", "tos", "漢 a b"):
        tokens = tokenizer.encode(goes_on).tolist()
        (stream,) = writer._streams(session.tail, ())
        text = "".join(map(stream.add, tokens)) + stream.finish()
        assert start + text == tokenizer.decode([*tokenizer.encode(start).tolist(), *tokens])
        assert text == (" " + goes_on if start else goes_on)


@pytest.mark.parametrize("parts", [[1] * COUNT, [0, 7, 3, 30]], ids=len)
def test_a_text_written_in_parts_is_the_text_written_at_once(writer, parts):
    for seed, start in enumerate(STARTS):
        whole = written_in(writer, start, [COUNT], seed)
        assert written_in(writer, start, parts, seed) == whole
        for at in (5, 18, 31):
            stop = [whole[0][at : at + 3], "never seen"]
            cut = written_in(writer, start, [COUNT], seed, stop)
            assert cut[2] and cut[0] == whole[0][: whole[0].index(stop[0])]
            assert written_in(writer, start, parts, seed, stop) == cut


def test_a_stop_string_may_be_as_long_as_one_likes(writer):
    """Longer than the tokens that a session keeps by itself."""
    whole, tokens, _ = written_in(writer, "import", [200], 0)
    stop = whole[5:-8]
    cut = written_in(writer, "import", [200], 0, [stop])
    assert cut[0] == whole[:5] and cut[2] and len(cut[1]) > TAIL + 30
    assert tokens[: len(cut[1])] == cut[1]
    assert written_in(writer, "import", [60, 1, 89, 50], 0, [stop]) == cut


def test_a_stop_string_that_the_prompt_begins_is_none_of_the_text():
    stream = TextStream(ByteTokenizer(), ("</s>",), context=b"a</")
    assert "".join(map(stream.add, b"s>b")) == "s>b" and stream.ending is None


@pytest.mark.parametrize(("first", "rest"), [("import", " os"), ("impor", "t os"), ("", "import")])
def test_text_that_is_read_in_parts_has_the_spaces_that_are_in_it(writer, first, rest):
    session = writer.read([rest], writer.read([first]))
    tokens = [token for token in np.asarray(session.tail.tokens)[0].tolist() if token > 0]
    assert writer.tokenizer.decode(np.array(tokens)) == first + rest
    if first != "impor":  # a word that is cut in two has other tokens
        assert_same(session, writer.read([first + rest]))


def test_reading_takes_what_was_held_back_for_shown(writer):
    session = writer.write(writer.read(["import"]), 9, sampling=RULES, seeds=[0]).session
    (last,) = writer.tokenizer.encode("</").tolist()[-1:]
    held = session._replace(tail=session.tail._replace(unshown=session.tail.unshown.at[0].set(1)))
    assert writer.held(held)[0]
    assert writer.held(writer.read([""], held)) == writer.held(held)
    assert writer.held(writer.read_tokens([[last]], held)) == [""]


def test_a_stop_string_that_hits_compiles_nothing(writer, caplog):
    session = writer.read(["import"])
    text, _, _ = written_in(writer, "import", [COUNT], 0)
    writer.write(session, 1, sampling=RULES, seeds=[0], stop=["x"])
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        written = writer.write(session, COUNT, sampling=RULES, seeds=[0], stop=[text[5:8]])
    assert written.ended == [True]
    assert [r.getMessage() for r in caplog.records if "ompiling" in r.getMessage()] == []


def test_one_session_serves_threads_and_coroutines_at_once(writer):
    session = writer.read(["import"])

    def text(seed: int) -> str:
        return writer.write(session, 12, sampling=RULES, seeds=[seed]).texts[0]

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(text, seed) for seed in range(4)))

    expected = [text(seed) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(text, range(4))) == expected
    assert asyncio.run(all_at_once()) == expected


@pytest.mark.slow
def test_a_batch_writes_what_each_writes_alone(writer):
    batch = writer.write(writer.read(list(STARTS)), 20, sampling=RULES, seeds=[0, 1, 2])
    for seed, (start, tokens) in enumerate(zip(STARTS, batch.tokens, strict=True)):
        assert written_in(writer, start, [20], seed)[1] == tokens


@pytest.mark.parametrize("stop", [(), ("</s>",), ("é<",), ("漢</", "b</s")])
@pytest.mark.parametrize("text", ["ab</s>c", "aé</s", "漢</b</s", "🎉🎉", "a<"])
def test_a_stream_may_be_left_after_any_token_and_taken_up(text, stop):
    """Its state is how many tokens are not shown in full, and how much of them is."""
    tokens = list(text.encode())
    whole = TextStream(ByteTokenizer(), stop)
    expected = "".join(map(whole.add, tokens)) + whole.finish()
    for border in range(len(tokens) + 1):
        first = TextStream(ByteTokenizer(), stop)
        shown = "".join(map(first.add, tokens[:border]))
        if first.ending is None:
            count, given = first.unshown()
            before, unshown = tokens[: border - count], tokens[border - count : border]
            second = TextStream(ByteTokenizer(), stop, before, unshown, given)
            shown += second.text + "".join(map(second.add, tokens[border:])) + second.finish()
            assert (second.ending and second.ending.stop) == (whole.ending and whole.ending.stop)
        assert shown == expected


def test_only_tokenizers_that_put_a_space_in_front_have_another_form(tokenizer):
    assert continuing(ByteTokenizer()) == ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("os a")) == "os a"
    assert continuing(tokenizer).encode(" os").tolist() == tokenizer.encode("os").tolist()


def test_control_characters_are_shown_and_not_obeyed():
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[2J\r\x07\x7f\x9b é") == r"\x1b[2J\x0d\x07\x7f\x9b é"
