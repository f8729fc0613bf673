"""The launch scripts are sound shell, and SLURM's starts again what should be started again."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts/launch").glob("*.sh"))


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_a_script_passes_shellcheck(script):
    done = subprocess.run(
        [pathlib.Path(sys.executable).with_name("shellcheck"), str(script)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_slurm(folder, status, restarts=0):
    """The script with a SLURM whose two tasks end with these statuses; (status, output, calls of
    scontrol).
    """
    tasks = "".join(
        f'(export SLURM_PROCID={number}; shift 2; TASK_STATUS={end} "$@") || worst=$?\n'
        for number, end in enumerate(status)
    )
    commands = {
        "srun": f"worst=0\n{tasks}exit $worst",
        "scontrol": f'echo "$@" >> {folder}/calls',
        "train": "exit $TASK_STATUS",
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "train"),
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    command = [
        str(ROOT / "scripts/launch/slurm.sh"),
        "configs/xlstm_1.3b.py",
        str(folder / "runs/it"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done.returncode, done.stdout + done.stderr, calls


@pytest.mark.parametrize(
    ("status", "restarts", "requeued", "says"),
    [
        ((0, 0), 0, False, "training is finished"),
        ((75, 75), 0, True, "preempted and saved; queued again"),
        ((75, 75), 9, True, "preempted and saved; queued again"),
        ((2, 2), 0, False, "a mistake in the call or in the data"),
        ((0, 134), 0, True, "task 1 on "),
        ((0, 137), 3, False, "for the fourth time; not started again"),
    ],
)
def test_slurm_starts_again_what_was_preempted_or_lost_a_machine(
    tmp_path, status, restarts, requeued, says
):
    code, output, calls = run_slurm(tmp_path, status, restarts)
    assert code == max(status)
    assert says in output
    assert calls == (["requeue 7"] if requeued else [])
    assert ("task 0 on " in output) == (status[0] not in (0, 75))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_call_that_lacks_something_is_a_mistake_of_one_line(script):
    """Status 2, as the trainer's own: nobody starts it again."""
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    calls = [[], ["v5p-128"] * 4] if script.name == "tpu_slice.sh" else [[]]
    for arguments in calls:
        done = subprocess.run(
            ["bash", script, *arguments], env=bare, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and not done.stdout
        [line] = done.stderr.splitlines()
        assert line.startswith(
            "error: the first argument is" if not arguments else "error: PROJECT"
        )
