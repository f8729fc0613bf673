"""Chooses the backend of a call: by name, or the first in an order that can serve it.

A backend is a function. It raises NotImplementedError, before doing any work, when it can't serve
the call; any other error is a bug and is passed on. A Pallas backend joins an op by an entry in
that op's table of backends and its name in that op's order.
"""

import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

logger = logging.getLogger("pallas_kernels")

Backend = str | tuple[str, ...] | None
Order = Mapping[str, tuple[str, ...]]  # device family -> backends, best first

HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")  # device kinds with sm_90


def target_device() -> tuple[str, str]:
    """(platform, device kind) that the program is lowered for, e.g. ("gpu", "NVIDIA H200").

    The mesh in context knows it, in ahead-of-time compilation for absent devices too; without a
    mesh it is the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.config.jax_default_device or jax.local_devices()[0]
    if isinstance(device, str):  # jax_default_device may name a platform
        device = jax.local_devices(backend=device)[0]
    return device.platform, device.device_kind


def device_family(platform: str, kind: str) -> str:
    """ "tpu", "hopper" (sm_90), "gpu" (any other) or "cpu"; an unknown platform counts as the
    latter, whose forms run anywhere.
    """
    if platform in ("gpu", "cuda", "rocm"):
        return "hopper" if HOPPER.search(kind) else "gpu"
    return "tpu" if platform == "tpu" else "cpu"


def dispatch(
    op: str,
    backends: Mapping[str, Callable],
    backend: Backend,
    order: Order | tuple[str, ...],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls the backend named, or the first of several (of `order` where backend is None) that
    serves the call.

    order is a tuple, or one per device family, of which that of the device the program is lowered
    for is taken.

    Raises ValueError for a name that does not exist, NotImplementedError with the reasons where
    none serves.
    """
    if isinstance(order, Mapping):
        order = order[device_family(*target_device())]
    names = order if backend is None else (backend,) if isinstance(backend, str) else tuple(backend)
    if not names:
        raise ValueError(
            f"{op}: backend=() names no backend; give None, a name or a tuple of "
            f"{_listed(backends)}."
        )
    for name in names:
        if name not in backends:
            raise ValueError(
                f"{op}: there is no backend {name!r}; give None, a name or a tuple of "
                f"{_listed(backends)}."
            )
    reasons = []
    for name in names:
        try:
            result = backends[name](*args, **kwargs)
        except NotImplementedError as reason:
            reasons.append(f"{name}: {reason}")
            continue
        _log_choice(op, name, target_device(), tuple(reasons))
        return result
    raise NotImplementedError(f"{op}: no backend can serve this call. " + "; ".join(reasons) + ".")


@functools.cache
def _log_choice(op: str, name: str, device: tuple[str, str], reasons: tuple[str, ...]) -> None:
    """Logs a choice the first time it is made."""
    passed_over = f" (passed over {'; '.join(reasons)})" if reasons else ""
    logger.info("%s runs on backend %r for %s %s%s", op, name, *device, passed_over)


def _listed(backends: Mapping[str, Callable]) -> str:
    return ", ".join(repr(name) for name in backends)
