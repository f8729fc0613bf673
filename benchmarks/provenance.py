"""Where and of what a number was measured."""

import datetime
import pathlib
import re
import subprocess
from typing import Any

import jax

from xlstm_jax.parallel.xla_flags import DRIVER

ROOT = pathlib.Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """The device, its driver, versions, the commit and the date; takes the device."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "driver": driver(),
        "jax": jax.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def driver() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", DRIVER.read_text()) if DRIVER.exists() else None
    return found and found[0]


def commit() -> str | None:
    """The commit of this checkout, with "+" behind it where files differ from it; None outside of
    one.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
