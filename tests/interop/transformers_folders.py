"""Frozen tiny models of transformers, and folders as transformers writes them."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers

from xlstm_jax.config import Config
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.tokenizer import END_OF_TEXT
from xlstm_jax.interop import mapping, tensor_files
from xlstm_jax.interop.format import Format, Wish
from xlstm_jax.interop.formats import FORMATS
from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.runs.checkpoints import write_params
from xlstm_jax.runs.params import language_model_params

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


class Frozen(NamedTuple):
    """A model of transformers: fields of its config.json, its tensors, tokens and their logits."""

    format: Format
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]
    tokens: np.ndarray
    logits: np.ndarray


def frozen(name: str) -> Frozen:
    """What tests/parity/make_transformers_fixtures.py wrote."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        tensors = {
            key.removeprefix("tensor/"): file[key]
            for key in file.files
            if key.startswith("tensor/")
        }
        fields = json.loads(str(file["config"]))
        return Frozen(FORMATS[name], fields, tensors, file["tokens"], file["logits"])


def write_folder(
    path: pathlib.Path,
    fields: dict[str, Any],
    tensors: dict[str, np.ndarray],
    dtype: Any = np.float32,
    bytes_per_file: int = 10**9,
) -> str:
    """A folder with these fields and tensors, and a tokenizer of three ids."""
    path.mkdir()
    listed = [tensor_files.Tensor(key, x.shape, lambda x=x: x) for key, x in tensors.items()]
    tensor_files.write_folder(path, listed, dtype, bytes_per_file)
    (path / "config.json").write_text(json.dumps(fields))
    words = tokenizers.models.WordLevel({END_OF_TEXT: 0, "a": 1, "?": 2}, unk_token="?")
    tokenizers.Tokenizer(words).save(str(path / "tokenizer.json"))
    return str(path)


def logits_of(opened: Any, tokens: np.ndarray) -> np.ndarray:
    """Those of an opened checkpoint."""
    return np.asarray(jax.jit(opened.model.apply)({"params": opened.params}, tokens)[0])


def random_run(path: pathlib.Path, model: ModelConfig) -> str:
    """A run with random parameters, of contexts of 32 bytes.

    The kernels are so large that what a model writes is not one token again and again.
    """
    rng = np.random.default_rng(0)

    def random(path: Any, leaf: Any) -> np.ndarray:
        noise = rng.normal(size=leaf.shape)
        values = {
            "embedding": 0.3 * noise,
            "kernel": 1.5 / leaf.shape[0] ** 0.5 * noise,
            "scale": 1 + 0.3 * noise,
            "bias": 0.2 * noise,
        }
        return values.get(path[-1].key, 0.5 + 0.3 * noise).astype(np.float32)

    shapes = language_model_params(build_model(model))
    params = jax.tree_util.tree_map_with_path(random, shapes)
    write_params(path, Config(model=model, data=DataConfig(context_length=32)), params)
    return str(path)


def exported(format: Format, model: ModelConfig, params: Any) -> dict[str, np.ndarray]:
    """The tensors of a format's folder, from our parameters."""
    tensors = mapping.exported_tensors(format.table(model), model, params)
    return {x.name: x.make() for x in format.outgoing(tensors, Wish(8, "float32", 0))}
