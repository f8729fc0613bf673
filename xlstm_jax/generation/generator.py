"""Texts in, texts out: prompts of different lengths, stop strings, streaming, and sessions that can
be continued or forked.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.decoding import NOTHING, decode, row_keys
from xlstm_jax.generation.sampling import UNCHANGED, Sampling
from xlstm_jax.generation.session import Session
from xlstm_jax.generation.text import TextStream
from xlstm_jax.generation.weights import for_steps

BLOCK = 16  # tokens that the device writes before the host looks at them

OnText = Callable[[int, str], None]


class Written(NamedTuple):
    """What `Generator.write` wrote, row by row.

    Attributes:
        texts: without stop strings and end-of-text tokens.
        tokens: all of them, those included.
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

    def __init__(self, model: nn.Module, params: Any, tokenizer: Tokenizer):
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self._for_steps = for_steps(model, params)

    def read(self, texts: Sequence[str], session: Session | None = None) -> Session:
        """The session after the texts: new documents, each begun by an end-of-text token, or the
        given session's rows continued.
        """
        start = [self.tokenizer.end_of_text] if session is None else []
        return self.read_tokens(
            [start + self.tokenizer.encode(text).tolist() for text in texts], session
        )

    def read_tokens(
        self, prompts: Sequence[Sequence[int]], session: Session | None = None
    ) -> Session:
        """The same for tokens, with nothing put before them."""
        return sessions.read(self.model, self.params, prompts, session)

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

        Args:
            seeds: one per row, which with the row's position decides all draws; default: 0, 1, 2,
                ...
            stop: a row ends when its text has one of these.
            on_text: called with (row, text) as text becomes final, in pieces of whole characters.
        """
        rows = len(session.position)
        seeds = range(rows) if seeds is None else seeds
        if len(seeds) != rows:
            raise UserError(f"{len(seeds)} seeds are given for {rows} texts; give one for each")
        if sampling.num_choices is None:
            sampling = Sampling(**{**vars(sampling), "num_choices": self.tokenizer.vocab_size})
        stop_tokens = (self.tokenizer.end_of_text,) if stop_at_end_of_text else ()
        may_end = stop_at_end_of_text or any(stop)
        texts = [_Row(TextStream(self.tokenizer, stop), stop_tokens) for _ in range(rows)]

        def show(row: int) -> Callable[[str], None]:
            return (lambda text: on_text(row, text)) if on_text else (lambda text: None)

        ended, keys, written = np.zeros(rows, bool), row_keys(seeds), 0
        while written < max_new_tokens and not ended.all():
            before, count = session, min(BLOCK, max_new_tokens - written)
            session, block, ended_by_token = decode(
                *self._for_steps,
                session,
                keys,
                jnp.asarray(ended),
                count,
                space=BLOCK,
                sampling=sampling,
                stop_tokens=stop_tokens if may_end else None,
            )
            block = [
                [token for token in row if token != NOTHING]
                for row in np.asarray(block)[:, :count].tolist()
            ]
            accepted = [
                row.add(tokens, show(number))
                for number, (row, tokens) in enumerate(zip(texts, block, strict=True))
            ]
            cut = [kept < len(tokens) for kept, tokens in zip(accepted, block, strict=True)]
            # a stop string inside the block: that row's accepted tokens are read again, from the
            # block's beginning
            if any(cut):
                again = [
                    tokens[:kept] if is_cut else []
                    for tokens, kept, is_cut in zip(block, accepted, cut, strict=True)
                ]
                read_again = sessions.read(self.model, self.params, again, before, at_least=BLOCK)
                session = sessions.merge(cut, read_again, session)
            ended = np.asarray(ended_by_token) | np.array(
                [row.stream.ending is not None for row in texts]
            )
            written += count
        for number, row in enumerate(texts):
            if rest := row.stream.finish():
                show(number)(rest)
        return Written(
            [row.stream.text for row in texts],
            [row.tokens for row in texts],
            ended.tolist(),
            session,
        )


class _Row:
    """One text as it grows."""

    def __init__(self, stream: TextStream, stop_tokens: tuple[int, ...]):
        self.stream, self.tokens, self._stop_tokens = stream, [], stop_tokens

    def add(self, tokens: Sequence[int], on_text: Callable[[str], None]) -> int:
        """How many of the tokens belong to the text: all, or those up to its end."""
        for number, token in enumerate(tokens, 1):
            if self.stream.ending is not None:
                return number - 1
            self.tokens.append(token)
            if token not in self._stop_tokens and (text := self.stream.add(token)):
                on_text(text)
        return len(tokens)
