"""Texts in, texts out: prompts of different lengths, stop strings, streaming, and sessions that can
be continued or forked.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.decoding import decode, row_keys
from xlstm_jax.generation.sampling import UNCHANGED, Sampling
from xlstm_jax.generation.session import NOTHING, Session, Tail, widened
from xlstm_jax.generation.text import CONTEXT, UNFINISHED_TOKENS, TextStream, continuing

BLOCK = 16  # tokens that the device writes before the host looks at them
# Tokens at the end of a call that are not given out in full: at most one for each byte of a stop
# string that they may begin, and an unfinished character at each end.
BEYOND_A_STOP_STRING = 2 * UNFINISHED_TOKENS
SEEDS = 2**32
CACHE_LENGTH = 4096  # tokens; the keys and values of one text in a model of 1.3B: 1.5 GiB

OnText = Callable[[int, str], None]


class Written(NamedTuple):
    """What `Generator.write` wrote, row by row.

    Attributes:
        texts: without stop strings and end-of-text tokens. What could not be shown yet at the end,
            an unfinished character or the beginning of a stop string, begins the text that the
            session's next `write` returns; `Generator.held` has it where none follows.
        tokens: all of them, stop tokens and those of stop strings included.
        ended: whether a row ended by itself; else it reached the wanted number of tokens.
        session: after exactly these tokens, so that reading or writing can go on.
    """

    texts: list[str]
    tokens: list[list[int]]
    ended: list[bool]
    session: Session

    def __repr__(self) -> str:
        """Without the arrays of the session, which are millions of numbers."""
        counts = [len(row) for row in self.tokens]
        return f"Written(texts={self.texts!r}, tokens in each={counts}, ended={self.ended})"


class Generator:
    """A model, its parameters and its tokenizer.

        generator = Generator(model, params, tokenizer)
        written = generator.write(generator.read(["def main(", "class "]), 100, seeds=[1, 2])

    Sessions are immutable: write twice from one, and the prompt is read once;
    `generation.take(session, [0, 0, 0])` makes a batch of three continuations of one prompt.
    """

    def __init__(
        self, model: nn.Module, params: Any, tokenizer: Tokenizer, cache_length: int = CACHE_LENGTH
    ):
        """`cache_length`: tokens of a text that a model with attention can hold; a recurrent one
        holds any number.
        """
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.cache_length = cache_length
        self._continuing = continuing(tokenizer)

    def read(self, texts: Sequence[str], session: Session | None = None) -> Session:
        """The session after the texts: new documents, each begun by an end-of-text token, or the
        given session's rows continued.

        Raises:
            UserError: a text outgrows what the model can hold.
        """
        return self.read_tokens(self.tokens_of(texts, session), session)

    def tokens_of(self, texts: Sequence[str], session: Session | None = None) -> list[list[int]]:
        """The tokens that `read` reads."""
        end = self.tokenizer.end_of_text
        if session is None:
            return [[end, *self.tokenizer.encode(text).tolist()] for text in texts]
        prompts = []
        for text, (context, unshown) in zip(texts, self._last_tokens(session.tail), strict=True):
            begins_document = not (context or unshown)
            tokenizer = self.tokenizer if begins_document else self._continuing
            prompts.append(tokenizer.encode(text).tolist())
        return prompts

    def read_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        session: Session | None = None,
        *,
        cache_length: int | None = None,
    ) -> Session:
        """The same for tokens, with nothing put before them; `cache_length` of new documents is the
        generator's where none is given.
        """
        cache_length = cache_length or self.cache_length
        return sessions.read(self.model, self.params, prompts, session, cache_length=cache_length)

    def check_room(self, session: Session | None, more: Sequence[int]) -> None:
        """Raises `UserError` where rows with so many more tokens would outgrow what the model can
        hold.
        """
        config = self.model.config
        if session is None:
            room = sessions.room_of(config, self.cache_length)
            sessions.check_room(config, [0] * len(more), [room] * len(more), more)
        else:
            sessions.check_room(config, session.position, session.room, more)

    def write(
        self,
        session: Session,
        max_new_tokens: int,
        *,
        sampling: Sampling = UNCHANGED,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        stop_at_end_of_text: bool = True,
        on_text: OnText | None = None,
    ) -> Written:
        """Up to `max_new_tokens` tokens for every row.

        Writing in several calls gives the same as writing in one: tokens, texts, and where they
        end.

        Args:
            seeds: one per row, from 0 to 2^32 - 1, which with the row's position decides all
                draws; default: 0, 1, 2, ...
            stop: a row ends when its text has one of these.
            on_text: called with (row, text) as text becomes final, in pieces of whole characters.
        """
        rows = len(session.position)
        self.check_room(session, [max_new_tokens] * rows)
        seeds = range(rows) if seeds is None else seeds
        if len(seeds) != rows:
            raise UserError(f"{len(seeds)} seeds are given for {rows} texts; give one for each")
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise UserError(f"seed {seed} can't be used; give one from 0 to {SEEDS - 1:,}")
        if sampling.num_choices is None:
            sampling = Sampling(**{**vars(sampling), "num_choices": self.tokenizer.vocab_size})
        stop_tokens = (self.tokenizer.end_of_text,) if stop_at_end_of_text else ()
        may_end = stop_at_end_of_text or any(stop)
        longest = max((len(string.encode()) for string in stop), default=0)
        tail = widened(session.tail, CONTEXT + BEYOND_A_STOP_STRING + longest)
        session, most_unshown = session._replace(tail=tail), tail.tokens.shape[1] - CONTEXT

        def show(row: int) -> Callable[[str], None]:
            return (lambda text: on_text(row, text)) if on_text else (lambda text: None)

        texts = [
            _Row(stream, stop_tokens, show(number))
            for number, stream in enumerate(self._streams(session.tail, stop))
        ]
        ended, keys, written = np.array([row.stopped for row in texts]), row_keys(seeds), 0
        while written < max_new_tokens and not ended.all():
            before, count = session, min(BLOCK, max_new_tokens - written)

            def decoded(limits: list[int], before=before, ended=ended) -> tuple[Any, ...]:
                return decode(
                    self.model,
                    self.params,
                    before,
                    keys,
                    jnp.asarray(ended),
                    jnp.asarray(limits, jnp.int32),
                    space=BLOCK,
                    sampling=sampling,
                    stop_tokens=stop_tokens if may_end else None,
                )

            session, block, ended_by_token = decoded([count] * rows)
            block = [
                [token for token in row if token != NOTHING] for row in np.asarray(block).tolist()
            ]
            accepted = [row.add(tokens) for row, tokens in zip(texts, block, strict=True)]
            if any(kept < len(tokens) for kept, tokens in zip(accepted, block, strict=True)):
                # A stop string ended a row inside the block. The same program writes the block
                # again, up to there: the same tokens, as their keys are the same.
                session, _, _ = decoded(accepted)
            ended = np.asarray(ended_by_token) | np.array([row.stopped for row in texts])
            written += count
        unshown = [
            row.end(is_ended, most_unshown) for row, is_ended in zip(texts, ended, strict=True)
        ]
        counts, given = (jnp.asarray(column, jnp.int32) for column in zip(*unshown, strict=True))
        return Written(
            [row.stream.text for row in texts],
            [row.tokens for row in texts],
            ended.tolist(),
            session._replace(tail=session.tail._replace(unshown=counts, given=given)),
        )

    def held(self, session: Session) -> list[str]:
        """What each row wrote last and no text has had yet: to be shown where nothing follows."""
        streams = self._streams(session.tail, ())
        for stream in streams:
            stream.finish()
        return [stream.text for stream in streams]

    def _streams(self, tail: Tail, stop: Sequence[str]) -> list[TextStream]:
        """Each row's text where it goes on."""
        given = np.asarray(tail.given).tolist()
        return [
            TextStream(self.tokenizer, stop, context, unshown, characters)
            for (context, unshown), characters in zip(self._last_tokens(tail), given, strict=True)
        ]

    def _last_tokens(self, tail: Tail) -> list[tuple[list[int], list[int]]]:
        """Of each row the last tokens of its document that were given out as text, and those that
        were not.
        """
        tokens, unshown, _ = jax.device_get(tail)
        rows = []
        for row, count in zip(tokens.tolist(), unshown.tolist(), strict=True):
            border = len(row) - count
            context = row[max(0, border - CONTEXT) : border]
            starts = [
                place + 1
                for place, token in enumerate(context)
                if token in (NOTHING, self.tokenizer.end_of_text)
            ]
            rows.append((context[max(starts, default=0) :], row[border:]))
        return rows


class _Row:
    """One text as it grows; what can be shown goes to `on_text`."""

    def __init__(
        self, stream: TextStream, stop_tokens: tuple[int, ...], on_text: Callable[[str], None]
    ):
        self.stream, self.tokens = stream, []
        self._stop_tokens, self._on_text = stop_tokens, on_text
        self._show(stream.text)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.stream.ending is not None

    def add(self, tokens: Sequence[int]) -> int:
        """How many of the tokens belong to the text: all, or those up to its end."""
        for number, token in enumerate(tokens, 1):
            if self.stopped:
                return number - 1
            self.tokens.append(token)
            if token not in self._stop_tokens:
                self._show(self.stream.add(token))
        return len(tokens)

    def end(self, ended: bool, most_unshown: int) -> tuple[int, int]:
        """Ends this call's part of the text; returns what the session has to know of it: how many
        of its last tokens are not given out in full, and how many of their characters are.
        """
        count, given = self.stream.unshown()
        # More than the session keeps: tokens without any text. They are not waited for.
        if not ended and count <= most_unshown:
            return count, given
        self._show(self.stream.finish())
        return 0, 0

    def _show(self, text: str) -> None:
        if text:
            self._on_text(text)
