"""Exported folders in transformers and PyPI xlstm, theirs here: same tensors to the bit, same
logits, same tokens.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from transformers import AutoTokenizer, xLSTMConfig, xLSTMForCausalLM
from transformers.models.xlstm import modeling_xlstm

from benchmarks.originals import paper_model, randomize
from tests.generation.conftest import initial_params
from xlstm_jax.config import Config
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.generation import GREEDY, Generator
from xlstm_jax.generation.decoding import generate
from xlstm_jax.interop import folders, large, paper
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.runs.checkpoints import write_params

RUN = ModelConfig(
    norm="rms",
    vocab_size=257,
    dim=128,
    num_blocks=2,
    logit_soft_cap=30.0,
    norm_eps=1e-6,
    blocks="mlstm_7b+mlp",
    mixers={
        "mlp": {"activation": "silu", "whole_first": True, "factor": 2.667},
        "mlstm_7b": {"num_heads": 2},
    },
)
ODD = {
    "hidden_size": 90,
    "num_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 277,
    "ffn_proj_factor": 1.3,
    "qk_dim_factor": 0.5,
}
SIZES = [
    ODD,
    {"hidden_size": 128, "num_heads": 4, "num_hidden_layers": 3, "vocab_size": 301},
    {"hidden_size": 256, "num_heads": 2, "num_hidden_layers": 1, "vocab_size": 257},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A random run of this project."""
    folder = tmp_path_factory.mktemp("run") / "run"
    params = initial_params(build_model(RUN), seed=1)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    scales = [0.2 if leaf.ndim < 3 else leaf.shape[-2] ** -0.5 for leaf in leaves]
    noisy = [
        x + scale * jax.random.normal(key, x.shape)
        for x, scale, key in zip(leaves, scales, keys, strict=True)
    ]
    write_params(folder, Config(model=RUN), jax.tree.unflatten(tree, noisy))
    return str(folder)


@pytest.fixture(params=["single", "fused"])
def weight_mode(request, monkeypatch):
    """transformers 5.23 fails to initialise a model of the fused mode (shapes H and 2 H), also one
    that is loaded: there it does not.
    """
    if request.param == "fused":
        # once it is mended, nothing is to be replaced
        with pytest.raises(RuntimeError, match="must match the size"):
            xLSTMForCausalLM(xLSTMConfig(**SIZES[1], weight_mode="fused"))
        monkeypatch.setattr(
            modeling_xlstm.xLSTMPreTrainedModel, "_init_weights", lambda self, module: None
        )
    return request.param


def theirs_folder(path, fields: dict, weight_mode: str, shard: str) -> xLSTMForCausalLM:
    torch.manual_seed(0)
    model = xLSTMForCausalLM(xLSTMConfig(**fields, weight_mode=weight_mode)).eval()
    randomize(model, seed=1)
    model.save_pretrained(path, max_shard_size=shard)
    folders.write_tokenizer(path, None)
    return model


@pytest.mark.parametrize("fields", SIZES, ids=lambda fields: str(fields["hidden_size"]))
def test_their_folder_here_and_back(tmp_path, fields, weight_mode):
    theirs = theirs_folder(tmp_path / "theirs", fields, weight_mode, "200KB")
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    opened = open_checkpoint(str(tmp_path / "ours"))
    tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (2, 100))
    logits, _ = jax.jit(opened.model.apply)({"params": opened.params}, tokens)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    direct = open_checkpoint(str(tmp_path / "theirs"))
    jax.tree.map(np.testing.assert_array_equal, direct.params, opened.params)

    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back"), weight_mode=weight_mode)
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    state = theirs.state_dict()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].tobytes() == tensor.numpy().tobytes(), name


def test_an_exported_folder_loads_and_generates_the_same_tokens(tmp_path, run, weight_mode):
    export_checkpoint(
        run, str(tmp_path / "theirs"), weight_mode=weight_mode, bytes_per_file=500_000
    )
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    theirs, loading = xLSTMForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert (
        not loading["missing_keys"]
        and not loading["unexpected_keys"]
        and not loading["mismatched_keys"]
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    text = "def naïve(x):\n    return"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == ByteTokenizer().encode(text).tolist() and tokenizer.decode(ids) == text

    opened = open_checkpoint(run)
    prompt = np.array([ids])
    ours = generate(
        opened.model, {"params": opened.params}, prompt, 40, jax.random.key(0), temperature=0.0
    )
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(prompt), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
    assert np.asarray(ours)[0].tolist() == expected[0, len(ids) :].tolist()
    assert len(set(np.asarray(ours)[0].tolist())) > 3

    generator = Generator(opened.model, opened.params, opened.tokenizer)
    written = generator.write(
        generator.read([text]), 40, sampling=GREEDY, stop_at_end_of_text=False
    )
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor([[256, *ids]]), max_new_tokens=40, do_sample=False, eos_token_id=None
        )
    assert written.tokens[0] == expected[0, len(ids) + 1 :].tolist()


