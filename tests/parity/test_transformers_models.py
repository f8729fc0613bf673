"""Transformers' Llama, GPT-2, Mamba and RWKV-4: the same logits from their folders, from ours in
theirs, and the same tokens.
"""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.interop.test_transformers_formats import MODELS as OURS
from tests.interop.transformers_folders import logits_of, random_run
from tests.parity.transformers_models import MODELS, transformers_model
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.generation import GREEDY, Generator
from xlstm_jax.generation.decoding import generate
from xlstm_jax.interop import folders, gpt2, llama, mamba, rwkv4
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.opening import open_checkpoint

BYTES = {"vocab_size": 300}  # a row for every id of the byte tokenizer, and more
CASES = {
    "grouped heads": ("llama", {}),
    "one group": ("llama", {"num_key_value_heads": 1}),
    "all heads, tied": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "theta 10,000, gelu": ("llama", {"rope_parameters": None, "hidden_act": "gelu"}),
    "125M's proportions": (
        "llama",
        {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6},
    ),
    "tied": ("gpt2", {}),
    "untied": ("gpt2", {"tie_word_embeddings": False}),
    "mamba, tied": ("mamba", {}),
    "mamba, untied, biases": ("mamba", {"tie_word_embeddings": False, "use_bias": True}),
    "mamba's sizes": ("mamba", {"expand": 3, "conv_kernel": 3, "time_step_rank": 7}),
    "rwkv4": ("rwkv4", {}),
    "rwkv4, tied": ("rwkv4", {"tie_word_embeddings": True}),
    "rwkv4's sizes": ("rwkv4", {"num_hidden_layers": 3, "intermediate_size": 40}),
    "hidden size": ("gpt2", {"n_inner": 40, "activation_function": "gelu"}),
}
RUNS = {
    "llama": OURS["llama"],
    "tied llama": dataclasses.replace(OURS["llama"], tie_embeddings=True),
    "gpt2": OURS["gpt2"],
    "untied gpt2": dataclasses.replace(OURS["gpt2"], tie_embeddings=False),
    "mamba": OURS["mamba"],
    "tied mamba": dataclasses.replace(OURS["mamba"], tie_embeddings=True),
    "rwkv4": OURS["rwkv4"],
}


def of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_their_folder_here_and_back(tmp_path, case):
    name, changes = CASES[case]
    shard = "5GB" if "tied" in case else "20KB"
    theirs = transformers_model(name, **BYTES | changes)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    folders.write_tokenizer(tmp_path / "theirs", None)
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard != "5GB")
    tokens = np.random.default_rng(0).integers(0, 300, (2, 45))
    expected = of(theirs, tokens)
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    opened = open_checkpoint(str(tmp_path / "ours"))
    np.testing.assert_allclose(logits_of(opened, tokens), expected, rtol=0, atol=1e-4)
    direct = open_checkpoint(str(tmp_path / "theirs"))
    assert direct.config.model == opened.config.model
    jax.tree.map(np.testing.assert_array_equal, direct.params, opened.params)

    assert export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back")) == name
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    state = theirs.state_dict()
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].tobytes() == tensor.numpy().tobytes(), key
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    np.testing.assert_array_equal(of(again, tokens), expected)


@pytest.mark.parametrize("name", RUNS)
def test_ours_loads_in_transformers_and_generates_the_same_tokens(tmp_path, name):
    run = random_run(tmp_path / "run", RUNS[name])
    export_checkpoint(run, str(tmp_path / "theirs"), bytes_per_file=20_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    theirs, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.tie_word_embeddings == RUNS[name].tie_embeddings
    opened = open_checkpoint(run)
    tokens = np.random.default_rng(0).integers(0, 257, (2, 32))
    np.testing.assert_allclose(logits_of(opened, tokens), of(theirs, tokens), rtol=0, atol=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = tokenizer("def f(x)", add_special_tokens=False).input_ids
    assert ids == ByteTokenizer().encode("def f(x)").tolist()
    prompts = np.array([ids, [256, *ids[:-1]]])
    ours = generate(
        opened.model, {"params": opened.params}, prompts, 20, jax.random.key(0), temperature=0.0
    )
    with torch.no_grad():
        # row by row: with several, transformers 5.23's RWKV adds [B D] of the tokens before to
        # [B 1 D], so that each row sees those of all
        rows = [
            theirs.generate(row, max_new_tokens=20, do_sample=False, eos_token_id=None)
            for row in torch.from_numpy(prompts).split(1)
        ]
    expected = torch.cat(rows)
    assert np.asarray(ours).tolist() == expected[:, len(ids) :].tolist()
    assert min(len(set(row)) for row in np.asarray(ours).tolist()) > 3
    generator = Generator(opened.model, opened.params, opened.tokenizer, cache_length=32)
    written = generator.write(
        generator.read(["def f(x"]), 20, sampling=GREEDY, stop_at_end_of_text=False
    )
    assert written.tokens[0] == expected[1, len(ids) :].tolist()


def test_absent_fields_are_read_as_transformers_reads_them():
    modules = {"llama": llama, "gpt2": gpt2, "mamba": mamba, "rwkv4": rwkv4}
    for name, module in modules.items():
        config, _, fields = MODELS[name]
        for given in ({}, fields):
            theirs = config(**given).to_dict()
            assert module.import_config(given) == module.import_config(theirs)
