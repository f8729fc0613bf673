"""Tables of training runs, from CSV, JSON lines, or the folders of our own runs."""

import csv
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

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
CountParams = Callable[[Mapping[str, Any]], tuple[int, int]]


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


def read_runs(
    path: str, names: Mapping[str, str] | None = None, count_params: CountParams | None = None
) -> list[Run]:
    """The runs of a CSV file, of a file of JSON lines, or of a run's folder.

    Args:
        names: column of `Run` -> what it is called in the file, where that differs.
        count_params: (parameters, those without embedding and head) of the sections of a run's
            config.json; needed for folders, which hold no counts.

    Raises:
        UserError: no such file, a column is missing, or a value is no positive number.
    """
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        if count_params is None:
            raise UserError(
                f"{path!r} is a folder, of whose model nothing counts the parameters; write a .csv "
                f"or .jsonl file with {', '.join(NEEDED)}"
            )
        return [_run_of_folder(place, count_params)]
    if not place.is_file():
        raise UserError(f"{path!r} does not exist; give a .csv or .jsonl file, or a run's folder")
    called = {name: (names or {}).get(name, name) for name in Run._fields}
    if unknown := set(names or ()) - set(Run._fields):
        raise UserError(
            f"there is no column {unknown.pop()!r}; columns are {', '.join(Run._fields)}"
        )
    return [
        _run_of_record(record, called, f"{path}, line {line}") for line, record in _records(place)
    ]


def published_runs() -> dict[str, list[Run]]:
    """The losses that the repository of arXiv 2510.02228 prints, by family: "xLSTM", "Transformer".

    Of DCLM at context 8,192, models of 162M to 6.9B parameters. Parameters and tokens are rounded
    to three digits.
    """
    return by_model(read_runs(str(pathlib.Path(__file__).with_name("published.csv"))))


def _records(path: pathlib.Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """(line, record) pairs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} can't be read: {error}") from None
    if path.suffix.lower() == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines()), 2)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is no record with names")
        yield number, record


def _run_of_record(record: Mapping[str, Any], called: Mapping[str, str], where: str) -> Run:
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


def _run_of_folder(folder: pathlib.Path, count_params: CountParams) -> Run:
    """Of the last evaluation on the held-out tokens."""
    try:
        config = json.loads((folder / "config.json").read_text())
        events = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} is no run's folder: {error}") from None
    last = None
    for line in events:
        try:
            event = json.loads(line)
            if event["split"] == "validation" and float(event["loss"]) > 0:
                last = event
        except (ValueError, KeyError, TypeError):
            continue  # a line that a killed run left unfinished, or another event
    if last is None:
        raise UserError(f"{str(folder)!r} has no held-out loss in metrics.jsonl; let it finish")
    data = config["data"]
    params, without = count_params(config)
    return Run(
        params=params,
        tokens=last["step"] * data["batch_size"] * data["context_length"],
        loss=float(last["loss"]),
        model=str(config["model"].get("block", "")),
        params_without_embedding=without,
        context=data["context_length"],
        source=str(folder),
    )
