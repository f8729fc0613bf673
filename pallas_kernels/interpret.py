"""Where a Pallas kernel runs: compiled for the device in context, or interpreted on a CPU when a
test asks for that.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from pallas_kernels.dispatch import target_device

_MODE: contextvars.ContextVar[Any] = contextvars.ContextVar("interpret", default=False)


@contextlib.contextmanager
def interpreted(mode: Any = True) -> Iterator[None]:
    """Inside it every Pallas kernel that is traced runs in an interpreter, on any device.

    mode is what `pl.pallas_call` or `plgpu.kernel` take as `interpret`: True (plain XLA operations)
    or the parameters of a simulator. A function that was jitted outside keeps what it was traced
    with.
    """
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


def interpret_mode(platform: str) -> Any:
    """The mode in context; False, to compile, if the program is lowered for that platform ("tpu",
    "gpu").

    Raises NotImplementedError, as a backend does that can't serve a call, on any other platform.
    """
    mode = _MODE.get()
    found = target_device()[0]
    if mode is False and found != platform:
        raise NotImplementedError(
            f"it needs a {platform.upper()}, and this program is lowered for a {found.upper()}"
        )
    return mode
