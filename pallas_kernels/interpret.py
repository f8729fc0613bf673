"""Where a Pallas kernel runs: compiled for the device in context, or interpreted on a CPU when a
test asks for that.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

from pallas_kernels.dispatch import device_family, target_device

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


# device kinds without sm_80's products
_BEFORE_AMPERE = (
    *("Tesla", "V100", "P100", "T4", "GTX", "TITAN", "Quadro", "RTX 20"),
    *("AMD", "Radeon"),
)


def triton_mode() -> bool:
    """The mode in context of a Triton kernel: True, or False to compile.

    Raises NotImplementedError for a simulator's parameters, and where the program is lowered for
    anything but an NVIDIA GPU with sm_80 or later.
    """
    mode, kind = interpret_mode("gpu"), target_device()[1]
    if mode is False and any(name in kind for name in _BEFORE_AMPERE):
        raise NotImplementedError(
            f"it needs an NVIDIA GPU with sm_80 or later, and this program is lowered for a {kind}"
        )
    if mode not in (False, True):
        raise NotImplementedError(
            "it is interpreted by interpret=True alone, there is no simulator for Triton kernels"
        )
    return mode


def hopper_mode() -> Any:
    """The mode in context of a Mosaic GPU kernel for Hopper: a simulator's parameters, or False to
    compile.

    Raises NotImplementedError for jax before 0.11, for interpret=True, which such kernels do not
    have, and where the program is lowered for another device.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"it needs jax >= 0.11; this is {jax.__version__}")
    mode = interpret_mode("gpu")
    if mode is True:
        raise NotImplementedError(
            "it is interpreted by Mosaic GPU's simulator alone, "
            "interpreted(plgpu.InterpretGPUParams())"
        )
    platform, kind = target_device()
    if mode is False and device_family(platform, kind) != "hopper":
        raise NotImplementedError(
            f"it needs an NVIDIA GPU with sm_90, and this program is lowered for a {kind}"
        )
    return mode