@pytest.mark.parametrize("dim", [48, 60, 148])
def test_a_paper_model_here_and_back(tmp_path, dim):
    config = ModelConfig(
        vocab_size=257,
        dim=dim,
        num_blocks=3,
        blocks="mlstm,slstm+mlp,mlstm",
        mixers={"slstm": {"num_heads": 2}, "mlstm": {"num_heads": 2}},
    )
    fields = paper.export_config(config, context_length=128)
    theirs = paper_model(seed=0, **fields)
    (tmp_path / "theirs").mkdir()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps(dataclasses.asdict(theirs.config), default=str)
    )
    folders.write_tokenizer(tmp_path / "theirs", None)
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    opened = open_checkpoint(str(tmp_path / "ours"))
    assert opened.config.model == config
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 100))
    logits, _ = jax.jit(opened.model.apply)({"params": opened.params}, tokens)
    with torch.no_grad():
        np.testing.assert_allclose(
            logits, theirs(torch.from_numpy(tokens)).numpy(), rtol=0, atol=1e-4
        )

    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back"))
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        assert back[name].tobytes() == tensor.numpy().tobytes(), name


def test_an_xlstm_large_folder_loads_in_its_own_package(tmp_path, run):
    from xlstm.xlstm_large.from_pretrained import load_from_pretrained

    export_checkpoint(run, str(tmp_path / "theirs"), format="xlstm-large")
    theirs = load_from_pretrained(
        tmp_path / "theirs",
        chunkwise_kernel_name="chunkwise--native_autograd",
        sequence_kernel_name="native_sequence__native",
        step_kernel_name="native",
    )
    tokens = np.random.default_rng(0).integers(0, 257, (1, 70))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens))
    expected = (expected[0] if isinstance(expected, tuple) else expected).float().numpy()
    opened = open_checkpoint(run)
    logits, _ = jax.jit(opened.model.apply)({"params": opened.params}, tokens)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def logits_of(opened, tokens) -> np.ndarray:
    return np.asarray(jax.jit(opened.model.apply)({"params": opened.params}, tokens)[0])


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory, run) -> str:
    """The same with tied embeddings."""
    params = open_checkpoint(run).params
    config = dataclasses.replace(RUN, tie_embeddings=True)
    folder = tmp_path_factory.mktemp("tied") / "run"
    rest = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    write_params(folder, Config(model=config), rest)
    return str(folder)


TOKENS = np.random.default_rng(0).integers(0, 257, (1, 70))


def test_a_tied_run_loads_in_transformers_with_its_head(tmp_path, tied_run):
    export_checkpoint(tied_run, str(tmp_path / "theirs"))
    theirs, loading = xLSTMForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits_of(open_checkpoint(tied_run), TOKENS), expected, atol=1e-4)
    # and what they save of it is opened, whatever they tie
    theirs.save_pretrained(tmp_path / "again")
    folders.write_tokenizer(tmp_path / "again", None)
    opened = open_checkpoint(str(tmp_path / "again"))
    np.testing.assert_allclose(logits_of(opened, TOKENS), expected, atol=1e-4)


def test_a_transformers_folder_that_says_tied_is_what_their_model_computes(tmp_path):
    fields = {**SIZES[1], "tie_word_embeddings": True}
    theirs = theirs_folder(tmp_path / "theirs", fields, "single", "5GB")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS), use_cache=False).logits.numpy()
    opened = open_checkpoint(str(tmp_path / "theirs"))
    np.testing.assert_allclose(logits_of(opened, TOKENS), expected, rtol=0, atol=1e-4)


def test_a_tied_run_loads_in_xlstm_large(tmp_path, tied_run):
    from xlstm.xlstm_large.from_pretrained import load_from_pretrained

    export_checkpoint(tied_run, str(tmp_path / "theirs"), format="xlstm-large")
    theirs = load_from_pretrained(
        tmp_path / "theirs",
        chunkwise_kernel_name="chunkwise--native_autograd",
        sequence_kernel_name="native_sequence__native",
        step_kernel_name="native",
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS))
    expected = (expected[0] if isinstance(expected, tuple) else expected).float().numpy()
    np.testing.assert_allclose(logits_of(open_checkpoint(tied_run), TOKENS), expected, atol=1e-4)


@pytest.mark.parametrize("saving", ["the recipe", "save_model"])
def test_a_tied_paper_model_here_and_back(tmp_path, saving):
    """docs/generation.md has the recipe; `save_model` keeps one of the two names."""
    config = ModelConfig(
        vocab_size=257,
        dim=48,
        num_blocks=2,
        tie_embeddings=True,
        blocks="mlstm,slstm+mlp",
        mixers={"slstm": {"num_heads": 2}, "mlstm": {"num_heads": 2}},
    )
    theirs = paper_model(seed=0, **paper.export_config(config, context_length=128))
    (tmp_path / "theirs").mkdir()
    if saving == "save_model":
        safetensors.torch.save_model(theirs, str(tmp_path / "theirs" / "model.safetensors"))
    else:
        tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        safetensors.torch.save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps(dataclasses.asdict(theirs.config), default=str)
    )
    folders.write_tokenizer(tmp_path / "theirs", None)
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    opened = open_checkpoint(str(tmp_path / "ours"))
    assert opened.config.model == config
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).numpy()
    np.testing.assert_allclose(logits_of(opened, TOKENS), expected, rtol=0, atol=1e-4)

    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back"))
    back = safetensors.torch.load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in theirs.state_dict().items():
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    paper_model(seed=1, **paper.export_config(config, 128)).load_state_dict(back, strict=True)


def test_absent_fields_are_read_as_transformers_reads_them():
    fields = {"vocab_size": 1000, "num_heads": 4}
    theirs = xLSTMConfig(**fields).to_dict()
    assert large.import_config(fields) == large.import_config(theirs)
    public = {"embedding_dim": 4096, "num_blocks": 32}
    assert large.import_config(public) == large.import_config(xLSTMConfig(**public).to_dict())
