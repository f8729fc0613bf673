"""The one list of kernel cases: what tests compare with the reference and what benchmarks time."""

import dataclasses
from typing import Literal

import numpy as np

from pallas_kernels.testing import cases

# Largest error of an array, relative to its largest entry, per type of the inputs. The one table
# for all Pallas backends.
TOLERANCE = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 1e-4}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One call of `mlstm` (or, with K = 0, of `slstm`)."""

    name: str
    T: int
    K: int
    V: int
    B: int = 2
    H: int = 2
    dtype: str = "bfloat16"  # of q, k, v or x; gates, R, bias and states are float32
    # bias of the input gate, or gates that jump between -80 and 80
    gates: float | Literal["extreme"] = 0.0
    documents: Literal["one", "borders", "random"] = "one"
    input_gate: Literal["exponential", "sigmoid"] = "exponential"
    state: bool = True  # an initial state is given, and the loss looks at the last one
    # where "borders" puts documents; also the kernel's chunk_size where the test passes it
    chunk: int = 64

    def but(self, **changes: object) -> "Spec":
        """The same with changes; the name says which."""
        suffix = "-".join(f"{key}={value}" for key, value in changes.items())
        return dataclasses.replace(self, name=f"{self.name}-{suffix}", **changes)

    @property
    def tolerance(self) -> float:
        """How far results may be off, of the largest of them."""
        return TOLERANCE[self.dtype]


def inputs_of(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays in float64, rounded to what the kernel is given, as the dictionaries of cases.py."""
    bias = 0.0 if spec.gates == "extreme" else spec.gates
    if spec.K:
        inputs = cases.mlstm_inputs(spec.T, bias, seed, spec.K, spec.V, spec.B, spec.H)
    else:
        inputs = cases.slstm_inputs(spec.T, bias, seed, spec.V, spec.B, spec.H)
    if spec.gates == "extreme":
        r = np.random.default_rng(seed)
        for gate in (
            [inputs["i"], inputs["f"]] if spec.K else [inputs["x"][:, :, 0], inputs["x"][:, :, 1]]
        ):
            gate[...] = r.choice([-80.0, 80.0], size=gate.shape)
        # no cancelling in n·q, whose reciprocal would blow up any form's rounding
        for name in {"q", "k"} & inputs.keys():
            inputs[name] = np.abs(inputs[name])
    if not spec.state:
        inputs = {
            name: x for name, x in inputs.items() if name not in ("C0", "c0", "n0", "h0", "m0")
        }
    elif spec.input_gate == "sigmoid":
        inputs["n0"], inputs["m0"] = np.zeros_like(inputs["n0"]), np.zeros_like(inputs["m0"])
    if spec.documents == "borders":
        inputs |= border_documents(spec.B, spec.T, spec.chunk)
    elif spec.documents == "random":
        inputs |= cases.random_documents(spec.T, seed, spec.B)
    return {name: rounded(x, types_of(spec)[name]) for name, x in inputs.items()}


def types_of(spec: Spec) -> dict[str, str]:
    """The type of every array that `inputs_of` may hold."""
    low = dict.fromkeys(("q", "k", "v", "x"), spec.dtype)
    high = dict.fromkeys(("i", "f", "R", "bias", "C0", "c0", "n0", "h0", "m0"), "float32")
    return low | high | dict.fromkeys(("segment_ids", "previous_segment"), "int32")


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """x as that type holds it, in float64 again (integers stay)."""
    return x if np.issubdtype(x.dtype, np.integer) else x.astype(np.dtype(dtype)).astype(np.float64)


