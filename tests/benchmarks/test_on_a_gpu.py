"""The driver for a GPU, on the CPU: what hangs or fails costs its own results alone, and the file
is whole after every result.
"""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import on_a_gpu
from benchmarks.gpu_stages import DEVICE_LINE, ROW_LINE, Stage, chosen, curves, stages
from xlstm_jax.errors import UserError

HANGS = f"print('{ROW_LINE}' + '{{\"case\": 1}}', flush=True); import time; time.sleep(600)"
FAILS = "print('before'); raise ValueError('broken')"
WORKS = f"print('{DEVICE_LINE}' + '{{\"device\": \"x\"}}'); print('{ROW_LINE}' + '{{\"case\": 2}}')"


def stage(name, program, **more):
    return Stage(name, (sys.executable, "-c", program), **{"limit": 30, "least": 0.1} | more)


def driven(folder, *plan, budget=60, jobs=1):
    results = on_a_gpu.Results(folder, {}, [one.name for one in plan])
    on_a_gpu.drive(plan, results, budget=budget, jobs=jobs)
    return json.loads(results.file.read_text())


def test_a_stage_that_hangs_or_fails_costs_its_own_results_alone(tmp_path):
    started = time.monotonic()
    plan = (stage("hangs", HANGS, limit=1), stage("fails", FAILS), stage("works", WORKS))
    found = driven(tmp_path, *plan)
    assert time.monotonic() - started < 30  # of the 600 s that the first would take
    assert [one["status"] for one in found["stages"]] == [
        "ended at its limit",
        "failed",
        "finished",
    ]
    assert [one["rows"] for one in found["stages"]] == [[{"case": 1}], [], [{"case": 2}]]
    assert found["stages"][1]["last_lines"][-1] == "ValueError: broken"
    assert found["device"] == "x"


def test_a_process_that_a_stage_started_ends_with_it(tmp_path):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HANGS!r}])"
    found = driven(tmp_path, stage("hangs", child, limit=1.5), stage("works", WORKS))
    assert [one["status"] for one in found["stages"]] == ["ended at its limit", "finished"]


def test_the_file_is_whole_after_every_result(tmp_path):
    """Read again at each line that is printed."""
    seen, plan = [], (stage("one", WORKS), stage("two", WORKS))
    results = on_a_gpu.Results(tmp_path, {}, ["one", "two"])
    write = results.write

    def written():
        write()
        seen.append(json.loads(results.file.read_text())["stages"])

    results.write = written
    on_a_gpu.drive(plan, results, budget=60, jobs=1)
    assert [sum(len(one["rows"]) for one in stages) for stages in seen] == [1, 1, 2, 2]
    assert [one["status"] for one in seen[1]] == ["finished", "waiting"]


def test_what_does_not_fit_is_left_out_from_the_end(tmp_path):
    plan = (stage("one", WORKS), stage("two", WORKS, least=500), stage("three", WORKS))
    found = driven(tmp_path, *plan, budget=30)
    assert [one["status"] for one in found["stages"]] == ["finished", "left out", "left out"]


def test_timed_stages_come_after_what_is_compiled_ahead(tmp_path):
    """A file tells in which order the processes ran."""
    order = tmp_path / "order"

    def note(word):
        return f"open({str(order)!r}, 'a').write({word + ' '!r})"

    timed = stage("timed", note("timed"), ahead=(sys.executable, "-c", note("ahead")))
    found = driven(tmp_path / "out", timed, stage("check", note("check"), timed=False), jobs=2)
    words = order.read_text().split()
    assert sorted(words[:2]) == ["ahead", "check"] and words[2:] == ["timed"]
    assert [one["status"] for one in found["stages"]] == ["finished", "finished"]


def test_nothing_is_overwritten(tmp_path):
    for expected in ("on_a_gpu.json", "on_a_gpu_2.json"):
        assert on_a_gpu.Results(tmp_path, {}, []).file.name == expected


def test_stages_are_chosen_by_group_and_by_name_in_the_order_given():
    plan = stages(tiny=True)
    found = chosen(plan, "inference,step,inference:decode")
    assert [one.name for one in found] == ["inference:decode", "inference:prefill", "step:125m-1_0"]
    assert [one.name for one in chosen(plan, "curves:xla")] == ["curves:xla"]
    with pytest.raises(UserError, match="'stepp', which is no stage; did you mean step"):
        chosen(plan, "stepp")


def test_curves_are_compared_by_means_over_20_steps():
    xla = [float(x) for x in range(40)]
    rows = [
        {"curve": "kernels", "losses": [*xla[:30], *(x + 0.2 for x in xla[30:])]},
        {"curve": "xla", "losses": xla},
    ]
    found = curves(rows)
    assert found["largest"] == pytest.approx(0.1) and found["first_step_that_differs"] == 31
    assert curves(rows[:1]) == {}


@pytest.mark.slow
def test_the_command_runs_a_tiny_stage(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.on_a_gpu", "--tiny", "--stages=kernels:12x64-T2048",
            f"--output={tmp_path}", "--jobs=1",
        ],
        cwd=on_a_gpu.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads((tmp_path / "on_a_gpu.json").read_text())
    assert [row["kernel"] for row in found["stages"][0]["rows"]] == ["recurrent"] * 2
    assert {"device", "driver", "jax", "commit"} <= found.keys()
    assert "finished: kernels:12x64-T2048" in done.stdout
