"""The kernel benchmark on the CPU at tiny sizes: it checks before it times, and its arithmetic is
right.
"""

import json
import pathlib

import pytest

from benchmarks import device_time, kernels, rivals, roofline
from pallas_kernels.testing import specs

COMMITTED = pathlib.Path(kernels.__file__).parent / "results" / "kernels_predicted_h200.json"


@pytest.mark.slow
def test_a_quick_run_checks_times_and_writes(tmp_path, capsys):
    """Every line of both cells, forward and backward, with its errors; what can't be timed here is
    said.
    """
    kernels.main(["--quick", f"--out={tmp_path}/result.json"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(row["kernel"], row["pass"]) for row in result["rows"]] == [
        (name, direction)
        for name in ("chunkwise", "recurrent")
        for direction in ("forward", "forward+backward")
    ]
    for row in result["rows"]:
        assert row["ms"] > 0 and row["tflops"] > 0
        assert row["error_to_float64"] <= 1e-4
        assert row["share_of_roofline"] is None  # no CPU in the table of chips
    assert result["not_timed"].keys() == rivals.NEEDS.keys()
    assert "µs/step" in capsys.readouterr().out


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    """One entry of h off by a tenth of the largest ends the benchmark."""
    true_run = kernels.pallas_backend.evaluate

    def wrong(*args, **options):
        (h, *states), gradients = true_run(*args, **options)
        h.flat[0] += 0.1 * abs(h).max()
        return [h, *states], gradients

    monkeypatch.setattr(kernels.pallas_backend, "evaluate", wrong)
    with pytest.raises(AssertionError, match="more than 0.0001 off: {'h':"):
        list(kernels.ours(kernels.QUICK[0], repetitions=1))


@pytest.mark.slow
def test_tuning_writes_the_fastest_of_each_shape_and_keeps_the_rest(tmp_path, monkeypatch):
    took = {16: 3.0, 32: 1.0, 64: 2.0}
    true_programs, of = kernels.programs, {}

    def programs(spec, backend, **options):
        forward, both = true_programs(spec, backend, **options)
        of[both] = options.get("chunk_size")
        return forward, both

    monkeypatch.setattr(kernels, "programs", programs)
    monkeypatch.setattr(
        kernels, "seconds", lambda program, inputs, repetitions: (took[of[program]], "device")
    )
    path = tmp_path / "device.json"
    other = {"shape": {"K": 1, "V": 1, "dtype": "float32"}, "blocks": {"chunk_size": 7}}
    path.write_text(json.dumps({"mlstm/chunkwise": [other]}))
    for _ in range(2):  # again replaces
        kernels.tune(kernels.QUICK[:1], {"chunkwise": (16, 32, 64)}, path)
    best = {"shape": {"K": 16, "V": 32, "dtype": "float32"}, "blocks": {"chunk_size": 32}}
    assert json.loads(path.read_text()) == {"mlstm/chunkwise": [other, best]}


def test_a_chunk_that_gives_wrong_results_is_never_tuned(tmp_path, monkeypatch):
    wrong = kernels.many_tokens.Difference(largest=0.0, overall=0.0, stretch=0.1)
    monkeypatch.setattr(kernels.many_tokens, "difference", lambda spec, got, expected: wrong)
    with pytest.raises(AssertionError, match="chunkwise with 16 is off: .*stretch=0.1"):
        kernels.tune(kernels.QUICK[:1], {"chunkwise": (16,)}, tmp_path / "device.json")
    assert not list(tmp_path.iterdir())


def test_a_calls_time_is_the_sum_of_its_kernels_and_the_median_over_calls():
    events = [
        (start, duration) for start, duration in zip(range(6), (1, 2, 3, 4, 10, 20), strict=True)
    ]
    assert device_time.per_call(reversed(events), calls=3) == 7
    assert device_time.per_call(events, calls=4) is None
    assert device_time.per_call([], calls=4) is None


def test_the_least_work_of_the_mlstm():
    """16 heads of 128/256 in 65,536 tokens: 1.6 GB and 163 GFLOP forward, by hand; memory bound on
    an H200.
    """
    spec = specs.MLSTM_SPEED[0]
    tokens = 65536 * 16
    forward = roofline.least_work(spec, backward=False)
    assert forward.bytes == tokens * (2 * (128 + 128 + 256 + 256) + 2 * 4)
    assert forward.flops == tokens * (64 * (128 + 256) + 2 * 2 * 128 * 256)
    assert roofline.least_seconds(forward, "NVIDIA H200") == forward.bytes / 4.8e12
    both = roofline.least_work(spec, backward=True)
    assert both.bytes == pytest.approx(3 * forward.bytes, rel=0.01)
    assert both.flops > 2.5 * forward.flops


def test_the_longest_name_of_a_chip_wins_and_an_unknown_one_has_no_roofline():
    assert roofline.chip("NVIDIA H100 PCIe") == (756e12, 2.0e12)
    assert roofline.chip("NVIDIA H100 80GB HBM3") == (989e12, 3.35e12)
    assert roofline.chip("cpu") is None


def test_the_committed_prediction_is_what_the_model_says_now(capsys):
    """For every timed case; run `python -m benchmarks.kernels --predict` after a change of the
    kernels or the model.
    """
    committed = json.loads(COMMITTED.read_text())["rows"]
    assert committed == json.loads(json.dumps(kernels.predict()))
    assert {row["case"] for row in committed} == {
        spec.name for spec in specs.MLSTM_SPEED + specs.SLSTM_SPEED
    }
    for row in committed:
        assert row["expected_ms"] > row["roofline_ms"]


def test_the_page_on_kernels_prints_the_prediction():
    page = (COMMITTED.parents[2] / "docs" / "kernels.md").read_text().splitlines()
    for row in json.loads(COMMITTED.read_text())["rows"]:
        if "chunk_size" in row:
            heads = row["case"].split("-")[0].replace("x", ", ")
            (line,) = [line for line in page if line.startswith(f"| {heads} | {row['pass']} |")]
            share = f"{row['expected_share_of_roofline']:.0%}".replace("%", " %")
            assert [cell.strip() for cell in line.split("|")][4:8] == [
                f"{row['roofline_ms']:.2f}",
                (
                    f"{row['of_our_kernels']['bytes'] / 1e9:.1f}, "
                    f"{row['of_our_kernels']['flops'] / 1e12:.2f}"
                ),
                f"{row['expected_ms']:.2f}",
                share,
            ]
