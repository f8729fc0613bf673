"""Text streams: whole characters, stop strings never shown, the same text as decoding at once."""

import numpy as np
import pytest

from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.generation.text import TextStream

BYTES = ByteTokenizer()


def stream(text: str | bytes, stop=()) -> tuple[list[str], TextStream]:
    """The pieces shown token by token, without the empty ones."""
    content = text.encode() if isinstance(text, str) else text
    stream = TextStream(BYTES, stop)
    pieces = [stream.add(byte) for byte in content] + [stream.finish()]
    return [piece for piece in pieces if piece], stream


@pytest.mark.parametrize("text", ["plain", "naïve façade", "漢字 and 🎉🎉", ""])
def test_the_pieces_are_whole_characters_and_make_the_text(text):
    pieces, result = stream(text)
    assert "".join(pieces) == result.text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert pieces == list(text)


def test_bytes_that_are_no_text_do_not_hold_the_rest_up():
    pieces, result = stream(b"a\xff\xff\xff\xff\xff\xff\xff\xff\xffbc")
    assert result.text.startswith("a") and result.text.endswith("bc")
    half, _ = stream("é".encode()[:1])
    assert half == ["\N{REPLACEMENT CHARACTER}"]  # shown at the end, when no more can come


def test_a_stop_string_ends_the_text_and_is_not_shown():
    pieces, result = stream("one\n\ntwo", stop=("\n\n", "tw"))
    assert "".join(pieces) == result.text == "one"
    assert result.ending.stop == "\n\n" and result.ending.tokens == 5


def test_what_may_become_a_stop_string_waits_until_it_is_certain():
    pieces, result = stream("a<b</s>c", stop=("</s>",))
    assert pieces == ["a", "<b"]
    assert result.text == "a<b"
    pieces, result = stream("ab</", stop=("</s>",))
    assert pieces == ["a", "b", "</"] and result.ending is None and result.text == "ab</"


def test_the_first_stop_string_in_the_text_counts():
    _, result = stream("xaby", stop=("b", "ab"))
    assert result.text == "x" and result.ending.stop == "ab"


def test_costs_do_not_grow_with_the_text():
    lengths = []

    class Counting:
        def decode(self, ids):
            lengths.append(len(ids))
            return BYTES.decode(np.asarray(ids))

    counting = TextStream(Counting())
    for byte in b"x" * 200:
        counting.add(byte)
    assert max(lengths) <= 16
