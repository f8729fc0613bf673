"""Writes tests/interop/fixtures/{llama,gpt2,mamba,rwkv4}.npz: config.json and tensors of tiny
models of transformers, tokens and their logits, so that the formats are checked without PyTorch.

    python -m tests.parity.make_transformers_fixtures [NAME ...]

In the environment of `make parity`.
"""

import sys

import numpy as np
import torch

from benchmarks.originals import tensors_of
from tests.interop.transformers_folders import FIXTURES
from tests.parity.transformers_models import MODELS, transformers_model


def main(names: list[str]) -> None:
    for name in names or MODELS:
        model = transformers_model(name)
        tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 40))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)).logits.numpy()
        tensors = {f"tensor/{key}": tensor for key, tensor in tensors_of(model).items()}
        np.savez_compressed(
            FIXTURES / f"{name}.npz",
            config=model.config.to_json_string(use_diff=True),
            tokens=tokens.astype(np.int32),
            logits=logits,
            **tensors,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
