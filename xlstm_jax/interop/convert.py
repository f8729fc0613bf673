"""Whole checkpoints in and out. At no time are two copies of the parameters in memory."""

import itertools
import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import yaml

from xlstm_jax.config import Config
from xlstm_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop import folders, large, mapping, paper, tensor_files
from xlstm_jax.interop.folders import TOKENIZER, TOKENIZER_FILES
from xlstm_jax.models import build_model
from xlstm_jax.training.checkpoints import read_params, write_params
from xlstm_jax.training.run_folder import find_run
from xlstm_jax.training.state import abstract_params

FORMATS = ("huggingface", "xlstm-large", "xlstm")
DTYPES = {"float32": np.float32, "bfloat16": tensor_files.DTYPES["BF16"], "float16": np.float16}
# in an imported folder: what exporting the same parameters needs to give back every bit
ORIGINALS = "originals.safetensors"
BYTES_PER_FILE = 5_000_000_000


def import_checkpoint(source: str, output: str) -> Config:
    """Writes another project's checkpoint as a folder of this one: for eval.py, generation and
    `checkpoint.init_from`.

    Raises:
        UserError: the source can't be converted, or the output exists.
    """
    target = pathlib.Path(output).expanduser()
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UserError(f"--output {output!r} exists and is not empty; give another folder")
    opened = folders.open_source(source)
    tokenizer = target / TOKENIZER if (opened.folder / TOKENIZER).is_file() else None
    data, evaluation = folders.data_and_eval(
        opened.folder, "byte" if tokenizer is None else str(tokenizer)
    )
    config = Config(model=opened.config, data=data, eval=evaluation)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".import-") as scratch:
        # The checkpoint writer holds a copy of everything until the end. So that it is the only
        # one, ours lies on disk.
        numbers = itertools.count()

        def on_disk(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            return np.asarray(
                np.memmap(pathlib.Path(scratch) / str(next(numbers)), dtype, "w+", shape=shape)
            )

        write_params(target, config, import_params(opened, on_disk))
    rounding = mapping.rounding_tensors(opened.table, opened.config)
    folders.copy_tokenizer(opened.folder, target)
    if folders.read_contexts(opened.folder) is not None:
        folders.write_contexts(target, config)
    if rounding:
        kept = [
            tensor_files.Tensor(
                name, opened.tensors[name].shape, lambda name=name: opened.tensors[name]
            )
            for name in rounding
        ]
        tensor_files.write_file(target / ORIGINALS, kept, np.float32)
    return config


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
    format = format or ("huggingface" if config.model.block == "7b" else "xlstm")
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
    fields = _their_fields(config, format, weight_mode, dtype)
    tokenizer_file = _tokenizer_file(folder.root, config)
    target = pathlib.Path(output).expanduser()
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise UserError(f"--output {output!r} exists and is not empty; give another folder")

    found, params = read_params(
        source,
        abstract_params(
            build_model(config.model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        step,
    )
    kind = paper if format == "xlstm" else large
    originals = (
        tensor_files.read_file(folder.root / ORIGINALS)
        if (folder.root / ORIGINALS).is_file()
        else None
    )
    tensors = mapping.exported_tensors(kind.table(config.model), config.model, params, originals)
    if weight_mode == "fused":
        tensors = large.fuse(tensors)
    if format == "xlstm-large":
        tensors = (
            t._replace(name=large.PYPI_EMBEDDING) if t.name == large.EMBEDDING else t
            for t in tensors
        )
        bytes_per_file = 1 << 62  # its reader takes one file
    target.mkdir(parents=True, exist_ok=True)
    tensor_files.write_folder(target, tensors, DTYPES[dtype], bytes_per_file)
    if found > 0 or folders.read_contexts(folder.root) is not None:
        folders.write_contexts(target, config)
    if any((folder.root / name).is_file() for name in TOKENIZER_FILES):
        folders.copy_tokenizer(folder.root, target)
    else:
        folders.write_tokenizer(target, tokenizer_file)
    if format == "xlstm-large":
        (target / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    else:
        (target / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    return format


def _their_fields(config: Config, format: str, weight_mode: str, dtype: str) -> dict[str, Any]:
    if format == "xlstm":
        return paper.export_full_config(config.model, config.data.context_length)
    if format == "xlstm-large":
        return large.export_pypi_config(config.model)
    end = ByteTokenizer().end_of_text if config.data.tokenizer == "byte" else None
    if end is None and pathlib.Path(config.data.tokenizer).is_file():
        end = load_tokenizer(config.data.tokenizer).end_of_text
    special = {} if end is None else {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    fields = large.export_config(config.model, weight_mode)
    return {
        "architectures": ["xLSTMForCausalLM"],
        **fields,
        "dtype": dtype,
        "mode": "inference",
        "return_last_states": True,
        **special,
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
