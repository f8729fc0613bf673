"""Parameter counts: formulas written by hand, equal to what the models have and to the numbers that
the papers print (2405.04517 table 1 and 7, 2503.13427 table 4).
"""

import jax
import jax.numpy as jnp
import pytest

from xlstm_jax import config
from xlstm_jax.models import build_model

VOCABULARY = 50304  # GPT-2's 50,257 ids (and GPT-NeoX's) up to a multiple of 64


def llama(dim: int, blocks: int) -> int:
    """q, k, v, out of D x D; gate, up, down of D x F with F = 8/3 D up to a multiple of 64; no
    biases; RMS norms.
    """
    hidden = 64 * -(-8 * dim // (3 * 64))
    block = 4 * dim**2 + 3 * dim * hidden + 2 * dim
    return 2 * VOCABULARY * dim + blocks * block + dim


def gpt3(dim: int, blocks: int, positions: int) -> int:
    """The same without a gate, F = 4 D, with biases everywhere and learned positions; tied."""
    attention = 4 * (dim**2 + dim)
    feed_forward = dim * 4 * dim + 4 * dim + 4 * dim * dim + dim
    norms = 2 * 2 * dim
    return (VOCABULARY + positions) * dim + blocks * (attention + feed_forward + norms) + 2 * dim


def mlstm_block(dim: int, heads: int = 4) -> int:
    """2405.04517, figure 11: I = 2 D; both branches up, a convolution of 4 taps with bias, q, k, v
    in blocks of 4, gates of [q k v] with bias, the norm of the heads, the skip, down; one norm.
    """
    inner = 2 * dim
    up, down = dim * 2 * inner, inner * dim
    convolution = 4 * inner + inner
    qkv = 3 * 4 * inner
    gates = 2 * (3 * inner * heads + heads)
    return dim + up + convolution + qkv + gates + inner + inner + down


def slstm_block(dim: int, heads: int = 4) -> int:
    """2405.04517, figure 10: a convolution as above; four gates with input and recurrent kernels of
    D/H x D/H per head and a bias; the norm of the heads; a gated layer of 1.3 D up to a multiple of
    64; two norms.
    """
    hidden = 64 * -(-13 * dim // (10 * 64))
    gates = 4 * (2 * dim**2 // heads + dim)
    return 2 * dim + 5 * dim + gates + dim + 3 * dim * hidden


def xlstm(dim: int, mlstm_blocks: int, slstm_blocks: int = 0) -> int:
    blocks = mlstm_blocks * mlstm_block(dim) + slstm_blocks * slstm_block(dim)
    return 2 * VOCABULARY * dim + blocks + dim


def xlstm_7b(dim: int = 4096, blocks: int = 32, heads: int = 8) -> int:
    """2503.13427, figure 8: q and k of D/2, v, output gate and out of D; gates with bias; the norm
    of the heads; a gated layer of 2.667 D, cut to a whole number and up to a multiple of 64.
    """
    hidden = 64 * -(-int(2.667 * dim) // 64)
    cell = 2 * dim * dim // 2 + 3 * dim**2 + 2 * (dim * heads + heads) + dim
    return 2 * VOCABULARY * dim + blocks * (cell + 3 * dim * hidden + 2 * dim) + dim


def mamba(dim: int, blocks: int, state: int = 16) -> int:
    """2312.00752, figure 3, with I = 2 D and rank R = D/16 rounded up: both branches up, a
    convolution of 4 taps with bias, [dt B C] of I x (R + 2 N), steps of R x I with bias, A of I x
    N, the skip, down; one norm.
    """
    inner, rank = 2 * dim, -(-dim // 16)
    up, down = dim * 2 * inner, inner * dim
    convolution = 4 * inner + inner
    selection = inner * (rank + 2 * state) + rank * inner + inner
    block = dim + up + convolution + selection + inner * state + inner + down
    return 2 * VOCABULARY * dim + blocks * block + dim


def rwkv4(dim: int, blocks: int) -> int:
    """2305.13048: key, value, receptance and out of D x D with decay, bonus and three shares of the
    token before; key, value of D x 4 D and receptance of D x D with two shares; layer norms with
    biases, one of them after the embedding.
    """
    time_mix, channel_mix = 4 * dim**2 + 5 * dim, 2 * dim * 4 * dim + dim**2 + 2 * dim
    norms = 2 * 2 * dim
    return 2 * VOCABULARY * dim + blocks * (time_mix + channel_mix + norms) + 2 * 2 * dim


def swiglu_of_256(dim: int) -> int:
    """Gate, up, down of D x F with F = 8/3 D up to a multiple of 256."""
    return 3 * dim * 256 * -(-8 * dim // (3 * 256))


def gla(dim: int, blocks: int, heads: int = 4, rank: int = 16) -> int:
    """q and k of D x D/2, v, gate and out of D x D; the forget gate through 16 channels, with a
    bias; one scale for all heads; SwiGLU; two norms.
    """
    mixer = 4 * dim**2 + dim * rank + rank * dim // 2 + dim // 2 + dim // heads
    return 2 * VOCABULARY * dim + blocks * (mixer + swiglu_of_256(dim) + 2 * dim) + dim


def hgrn(dim: int, blocks: int) -> int:
    """Forget gate, input, output gate and out of D x D; a norm and a lower bound; SwiGLU; two
    norms.
    """
    mixer = 4 * dim**2 + 2 * dim
    return 2 * VOCABULARY * dim + blocks * (mixer + swiglu_of_256(dim) + 2 * dim) + dim


def retnet(dim: int, blocks: int, heads: int = 4) -> int:
    """q and k of D x D; v, gate and out of D x 2 D; one scale for all heads; a gated layer of 5/3 D
    up to a multiple of 16; two norms.
    """
    mixer = 8 * dim**2 + 2 * dim // heads
    hidden = 16 * -(-5 * dim // (3 * 16))
    return 2 * VOCABULARY * dim + blocks * (mixer + 3 * dim * hidden + 2 * dim) + dim


def hgrn2(dim: int, blocks: int) -> int:
    """q, forget gate, input and out of D x D; the norm of all channels; the lower bounds, one row
    per layer; SwiGLU; two norms.
    """
    mixer = 4 * dim**2 + dim + dim
    return 2 * VOCABULARY * dim + blocks * (mixer + swiglu_of_256(dim) + 2 * dim) + dim


def rwkv_with_matrices(dim: int, blocks: int, hidden: int, of_mixtures: int) -> int:
    """receptance, key, value, gate and out of D x D; decay, bonus, the norm of the heads with a
    bias; the channel mix with two mixtures, D x F, F x D and D x D; two norms with biases, one
    after the embedding, one at the end.
    """
    time_mix = 5 * dim**2 + 4 * dim + of_mixtures
    channel_mix = 2 * dim * hidden + dim**2 + 2 * dim
    return 2 * VOCABULARY * dim + blocks * (time_mix + channel_mix + 4 * dim) + 4 * dim


def rwkv5(dim: int, blocks: int) -> int:
    """Four mixtures; F = 4 D."""
    return rwkv_with_matrices(dim, blocks, 4 * dim, 4 * dim)


def rwkv6(dim: int, blocks: int) -> int:
    """Six mixtures, five of them with 32 channels between; 64 channels to the decay; F = 3.5 D."""
    low_rank = 2 * dim * (5 * 32 + 64)
    return rwkv_with_matrices(dim, blocks, 7 * dim // 2, 6 * dim + low_rank)


def lstm(dim: int, layers: int, others: int = 0, norms: bool = True) -> int:
    """Four gates of D x D from the input and from the output before, each with a bias; of the
    layers some are instead a layer D x 4 D, 4 D x D without gate and bias; one norm each.
    """
    kernels = layers * (2 * 4 * dim**2 + 2 * 4 * dim) + others * 2 * dim * 4 * dim
    return 2 * VOCABULARY * dim + kernels + (layers + others + 1) * dim * norms


def slstm_of_the_ablation(dim: int, blocks: int, heads: int = 4) -> int:
    """`slstm_block` with gates whose input kernels are D x D and a gated layer of 2,688."""
    gates = 4 * (dim**2 + dim**2 // heads + dim)
    block = 2 * dim + 5 * dim + gates + dim + 3 * dim * 2688
    return 2 * VOCABULARY * dim + blocks * block + dim


def gates_of_the_ablation(kernels: int, biases: int, heads: int = 4) -> int:
    """xLSTM[1:0] of 350M with so many of the two gates' kernels and biases."""
    missing = (2 - kernels) * 3 * 2 * 1024 * heads + (2 - biases) * heads
    return xlstm(1024, 48) - 48 * missing


def post_up(dim: int, blocks: int, heads: int = 4) -> int:
    """q, k, v, output gate and out of D x D; gates with bias; the norm of the heads; a layer of 4 D
    without gate; two norms.
    """
    cell = 5 * dim**2 + 2 * (dim * heads + heads) + dim
    return 2 * VOCABULARY * dim + blocks * (cell + 8 * dim**2 + 2 * dim) + dim


def h3(dim: int, blocks: int, taps: int = 64, state: int = 32) -> int:
    """q, k, v of D x 3 D and out, with biases; the taps with a bias; A and C, complex; step and
    skip; a layer of 4 D and two norms, with biases.
    """
    mixer = 4 * dim**2 + 4 * dim + (taps + 1) * dim + 4 * state * dim + 2 * dim
    layer = 8 * dim**2 + 5 * dim
    return 2 * VOCABULARY * dim + blocks * (mixer + layer + 4 * dim) + 2 * dim


def hyena(dim: int, blocks: int, order: int, hidden: int = 64) -> int:
    """n + 1 projections and out, with biases; three taps with a bias; n - 1 filters and skips, made
    of 3 numbers by three layers of 64 and one without bias, with 64 frequencies; a layer of 4 D and
    two norms, with biases.
    """
    projections = (order + 2) * (dim**2 + dim) + 4 * (order + 1) * dim
    filters = (
        (3 + 1) * hidden + 2 * (hidden**2 + hidden) + hidden + (order - 1) * dim * (hidden + 1)
    )
    layer = 8 * dim**2 + 5 * dim
    return 2 * VOCABULARY * dim + blocks * (projections + filters + layer + 4 * dim) + 2 * dim


# (configuration, formula, count, what is printed, in millions)
COUNTS = [
    ("llama.py:125m-15b", llama(768, 12), 162_220_800, "162.2"),
    ("llama.py:350m-15b", llama(1024, 24), 406_635_520, "406.6"),
    ("llama.py:760m-15b", llama(1536, 24), 834_086_400, "834.1"),
    ("llama.py:1.3b-300b", llama(2048, 24), 1_420_396_544, "1420.4"),
    ("llama.py:2.7b-15b", llama(2560, 32), 2_779_548_160, "2779.5"),
    ("gpt3.py:350m-15b", gpt3(1024, 24, 2048), 355_919_872, "355.9"),
    ("xlstm_125m.py:1_0-15b", xlstm(768, 24), 163_806_144, "163.8"),
    ("xlstm_350m.py:1_0-15b", xlstm(1024, 48), 409_290_112, "409.3"),
    ("xlstm_760m.py:1_0-300b", xlstm(1536, 48), 840_427_392, "840.4"),
    ("xlstm_1.3b.py:1_0-300b", xlstm(2048, 48), 1_422_559_616, "1422.6"),
    # the paper prints 2788.3
    ("xlstm_2.7b.py:1_0-15b", xlstm(2560, 64), 2_788_396_032, "2788.4"),
    ("xlstm_125m.py:7_1-300b", xlstm(768, 22, 2), 163_690_928, "163.7"),
    ("xlstm_350m.py:7_1-300b", xlstm(1024, 42, 6), 408_436_048, "408.4"),
    ("xlstm_760m.py:7_1-15b", xlstm(1536, 42, 6), 839_736_144, "839.7"),
    ("xlstm_1.3b.py:7_1-15b", xlstm(2048, 42, 6), 1_420_065_104, "1420.1"),
    ("mamba.py:125m-15b", mamba(768, 24), 167_787_264, "167.8"),
    ("mamba.py:350m-15b", mamba(1024, 48), 423_052_288, "423.1"),
    ("mamba.py:760m-300b", mamba(1536, 48), 870_508_032, "870.5"),
    ("mamba.py:1.3b-300b", mamba(2048, 48), 1_475_250_176, "1475.3"),
    ("mamba.py:2.7b-15b", mamba(2560, 64), 2_897_185_280, "2897.2"),
    ("rwkv4.py:125m-15b", rwkv4(768, 12), 169_383_936, "169.4"),
    ("rwkv4.py:350m-15b", rwkv4(1024, 24), 430_452_736, "430.5"),
    ("rwkv4.py:760m-300b", rwkv4(1536, 24), 891_045_888, "891.0"),
    ("rwkv4.py:1.3b-300b", rwkv4(2048, 24), 1_515_216_896, "1515.2"),
    ("rwkv4.py:2.7b-15b", rwkv4(2560, 32), 2_984_765_440, "2984.8"),
    ("gla.py:350m-15b", gla(1024, 24), 411_962_368, "412.0"),
    ("hgrn.py:350m-15b", hgrn(1024, 24), 411_403_264, "411.4"),  # the paper prints 411
    # the paper prints no more digits
    ("retnet.py:350m-15b", retnet(1024, 24), 430_633_984, "430.6"),
    ("hgrn2.py:125m-15b", hgrn2(768, 12), 162_239_232, "162.2"),
    ("hgrn2.py:350m-15b", hgrn2(1024, 24), 411_403_264, "411.4"),
    ("hgrn2.py:760m-15b", hgrn2(1536, 24), 834_160_128, "834.2"),
    ("hgrn2.py:1.3b-15b", hgrn2(2048, 24), 1_439_369_216, "1439.4"),
    ("hgrn2.py:2.7b-15b", hgrn2(2560, 32), 2_795_440_640, "2795.4"),
    ("rwkv5.py:125m-15b", rwkv5(768, 12), 176_489_472, "176.5"),
    ("rwkv5.py:350m-15b", rwkv5(1024, 24), 455_692_288, "455.7"),
    ("rwkv5.py:760m-15b", rwkv5(1536, 24), 947_779_584, "947.8"),
    ("rwkv5.py:1.3b-15b", rwkv5(2048, 24), 1_616_027_648, "1616.0"),
    ("rwkv5.py:2.7b-15b", rwkv5(2560, 32), 3_194_726_400, "3194.7"),
    ("rwkv6.py:125m-15b", rwkv6(768, 12), 173_558_784, "173.6"),
    ("rwkv6.py:350m-15b", rwkv6(1024, 24), 441_585_664, "441.6"),
    ("rwkv6.py:760m-15b", rwkv6(1536, 24), 907_745_280, "907.7"),
    ("rwkv6.py:1.3b-15b", rwkv6(2048, 24), 1_537_482_752, "1537.5"),
    ("rwkv6.py:2.7b-15b", rwkv6(2560, 32), 3_021_875_200, "3021.9"),
    ("ablations.py:lstm", lstm(1536, 24, norms=False), 607_813_632, "607.8"),
    ("ablations.py:lstm_residual", lstm(1024, 48), 506_119_168, "506.1"),
    ("ablations.py:lstm_block", lstm(1024, 24, others=24), 505_922_560, "505.9"),
    ("ablations.py:xlstm_0_1", slstm_of_the_ablation(1024, 24), 427_328_512, "427.3"),
    ("ablations.py:xlstm_7_1", xlstm(1024, 42, 6), 408_436_048, "408.4"),
    # the paper does not print the numbers of the rows with fewer gates
    ("ablations.py:gates-none_inf", gates_of_the_ablation(0, 0), 406_930_432, "406.9"),
    ("ablations.py:gates-input", gates_of_the_ablation(1, 1), 408_110_272, "408.1"),
    ("ablations.py:gates-forget_and_bias", gates_of_the_ablation(1, 2), 408_110_464, "408.1"),
    ("ablations.py:memory-post_up", post_up(1024, 24), 430_449_856, "430.4"),
    ("ablations.py:memory-no_conv", xlstm(1024, 48) - 48 * 5 * 2048, 408_798_592, "408.8"),
    ("h3.py:350m-15b", h3(1024, 24), 410_126_336, "410.1"),  # the paper prints 420
    ("hyena.py:350m-15b", hyena(1024, 24, order=3), 434_319_872, "434.3"),  # the paper prints 435
    ("xlstm_7b.py", xlstm_7b(), 6_865_424_896, "6865.4"),
]


@pytest.mark.parametrize(
    ("name", "formula", "count", "printed"), COUNTS, ids=[row[0] for row in COUNTS]
)
def test_the_count_is_that_of_the_formula_and_the_printed_one(name, formula, count, printed):
    model = build_model(config.load(f"configs/{name}").model, stacked=True)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == formula == count
    assert f"{count / 1e6:.1f}" == printed
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
