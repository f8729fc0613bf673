"""Public kernels that are timed beside ours where they can be imported: PyTorch and Triton, on a
CUDA device.

Nothing of them is part of this project: `pip install torch mlstm_kernels flash-linear-attention`
brings them. They get random inputs of the same sizes in their own layout; CUDA events time them,
median over calls.
"""

import importlib.util
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pallas_kernels.testing.specs import Spec

NEEDS = {
    "torch flash attention": "torch",
    "mlstm_kernels exp": "mlstm_kernels",
    "mlstm_kernels sig": "mlstm_kernels",
    "simple GLA": "fla",
}


# What is timed in every run; mlstm_kernels once more with other chunk lengths than the 128 there.
USUAL = tuple(NEEDS)
CHUNKED = {
    f"mlstm_kernels {gate}, chunks of {size}": (gate, size)
    for gate in ("exp", "sig")
    for size in (64, 256)
}


def missing() -> dict[str, str]:
    """Rival -> why it is not timed; empty where all are."""
    if importlib.util.find_spec("torch") is None:
        return {name: "torch is not installed" for name in NEEDS}
    import torch

    if not torch.cuda.is_available():
        return {name: "torch sees no CUDA device" for name in NEEDS}
    return {
        name: f"{package} is not installed"
        for name, package in NEEDS.items()
        if importlib.util.find_spec(package) is None
    }


def rivals(
    spec: Spec, names: Sequence[str] = USUAL
) -> Iterator[tuple[str, Callable[[], Any], list[Any]]]:
    """(name, forward call, the inputs whose gradients count) of every one of them that is here."""
    absent = missing()
    for name in names:
        if name in CHUNKED and f"mlstm_kernels {CHUNKED[name][0]}" not in absent:
            yield name, *_mlstm_kernels(CHUNKED[name][0] == "sig", CHUNKED[name][1])(spec)
        elif name in NEEDS and name not in absent:
            yield name, *_BUILDERS[name](spec)


def seconds(
    call: Callable[[], Any], inputs: list[Any], *, backward: bool, repetitions: int
) -> float:
    """Median device time of a call, with the gradients of all inputs where backward."""
    import torch

    cotangent = torch.randn_like(call())

    def run() -> None:
        if not backward:
            with torch.no_grad():
                call()
            return
        for x in inputs:
            x.grad = None
        call().backward(cotangent)

    for _ in range(3):
        run()
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _inputs(*shapes: tuple[int, ...], dtype: str = "bfloat16") -> list[Any]:
    import torch

    return [
        torch.randn(shape, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
        for shape in shapes
    ]


def _mlstm_kernels(
    sigmoid: bool, chunk_size: int = 128
) -> Callable[[Spec], tuple[Callable[[], Any], list[Any]]]:
    def build(spec: Spec) -> tuple[Callable[[], Any], list[Any]]:
        import torch
        from mlstm_kernels.torch import chunkwise

        kernel = (
            chunkwise.mlstm_siging_chunkwise__xl_chunk
            if sigmoid
            else chunkwise.mlstm_chunkwise__xl_chunk
        )
        # its default would compute in float32
        options = {"chunk_size": chunk_size, "autocast_kernel_dtype": torch.bfloat16}
        options |= {"normalize": False} if sigmoid else {}
        heads = (spec.B, spec.H, spec.T)
        inputs = _inputs((*heads, spec.K), (*heads, spec.K), (*heads, spec.V)) + _inputs(
            heads, heads, dtype="float32"
        )
        return lambda: kernel(*inputs, **options), inputs

    return build


def _simple_gla(spec: Spec) -> tuple[Callable[[], Any], list[Any]]:
    import torch
    from fla.ops.simple_gla import chunk_simple_gla

    tokens = (spec.B, spec.T, spec.H)
    inputs = _inputs((*tokens, spec.K), (*tokens, spec.K), (*tokens, spec.V)) + _inputs(
        tokens, dtype="float32"
    )
    return lambda: chunk_simple_gla(*inputs[:3], g=torch.nn.functional.logsigmoid(inputs[3]))[
        0
    ], inputs


def _flash_attention(spec: Spec) -> tuple[Callable[[], Any], list[Any]]:
    """Causal attention of the same embedding, H·V channels in heads of 128."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    inputs = _inputs(*[(spec.B, spec.H * spec.V // 128, spec.T, 128)] * 3)

    def call() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)

    return call, inputs


_BUILDERS = {
    "torch flash attention": _flash_attention,
    "mlstm_kernels exp": _mlstm_kernels(sigmoid=False),
    "mlstm_kernels sig": _mlstm_kernels(sigmoid=True),
    "simple GLA": _simple_gla,
}