def border_documents(batch: int, time: int, chunk: int) -> dict[str, np.ndarray]:
    """New documents one token before, at and one token after the borders of chunks, every second
    one with padding around it.

    Row 0 goes on with the initial state's document, row 1 does not, row 2 begins with padding, and
    so on.
    """
    ids = np.zeros((batch, time), np.int32)
    for row in range(batch):
        if row % 3 == 2:
            ids[row, : min(2, time - 1)] = -1
        for border in range(1, -(-time // chunk) + 1):
            start = border * chunk + (border + row) % 3 - 1
            ids[row, start:] = border
            if (border + row) % 2:
                ids[row, start - 1 : start + 1] = -2
    return {"segment_ids": ids, "previous_segment": np.array([0, 7, 0] * batch, np.int32)[:batch]}


def _mlstm(T: int, **options: object) -> Spec:
    given = {"K": 64, "V": 64} | options
    name = "-".join(
        f"{value}" if key in ("dtype", "documents", "input_gate") else f"{key}{value}"
        for key, value in given.items()
    )
    return Spec(f"T{T}-{name}", T, **given)


# For the XLA forms and interpret=True. T around the chunk's length; each feature once in every
# type.
MLSTM = (
    *(_mlstm(T) for T in (63, 64, 65)),
    _mlstm(129, documents="borders"),
    _mlstm(129, documents="borders", input_gate="sigmoid"),
    _mlstm(129, documents="random", dtype="float32", V=128),
    _mlstm(129, dtype="float32", input_gate="sigmoid", K=128),
    _mlstm(1000, documents="borders", B=1, H=1, V=128),
    _mlstm(193, gates=-10.0, state=False, K=128, V=256, B=1, H=1),
    _mlstm(193, gates=3.0, documents="random", K=96, V=80, B=1),
    _mlstm(100, gates="extreme", documents="random", dtype="float32"),
)
# The decode step: "recurrent", and "pallas_triton" on GPUs.
ONE_TOKEN = (
    _mlstm(1),
    _mlstm(1, documents="borders", dtype="float32", K=96, V=80, B=3),
    _mlstm(1, documents="borders", dtype="float32", input_gate="sigmoid"),
    _mlstm(1, gates="extreme", dtype="float32", K=16, V=8, B=4),
    _mlstm(1, dtype="float16", K=384, V=384, H=1),
    _mlstm(1, state=False, K=1, V=3),
)

# For the simulators, whose time goes with the products: one gate layout and type each.
MLSTM_SIMULATED = (
    _mlstm(129, documents="borders", B=1, H=1),
    _mlstm(65, input_gate="sigmoid", dtype="float32", B=1, H=1),
)

SLSTM = (
    *(Spec(f"T{T}", T, K=0, V=32) for T in (1, 2, 9)),
    Spec("T33-borders", 33, K=0, V=64, documents="borders", chunk=8),
    Spec("T33-borders-float32", 33, K=0, V=16, documents="borders", chunk=8, dtype="float32"),
    Spec("T40-random-float32", 40, K=0, V=32, B=3, documents="random", dtype="float32"),
    Spec("T20-bias-10", 20, K=0, V=32, B=1, gates=-10.0, state=False),
    Spec("T20-extreme", 20, K=0, V=32, gates="extreme", dtype="float32"),
)
SLSTM_SIMULATED = (Spec("T9-borders", 9, K=0, V=32, H=1, documents="borders", chunk=4),)

# For a device, where a case takes seconds to compile and little to run: also wide heads, whose
# kernels are clusters, and the types and gates that the others leave out.
MLSTM_ON_DEVICE = (
    *MLSTM[3:],
    *ONE_TOKEN,
    _mlstm(1, K=256, V=512, H=8),
    _mlstm(1, K=1024, V=1024, H=4),
    _mlstm(100, gates="extreme", documents="random"),
    _mlstm(129, documents="borders", dtype="float16"),
    _mlstm(129, documents="borders", K=320),
    _mlstm(129, documents="borders", input_gate="sigmoid", K=320),
    _mlstm(100, gates="extreme", documents="random", K=320),
    _mlstm(600, K=256, V=512, B=1, H=1),
    _mlstm(257, K=512, V=512, B=1, H=1),
)
SLSTM_ON_DEVICE = (
    Spec("T65-V16", 65, K=0, V=16, documents="borders", B=16),
    Spec("T65-V192", 65, K=0, V=192, documents="borders"),
    Spec("T65-V512", 65, K=0, V=512, documents="borders"),
)


def _speed(heads: int, key_dim: int, value_dim: int, time: int) -> Spec:
    name = f"{heads}x{key_dim}x{value_dim}-T{time}"
    return Spec(name, time, key_dim, value_dim, B=65536 // time, H=heads, state=False)


# Timed by benchmarks/kernels.py: 65,536 tokens; the shapes. 7B has 256/512, 1.3B 1024/1024,
# the TFLA paper 128/256.
SPEED_HEADS = ((16, 128, 256), (8, 256, 512), (4, 512, 512), (4, 1024, 1024))
MLSTM_SPEED = tuple(_speed(*heads, time) for heads in SPEED_HEADS for time in (2048, 8192))
SLSTM_SPEED = tuple(
    Spec(f"{heads}x{dim}-T2048", 2048, K=0, V=dim, B=16, H=heads, state=False)
    for heads, dim in ((12, 64), (4, 192))
)

# The paper's models: heads and head dims of their mLSTM blocks (K = V) and sLSTM blocks, 7B's as K,
# V.
MODELS = {
    "125m": (4, 384, 384),
    "350m": (4, 512, 512),
    "760m": (4, 768, 768),
    "1.3b": (4, 1024, 1024),
    "7b": (8, 256, 512),
}
# Their mLSTM blocks that are not among the timed ones; tuned with them.
MLSTM_MODELS = tuple(_speed(*heads, 2048) for heads in MODELS.values() if heads not in SPEED_HEADS)
