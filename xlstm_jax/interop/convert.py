"""Whole checkpoints in and out. At no time are two copies of the parameters in memory."""

import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import yaml

from xlstm_jax.config import Config
from xlstm_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop import folders, large, mapping, paper, tensor_files
from xlstm_jax.interop.folders import TOKENIZER
from xlstm_jax.models import build_model
from xlstm_jax.training.checkpoints import read_params, write_params
from xlstm_jax.training.run_folder import find_run
from xlstm_jax.training.state import abstract_params

FORMATS = ("huggingface", "xlstm-large", "xlstm")
DTYPES = {"float32": np.float32, "bfloat16": tensor_files.DTYPES["BF16"], "float16": np.float16}
# File of an imported folder: the tensors that were rounded when they were imported, so that an
# export gives them back to the bit.
ORIGINALS = "originals.safetensors"
BYTES_PER_FILE = 5_000_000_000


def import_checkpoint(source: str, output: str, tokenizer: str | None = None) -> Config:
    """Writes another project's checkpoint as a folder of this one: for eval.py, generation and
    `checkpoint.init_from`.

    Args:
        tokenizer: "byte", or the path of a tokenizer.json; None: the one in the source's folder.

    Raises:
        UserError: the source can't be converted, or the output exists.
    """
    with folders.new_folder(output) as target:
        opened = folders.open_source(source)
        config = folders.config_of(opened, tokenizer)
        file = config.data.tokenizer
        # The checkpoint writer holds a copy of everything until the end. So that it is the only
        # one, ours lies on disk, beside the folder that is to stay.
        numbers = itertools.count()

        def on_disk(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            place = target.parent / f"{next(numbers)}.array"
            return np.asarray(np.memmap(place, dtype, "w+", shape=shape))

        write_params(target, config, import_params(opened, on_disk))
        folders.copy_tokenizer(opened.folder, target)
        if folders.has_record(opened.folder):
            folders.write_record(target, config)
        if file == "byte":
            (target / TOKENIZER).unlink(missing_ok=True)  # the folder's, which was not to be used
        elif tokenizer is not None:
            shutil.copyfile(file, target / TOKENIZER)
        kept = [
            tensor_files.Tensor(
                name, opened.tensors[name].shape, lambda name=name: opened.tensors[name]
            )
            for name in mapping.rounding_tensors(opened.table, opened.config)
        ]
        if kept:
            tensor_files.write_file(target / ORIGINALS, kept, np.float32)
    return find_run(output).read_config()


def import_params(source: folders.Source, allocate: mapping.Allocate = np.empty) -> dict:
    """The parameters of an opened checkpoint, float32 on the host."""
    shapes = abstract_params(build_model(source.config))
    return mapping.import_params(source.table, source.config, source.tensors, shapes, allocate)


def export_checkpoint(
    source: str,
    output: str,
    *,
    format: str | None = None,
    weight_mode: str = "single",
    dtype: str = "float32",
    step: int | None = None,
    bytes_per_file: int = BYTES_PER_FILE,
) -> str:
    """Writes a run's, or an imported folder's, parameters in another project's format; returns the
    format.

    Args:
        format: one of FORMATS; None: that of the model's blocks ("huggingface" for 7b blocks,
            "xlstm" for the paper's).
        weight_mode: of "huggingface": "single" or "fused".
        step: of the checkpoint; None: the newest.

    Raises:
        UserError: the format can't hold this model, or the output exists.
    """
    folder = find_run(source)
    config = folder.read_config()
    format = (
        format if format is not None else ("huggingface" if config.model.block == "7b" else "xlstm")
    )
    for name, value, known in (
        ("format", format, FORMATS),
        ("dtype", dtype, DTYPES),
        ("weight_mode", weight_mode, ("single", "fused")),
    ):
        if value not in known:
            raise UserError(f"--{name} is {value!r}; it must be one of {', '.join(known)}")
    if weight_mode == "fused" and format != "huggingface":
        raise UserError(
            f"--weight_mode is 'fused', which the format {format!r} does not have; leave it out"
        )
    tokenizer_file = _tokenizer_file(folder.root, config)
    fields = _their_fields(config, format, weight_mode, dtype, tokenizer_file)
    with folders.new_folder(output) as target:
        on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        _, params = read_params(source, abstract_params(build_model(config.model), on_one), step)
        tensors = _their_tensors(config, params, folder.root / ORIGINALS, format, weight_mode)
        # the reader of xlstm-large takes one file
        per_file = 1 << 62 if format == "xlstm-large" else bytes_per_file
        tensor_files.write_folder(target, tensors, DTYPES[dtype], per_file)
        folders.write_tokenizer(target, tokenizer_file)
        folders.copy_tokenizer(folder.root, target)  # where it has more than we write
        folders.write_record(target, config)
        if format == "xlstm-large":
            (target / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
        else:
            (target / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return format


def _their_tensors(
    config: Config, params: Any, originals: pathlib.Path, format: str, weight_mode: str
) -> Iterable[tensor_files.Tensor]:
    table = (paper if format == "xlstm" else large).table(config.model)
    kept = tensor_files.read_file(originals) if originals.is_file() else None
    tensors = mapping.exported_tensors(table, config.model, params, kept)
    if weight_mode == "fused":
        tensors = large.fuse(tensors)
    if format == "xlstm-large":
        names = {large.EMBEDDING: large.PYPI_EMBEDDING}
        tensors = (tensor._replace(name=names.get(tensor.name, tensor.name)) for tensor in tensors)
    return tensors


def _their_fields(
    config: Config,
    format: str,
    weight_mode: str,
    dtype: str,
    tokenizer_file: pathlib.Path | None,
) -> dict[str, Any]:
    if format == "xlstm":
        return paper.export_full_config(config.model, config.data.context_length)
    if format == "xlstm-large":
        return large.export_pypi_config(config.model)
    tokenizer = load_tokenizer(str(tokenizer_file)) if tokenizer_file else ByteTokenizer()
    end = tokenizer.end_of_text
    return {
        "architectures": ["xLSTMForCausalLM"],
        **large.export_config(config.model, weight_mode),
        "dtype": dtype,
        "mode": "inference",
        "return_last_states": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _tokenizer_file(folder: pathlib.Path, config: Config) -> pathlib.Path | None:
    """The run's tokenizer.json; None for the byte tokenizer."""
    candidates = [
        folder / TOKENIZER,
        *([] if config.data.tokenizer == "byte" else [pathlib.Path(config.data.tokenizer)]),
    ]
    found = [path for path in candidates if path.is_file()]
    if not found and config.data.tokenizer != "byte":
        missing = f"data.tokenizer {config.data.tokenizer!r} of the run does not exist"
        raise UserError(f"{missing}; put the file into the run's folder as {TOKENIZER}")
    return found[0] if found else None
