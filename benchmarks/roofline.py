"""What a kernel can't do without, against what a chip can do: bytes, FLOPs, the least time; and
what our Hopper kernels should take.

Least work of the mLSTM: matrix products of the chunkwise form at L = 64, the causal half of a
chunk's pairs, nothing computed twice; every input and output moved once. So a share of this
roofline says nothing about how a kernel cuts its work.
"""

import math
from typing import NamedTuple

from pallas_kernels.chips import chip_of
from pallas_kernels.mlstm.pallas_gpu import NARROW_CHUNKS, has_narrow_heads
from pallas_kernels.testing.specs import Spec

CHUNK = 64


class Work(NamedTuple):
    """FLOPs of matrix products and bytes of memory traffic."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __rmul__(self, factor: float) -> "Work":
        return Work(factor * self.flops, factor * self.bytes)


def chip(device_kind: str) -> tuple[float, float] | None:
    """(dense bf16 FLOP/s, bytes/s of memory) of a device; None for one that is not known."""
    known = chip_of(device_kind)
    return (known.flops, known.bandwidth) if known and known.bandwidth else None


def least_work(spec: Spec, backward: bool) -> Work:
    """Of one call, of its gradients too where backward."""
    item = 4 if spec.dtype == "float32" else 2
    tokens, K, V = spec.B * spec.T * spec.H, spec.K, spec.V
    if not K:  # sLSTM: R h, then d_raw R^T and h^T d_raw; x is four gates
        forward = Work(8 * V * V, item * 5 * V)
        return tokens * (forward + Work(16 * V * V, item * 10 * V) if backward else forward)
    forward = Work(CHUNK * (K + V) + 4 * K * V, item * (2 * K + 2 * V) + 8)
    # reads q, k, v, h, dh, writes dq, dk, dv
    back = Work(CHUNK * (3 * K + 2 * V) + 8 * K * V, item * (4 * K + 4 * V) + 16)
    return tokens * (forward + back if backward else forward)


def least_seconds(work: Work, device_kind: str) -> float | None:
    """The larger of the times for FLOPs and for bytes."""
    rates = chip(device_kind)
    return rates and max(work.flops / rates[0], work.bytes / rates[1])


# What a well-made kernel reaches of the data sheet. Memory: copies on an H200 reach 4.1 of 4.8
# TB/s. Products: a tile of 128 x 128 by one block reads 64·(128+128)·2 bytes for 64·128·128·2
# FLOPs, 64 FLOPs per byte from the L2 cache; at the 7 TB/s that this gives, 448 of 989 TFLOP/s. A
# cluster of two that fetches one of the operands once reads three quarters of that: 597. (Shared
# memory, 128 bytes a cycle, would allow 790: TMA writes 32 KB and WGMMA reads 48 KB of it in the
# 512 cycles of 64·128·128 products.)
MEMORY, PRODUCTS, CLUSTERED = 0.8, 0.45, 0.6


class Kernel(NamedTuple):
    """What one kernel does and the share of the chip's FLOP/s that its products reach."""

    work: Work
    products: float = PRODUCTS


def hopper_kernels(spec: Spec, chunk: int, backward: bool) -> dict[str, Kernel]:
    """The kernels of mlstm/pallas_gpu.py, bf16; tiles of one chunk that read the same data find it
    in the L2 cache.

    A chunk's state is 2·K·V bytes, written and read again, and so are the pairs of wide heads, L·L
    bytes (the causal half).
    """

    def tiled(width: int) -> float:
        return PRODUCTS if width % 256 else CLUSTERED

    K, V, tokens = spec.K, spec.V, spec.B * spec.T * spec.H
    state, q, v = 2 * K * V / chunk, 2 * K, 2 * V
    walk = Kernel(Work(2 * K * V, q + v + state), tiled(V))
    kernels = {"walk": walk}
    if chunk in NARROW_CHUNKS and has_narrow_heads(K, V):
        # a block takes every tile of 64 tokens that its neighbour in the cluster needs
        flops = (chunk + 128) * (K + V) + 2 * K * V
        by_values = Kernel(Work(flops, 2 * q + 2 * v + state))
        kernels |= {"attend h": by_values, "normaliser (XLA)": Kernel(Work(0, q + 20))}
        back = {
            "attend dq": Kernel(Work(flops, 3 * q + 3 * v + state)),
            "attend dv": by_values,
            "attend dk": Kernel(Work(flops, 3 * q + 2 * v + state)),
            "overlaps, normaliser (XLA)": Kernel(Work(0, 2 * state + q + 80)),
        }
    else:
        pairs = chunk
        by_values = Kernel(Work(chunk * V + 2 * K * V, pairs + state + q + 2 * v), tiled(V))
        by_keys = Kernel(Work(chunk * K + 2 * K * V, pairs + state + 3 * q + v), tiled(K))
        kernels |= {
            "pairs": Kernel(Work(chunk * K, 2 * q + pairs)),
            "combine h": by_values,
            "normaliser (XLA)": Kernel(Work(0, 2 * q + 40)),
        }
        back = {
            "pairs again": Kernel(Work(chunk * K, 2 * q + pairs)),
            "pairs dS": Kernel(Work(chunk * V, 2 * v + pairs)),
            "combine dv": by_values,
            "combine dq": by_keys,
            "combine dk": by_keys,
            "overlaps, dh·h, normaliser (XLA)": Kernel(Work(0, 2 * state + 2 * v + q + 80)),
        }
    kernels |= ({"walk back": walk} | back) if backward else {}
    return {name: kernel._replace(work=tokens * kernel.work) for name, kernel in kernels.items()}


def expected_seconds(kernels: dict[str, Kernel], device_kind: str) -> float:
    """Every kernel takes the larger of its two times at what kernels reach, one after the other."""
    flops, memory = chip(device_kind)
    # fsum: Python 3.12's sum rounds otherwise than 3.11's
    return math.fsum(
        max(work.flops / (products * flops), work.bytes / (MEMORY * memory))
        for work, products in kernels.values()
    )


CLOCK = 1.755e9  # Hz of an H200 under load
SMEM_BYTES_PER_CYCLE = 128  # of one multiprocessor


def expected_slstm_step(spec: Spec) -> float:
    """Seconds per time step of slstm/pallas_gpu.py's forward kernel; all blocks run at once, so a
    step is one block's.

    In cycles: R of 64 units and four gates streams from shared memory through WGMMA (4·64·V·2 bytes
    at 128 a cycle); 300 for waiting for WGMMA, x and h; 40 per thread and cell for the equations,
    rows·64/128 cells a thread. Heads wider than 64 exchange h through the L2 cache: store, cluster
    barrier, load, 600 to 700 cycles each for the two copies and 250 for the barrier.
    """
    rows = 8  # of the batch's 16: two blocks for each 64 units of a head do not fill the GPU
    product = 4 * 64 * max(64, spec.V) * 2 / SMEM_BYTES_PER_CYCLE
    exchange = 1550 if spec.V > 64 else 100
    return (product + 300 + 40 * rows * 64 / 128 + exchange) / CLOCK
