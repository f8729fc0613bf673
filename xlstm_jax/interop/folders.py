"""Folders of other projects: what kind they are, their configuration, tensors and tokenizer
files.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers

from xlstm_jax.config import Config, check, task_of
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.tokenizer import END_OF_TEXT, ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError, reason
from xlstm_jax.installation import install, module, program, shell_line
from xlstm_jax.interop import tensor_files
from xlstm_jax.interop.formats import FORMATS
from xlstm_jax.interop.mapping import Table, settle_tying
from xlstm_jax.models.config import ModelConfig
from xlstm_jax.tasks.config import EvalConfig

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
CONTEXT = 2048  # tokens of a window, where a checkpoint does not say what it was trained with
# How the model was trained and evaluated, which the other formats have no fields for: an export
# writes it, so that importing that gives the same results.
RECORD = "xlstm_jax.json"
TOKENIZER = "tokenizer.json"
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
# Of these transformers can make a tokenizer.json.
OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of another project.

    Attributes:
        kind: its format, a name of `FORMATS`.
        tensors: in the names of `table`, memory-mapped.
        context_length: that the checkpoint names; None where it names none.
    """

    folder: pathlib.Path
    kind: str
    config: ModelConfig
    table: Table
    tensors: Mapping[str, np.ndarray]
    context_length: int | None = None


def open_source(name: str) -> Source:
    """A folder, or a model on the Hugging Face hub, such as "NX-AI/xLSTM-7b".

    Raises:
        UserError: no such folder, not a checkpoint that can be converted, damaged files.
    """
    folder = pathlib.Path(os.path.expanduser(name))
    if not folder.is_dir():
        # "runs/quikstart" could be a name on the hub, but not where there is a folder "runs"
        if not HUB_NAME.fullmatch(name) or folder.parent.is_dir():
            there = [path.name for path in folder.parent.glob("*")]
            close = difflib.get_close_matches(folder.name, there, n=1)
            meant = f" (did you mean {str(folder.parent / close[0])!r}?)" if close else ""
            raise UserError(
                f"folder {name!r} does not exist{meant}; give a folder, or a model of the Hugging "
                f"Face hub such as NX-AI/xLSTM-7b"
            )
        folder = _download(name)
    kind, theirs = _format_of(folder)
    format = FORMATS[kind]
    config = format.import_config(theirs)
    tensors = format.incoming(config, theirs, tensor_files.read_folder(folder))
    table = format.table(config)
    config, tensors = settle_tying(table, config, tensors)
    return Source(folder, kind, config, table, tensors, format.context_length(theirs))


def _format_of(folder: pathlib.Path) -> tuple[str, Mapping[str, Any]]:
    """The name of a folder's format, and the fields of its configuration."""
    if (folder / "config.yaml").is_file():
        theirs = _parse(folder / "config.yaml", yaml.safe_load, yaml.YAMLError)
        found = "config.yaml"
    else:
        theirs = _parse(folder / "config.json", json.loads, ValueError)
        found = "config.json"
    for name, format in FORMATS.items():
        if format.config_file == found and format.recognises(theirs):
            return name, theirs
    model_type = theirs.get("model_type")
    what = "a run of this project" if is_run(folder) else f"of model_type {model_type!r}"
    known = "; ".join(format.about for format in FORMATS.values())
    raise UserError(f"{folder / found} is {what}; what can be imported: {known}")


def config_of(source: Source, tokenizer: str | None = None) -> Config:
    """The whole configuration of a checkpoint of another project.

    Args:
        tokenizer: "byte", or the path of a tokenizer.json; None: the one in the folder.

    Raises:
        UserError: there is no tokenizer, or one with more ids than the model has.
    """
    if tokenizer is None:
        tokenizer = _own_tokenizer(source.folder)
    ids = load_tokenizer(tokenizer).vocab_size
    if ids > source.config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer!r} has {ids} ids, the model of {str(source.folder)!r} "
            f"{source.config.vocab_size}; give the {TOKENIZER} that the model was trained with"
        )
    context, resets, evaluated = _record(source.folder)
    data = DataConfig(
        tokenizer=tokenizer,
        context_length=context or source.context_length or CONTEXT,
        reset_at_document=resets,
    )
    config = Config(source.config, data=data, eval=EvalConfig(context_length=evaluated))
    check(config)
    return config


