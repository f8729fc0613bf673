"""The table of how runs fit: the fewest accumulation steps, rows that can be read again, a line."""

import json

import pytest

from benchmarks import scaling
from xlstm_jax.training.aot import StepReport


def report_of(config, topology):
    """A step of 64 devices that needs less the more it accumulates."""
    steps, memory = config.train.accumulation_steps, 30e9
    needed = 5e9 + 80e9 / steps
    return StepReport(
        topology=topology, devices=64, fits=needed < memory, memory=memory, flops=1e15,
        seconds=12.3, accumulation_steps=steps, arguments=10e9, temporaries=80e9 / steps,
        peak=needed, needed=needed, collectives={"all-reduce": 2e9}, kernels={"pallas_tpu": 72},
        model=object(),
    )  # fmt: skip


def test_a_row_has_the_fewest_steps_that_fit_and_its_line_names_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "ROWS", tmp_path)
    monkeypatch.setattr(scaling, "DOCUMENT", tmp_path / "scaling.md")
    monkeypatch.setattr(scaling, "compile_step", report_of)
    model = "xlstm_125m.py:1_0-15b"
    monkeypatch.setattr("sys.argv", ["scaling", "--only", f"^{model} v5e"])
    scaling.main()
    row = json.loads(scaling.row_file(model, "v5e:8x8").read_text())
    assert (row["model"], row["topology"], row["fits"]) == (model, "v5e:8x8", True)
    assert [one["accumulation_steps"] for one in row["tried"]] == [1, 4]
    assert "| 125m 1_0-15b | v5e:8x8 | 4 | yes | 10.00 GB |" in scaling.DOCUMENT.read_text()


@pytest.mark.parametrize("model", scaling.MODELS)
def test_every_model_of_the_table_is_a_configuration(model):
    assert (scaling.ROOT / "configs" / model.partition(":")[0]).is_file()
