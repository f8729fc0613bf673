"""FLOPs against the paper's table and against matrix products counted by hand."""

import pytest

from xlstm_jax.analysis.flops import (
    COUNTINGS,
    counting_of,
    peak_flops,
    training_flops_per_token,
)
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig, SequenceModel, build_model
from xlstm_jax.models.mlstm_cell import cell_flops


def flops_of(config: ModelConfig, name: str, context_length: int = 2048) -> float:
    mixer, settings = config.of(name)
    return mixer.flops(settings, config.dim, context_length)


@pytest.mark.parametrize(("heads", "printed"), [(8, 4.1e10), (16, 2.4e10), (32, 1.5e10)])
def test_the_mlstm_cell_has_the_flops_of_table_3_of_xlstm_7b(heads, printed):
    """Dimension 4096, context 8192; the table's row for 4 heads is out of line with the others by a
    factor of ten.
    """
    assert float(f"{8192 * cell_flops(heads, 2048, 4096):.1e}") == printed


def test_matrix_products_of_each_mixer():
    """The parameters in products, twice each, are most of it; conv and cells make up the small
    rest.
    """
    paper = ModelConfig(dim=1024, num_blocks=2, blocks="mlstm,slstm+mlp")
    inner, ffn = 2048, 1344
    mlstm = 2 * (1024 * 2 * inner + 3 * inner * 4 + 3 * inner * 2 * 4 + 4 * inner + inner * 1024)
    assert flops_of(paper, "mlstm") == mlstm + cell_flops(4, inner, inner)
    products, cell = 2 * (4 * 1024 + 4 * 1024 * 256), 2 * 4 * 1024 * 256 + 24 * 1024
    assert flops_of(paper, "slstm") == products + cell
    assert flops_of(paper, "mlp") == 2 * 3 * 1024 * ffn
    large = ModelConfig(
        dim=1024, num_blocks=1, blocks="mlstm_7b+mlp", mixers={"mlstm_7b": {"num_heads": 4}}
    )
    dense = 2 * (1024 * (512 + 512 + 1024 + 8) + 2 * 1024 * 1024)
    assert flops_of(large, "mlstm_7b") == dense + cell_flops(4, 512, 1024)


def test_matrix_products_of_recurrences_per_channel():
    """The same; the recurrence itself has a few FLOPs for each number that it remembers."""
    dim, inner, state, rank = 64, 128, 16, 4
    products = 2 * (dim * 2 * inner + inner * (rank + 2 * state) + rank * inner + inner * dim)
    mamba = products + 2 * 4 * inner + inner * (7 * state + 3)
    assert flops_of(ModelConfig(dim=dim, num_blocks=1, blocks="mamba"), "mamba") == mamba
    rwkv4 = ModelConfig(dim=dim, num_blocks=1, blocks="rwkv4+rwkv4_channel")
    assert flops_of(rwkv4, "rwkv4") == 2 * 4 * dim**2 + 34 * dim
    assert flops_of(rwkv4, "rwkv4_channel") == 2 * 9 * dim**2 + 8 * dim + 2 * 4 * dim
    hgrn = ModelConfig(dim=dim, num_blocks=1, blocks="hgrn")
    assert flops_of(hgrn, "hgrn") == 2 * 4 * dim**2 + 9 * dim


def test_matrix_products_of_the_lstm_and_of_convolutions():
    """Of an FFT of n numbers 2.5 n log2(n), three of twice the context per long convolution."""

    def of(name: str, context_length: int = 512, **settings) -> float:
        config = ModelConfig(dim=64, num_blocks=1, blocks=name, mixers={name: settings})
        return flops_of(config, name, context_length)

    square = 2 * 64 * 64
    assert of("lstm") == 8 * square + 17 * 64
    assert of("h3") == 4 * square + 2 * 64 * 64 + (14 * 32 + 4) * 64
    fft = 3 * 2.5 * 1024 * 10 / 512 + 6  # and the product of the spectra
    assert of("hyena") == 4 * square + 2 * 3 * 3 * 64 + (fft + 2) * 64 + 64
    assert of("hyena", order=3) == 5 * square + 2 * 3 * 4 * 64 + 2 * (fft + 2) * 64 + 64


def test_matrix_products_of_matrix_states():
    """Projections, and per head, in chunks of 64 tokens: half a square of q k and a square of
    weights times v; reading the state and writing to it; its decay, once per chunk.
    """

    def of(name: str, **settings) -> float:
        config = ModelConfig(dim=64, num_blocks=1, blocks=name, mixers={name: settings})
        return flops_of(config, name)

    def memory(heads: int, k: int, v: int) -> float:
        return heads * (64 * k + 2 * 64 * v + 4 * k * v + k * v / 64)

    square = 2 * 64 * 64
    assert of("gla", num_heads=4) == 4 * square + 2 * 16 * (64 + 32) + memory(4, 8, 16)
    assert of("retnet", num_heads=4) == 8 * square + memory(4, 16, 32)
    assert of("hgrn2", head_dim=16) == 4 * square + memory(4, 16, 16)
    rwkv5 = 5 * square + memory(4, 16, 16) + (5 + 3 * 4) * 64
    assert of("rwkv5", head_dim=16) == rwkv5
    low_rank = 2 * 2 * 64 * (5 * 32 + 64)
    assert of("rwkv6", head_dim=16) == rwkv5 + 3 * 2 * 64 + low_rank