def _own_tokenizer(folder: pathlib.Path) -> str:
    if (folder / TOKENIZER).is_file():
        return str(folder / TOKENIZER)
    others = [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
    hint = (
        f" (transformers makes one of its {', '.join(others)}: "
        f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        if others
        else ""
    )
    given = {"source": folder, "output": "DIR", "tokenizer": "FILE"}
    raise UserError(
        f"folder {str(folder)!r} holds no {TOKENIZER}, so it is unknown what the model's ids mean; "
        f"put the model's {TOKENIZER} there{hint}, or name it to "
        f"`{shell_line(module('interop'), 'import', **given)}`; --tokenizer=byte where the ids "
        f"are bytes"
    )


def write_record(folder: pathlib.Path, config: Config) -> None:
    """Writes what `config_of` reads back."""
    data = {
        "context_length": config.data.context_length,
        "reset_at_document": config.data.reset_at_document,
    }
    record = {"data": data, "eval": {"context_length": config.eval.context_length}}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def has_record(folder: pathlib.Path) -> bool:
    """Whether a folder says how its model was trained, as runs and what was exported of them do."""
    return (folder / RECORD).is_file()


def _record(folder: pathlib.Path) -> tuple[int | None, bool, int | None]:
    """(data.context_length, data.reset_at_document, eval.context_length); without a record those
    that a checkpoint of another project is used with.
    """
    if not has_record(folder):
        return None, False, None
    record = _parse(folder / RECORD, json.loads, ValueError)
    try:
        data = record["data"]
        found = data["context_length"], data["reset_at_document"], record["eval"]["context_length"]
    except (KeyError, TypeError, IndexError):
        found = (None, None, None)
    context, resets, evaluated = found
    if type(context) is int and isinstance(resets, bool) and type(evaluated) in (int, type(None)):
        return context, resets, evaluated
    raise UserError(f"{folder / RECORD} has other fields than an export writes; remove it")


@contextlib.contextmanager
def new_folder(output: str) -> Iterator[pathlib.Path]:
    """A folder to be filled, which gets the name `output` when all of it is there: what goes wrong
    before leaves nothing. It lies in a temporary folder, where other files may lie beside it until
    the end.

    Raises:
        UserError: there is something of that name, or the folder can't be made or filled.
    """
    target = pathlib.Path(os.path.expanduser(output)).resolve()
    scratch = None
    try:
        if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
            raise UserError(f"--output {output!r} exists and is not empty; give another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-")
        folder = pathlib.Path(scratch) / target.name
        folder.mkdir()
        yield folder
        folder.rename(target)
    except OSError as error:
        if scratch and error.filename and not str(error.filename).startswith(scratch):
            raise
        raise UserError(
            f"--output {output!r} can't be written ({error.strerror or error}); give another folder"
        ) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def is_run(folder: str | pathlib.Path) -> bool:
    """Whether a folder is a run of this project, or was imported by it."""
    config = pathlib.Path(os.path.expanduser(folder)) / "config.json"
    try:
        sections = json.loads(config.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(sections, dict) and {"model", "data", "train"} <= sections.keys()


def check_writes_text(config: Config, name: str) -> None:
    """Raises `UserError` where a run's model has nothing to do with text."""
    if not task_of(config).writes_text:
        raise UserError(
            f"the run {name!r} was trained for the task {config.task.name!r}, whose model has no "
            f"text and no tokenizer; `{shell_line(program('eval'), workdir=name)}` evaluates it on "
            "the task's own data"
        )


def _download(name: str) -> pathlib.Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"folder {name!r} does not exist; to load it from the Hugging Face hub: {install('hf')}"
        ) from None
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["*.safetensors", "*.json", "*.yaml", "*.txt", "*.jinja"]
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
    except (OSError, ValueError, RecursionError, failure) as error:
        raise UserError(
            f"{path} can't be read: {reason(error)}; give the folder of a checkpoint"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no fields; give the folder of a checkpoint")
    return values


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies what there is of a tokenizer; returns the files' names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def write_tokenizer(target: pathlib.Path, file: pathlib.Path | None) -> None:
    """A tokenizer that `transformers` loads: of a tokenizer.json, or (None) the byte tokenizer in
    that form.
    """
    end = END_OF_TEXT
    if file is None:
        byte_tokenizer_file().save(str(target / TOKENIZER))
    else:
        shutil.copyfile(file, target / TOKENIZER)
        ours = load_tokenizer(str(file))
        end = ours.tokenizer.id_to_token(ours.end_of_text)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
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
