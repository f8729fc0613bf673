"""Logits of the paper's blocks against PyPI `xlstm`'s `xLSTMLMModel`."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from benchmarks.originals import ours, paper, paper_model, round_trip, tensors_of
from xlstm_jax.interop import mapping
from xlstm_jax.models import ModelConfig

CONFIGS = {
    "mlstm": ModelConfig(vocab_size=37, dim=64, num_blocks=2),
    "slstm": ModelConfig(vocab_size=37, dim=64, num_blocks=2, blocks="2*slstm+mlp"),
    "mixed": ModelConfig(
        vocab_size=101,
        dim=96,
        num_blocks=5,
        blocks="mlstm,slstm+mlp,2*mlstm,slstm+mlp",
        mixers={"slstm": {"num_heads": 2}, "mlstm": {"num_heads": 2}},
    ),
    "one head": ModelConfig(
        vocab_size=23,
        dim=40,
        num_blocks=2,
        blocks="slstm+mlp,mlstm",
        mixers={"slstm": {"num_heads": 1}, "mlstm": {"num_heads": 1}},
    ),
    # 1.3 x 148 is 192.4: 256
    "odd": ModelConfig(vocab_size=29, dim=148, num_blocks=2, blocks="slstm+mlp,mlstm"),
    "wide": ModelConfig(vocab_size=320, dim=256, num_blocks=4, blocks="mlstm,slstm+mlp,2*mlstm"),
    "other factors": ModelConfig(
        vocab_size=50,
        dim=48,
        num_blocks=3,
        blocks="2*mlstm,slstm+mlp",
        mixers={
            "mlp": {"factor": 2.0},
            "slstm": {"num_heads": 2, "conv_width": 3},
            "mlstm": {"num_heads": 2, "up_factor": 1.5, "conv_width": 3},
        },
    ),
    "tied": ModelConfig(
        vocab_size=50, dim=32, num_blocks=2, tie_embeddings=True, mixers={"mlstm": {"num_heads": 2}}
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_original(name):
    config = CONFIGS[name]
    theirs = paper_model(seed=1, **paper.export_config(config, context_length=160))
    tensors = tensors_of(theirs)
    imported = paper.import_config(dataclasses.asdict(theirs.config))
    assert imported.layout == config.layout  # whatever text names them
    assert dataclasses.replace(imported, blocks=config.blocks) == config
    settled, kept = mapping.settle_tying(paper.table(config), config, tensors)
    assert settled == config
    model, variables = ours(paper, config, kept)
    round_trip(paper, config, tensors, variables)
    apply = jax.jit(model.apply)
    for time in (1, 7, 64, 100, 129):
        tokens = np.random.default_rng(time).integers(0, config.vocab_size, (2, time))
        with torch.no_grad():
            expected = theirs(torch.from_numpy(tokens)).numpy()
        logits, _ = apply(variables, tokens)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        assert np.abs(expected).max() > 0.5  # nothing is compared to nothing


def test_recurrent_steps_are_those_of_the_original():
    config = CONFIGS["mixed"]
    theirs = paper_model(seed=2, **paper.export_config(config, context_length=64))
    model, variables = ours(paper, config, tensors_of(theirs))
    apply = jax.jit(model.apply)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 20))
    state, their_state = None, None
    for step in range(20):
        with torch.no_grad():
            expected, their_state = theirs.step(
                torch.from_numpy(tokens[:, step : step + 1]), their_state
            )
        logits, state = apply(variables, tokens[:, step : step + 1], state)
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
