"""Text in the terminal.

    python -m xlstm_jax.generation --checkpoint=RUN_OR_HF_DIR --prompt="def main("
    [--max-new-tokens=200] [--temperature=0.8 ...]
    python -m xlstm_jax.generation --checkpoint=RUN_OR_HF_DIR --interactive

Text goes to stdout, control characters in it as \\x1b; all else to stderr.
"""

import dataclasses
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from xlstm_jax import command_line, interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation import session_files
from xlstm_jax.generation.generator import CACHE_LENGTH, SEEDS, Generator, Written
from xlstm_jax.generation.sampling import Sampling
from xlstm_jax.generation.session import Session
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.installation import module, next_lines, shell_line
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models import ModelConfig
from xlstm_jax.models.backbone import growing_mixers
from xlstm_jax.parallel.xla_flags import WRITING, set_for_gpus
from xlstm_jax.progress import counted

FLAGS = {
    "checkpoint": "folder of a run, of an imported or a Hugging Face model, or a name on the hub "
    "(NX-AI/xLSTM-7b)",
    "step": "of a run's checkpoint; the newest one by default",
    "prompt": "text to continue; nothing by default: a new document",
    "interactive": "reads turn after turn from the terminal; the state goes on between turns. A "
    "--prompt is the first turn",
    "max_new_tokens": "200 by default",
    "temperature": "1 by default; 0 takes the most likely token",
    "top_k": "only the k most likely tokens",
    "top_p": "only the most likely tokens that together reach this probability",
    "min_p": "only tokens at least this fraction as likely as the most likely one",
    "repetition_penalty": "above 1: what was read before becomes less likely",
    "seed": "0 by default",
    "cache_length": f"tokens of a text that a model with attention holds; {CACHE_LENGTH:,} by "
    "default",
    "samples": "number of continuations, 1 by default; the prompt is read once",
    "stop": "ends the text; \\n is a line feed",
    "session": "file: goes on from it if it exists, and is written at the end (of several samples: "
    "the first) or after each turn",
}
SWITCHES = ("interactive",)
YES, NO = ("true", "1", "yes"), ("false", "0", "no")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the command line asks for, checked."""

    checkpoint: str
    step: int | None
    prompt: str
    interactive: bool
    max_new_tokens: int
    rules: Sampling
    seed: int
    cache_length: int | None
    samples: int
    stop: tuple[str, ...]
    session: pathlib.Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the process's exit status."""
    argv = sys.argv if argv is None else argv

    def command() -> None:
        wish = _wish(command_line.parse(_normalised(argv), __doc__, FLAGS))
        set_for_gpus(WRITING)
        stored = None
        if wish.session is not None and wish.session.exists():
            stored = session_files.read_arrays(wish.session)
        opened = open_checkpoint(wish.checkpoint, wish.step, for_text=True)
        params = cast_weights(opened.params, opened.config.model)
        model, origin = opened.model, f"step {opened.step} of {opened.folder}"
        _check_cache_length(wish, opened.config.model, stored)
        cache_length = wish.cache_length or CACHE_LENGTH
        generator = Generator(model, params, opened.tokenizer, cache_length)
        session = None
        if stored is not None:
            session = session_files.restored(stored, wish.session, model, params)
        del opened  # where the weights were cast, the larger ones
        print(f"[{origin}; compiles first]", file=sys.stderr, flush=True)

        def save(session: Session) -> None:
            if wish.session is not None:
                session_files.save(session, wish.session, model, params, origin=origin)

        if wish.interactive:
            _converse(generator, session, wish, save)
        else:
            _continue(generator, session, wish, save)
        if wish.session is not None:
            print(*next_lines(_again(wish)), sep="\n", file=sys.stderr, flush=True)

    return command_line.run(command)


def _again(wish: Wish) -> str:
    """The command that goes on with the text of a session."""
    where = {"checkpoint": wish.checkpoint, "step": wish.step, "session": wish.session}
    return shell_line(module("generation"), *["--interactive"] * wish.interactive, **where)


