"""Tied embeddings in every direction: which tensors are there decides, not what the configuration
says. `make parity` loads such folders in the other programs.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.interop.test_convert import run_folder, write_tiny_tokenizer
from tests.interop.test_interop import KINDS, import_params, read
from xlstm_jax.errors import UserError
from xlstm_jax.interop import large, mapping, tensor_files
from xlstm_jax.interop.convert import export_checkpoint, import_checkpoint
from xlstm_jax.interop.folders import open_source
from xlstm_jax.interop.opening import open_checkpoint

NAMES = {
    "paper": ("token_embedding.weight", "lm_head.weight"),
    "large": ("backbone.embeddings.weight", "lm_head.weight"),
}
SEVEN_B = {"block": "7b", "gate_soft_cap": 15.0, "logit_soft_cap": 30.0}


def tied(name: str, left: str):
    """(config, tensors) of a model that its configuration calls tied."""
    config, tensors, _, _ = read(name)
    embedding, head = NAMES[name]
    tensors[head] = tensors[embedding].copy()
    if left != "both":
        del tensors[{"embedding": head, "head": embedding}[left]]
    return dataclasses.replace(config, tie_embeddings=True), tensors


@pytest.mark.parametrize("left", ["both", "embedding", "head"])
@pytest.mark.parametrize("name", KINDS)
def test_tied_tensors_may_be_stored_twice_or_once_under_either_name(name, left):
    config, tensors = tied(name, left)
    expected = read(name)[1][NAMES[name][0]]
    settled, kept = mapping.settle_tying(KINDS[name].table(config), config, tensors)
    assert settled == config and NAMES[name][1] not in kept
    params = import_params(name, settled, kept)
    assert "lm_head" not in params
    np.testing.assert_array_equal(params["embedding"]["embedding"], expected)
    exported = mapping.export_params(KINDS[name].table(config), config, params)
    assert exported.keys() == read(name)[1].keys()  # both: what the other programs load strictly
    for tensor in NAMES[name]:
        np.testing.assert_array_equal(exported[tensor], expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_head_of_its_own_makes_the_model_untied_whatever_its_configuration_says(name):
    config, tensors, _, _ = read(name)
    said = dataclasses.replace(config, tie_embeddings=True)
    settled, kept = mapping.settle_tying(KINDS[name].table(config), said, tensors)
    assert settled == config and kept.keys() == tensors.keys()


@pytest.mark.parametrize("name", KINDS)
def test_an_untied_model_without_a_head_is_refused(name):
    config, tensors, _, _ = read(name)
    del tensors[NAMES[name][1]]
    settled, kept = mapping.settle_tying(KINDS[name].table(config), config, tensors)
    with pytest.raises(UserError, match="lm_head.weight is missing"):
        import_params(name, settled, kept)


@pytest.mark.parametrize(
    ("fields", "format"), [(SEVEN_B, "huggingface"), (SEVEN_B, "xlstm-large"), ({}, "xlstm")]
)
def test_a_tied_run_goes_out_with_its_head_and_comes_back(tmp_path, fields, format):
    run_folder(tmp_path / "run", tie_embeddings=True, **fields)
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"), format=format)
    stored = tensor_files.read_folder(tmp_path / "theirs")
    embedding = "embedding.weight" if format == "xlstm-large" else None
    embedding = embedding or NAMES["paper" if format == "xlstm" else "large"][0]
    np.testing.assert_array_equal(stored["lm_head.weight"], stored[embedding])
    import_checkpoint(str(tmp_path / "theirs"), str(tmp_path / "ours"))
    first, second = (open_checkpoint(str(tmp_path / name)) for name in ("run", "ours"))
    # xlstm-large has no field for it, so the two stay two
    assert second.config.model.tie_embeddings == (format != "xlstm-large")
    if format != "xlstm-large":
        assert "lm_head" not in second.params
    else:
        kernel = np.asarray(second.params["lm_head"]["kernel"])
        np.testing.assert_array_equal(kernel.T, first.params["embedding"]["embedding"])


def test_a_transformers_folder_that_says_tied_and_is_not_is_opened_as_what_it_is(tmp_path):
    config, tensors, _, _ = read("large")
    fields = large.export_config(config) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensor_files.write_file(
        tmp_path / tensor_files.FILE,
        [tensor_files.Tensor(k, t.shape, lambda t=t: t) for k, t in tensors.items()],
        np.float32,
    )
    write_tiny_tokenizer(tmp_path / "tokenizer.json")
    assert open_source(str(tmp_path)).config == config
    opened = open_checkpoint(str(tmp_path))
    expected = import_params("large", config, tensors)
    jax.tree.map(np.testing.assert_array_equal, opened.params, expected)
