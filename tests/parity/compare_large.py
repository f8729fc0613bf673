"""Compares logits with transformers' `xLSTMForCausalLM` in this process; `--hide-xlstm` makes PyPI
`xlstm` not importable first.
"""

import sys

if "--hide-xlstm" in sys.argv:
    sys.modules["xlstm"] = None
    import importlib.util

    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: (
        None if name.split(".")[0] == "xlstm" else find_spec(name, *rest)
    )

import jax
import numpy as np
import torch

from benchmarks.originals import large, large_model, ours, round_trip, tensors_of
from xlstm_jax.models import ModelConfig


def config_of(*, mlstm: dict | None = None, factor: float = 2.667, **fields) -> ModelConfig:
    """A small model, with settings of its mLSTM and of its feed-forward layer. Theirs rounds cache
    sizes up to 64 where its layers do not: q and k have multiples of it.
    """
    fields = {"vocab_size": 37, "dim": 128, "num_blocks": 2, "logit_soft_cap": 30.0} | fields
    mixers = {
        "mlstm_7b": {"num_heads": 4} | (mlstm or {}),
        "mlp": {"activation": "silu", "whole_first": True, "factor": factor},
    }
    return ModelConfig(blocks="mlstm_7b+mlp", norm="rms", norm_eps=1e-6, mixers=mixers, **fields)


CONFIGS = [
    config_of(),
    config_of(dim=256, num_blocks=3, vocab_size=101, mlstm={"num_heads": 2}),
    config_of(dim=256, mlstm={"num_heads": 8, "qk_factor": 1.0}, factor=1.5),
    config_of(mlstm={"num_heads": 1, "gate_soft_cap": 3.0}, logit_soft_cap=2.0),
]
TIMES = (1, 7, 64, 100, 128, 200)


def main() -> None:
    worst = 0.0
    for seed, config in enumerate(CONFIGS):
        fields = large.export_config(config)
        theirs = large_model(seed, fields)
        if seed == 0:
            bases = {
                base.__module__.split(".")[0] for base in type(theirs.backbone.blocks[0]).__mro__
            }
            print("block class of", "xlstm" if "xlstm" in bases else "transformers")
        tensors = tensors_of(theirs)
        assert large.import_config(theirs.config.to_dict()) == config
        model, variables = ours(large, config, tensors)
        round_trip(large, config, tensors, variables)
        apply = jax.jit(model.apply)
        for time in TIMES:
            tokens = np.random.default_rng(time).integers(0, config.vocab_size, (2, time))
            with torch.no_grad():
                expected = theirs(torch.from_numpy(tokens)).logits.float().numpy()
            logits, _ = apply(variables, tokens)
            worst = max(worst, float(np.abs(logits - expected).max()))
            np.testing.assert_allclose(
                logits, expected, rtol=0, atol=1e-4, err_msg=f"{config} at T {time}"
            )
    print(f"equal: {len(CONFIGS)} models, T {TIMES}, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
