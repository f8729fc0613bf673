"""The processes of a preparation, and the bar that shows what they do."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from xlstm_jax import progress
from xlstm_jax.data.jobs import Done, Settings, run_job
from xlstm_jax.data.sources import InputFile
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.errors import UserError

# The places of the three numbers that all processes share: tokens written, bytes read, and whether
# to stop.
TOKENS, BYTES, STOP = range(3)


class Workers:
    """A context with processes for jobs; a single worker is a thread of this process. Leaving it
    ends the jobs that still run.

    Raises:
        UserError: on leaving it, where a process died.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer, count: int):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker has one core
        context = multiprocessing.get_context("spawn")
        self._counters = context.Array("q", 3)
        if count == 1:
            _worker.update(settings=settings, tokenizer=tokenizer, counters=self._counters)
            self._executor = concurrent.futures.ThreadPoolExecutor(1)
        else:
            arguments = (settings, self._counters, os.getpid())
            self._executor = concurrent.futures.ProcessPoolExecutor(
                count, context, _start_worker, arguments
            )

    def submit(
        self, number: int, files: tuple[InputFile, ...], limit: int | None
    ) -> concurrent.futures.Future[Done]:
        """Has a job run, as `run_job` describes."""
        return self._executor.submit(_run, number, files, limit)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self._counters[STOP] = 1
        self._executor.shutdown(cancel_futures=True)
        if kind is concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                "a worker process died, perhaps for lack of memory; the same command goes on, with "
                "fewer --workers if need be"
            ) from None

    @contextlib.contextmanager
    def bar(self, max_tokens: int | None, total_bytes: int) -> Iterator[Callable[[int, int], None]]:
        """Shows tokens per second and the time left, which the tokens tell where their number is
        given, else the bytes of input.

        Its value is called with the tokens and bytes of each job that was finished earlier.
        """
        counted, total, unit = (
            (BYTES, total_bytes, "bytes") if max_tokens is None else (TOKENS, max_tokens, "tokens")
        )
        earlier, shown, stop, started = [0, 0], 0, threading.Event(), time.monotonic()
        bar = progress.bar(total, "preparing", unit)

        def show() -> None:
            nonlocal shown
            now = min(earlier[counted] + self._counters[counted], total)
            bar.initial = min(earlier[counted], total)
            bar.set_postfix_str(
                f"{self._counters[TOKENS] / (time.monotonic() - started):,.0f} tokens/s",
                refresh=False,
            )
            bar.update(now - shown)
            shown = now

        def keep_showing() -> None:
            while not stop.wait(1.0):
                show()

        def count_earlier(tokens: int, num_bytes: int) -> None:
            earlier[TOKENS] += tokens
            earlier[BYTES] += num_bytes

        thread = threading.Thread(target=keep_showing, daemon=True)
        thread.start()
        try:
            yield count_earlier
        finally:
            stop.set()
            thread.join()
            show()
            bar.close()


_worker: dict[str, Any] = {}  # settings, tokenizer and counters of this process


class _Stopped(Exception):
    """The preparation has ended, or failed elsewhere."""


def _start_worker(settings: Settings, counters: Any, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells what Ctrl-C means
    _worker.update(
        settings=settings, tokenizer=load_tokenizer(settings.tokenizer), counters=counters
    )
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent was killed; otherwise it would wait for ever."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _run(number: int, files: tuple[InputFile, ...], limit: int | None) -> Done:
    counters = _worker["counters"]

    def count(tokens: int, num_bytes: int) -> None:
        with counters.get_lock():
            counters[TOKENS] += tokens
            counters[BYTES] += num_bytes
            if counters[STOP]:
                raise _Stopped

    return run_job(number, files, limit, _worker["settings"], _worker["tokenizer"], count)
