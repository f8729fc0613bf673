"""A preparation that is killed without warning, again and again, ends with the bytes of one that
was left alone.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.data.conftest import make_text, write_documents

ROOT = pathlib.Path(__file__).parents[2]
# As the command, but with a shard for every file and a pause at every write, so that there are many
# moments to be killed at.
COMMAND = """
import random, sys, time
from xlstm_jax.data import prepare, shards
write, replace = shards.ShardWriter.write, shards.pathlib.Path.replace
shards.ShardWriter.write = lambda self, ids: (write(self, ids), time.sleep(0.01 * random.random()))
prepare.JOB_BYTES = prepare.prepare_split.__kwdefaults__["job_bytes"] = 1
sys.exit(prepare.main(["prepare", *sys.argv[1:]]))
"""


def command(source, output, workers):
    return [
        sys.executable,
        "-c",
        COMMAND,
        f"--source={source}",
        "--tokenizer=byte",
        f"--output={output}",
        "--split=train",
        f"--workers={workers}",
        "--max-tokens=60000",
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path):
    for file in range(60):
        write_documents(
            tmp_path / f"in/{file}.jsonl.zst",
            ["", *(make_text(10 * file + number, 40) for number in range(6))],
        )
    subprocess.run(
        command(tmp_path / "in", tmp_path / "alone", 1), cwd=ROOT, check=True, capture_output=True
    )
    expected = contents(tmp_path / "alone/train")
    assert len([name for name in expected if name.endswith(".bin")]) > 20

    draw, kills, output = random.Random(0), 0, tmp_path / "killed-0"
    while True:
        workers = 2 if kills % 5 == 4 else 1
        process = subprocess.Popen(
            command(tmp_path / "in", output, workers),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        if kills < 20:
            _wait_for_a_new_file(process, output / "train")
            time.sleep(draw.uniform(0, 0.15))
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                if draw.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.send_signal(signal.SIGKILL)  # its workers notice and end
        _, errors = process.communicate(timeout=120)
        if process.returncode == 0:
            assert contents(output / "train") == expected
            if kills >= 20:
                return
            output = tmp_path / f"killed-{kills}"
        else:
            assert process.returncode == -signal.SIGKILL, errors.decode()
            kills += 1


def _wait_for_a_new_file(process, folder):
    """Returns when the process has begun to change the folder, or has ended."""
    before, deadline = None, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if before is not None and names != before:
            return
        before = names
        time.sleep(0.002)
