"""Block sizes that were measured: `tuned/<device kind>.json`, written by `python -m
benchmarks.kernels --tune`, read here.

A file maps a kernel ("mlstm/pallas_gpu") to a list of {"shape": {"K": 512, ...}, "blocks": {...}}.
Nothing is measured at run time.
"""

import functools
import importlib.resources
import json
import re
from typing import Any

from pallas_kernels.dispatch import target_device


def file_name(device_kind: str) -> str:
    """The table of a device kind: "NVIDIA H200" is in nvidia_h200.json."""
    return re.sub(r"[^a-z0-9]", "_", device_kind.lower()) + ".json"


def tuned(kernel: str, **shape: Any) -> dict[str, Any] | None:
    """The block sizes for the device that the program is lowered for, None where none were
    measured.

    An entry fits if all that its "shape" says is so in the given one (K, V, dtype, ...); the one
    that says most is taken.
    """
    fitting = [
        e for e in _table(target_device()[1]).get(kernel, ()) if e["shape"].items() <= shape.items()
    ]
    return dict(max(fitting, key=lambda e: len(e["shape"]))["blocks"]) if fitting else None


@functools.cache
def _table(device_kind: str) -> dict[str, list[dict[str, dict[str, Any]]]]:
    file = importlib.resources.files("pallas_kernels").joinpath("tuned", file_name(device_kind))
    return json.loads(file.read_text()) if file.is_file() else {}