def test_training_is_three_times_forward_with_the_vocabulary_and_without_the_embedding():
    config = ModelConfig(dim=64, num_blocks=3, blocks="2*mlstm,slstm+mlp", vocab_size=100)
    blocks = sum(flops_of(config, name) for name in ("mlstm", "mlstm", "slstm", "mlp"))
    flops = training_flops_per_token(build_model(config), 2048)
    assert flops == 3 * (blocks + 2 * 64 * 100)


def test_a_model_of_vectors_has_its_own_head_and_no_vocabulary_projection():
    config = ModelConfig(dim=64, num_blocks=2, blocks="mlstm,slstm")
    blocks = flops_of(config, "mlstm") + flops_of(config, "slstm")
    flops = training_flops_per_token(SequenceModel(config, outputs=5), 2048)
    assert flops == 3 * (blocks + 2 * 64 * 5)


def of_the_scaling_laws(mixer, dim, hidden, num_heads, num_blocks) -> ModelConfig:
    mixers = {
        mixer: {"num_heads": num_heads},
        "mlp": {"factor": None, "hidden": hidden, "activation": "silu"},
    }
    return ModelConfig(
        vocab_size=50304, dim=dim, num_blocks=num_blocks, blocks=f"{mixer}+mlp", mixers=mixers
    )


@pytest.mark.parametrize(
    ("config", "steps", "batch_size", "logged"),
    [
        (of_the_scaling_laws("mlstm_7b", 768, 2112, 6, 12), 3_500, 128, "2.810e+18"),
        (of_the_scaling_laws("attention", 768, 2048, 12, 12), 3_500, 128, "4.416e+18"),
    ],
    ids=["xLSTM 164M", "Llama 162M"],
)
def test_the_logged_training_flops_of_the_scaling_laws_paper(config, steps, batch_size, logged):
    """arXiv 2510.02228: 3.67e9 tokens in sequences of 8192, to the last digit that is printed."""
    tokens = steps * batch_size * 8192
    assert f"{tokens:.2e}" == "3.67e+09"
    of_token = training_flops_per_token(build_model(config), 8192, counting_of("published"))
    assert f"{tokens * of_token:.3e}" == logged


@pytest.mark.parametrize(
    ("config", "tokens", "logged"),
    [
        (of_the_scaling_laws("mlstm_7b", 2048, 5504, 4, 24), 3.15e11, 2.544e21),
        (of_the_scaling_laws("mlstm_7b", 4096, 10944, 8, 32), 2.10e12, 8.481e22),
        (of_the_scaling_laws("attention", 4096, 10944, 32, 32), 6.08e11, 2.825e22),
    ],
    ids=["xLSTM 1.42B", "xLSTM 6.87B", "Llama 6.86B"],
)
def test_larger_runs_have_theirs_as_far_as_their_tokens_are_printed(config, tokens, logged):
    of_token = training_flops_per_token(build_model(config), 8192, counting_of("published"))
    assert tokens * of_token == pytest.approx(logged, rel=0.003)  # three digits of the tokens


def test_a_mixer_counts_by_the_first_name_that_it_has_and_else_as_always():
    config = ModelConfig(
        dim=64, num_blocks=1, blocks="mlstm", mixers={"mlstm": {"num_heads": 2}}, vocab_size=100
    )
    mixer, settings = config.of("mlstm")
    inner = 128

    def cell(counting) -> float:
        products = 2 * (64 * 2 * inner + 3 * inner * 4 + 3 * inner * 2 * 2 + 4 * inner + inner * 64)
        return mixer.counted(settings, 64, 512, counting) - products

    k = v = inner // 2
    assert cell(()) == cell(("causal", "full")) == cell_flops(2, inner, inner)
    # a step: the state decays, k v is added, q reads it; so does the normaliser, a vector of k
    recurrent = 2 * (9 + 4 * k * v + 6 * k + v + 3 + 2 * k * v + k)
    assert cell(("recurrent", "parallel")) == cell(("full", "recurrent")) == recurrent
    # a row of the T x T matrix: products with q and v, twelve FLOPs for the gates and the sum
    assert cell(("parallel",)) == 2 * (512 * (2 * k + 2 * v + 12) + 513 / 2 + 4)


def test_attention_counts_a_whole_square_a_half_or_a_half_with_softmax():
    config = ModelConfig(
        dim=64, num_blocks=1, blocks="attention", mixers={"attention": {"num_heads": 4}}
    )
    mixer, settings = config.of("attention")
    products = 2 * 4 * 64 * 64

    def square(name: str) -> float:
        return mixer.counted(settings, 64, 512, (name,)) - products

    assert square("causal") == 2 * 2 * 64 * 513 / 2
    assert square("full") == 2 * 2 * 64 * 512 + 3 * 4 * 512
    assert square("distill_scaling") == 2 * 64 * 512 + 2.5 * 4 * 512
    assert mixer.counted(settings, 64, 512) == products + square("causal")


def test_countings_have_names_and_others_are_refused():
    assert counting_of("published") == COUNTINGS["published"]
    assert counting_of("tfla,causal") == ("tfla", "causal")
    assert counting_of("model") == ()
    with pytest.raises(UserError, match="'chinchilla' is no way to count FLOPs; there are model"):
        counting_of("tfla,chinchilla")


@pytest.mark.parametrize(
    ("device_kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("TPU v4 lite", None),
    ],
)
def test_peaks_are_dense_bfloat16_and_unknown_chips_have_none(device_kind, peak):
    assert peak_flops(device_kind) == peak
