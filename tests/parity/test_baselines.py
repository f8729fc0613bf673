"""The benchmark of the baselines compares with transformers what it times: at tiny sizes it passes,
and a model that computes something else is found.
"""

import dataclasses

import pytest

from benchmarks import baselines
from benchmarks.cpu_vs_pytorch import ONE

SMALL = {"repetitions": 1, "context": 8, "decoded": 4, "devices": {ONE: 1}}


def tiny(name):
    config, export = baselines.MODELS[name]
    return dataclasses.replace(config, dim=32, num_blocks=2, vocab_size=32), export


@pytest.mark.parametrize("name", baselines.MODELS)
def test_both_sides_compute_the_same_and_are_timed(name):
    rows = baselines.compare(name, *tiny(name), **SMALL)
    assert [row["what"] for row in rows] == ["training", "decoding"]
    for row in rows:
        assert set(row["tokens_per_second"]) > {"transformers"}
        assert row["largest_difference_of_logits"] < 1e-4
        assert baselines.line(row).startswith(f"| {name}, {row['what']}, tokens/s |")


def test_another_model_is_no_side(monkeypatch):
    config, export = tiny("Llama")
    other = dataclasses.replace(config, norm_eps=0.1)
    built = baselines.build_model
    monkeypatch.setattr(baselines, "build_model", lambda config: built(other))
    with pytest.raises(AssertionError, match="Llama: logits"):
        baselines.compare("Llama", config, export, **SMALL)