def _check_cache_length(wish: Wish, model: ModelConfig, stored: Any) -> None:
    """Refuses a --cache-length that would be ignored."""
    if wish.cache_length is None:
        return
    if not growing_mixers(model):
        raise UserError(
            f"--cache-length is {wish.cache_length:,}, but the memory of this model does not grow "
            f"with the text (model.blocks is {model.blocks!r}); leave it out"
        )
    if stored is not None:
        raise UserError(
            f"--cache-length is {wish.cache_length:,}, but the session {str(wish.session)!r} was "
            "begun with its own; leave it out, or give another --session"
        )


def _continue(generator: Generator, session: Session | None, wish: Wish, save: Any) -> None:
    """One prompt, one text or several."""
    start = time.perf_counter()
    before = 0 if session is None else int(session.position[0])
    shown = _held(generator, session) + wish.prompt if wish.prompt else ""
    tokens = generator.tokens_of([wish.prompt], session)
    generator.check_room(session, [len(tokens[0]) + wish.max_new_tokens])
    session = jax.block_until_ready(generator.read_tokens(tokens, session))
    read_tokens, read_seconds = int(session.position[0]) - before, time.perf_counter() - start
    if wish.samples > 1:
        session = sessions.take(session, [0] * wish.samples)
    _show(shown)
    written, seconds = _write(generator, session, wish, wish.seed)
    # Another call with this session shows what is held back, if nothing is read before.
    rest = [""] * wish.samples if wish.session else generator.held(written.session)
    _show(rest[0])
    for number, text in enumerate(written.texts[1:], 2):
        _show(f"\n--- {number} ---\n{shown}{text}{rest[number - 1]}")
    print(flush=True)
    tokens = sum(map(len, written.tokens))
    print(
        f"[read {counted(read_tokens, 'token')} in {read_seconds:.2f} s with compilation; "
        f"wrote {tokens} at {tokens / seconds:,.1f} tokens/s]",
        file=sys.stderr,
    )
    save(sessions.take(written.session, [0]))


def _converse(generator: Generator, session: Session | None, wish: Wish, save: Any) -> None:
    """Turn after turn until the input ends; what was read and written stays in the state.

    The line is shown again before what the model writes behind it: the line feed that ended it on
    the screen is not part of the text.
    """
    print("a line to go on with; an empty one ends", file=sys.stderr)
    for turn, line in enumerate(_turns(wish)):
        shown = _held(generator, session) + line
        tokens = generator.tokens_of([line], session)
        generator.check_room(session, [len(tokens[0]) + wish.max_new_tokens])
        session = generator.read_tokens(tokens, session)
        _show(shown)
        written, seconds = _write(generator, session, wish, (wish.seed + turn) % SEEDS)
        session = written.session
        print(
            f"\n[{len(written.tokens[0]) / seconds:,.1f} tokens/s, "
            f"{counted(int(session.position[0]), 'token')} so far]",
            file=sys.stderr,
            flush=True,
        )
        save(session)
    if session is not None and wish.session is None:
        _show(_held(generator, session))


def _turns(wish: Wish) -> Iterator[str]:
    """The prompt, if there is one, and the input's lines up to an empty one."""
    if wish.prompt:
        yield wish.prompt
    while line := _line():
        yield _checked_text(line, "the line")


def _line() -> str:
    """The next line, without its line feed; "" at the end."""
    prompt = "> "
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(prompt, end="", file=sys.stderr, flush=True)  # stdout is for text alone
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        return ""
    except KeyboardInterrupt:
        interrupts.dealt_with()
        return ""
    except UnicodeDecodeError as error:
        raise _not_utf8("the input", error) from None


def _write(generator: Generator, session: Session, wish: Wish, seed: int) -> tuple[Written, float]:
    """Writes and streams the first row; the seconds that it took, without compilation."""
    options = {
        "sampling": wish.rules,
        "seeds": [(seed + row) % SEEDS for row in range(len(session.position))],
        "stop": wish.stop,
    }
    generator.write(session, 1, **options)  # compiles; the session stays as it is
    start = time.perf_counter()
    written = generator.write(
        session,
        wish.max_new_tokens,
        on_text=lambda row, text: _show(text) if row == 0 else None,
        **options,
    )
    return written, time.perf_counter() - start


def _held(generator: Generator, session: Session | None) -> str:
    """What was written last and not shown, as it could have become something else."""
    return "" if session is None else generator.held(session)[0]


