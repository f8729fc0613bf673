"""Tables of training runs, from CSV or JSON lines."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from xlstm_jax.analysis.record_files import records
from xlstm_jax.errors import UserError


class Run(NamedTuple):
    """One trained model.

    Attributes:
        params: with embeddings and head.
        tokens: trained on, repeated ones included.
        loss: held-out, nats per token.
        model: its family, such as "xLSTM[1:0]"; fits are made for each.
        params_without_embedding: None where it is not known, like the following.
        flops: of the whole training.
        budget: FLOPs that the run was planned for, the same for all runs of an isoFLOP line.
        context: tokens.
        source: where the numbers come from.
    """

    params: float
    tokens: float
    loss: float
    model: str = ""
    params_without_embedding: float | None = None
    flops: float | None = None
    budget: float | None = None
    context: float | None = None
    source: str = ""


NUMBERS = ("params", "tokens", "loss", "params_without_embedding", "flops", "budget", "context")
NEEDED = ("params", "tokens", "loss")


def column(runs: Sequence[Run], name: str) -> Float[np.ndarray, " R"]:
    """A column as float64; raises `UserError` where a run lacks it."""
    values = [getattr(run, name) for run in runs]
    if None in values:
        missing = runs[values.index(None)]
        raise UserError(f"the run {missing.source or missing} has no {name}; the fit needs it")
    return np.array(values, np.float64)


def by_model(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each family, in the order of their first run."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(run.model, []).append(run)
    return families


def read_table(path: str, names: Mapping[str, str] | None = None) -> list[Run]:
    """The runs of a CSV file or of a file of JSON lines.

    Args:
        names: column of `Run` -> what it is called in the file, where that differs.

    Raises:
        UserError: no such file, a column is missing, or a value is no positive number.
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"{path!r} does not exist; give a .csv or .jsonl file, or a run's folder")
    if unknown := set(names or ()) - set(Run._fields):
        raise UserError(
            f"there is no column {unknown.pop()!r}; columns are {', '.join(Run._fields)}"
        )
    return [run_of_record(record, where, names) for where, record in records(place, str(path))]


def published_runs() -> dict[str, list[Run]]:
    """The losses that the repository of arXiv 2510.02228 prints, by family: "xLSTM", "Transformer".

    Of DCLM at context 8,192, models of 162M to 6.9B parameters. Parameters and tokens are rounded
    to three digits.
    """
    return by_model(read_table(str(pathlib.Path(__file__).with_name("published.csv"))))


def run_of_record(
    record: Mapping[str, Any], where: str, called: Mapping[str, str] | None = None
) -> Run:
    """A run from a line of a table.

    Args:
        where: the line, for error messages.
        called: column -> what it is called in the record; its own name by default.
    """
    called = {name: (called or {}).get(name, name) for name in Run._fields}
    values: dict[str, Any] = {}
    for name in NUMBERS:
        given = record.get(called[name])
        if given in (None, ""):
            if name in NEEDED:
                raise UserError(
                    f"{where} has no {called[name]!r}; it has {', '.join(map(str, record))}. If "
                    f"{name} is called otherwise there, name that column"
                )
            continue
        values[name] = _positive(given, called[name], where)
    model = record.get(called["model"])
    source = record.get(called["source"]) or where
    return Run(**values, model="" if model is None else str(model), source=str(source))


def _positive(given: Any, name: str, where: str) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise UserError(f"{where}: {name} is {given!r}; it must be a number above 0")
    return number


def write_table(path: pathlib.Path, runs: Sequence[Run]) -> None:
    """Writes JSON lines that `read_table` reads; what is not known is left out."""
    lines = [
        json.dumps({name: value for name, value in run._asdict().items() if value is not None})
        for run in runs
    ]
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.replace(path)
