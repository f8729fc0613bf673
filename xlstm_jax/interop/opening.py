"""A model that is ready to use, from wherever it is: a run, an imported folder, a Hugging Face
folder or name.
"""

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from xlstm_jax.config import Config, task_of
from xlstm_jax.data.tokenizer import Tokenizer, load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.interop.convert import import_params
from xlstm_jax.interop.folders import check_writes_text, config_of, is_run, open_source
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import read_params
from xlstm_jax.runs.folder import find_run
from xlstm_jax.runs.params import abstract_params


class Opened(NamedTuple):
    """A model with its parameters on the devices.

    Attributes:
        step: of the checkpoint; 0 for other projects' models.
        tokenizer: None where the task of a run has no text.
        folder: where the checkpoint is; results of evaluations go below it.
    """

    config: Config
    model: nn.Module
    params: Any
    tokenizer: Tokenizer | None
    step: int
    folder: pathlib.Path


def open_checkpoint(
    name: str,
    step: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    *,
    for_text: bool = False,
) -> Opened:
    """The model of a run's or an imported folder's newest checkpoint (or that of `step`), or of
    another project's checkpoint.

    Args:
        sharding: of every parameter; default: all on the first device.
        for_text: the model is to read or write text.

    Raises:
        UserError: there is no such checkpoint, no tokenizer, or the model has nothing to do with
            text.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if is_run(name):
        folder = find_run(name).root
        config = find_run(name).read_config()
        if for_text:
            check_writes_text(config, name)
        task = task_of(config)
        tokenizer = load_tokenizer(config.data.tokenizer) if task.writes_text else None
        model = task.model()
        wanted = abstract_params(lambda: task.init(model, jax.random.key(0)), sharding)
        step, params = read_params(name, wanted, step)
        return Opened(config, model, params, tokenizer, step, folder)
    source = open_source(name)
    if step is not None:
        raise UserError(
            f"--step is {step}, but {name!r} is no run: it holds one checkpoint; leave --step out"
        )
    config = config_of(source)
    params = jax.tree.map(lambda array: jax.device_put(array, sharding), import_params(source))
    tokenizer = load_tokenizer(config.data.tokenizer)
    return Opened(config, build_model(config.model), params, tokenizer, 0, source.folder)
