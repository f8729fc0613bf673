"""Text in the terminal.

python -m xlstm_jax.generation --checkpoint=RUN_OR_HF_DIR --prompt="def main("
[--max-new-tokens=200] [--temperature=0.8 ...] python -m xlstm_jax.generation
--checkpoint=RUN_OR_HF_DIR --interactive
"""

import re
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags

from xlstm_jax import command_line, interrupts
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.generator import Generator, Written
from xlstm_jax.generation.sampling import Sampling
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.interop.opening import open_checkpoint

FLAGS = {
    "checkpoint": "folder of a run, of an imported or a Hugging Face model, or a name on the hub (NX-AI/xLSTM-7b)",
    "step": "of a run's checkpoint; the newest one by default",
    "prompt": "text to continue; nothing by default: a new document",
    "interactive": "reads turn after turn from the terminal; the state goes on between turns",
    "max_new_tokens": "200 by default",
    "temperature": "1 by default; 0 takes the most likely token",
    "top_k": "only the k most likely tokens",
    "top_p": "only the most likely tokens that together reach this probability",
    "min_p": "only tokens at least this fraction as likely as the most likely one",
    "repetition_penalty": "above 1: what was read before becomes less likely",
    "seed": "0 by default",
    "samples": "number of continuations, 1 by default; the prompt is read once",
    "stop": "ends the text; \\n is a line feed",
    "session": "file: goes on from it if it exists, and is written at the end",
}
SWITCHES = ("interactive",)


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        values = command_line.parse(_normalised(argv), __doc__, FLAGS)
        checkpoint = command_line.text(values, "checkpoint", "runs/NAME")
        rules = Sampling(
            temperature=_decimal(values, "temperature", 1.0),
            top_k=command_line.number(values, "top_k"),
            top_p=_decimal(values, "top_p", None),
            min_p=_decimal(values, "min_p", None),
            repetition_penalty=_decimal(values, "repetition_penalty", 1.0),
        )
        opened = open_checkpoint(checkpoint, command_line.number(values, "step"))
        generator = Generator(
            opened.model, cast_weights(opened.params, opened.config.model), opened.tokenizer
        )
        if values["interactive"].value:
            _converse(generator, rules, values)
        else:
            _continue(generator, rules, values)

    return command_line.run(command)


def _continue(generator: Generator, rules: Sampling, values: flags.FlagValues) -> None:
    """One prompt, one text or several. Text goes to stdout, numbers to stderr."""
    prompt, samples = values["prompt"].value or "", _count(values, "samples", 1)
    start = time.perf_counter()
    session = _restored(generator, values)
    before = 0 if session is None else int(session.position[0])
    session = jax.block_until_ready(generator.read([prompt], session))
    read_tokens, read_seconds = int(session.position[0]) - before, time.perf_counter() - start
    if samples > 1:
        session = sessions.take(session, [0] * samples)
    print(prompt, end="", flush=True)
    written, seconds = _write(generator, session, rules, values, _count(values, "seed", 0))
    for number, text in enumerate(written.texts[1:], 2):
        print(f"\n--- {number} ---\n{prompt}{text}", end="")
    print(flush=True)
    tokens = sum(map(len, written.tokens))
    print(
        (
            f"[read {read_tokens} tokens in {read_seconds:.2f} s with compilation; wrote {tokens} "
            f"at {tokens / seconds:,.1f} tokens/s]"
        ),
        file=sys.stderr,
    )
    if values["session"].value:
        sessions.save(sessions.take(written.session, [0]), values["session"].value, generator.model)


def _converse(generator: Generator, rules: Sampling, values: flags.FlagValues) -> None:
    """Turn after turn until the input ends; what was read and written stays in the state."""
    session, turn = _restored(generator, values), _count(values, "seed", 0)
    print("a line to go on with; an empty one ends", file=sys.stderr)
    while line := _line():
        session = generator.read([line], session)
        written, seconds = _write(generator, session, rules, values, turn)
        session, turn = written.session, turn + 1
        print(
            (
                f"\n[{len(written.tokens[0]) / seconds:,.1f} tokens/s, "
                f"{int(session.position[0]):,} tokens so far]"
            ),
            file=sys.stderr,
        )
    if session is not None and values["session"].value:
        sessions.save(session, values["session"].value, generator.model)


def _line() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""
    except KeyboardInterrupt:
        interrupts.dealt_with()
        return ""


def _write(
    generator: Generator,
    session: sessions.Session,
    rules: Sampling,
    values: flags.FlagValues,
    seed: int,
) -> tuple[Written, float]:
    """Writes and streams the first row; the seconds that it took, without compilation."""

    def show(row: int, text: str) -> None:
        if row == 0:
            print(text, end="", flush=True)

    stop = values["stop"].value
    options = {
        "sampling": rules,
        "seeds": range(seed, seed + len(session.position)),
        "stop": [stop.replace("\\n", "\n")] if stop else [],
    }
    generator.write(session, 1, **options)  # compiles; the session stays as it is
    start = time.perf_counter()
    written = generator.write(
        session, _count(values, "max_new_tokens", 200), on_text=show, **options
    )
    return written, time.perf_counter() - start


def _restored(generator: Generator, values: flags.FlagValues) -> sessions.Session | None:
    path = values["session"].value
    try:
        open(path, "rb").close() if path else None
    except FileNotFoundError:
        return None
    return sessions.load(path, generator.model) if path else None


def _normalised(argv: Sequence[str]) -> list[str]:
    """--max-new-tokens as --max_new_tokens, and switches without a value."""
    renamed = [
        re.sub(r"^--?[\w-]+", lambda name: "--" + name[0].lstrip("-").replace("-", "_"), argument)
        for argument in argv[1:]
    ]
    return [
        argv[0],
        *(f"{name}=true" if name.removeprefix("--") in SWITCHES else name for name in renamed),
    ]


def _count(values: flags.FlagValues, name: str, default: int) -> int:
    given = command_line.number(values, name)
    return default if given is None else given


def _decimal(values: flags.FlagValues, name: str, default: float | None) -> float | None:
    given = values[name].value
    if given is None:
        return default
    try:
        return float(given)
    except ValueError:
        raise UserError(f"--{name} is {given!r}; it must be a number") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
