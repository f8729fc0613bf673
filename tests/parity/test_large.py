"""Logits of the 7b block against transformers' `xLSTMForCausalLM`: with its own classes, and with
those of PyPI `xlstm`.

Which ones it uses is decided when it is imported, by whether `xlstm` can be: hence a fresh process
for each.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("hide_xlstm", [False, True], ids=["pypi_classes", "transformers_classes"])
def test_logits_are_those_of_the_original(hide_xlstm):
    command = [
        sys.executable,
        "-m",
        "tests.parity.compare_large",
        *(["--hide-xlstm"] if hide_xlstm else []),
    ]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("equal: 4 models, ")
    classes = "transformers" if hide_xlstm else "xlstm"
    assert f"block class of {classes}\n" in result.stdout
