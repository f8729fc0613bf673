"""Ctrl-C ends a command's process with status 130 and one line, SIGTERM with 75, whatever it is
doing then.
"""

import importlib.util
import signal
import subprocess
import sys
import time

import pytest

from tests.training.conftest import ROOT
from xlstm_jax import interrupts

# Each defines `command`, which says "ready" when it is to be interrupted.
IN_PYTHON = """
import time
def command():
    print("ready", flush=True)
    time.sleep(60)
"""
# A mutex locked twice keeps a thread in C for ever, as a compiler does for minutes.
IN_C = """
import ctypes
def command():
    print("ready", flush=True)
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)
"""
WITH_WORKERS = """
import multiprocessing, time
def command():
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    print("ready", flush=True)
    print(worker.pid, flush=True)
    time.sleep(60)
"""
# What a finaliser raises is printed by Python and dropped.
IN_A_FINALISER = """
import signal, time
class Finalised:
    def __del__(self):
        print("ready", flush=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass
def command():
    Finalised()
    time.sleep(60)
"""
# A library's own handler, as libtpu's for SIGTERM, which prints a stack trace.
BEHIND_A_LIBRARY = """
import ctypes, signal, time
from xlstm_jax import interrupts
def command():
    ignore = ctypes.c_void_p(1)
    ctypes.CDLL(None).signal(signal.SIGTERM, ignore)
    interrupts.take_back(signal.SIGTERM)
    print("ready", flush=True)
    time.sleep(60)
"""
WHILE_STDERR_IS_DROPPED = """
import os, time
from xlstm_jax import interrupts
def command():
    with interrupts.stderr_dropped():
        os.write(2, b"a stack trace")
        print("ready", flush=True)
        time.sleep(60)
"""
COMPILING = """
import jax
import jax.numpy as jnp
def command():
    def deep(x):
        for k in range(2000):
            x = jnp.sin(x @ x) + k
        return x
    lowered = jax.jit(deep).lower(jnp.ones((64, 64)))
    print("ready", flush=True)
    lowered.compile()
"""
# For a chip that is not there, by the compiler that `train.py --aot` calls.
COMPILING_FOR_A_TPU = """
import jax
import jax.numpy as jnp
from xlstm_jax.parallel.topology import absent_devices
def command():
    def deep(x):
        for k in range(2000):
            x = jnp.sin(x @ x) + k
        return x
    where = jax.sharding.SingleDeviceSharding(absent_devices("v5e:2x2")[0])
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=where)
    lowered = jax.jit(deep).lower(x)
    print("ready", flush=True)
    lowered.compile()
"""
END = """
import sys
from xlstm_jax import command_line
if __name__ == "__main__":
    sys.exit(command_line.run(command, "the same command goes on"))
"""


def started(program: str, tmp_path) -> subprocess.Popen:
    file = tmp_path / "program.py"
    file.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(file)], cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts the tests in the background lets them, and their children, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    return process


# signal -> the status and the line that it ends with
ENDS = {
    signal.SIGINT: (130, "interrupted; the same command goes on\n"),
    signal.SIGTERM: (75, "SIGTERM; the same command goes on\n"),
}


@pytest.mark.parametrize("number", ENDS, ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("program", [IN_PYTHON, IN_C, IN_A_FINALISER], ids=["py", "c", "del"])
def test_one_line_and_its_status_wherever_the_main_thread_is(program, number, tmp_path):
    process = started(program + END, tmp_path)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == ENDS[number]
    assert output == ""


@pytest.mark.parametrize(
    "program", [BEHIND_A_LIBRARY, WHILE_STDERR_IS_DROPPED], ids=["handler", "stderr"]
)
def test_a_library_takes_neither_the_signal_nor_the_line(program, tmp_path):
    process = started(program + END, tmp_path)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == ENDS[signal.SIGTERM]


def test_a_sigterm_that_the_process_was_started_to_ignore_stays_ignored(tmp_path):
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    short = IN_PYTHON.replace("60", "1")
    process = started(ignoring + short + END, tmp_path)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (0, "")


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    patient = "\ninterrupts.SECONDS_TO_CLEAN_UP = 1e6\n"
    process = started(IN_C + "from xlstm_jax import interrupts" + patient + END, tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (130, "interrupted; the same command goes on\n")


def test_the_processes_that_it_started_end_too(tmp_path):
    process = started(WITH_WORKERS + END, tmp_path)
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    process.communicate()  # returns when the worker, which has the same stdout, is gone too
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_compiler_is_not_waited_for_and_nothing_crashes_at_the_end(tmp_path):
    process = started(COMPILING + END, tmp_path)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (130, "interrupted; the same command goes on\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS, ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not here"
)
def test_nor_is_the_compiler_of_a_tpu(number, tmp_path):
    """libtpu writes lines of its own to stderr when it is loaded; none of a crash is among them."""
    process = started(COMPILING_FOR_A_TPU + END, tmp_path)
    time.sleep(1)  # into the compiler
    assert process.poll() is None
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    status, line = ENDS[number]
    assert process.returncode == status, errors
    assert errors.endswith(line)
    assert "stack trace" not in errors and "SIG" not in errors.removesuffix(line)


def test_a_command_may_catch_it_and_go_on(tmp_path):
    program = """
import time
from xlstm_jax import interrupts
def command():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        interrupts.dealt_with()
    time.sleep(2.5)
"""
    process = started(program + END, tmp_path)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    "signalled, status, line",
    [
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 75, "SIGTERM\n"),
    ],
)
def test_it_holds_from_the_imports_on(signalled, status, line):
    program = f"import sys; sys.argv = ['-m']; import xlstm_jax; {signalled}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


def test_a_worker_that_is_ended_says_nothing(tmp_path):
    """Of a process pool, or of grain's."""
    program = """
import multiprocessing, sys, time
sys.argv = ["-m"]
import xlstm_jax
if __name__ == "__main__":
    for way in ("fork", "spawn"):
        worker = multiprocessing.get_context(way).Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(2)
        worker.terminate()
        worker.join()
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_the_process_is_not_the_commands_own_it_goes_on(capsys):
    def command():
        raise KeyboardInterrupt

    assert interrupts.run(command, "the same command goes on") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"
