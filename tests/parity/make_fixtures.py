"""Writes tests/interop/fixtures/*.npz: tensors of tiny originals, tokens and their logits, so that
parity is checked without PyTorch.

    python -m tests.parity.make_fixtures        (in the environment of `make parity`)
"""

import json
import pathlib

import numpy as np
import torch

from benchmarks.originals import large, large_model, paper, paper_model, tensors_of
from xlstm_jax.models import ModelConfig

FOLDER = pathlib.Path(__file__).parents[1] / "interop" / "fixtures"
PAPER = ModelConfig(
    vocab_size=17,
    dim=32,
    num_blocks=3,
    blocks="mlstm,slstm+mlp,mlstm",
    mixers={"mlstm": {"num_heads": 2}, "slstm": {"num_heads": 2}},
)
LARGE = ModelConfig(
    vocab_size=17,
    dim=128,
    num_blocks=1,
    blocks="mlstm_7b+mlp",
    norm="rms",
    norm_eps=1e-6,
    logit_soft_cap=30.0,
    mixers={
        "mlstm_7b": {"num_heads": 4},
        "mlp": {"activation": "silu", "whole_first": True, "factor": 0.5},
    },
)


def write(name: str, config: ModelConfig, model, logits) -> None:
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 70))
    with torch.no_grad():
        expected = logits(model(torch.from_numpy(tokens))).float().numpy()
    tensors = {f"tensor/{key}": tensor for key, tensor in tensors_of(model).items()}
    text = json.dumps(config.values())
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        config=text,
        tokens=tokens.astype(np.int32),
        logits=expected,
        **tensors,
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    write(
        "paper",
        PAPER,
        paper_model(3, **paper.export_config(PAPER, context_length=80)),
        lambda output: output,
    )
    write("large", LARGE, large_model(3, large.export_config(LARGE)), lambda output: output.logits)


if __name__ == "__main__":
    main()
