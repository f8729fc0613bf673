"""Writes tests/models/fixtures/zoology.npz: H3 and Hyena of zoology with random weights, under the
names that ours have, so that they are compared with without zoology's code.

    python -m tests.parity.make_zoology_fixtures --zoology=PATH

PATH is a checkout of github.com/HazyResearch/zoology (made with d88d6f5). In the environment of
`make parity`. Their H3 is made with disc="zoh", the exact step that S4D (2206.11893) recommends and
ours has; their default is the bilinear one. Their k is added to the shift model's output with a
weight of its own, which is our shift model's weight of the current token.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch

FILE = pathlib.Path(__file__).parents[1] / "models/fixtures/zoology.npz"
BATCH, TIME, DIM = 2, 19, 6
HYENA = {"filter_order": 8, "l_max": 24, "short_filter_order": 3, "w": 10, "emb_dim": 5}
TAPS = 8  # of the shift model, and numbers of the diagonal one with their conjugates


def hyena() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """(weights, input, output); theirs multiplies by the first third, then by the second."""
    from zoology.mixers.hyena import Hyena

    module = Hyena(DIM, **HYENA)
    inner, bias, taps = _thirds(
        module.in_proj.weight.T, module.in_proj.bias, module.short_filter.weight[:, 0].T
    )
    (taps_bias,) = _thirds(module.short_filter.bias)
    network = module.filter_fn.implicit_filter
    layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    weights = {
        "in_projection/kernel": inner,
        "in_projection/bias": bias,
        "conv/kernel": taps,
        "conv/bias": taps_bias,
        "filters/frequency": network[1].freq[0],
        "filters/last/kernel": layers[-1].weight.T,
        "skip": module.filter_fn.bias[None],
        "out_projection/kernel": module.out_proj.weight.T,
        "out_projection/bias": module.out_proj.bias,
    }
    for number, layer in enumerate(layers[:-1]):
        weights[f"filters/layer_{number}/kernel"] = layer.weight.T
        weights[f"filters/layer_{number}/bias"] = layer.bias
    return weights, *_through(module)


def _thirds(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Theirs hold x_1, x_2, v; ours, of which the last gate is applied first, x_2, x_1, v."""
    return [torch.cat([t.split(DIM, dim=-1)[part] for part in (1, 0, 2)], dim=-1) for t in tensors]


def h3() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """(weights, input, output)."""
    from zoology.mixers.h3.h3 import H3

    module = H3(DIM, d_state=TAPS, l_max=HYENA["l_max"], kernel_args={"disc": "zoh"})
    projections = [module.q_proj, module.k_proj, module.v_proj]
    diagonal = module.kernel.kernel
    c = torch.view_as_complex(diagonal.B.detach()) * torch.view_as_complex(diagonal.C[0].detach())
    taps = module.ssm_k_kernel.kernel.C[0].detach().clone()
    taps[:, 0] += module.ssm_k_D.detach()
    weights = {
        "in_projection/kernel": torch.cat([p.weight.T for p in projections], dim=1),
        "in_projection/bias": torch.cat([p.bias for p in projections]),
        "conv/kernel": taps.flip(-1).T,
        "conv/bias": torch.zeros(DIM),
        "step_log": diagonal.log_dt,
        "a_real_log": diagonal.inv_A_real.T,
        "a_imag": diagonal.A_imag.T,
        "c_real": c.real.T,
        "c_imag": c.imag.T,
        "skip": module.D,
        "out_projection/kernel": module.output_linear.weight.T,
        "out_projection/bias": module.output_linear.bias,
    }
    return weights, *_through(module)


def _through(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(BATCH, TIME, DIM)
    return x, module(x)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the fixtures.")
    parser.add_argument("--zoology", type=pathlib.Path, required=True, help="a checkout")
    sys.path.insert(0, str(parser.parse_args().zoology))
    torch.manual_seed(0)
    arrays = {}
    for name, (weights, x, y) in {"hyena": hyena(), "h3": h3()}.items():
        arrays |= {f"{name}/params/{key}": value for key, value in weights.items()}
        arrays |= {f"{name}/x": x, f"{name}/y": y}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **{name: value.detach().numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
