"""Paths with spaces and letters of all kinds, in the poorest locale: every command does its work
there, one after the other, as in a usual folder.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PLACE = "Modèles d'été 漢字"

# All in one process; each prints what it does everywhere else.
COMMANDS = """
import sys, pathlib
import eval, train
from xlstm_jax.data import inspect, prepare
from xlstm_jax.generation import __main__ as generation
from xlstm_jax.interop import __main__ as interop

config, text = sys.argv[1:]
small = ["--config.data.context_length=8", "--config.train.steps=2", "--config.eval.batch_size=2",
         "--config.eval.sample_tokens=2", "--config.log.tensorboard=true"]
for command, arguments in (
    (prepare, [f"--source={text}", "--tokenizer=byte", "--output=données", "--split=train",
               "--workers=1"]),
    (inspect, ["données"]),
    (train, [f"--config={config}", "--config.data.path=données",
             f"--config.data.validation_path={text}", "--workdir=le run", *small]),
    (eval, ["--workdir=le run"]),
    (generation, ["--checkpoint=le run", "--prompt=été", "--max-new-tokens=2",
                  "--session=séance 1"]),
    (interop, ["export", "--source=le run", "--output=Hugging Face é"]),
    (interop, ["import", "--source=Hugging Face é", "--output=encore"]),
    (generation, ["--checkpoint=encore", "--prompt=漢", "--max-new-tokens=2"]),
):
    status = command.main([command.__name__, *arguments])
    assert status == 0, (command.__name__, status)
"""


@pytest.mark.slow
def test_all_commands_work_in_a_folder_of_any_name(tmp_path):
    place = tmp_path / PLACE
    place.mkdir()
    config = place / "tiny é.py"
    config.write_bytes((ROOT / "tests/training/tiny_run.py").read_bytes())
    text = place / "Textes reçus.txt"
    text.write_bytes("Ce que la cellule garde, là-bas ; 漢字\r\n".encode() * 60)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, config.name, text.name],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", "LC_ALL": "C"},
        capture_output=True,
        timeout=300,
    )
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, output
    assert "Traceback" not in output
    assert {path.name for path in place.iterdir()} >= {
        "données", "le run", "séance 1", "Hugging Face é", "encore"
    }  # fmt: skip
    assert (place / "le run/eval/2/results.md").is_file()


@pytest.mark.parametrize("encoding", ("ascii", "latin-1", "utf-8"))
def test_what_a_terminal_can_not_show_is_escaped(encoding):
    """A letter that it lacks, and the bytes of a name that are no text at all."""
    program = """
import sys
from xlstm_jax import command_line, interrupts
def command():
    print("é漢\\udce9", flush=True)
    interrupts.write_line("é漢\\udce9")
sys.exit(command_line.run(command))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    shown = {"ascii": rb"\xe9\u6f22\udce9", "latin-1": b"\xe9" + rb"\u6f22\udce9"}
    utf_8 = "é漢".encode() + rb"\udce9"
    assert (done.returncode, done.stdout) == (0, shown.get(encoding, utf_8) + b"\n")
    assert done.stderr == utf_8 + b"\n"
