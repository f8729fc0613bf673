"""Folders of other projects: what kind they are, their configuration, tensors and tokenizer files."""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers

from xlstm_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from xlstm_jax.data.tokenizer import END_OF_TEXT, ByteTokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop import large, paper, tensor_files
from xlstm_jax.interop.mapping import Table

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TOKENIZER = "tokenizer.json"
CONTEXTS = "xlstm_jax.json"  # what their formats have no field for
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of another project.

    Attributes:
        kind: "huggingface", "xlstm-large" or "xlstm", the formats of `python -m xlstm_jax.interop`.
        tensors: in the names of `table`, memory-mapped.
    """

    folder: pathlib.Path
    kind: str
    config: ModelConfig
    table: Table
    tensors: Mapping[str, np.ndarray]


def open_source(name: str) -> Source:
    """A folder, or a model on the Hugging Face hub, such as "NX-AI/xLSTM-7b".

    Raises:
        UserError: no such folder, not a checkpoint that can be converted, damaged files.
    """
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        if not HUB_NAME.fullmatch(name):
            raise UserError(
                f"folder {name!r} does not exist; give a folder, or a model of the Hugging Face "
                f"hub such as NX-AI/xLSTM-7b"
            )
        folder = _download(name)
    if (folder / "config.yaml").is_file():
        theirs = _parse(folder / "config.yaml", yaml.safe_load, yaml.YAMLError)
        config = large.import_pypi_config(theirs)
        tensors = tensor_files.read_folder(folder)
        tensors = {
            large.EMBEDDING if name == large.PYPI_EMBEDDING else name: tensor
            for name, tensor in tensors.items()
        }
        return Source(folder, "xlstm-large", config, large.table(config), tensors)
    theirs = _parse(folder / "config.json", json.loads, ValueError)
    if theirs.get("model_type") == "xlstm":
        config = large.import_config(theirs)
        tensors = tensor_files.read_folder(folder)
        if theirs.get("weight_mode") == "fused":
            tensors = large.split_fused(config, tensors)
        return Source(folder, "huggingface", config, large.table(config), tensors)
    if "slstm_at" in theirs:
        config = paper.import_config(theirs)
        return Source(
            folder, "xlstm", config, paper.table(config), tensor_files.read_folder(folder)
        )
    what = (
        "a run of this project" if is_run(folder) else f"of model_type {theirs.get('model_type')!r}"
    )
    raise UserError(
        f"{folder / 'config.json'} is {what}; what can be imported: xLSTMForCausalLM of "
        f"transformers (model_type 'xlstm'), and PyPI "
        "xlstm's xLSTMLarge (config.yaml) and xLSTMLMModel (docs/generation.md says how to store "
        "one)"
    )


def is_run(folder: str | pathlib.Path) -> bool:
    """Whether a folder is a run of this project, or was imported by it."""
    config = pathlib.Path(folder) / "config.json"
    try:
        sections = json.loads(config.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(sections, dict) and {"model", "data", "train"} <= sections.keys()


def _download(name: str) -> pathlib.Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"folder {name!r} does not exist; to load it from the Hugging Face hub: pip install "
            f"huggingface_hub"
        ) from None
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja"]
            )
        )
    except Exception as error:  # many types, of several libraries
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"folder {name!r} does not exist, and the Hugging Face hub did not give a model of "
            f"that name: {first}"
        ) from error


def _parse(
    path: pathlib.Path, parse: Callable[[str], Any], failure: type[Exception]
) -> dict[str, Any]:
    if not path.exists():
        raise UserError(
            f"folder {str(path.parent)!r} holds no {path.name}, so it is no run and no other "
            f"checkpoint; give one"
        )
    try:
        values = parse(path.read_text())
    except (OSError, UnicodeDecodeError, failure) as error:
        raise UserError(f"{path} can't be read: {error}; give the folder of a checkpoint") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no fields; give the folder of a checkpoint")
    return values


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies what there is of a tokenizer; returns the files' names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def write_contexts(target: pathlib.Path, config: Config) -> None:
    """Writes the context lengths of a run beside its exported parameters, so that it is evaluated
    in the same windows when it comes back.
    """
    contexts = {
        "context_length": config.data.context_length,
        "eval_context_length": config.eval.context_length,
    }
    (target / CONTEXTS).write_text(json.dumps(contexts, indent=2) + "\n")


def read_contexts(folder: pathlib.Path) -> tuple[int, int | None] | None:
    """(data.context_length, eval.context_length) that `write_contexts` wrote; None for checkpoints
    of others, which do not say.
    """
    try:
        contexts = json.loads((folder / CONTEXTS).read_text())
        return int(contexts["context_length"]), contexts["eval_context_length"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def data_and_eval(folder: pathlib.Path, tokenizer: str) -> tuple[DataConfig, EvalConfig]:
    """Those sections of the configuration that another project's checkpoint gets; windows of 2,048
    tokens where it does not say.
    """
    trained, scored = read_contexts(folder) or (2048, None)
    return (
        DataConfig(tokenizer=tokenizer, context_length=trained),
        EvalConfig(context_length=scored),
    )


def write_tokenizer(target: pathlib.Path, file: pathlib.Path | None) -> None:
    """A tokenizer that `transformers` loads: of a tokenizer.json, or (None) the byte tokenizer in
    that form.
    """
    if file is None:
        byte_tokenizer_file().save(str(target / TOKENIZER))
    elif file.resolve() != (target / TOKENIZER).resolve():
        shutil.copyfile(file, target / TOKENIZER)
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def byte_tokenizer_file() -> tokenizers.Tokenizer:
    """The byte tokenizer in the form of the `tokenizers` library: byte b has the id b."""
    # GPT-2's names of the bytes
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + k) for k, byte in enumerate(others)
    }
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={name: byte for byte, name in names.items()}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.token_to_id(END_OF_TEXT) == ByteTokenizer().end_of_text
    return tokenizer
