"""Writes tests/models/fixtures/flash_linear_attention.npz: what the plainest recurrences of
flash-linear-attention make of random numbers, so that they are compared with without its code.

    python -m tests.parity.make_fla_fixtures --fla=PATH

PATH is a checkout of github.com/fla-org/flash-linear-attention (made with bc3b101dcb71). In the
environment of `make parity`; the four files that are read need PyTorch alone, and neither Triton
nor the package around them.
"""

import argparse
import importlib.util
import pathlib
from typing import Any

import numpy as np
import torch

FILE = pathlib.Path(__file__).parents[1] / "models/fixtures/flash_linear_attention.npz"
BATCH, TIME, HEADS, KEYS, VALUES = 1, 70, 3, 4, 5  # 70 tokens: more than a chunk of the op


def function(checkout: pathlib.Path, file: str, name: str) -> Any:
    """A function of one of the checkout's files, which is executed by itself."""
    spec = importlib.util.spec_from_file_location(file.replace("/", "_"), checkout / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def recurrences(checkout: pathlib.Path) -> dict[str, dict[str, torch.Tensor]]:
    """By model, the inputs under the names of the test and the results "o" and "last".

    The recurrences of GLA and RetNet multiply q by KEYS^-1/2. Their arrays are [B T H K] for GLA,
    [B H T K] for RetNet and RWKV-6.
    """
    gla = function(checkout, "fla/ops/gla/naive.py", "naive_recurrent_gla")
    hgrn = function(checkout, "fla/ops/hgrn/naive.py", "naive_recurrent_hgrn")
    retention = function(checkout, "fla/ops/retention/naive.py", "naive_retention")
    rwkv6 = function(checkout, "fla/ops/rwkv6/recurrent_naive.py", "naive_recurrent_rwkv6")

    torch.manual_seed(0)
    tokens = (BATCH, TIME, HEADS)
    q, k = torch.randn(2, *tokens, KEYS)
    v, z = torch.randn(*tokens, VALUES), torch.randn(*tokens, KEYS)
    first = torch.randn(BATCH, HEADS, KEYS, VALUES)
    bound = torch.rand(HEADS * KEYS)
    u = torch.randn(HEADS, KEYS)
    turned = [x.transpose(1, 2) for x in (q, k, v, z)]

    found: dict[str, dict[str, torch.Tensor]] = {}
    # alpha = sigmoid(z)^(1/16), as fla/layers/gla.py has it
    log_alpha = torch.nn.functional.logsigmoid(z) / 16
    o, last = gla(q, k, v, log_alpha, first, True)
    found["gla"] = dict(q=q, k=k, v=v, z=z, first=first, o=o, last=last)
    found["retnet"] = dict(q=q, k=k, v=v, o=retention(*turned[:3]).transpose(1, 2))
    # as fla/layers/hgrn2.py has it
    of_head = bound.reshape(HEADS, KEYS)
    log_f = torch.logaddexp(
        of_head.log(), torch.log1p(-of_head) + torch.nn.functional.logsigmoid(z)
    )
    o, last = gla(q, 1 - log_f.exp(), v, log_f, first, True)
    found["hgrn2"] = dict(q=q, v=v, z=z, bound=bound, first=first, o=o, last=last)
    # as fla/layers/hgrn.py has it: the gated input is silu(i) (1 - f)
    i, gate = torch.randn(2, BATCH, TIME, HEADS * KEYS)
    log_f = torch.logaddexp(bound.log(), torch.log1p(-bound) + torch.nn.functional.logsigmoid(gate))
    start = torch.randn(BATCH, HEADS * KEYS)
    o, last = hgrn(torch.nn.functional.silu(i) * (1 - log_f.exp()), log_f, start, True)
    found["hgrn"] = dict(i=i, z=gate, bound=bound, first=start, o=o, last=last)
    log_w = -torch.exp(turned[3])
    o, last = rwkv6(*turned[:3], log_w, u, 1.0, first, True)
    found["rwkv6"] = dict(q=q, k=k, v=v, z=z, u=u, first=first, o=o.transpose(1, 2), last=last)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the fixtures.")
    parser.add_argument("--fla", type=pathlib.Path, required=True, help="a checkout")
    arrays = {
        f"{model}/{name}": tensor.numpy()
        for model, tensors in recurrences(parser.parse_args().fla).items()
        for name, tensor in tensors.items()
    }
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
