"""Logits of the paper's blocks against PyPI `xlstm`'s `xLSTMLMModel`."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from tests.parity.originals import ours, paper, paper_model, round_trip, tensors_of
from xlstm_jax.config import ModelConfig
from xlstm_jax.interop import mapping

CONFIGS = {
    "mlstm": ModelConfig(vocab_size=37, dim=64, num_blocks=2, num_heads=4),
    "slstm": ModelConfig(vocab_size=37, dim=64, num_blocks=2, num_heads=4, slstm_positions=(0, 1)),
    "mixed": ModelConfig(vocab_size=101, dim=96, num_blocks=5, num_heads=2, slstm_positions=(1, 4)),
    "one head": ModelConfig(vocab_size=23, dim=40, num_blocks=2, num_heads=1, slstm_positions=(0,)),
    # 1.3 x 148 is 192.4: 256
    "odd": ModelConfig(vocab_size=29, dim=148, num_blocks=2, num_heads=4, slstm_positions=(0,)),
    "wide": ModelConfig(vocab_size=320, dim=256, num_blocks=4, num_heads=4, slstm_positions=(1,)),
    "other factors": ModelConfig(
        vocab_size=50,
        dim=48,
        num_blocks=3,
        num_heads=2,
        slstm_positions=(2,),
        up_factor=1.5,
        ffn_factor=2.0,
        conv_width=3,
    ),
    "tied": ModelConfig(vocab_size=50, dim=32, num_blocks=2, num_heads=2, tie_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_original(name):
    config = CONFIGS[name]
    theirs = paper_model(seed=1, **paper.export_config(config, context_length=160))
    tensors = tensors_of(theirs)
    imported = paper.import_config(dataclasses.asdict(theirs.config))
    assert dataclasses.replace(imported, slstm_positions=config.slstm_positions) == config
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
