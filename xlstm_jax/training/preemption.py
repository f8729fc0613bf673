"""SIGTERM, which a scheduler sends before it takes the machines away, and Ctrl-C: all processes
save at the same step and end.
"""

import os
import signal
import threading
from types import FrameType

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from xlstm_jax import interrupts
from xlstm_jax.interrupts import NAMES, STATUS, Preempted

# The key by which jax's preemption service tells all processes that one of them got SIGTERM.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class Preemption:
    """Listens for SIGTERM and Ctrl-C while it is open.

    Before the first step is done, and after the last, there is nothing to save: both end the run at
    once. In between the first signal asks for a save after the step that is being done, a second
    Ctrl-C ends at once. `seconds` after the first signal the process ends, saved or not.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: int | None = None
        self._may_save = False
        self._newest: int | None = None
        self._before: dict[int, object] = {}
        self._ends = jax.process_count() > 1  # nobody ends one of several before the others
        self._rule_before = interrupts.rule_of(signal.SIGTERM)
        self._closed = threading.Event()

    def __enter__(self) -> "Preemption":
        # Other threads than the first may not listen; a notebook's cells run in the first.
        if threading.current_thread() is threading.main_thread():
            listened = [signal.SIGINT]
            if jax.process_count() == 1:  # with several, jax's own service listens
                listened.append(signal.SIGTERM)
            self._before = {number: signal.signal(number, self._ask) for number in listened}
        self._set_rules()
        if jax.process_count() > 1:
            threading.Thread(target=self._await_notice, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._closed.set()
        for number, before in self._before.items():
            signal.signal(number, before)
        self._may_save = False
        self._set_rules()
        # a run that was asked to end has saved, and is not to be ended before it says so
        interrupts.set_rule(signal.SIGTERM, None if self._ends else self._rule_before)

    def saved(self, step: int | None) -> None:
        """This is the newest checkpoint: what the messages name."""
        self._newest = step

    def nothing_to_save(self) -> None:
        """The steps are done and saved: a signal ends the run at once."""
        self._may_save = False
        self._set_rules()

    def reached(self, step: int) -> bool:
        """Whether this is the step to save at and end; true at the same step in all processes,
        whichever got the signal. To be called when a step was dispatched.
        """
        if not self._may_save:
            self._may_save = True
            self._set_rules()
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked is not None

    def ended_at(self, step: int, *, saved: bool) -> Preempted:
        """What the loop raises when it ends at a step that `reached` has named."""
        number = signal.SIGINT if self._asked == signal.SIGINT else signal.SIGTERM
        if saved:
            text = f"step {step} is saved, the same command goes on from there"
        else:
            text = f"step {step} could NOT be saved; {self._way_on()}"
        return Preempted(f"{NAMES[number]}: {text}", STATUS[number])

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._ends = True
        if not self._may_save or (number == signal.SIGINT and self._asked == signal.SIGINT):
            text = f"{NAMES[number]}; {self._way_on()}"
            if number == signal.SIGINT:
                raise KeyboardInterrupt(text)
            raise Preempted(text)
        if self._asked != signal.SIGINT:
            self._asked = number
        if number == signal.SIGINT:
            # print would not do: the signal may have come in the middle of one
            interrupts.write_line(
                "interrupted: this step is finished and saved; Ctrl-C again ends at once"
            )
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # jax's service tells the others

    def _set_rules(self) -> None:
        """What becomes of a process whose main thread is busy elsewhere."""
        seconds = self._seconds if self._may_save else interrupts.SECONDS_TO_CLEAN_UP
        several = jax.process_count() > 1
        for number in (signal.SIGINT, signal.SIGTERM):
            # With several processes, one that ended early would leave the others in a collective.
            wait = self._seconds if several and number == signal.SIGTERM else seconds
            interrupts.set_rule(
                number,
                interrupts.Rule(
                    wait,
                    STATUS[number],
                    lambda number=number: f"{NAMES[number]}; {self._way_on()}",
                    again=number == signal.SIGINT,
                ),
            )

    def _await_notice(self) -> None:
        """Tells `interrupts` of a SIGTERM: the handler is jax's, so that it does not hear of it."""
        client = distributed.global_state.client
        while not self._closed.wait(1.0):
            try:
                client.key_value_try_get(NOTICE)
            except jax.errors.JaxRuntimeError:  # no process got a signal yet
                continue
            interrupts.received(signal.SIGTERM)
            return

    def _way_on(self) -> str:
        if self._newest is None:
            return "no step is saved yet, the same command begins anew"
        return f"the same command goes on from step {self._newest}"
