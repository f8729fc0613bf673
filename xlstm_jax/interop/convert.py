"""Whole checkpoints in and out. At no time are two copies of the parameters in memory."""

import itertools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import yaml

from xlstm_jax.config import Config
from xlstm_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop import folders, mapping, tensor_files
from xlstm_jax.interop.folders import TOKENIZER
from xlstm_jax.interop.format import Wish
from xlstm_jax.interop.formats import FORMATS, format_of
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import read_params, write_params
from xlstm_jax.runs.folder import find_run
from xlstm_jax.runs.params import language_model_params

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
        # The checkpoint writer holds a copy of all parameters in memory until it is done. So that
        # there is only this one, the arrays that are given to it are files, beside the folder that
        # is to stay; they are removed with the folder around both.
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
    shapes = language_model_params(build_model(source.config))
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
        format: one of FORMATS; None: the first one that has the model's blocks.
        weight_mode: "single", or "fused" where the format has it.
        step: of the checkpoint; None: the newest.

    Raises:
        UserError: the format can't hold this model, or the output exists.
    """
    folder = find_run(source)
    config = folder.read_config()
    folders.check_writes_text(config, source)
    format = format_of(config.model) if format is None else format
    for name, value, known in (
        ("format", format, FORMATS),
        ("dtype", dtype, DTYPES),
        ("weight_mode", weight_mode, ("single", "fused")),
    ):
        if value not in known:
            raise UserError(f"--{name} is {value!r}; it must be one of {', '.join(known)}")
    theirs = FORMATS[format]
    if weight_mode not in theirs.weight_modes:
        raise UserError(
            f"--weight_mode is {weight_mode!r}, which the format {format!r} does not have; leave "
            "it out"
        )
    tokenizer_file = _tokenizer_file(folder.root, config)
    tokenizer = load_tokenizer(str(tokenizer_file)) if tokenizer_file else ByteTokenizer()
    wish = Wish(config.data.context_length, dtype, tokenizer.end_of_text, weight_mode)
    fields = theirs.export_fields(config.model, wish)
    with folders.new_folder(output) as target:
        on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = language_model_params(build_model(config.model), on_one)
        _, params = read_params(source, wanted, step)
        originals = folder.root / ORIGINALS
        kept = tensor_files.read_file(originals) if originals.is_file() else None
        tensors = mapping.exported_tensors(theirs.table(config.model), config.model, params, kept)
        per_file = 1 << 62 if theirs.one_file else bytes_per_file
        tensors = theirs.outgoing(tensors, wish)
        tensor_files.write_folder(target, tensors, DTYPES[dtype], per_file)
        folders.write_tokenizer(target, tokenizer_file)
        folders.copy_tokenizer(folder.root, target)  # where it has more than we write
        folders.write_record(target, config)
        is_yaml = theirs.config_file.endswith(".yaml")
        text = yaml.safe_dump(fields, sort_keys=False) if is_yaml else json.dumps(fields, indent=2)
        (target / theirs.config_file).write_text(text if is_yaml else text + "\n")
    return format


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