def _show(text: str) -> None:
    print(command_line.printable(text), end="", flush=True)


def _wish(values: flags.FlagValues) -> Wish:
    """All flags, checked before anything is opened."""
    prompt = _checked_text(values["prompt"].value or "", "--prompt")
    stop = _checked_text(values["stop"].value or "", "--stop").replace("\\n", "\n")
    for name in ("stop", "session"):
        if values[name].value == "":
            raise UserError(f"--{name} is empty; give a value or leave it out")
    wish = Wish(
        checkpoint=command_line.text(values, "checkpoint", "runs/NAME"),
        step=_whole(values, "step", None, 0),
        prompt=prompt,
        interactive=_switched(values, "interactive"),
        max_new_tokens=_whole(values, "max_new_tokens", 200, 0),
        rules=Sampling(
            temperature=_decimal(values, "temperature", 1.0),
            top_k=_whole(values, "top_k", None, 1),
            top_p=_decimal(values, "top_p", None),
            min_p=_decimal(values, "min_p", None),
            repetition_penalty=_decimal(values, "repetition_penalty", 1.0),
        ),
        seed=_whole(values, "seed", 0, 0, SEEDS - 1),
        cache_length=_whole(values, "cache_length", None, 1, 2**24),
        samples=_whole(values, "samples", 1, 1, 2**20),
        stop=(stop,) if stop else (),
        session=_session_file(values["session"].value),
    )
    if wish.interactive and wish.samples > 1:
        raise UserError(
            f"--samples is {wish.samples}, but with --interactive there is one text; leave out one "
            f"of the two"
        )
    return wish


def _session_file(name: str | None) -> pathlib.Path | None:
    """Where the session is read from and written to, as far as that can be known beforehand."""
    if name is None:
        return None
    path = pathlib.Path(os.path.expanduser(name))
    if path.is_dir():
        raise UserError(f"--session {name!r} is a folder; give a file, for example {name}/text.npz")
    if path.exists() and not path.is_file():
        raise UserError(f"--session {name!r} is no file that can be written; give another")
    if not path.parent.is_dir():
        raise UserError(
            f"--session {name!r} can't be written: there is no folder {str(path.parent)!r}; make "
            f"it or give another file"
        )
    if not os.access(path.parent, os.W_OK):
        raise UserError(
            f"--session {name!r} can't be written: nothing may be written to {str(path.parent)!r}; "
            f"give another file"
        )
    return path


def _normalised(argv: Sequence[str]) -> list[str]:
    """--max-new-tokens as --max_new_tokens, and switches without a value; values stay as they
    are.
    """
    result, value_follows = list(argv[:1]), False
    for argument in argv[1:]:
        match = re.match(r"--?([A-Za-z][\w-]*)(=|$)", argument)
        if value_follows or not match:
            result.append(argument)
            value_follows = False
            continue
        name = match[1].replace("-", "_")
        rest = argument[match.end(1) :]
        switch = name in SWITCHES and not rest
        result.append(f"--{name}{'=true' if switch else rest}")
        value_follows = name in FLAGS and name not in SWITCHES and not rest
    return result


def _switched(values: flags.FlagValues, name: str) -> bool:
    given = values[name].value
    if given is not None and given.lower() not in YES + NO:
        raise UserError(f"--{name} is {given!r}; write --{name}, or leave it out")
    return given is not None and given.lower() in YES


def _whole(
    values: flags.FlagValues, name: str, default: int | None, least: int, most: int | None = None
) -> int | None:
    given = command_line.number(values, name, least, most)
    return default if given is None else given


def _decimal(values: flags.FlagValues, name: str, default: float | None) -> float | None:
    given = values[name].value
    if given is None:
        return default
    try:
        return float(given)
    except ValueError:
        raise UserError(f"--{name} is {given!r}; it must be a number") from None


def _checked_text(text: str, what: str) -> str:
    """The text, if it is UTF-8: of an argument that is not, Python makes half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _not_utf8(what, error) from None
    return text


def _not_utf8(what: str, error: UnicodeError) -> UserError:
    return UserError(
        f"{what} is not UTF-8: at character {error.start + 1} stands something else; give it in "
        f"UTF-8"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
