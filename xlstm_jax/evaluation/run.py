"""Evaluation of a finished or running run, by its folder."""

import dataclasses

import jax

from xlstm_jax.data.loader import open_split
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.perplexity import Perplexity, make_eval_step, perplexity_of
from xlstm_jax.models import build_model
from xlstm_jax.parallel import make_mesh, replicated
from xlstm_jax.training.checkpoints import read_params
from xlstm_jax.training.run_folder import find_run
from xlstm_jax.training.state import abstract_params


def evaluate_run(workdir: str, split: str = "validation", step: int | None = None, max_tokens: int | None = None) -> Perplexity:
    """Scores a split with a checkpoint, under the run's own configuration, and prints one line.

    Raises:
        UserError: no such run, split or checkpoint, or the data are missing.
    """
    if split not in ("validation", "train"):
        raise UserError(f"--split is {split!r}; it must be 'validation' or 'train'")
    config = find_run(workdir).read_config()
    if max_tokens is not None:
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, max_tokens=max_tokens))
    source = open_split(config.data, split, config.model.vocab_size)
    print(*source.description, sep="\n", flush=True)

    mesh, model = make_mesh(config.mesh), build_model(config.model)
    with jax.set_mesh(mesh):
        step, params = read_params(workdir, abstract_params(model, replicated(mesh)), step)
        eval_step = make_eval_step(model, config.data.reset_at_document)
        result = perplexity_of(eval_step, params, source, config=config, mesh=mesh)
    gzip_size = source.gzip_bits_per_byte()
    print(
        f"{split}, step {step}: {result.line(gzip_size)}; perplexity {result.perplexity:.3f}, {result.tokens:,} tokens",
        flush=True,
    )
    return result
