"""Executes the notebooks, and says whether what they show is theirs.

    python notebooks/execute.py [NOTEBOOK ...]           executes them and keeps their outputs
    python notebooks/execute.py --short [NOTEBOOK ...]   only tries them, in a fraction of the time

Without names it takes all that lie beside this file. Where a notebook's cell of parameters says
`SHORT = False`, it is tried with True. Outputs are kept with a fingerprint of the code that wrote
them, so that code which was changed afterwards is noticed (`faults`).
"""

import argparse
import base64
import hashlib
import io
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
LONG, SHORT = "SHORT = False", "SHORT = True"
MOST_SECONDS = 900  # of one cell, on a machine that is busy
MOST_BYTES = 300_000  # of one notebook, with its figures
COLOURS = 128  # of a figure
# /home/ann/xlstm or C:\xlstm: where a notebook was executed is nobody's concern
ABSOLUTE_PATH = re.compile(r"""(?:^|(?<=[\s"'(=:]))(?:/[\w.~-]+){2,}|\b[A-Z]:\\\w+""", re.MULTILINE)


def notebooks() -> list[pathlib.Path]:
    """All of them, in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: pathlib.Path, *, short: bool = False) -> NotebookNode:
    """The notebook with the outputs of a new kernel; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    if short:
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", ()):
                cell.source = cell.source.replace(LONG, SHORT)
    client = NotebookClient(
        notebook,
        timeout=MOST_SECONDS,
        startup_timeout=MOST_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],  # of the kernel: it warns of its own ports
    )
    # this clone's code, wherever the package of this environment is
    notebook = client.execute(env=os.environ | {"PYTHONPATH": str(FOLDER.resolve().parent)})
    notebook.metadata["executed_code"] = fingerprint(notebook)
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine
    for output in _outputs(notebook):
        if "image/png" in output.get("data", ()):
            output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def smaller(png: str) -> str:
    """A figure in base64 with at most `COLOURS` colours: a third of the bytes, and it looks the
    same.
    """
    written = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(COLOURS).save(written, "png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def fingerprint(notebook: NotebookNode) -> str:
    """Of the code of all cells, in order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def faults(path: pathlib.Path) -> list[str]:
    """What is wrong with a notebook as it lies there, as sentences; nothing is executed."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs, found = _outputs(notebook), []
    if notebook.metadata.get("executed_code") != fingerprint(notebook):
        found.append("its code has changed since it was executed")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not executed once each, from the first to the last")
    if not any("image/png" in output.get("data", ()) for output in outputs):
        found.append("it shows no figure")
    for output in outputs:
        if output.output_type == "error" or output.get("name") == "stderr":
            found.append(f"it shows an error or a warning: {_text(output)[:200]!r}")
        if path_shown := ABSOLUTE_PATH.search(_text(output)):
            found.append(f"it shows a path of the machine that executed it: {path_shown[0]}")
    if (size := path.stat().st_size) > MOST_BYTES:
        found.append(f"it has {size:,} bytes, and {MOST_BYTES:,} are enough; draw smaller figures")
    return found


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def _text(output: NotebookNode) -> str:
    """What of an output is text."""
    parts = [output.get("text", ""), *output.get("traceback", ()), output.get("evalue", "")]
    parts += [data for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(map(str, parts)).strip()


def main(arguments: Sequence[str]) -> int:
    """Returns the process's exit status: 1 where a notebook has faults."""
    parser = argparse.ArgumentParser(description="Executes notebooks and keeps their outputs.")
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, help="by default all")
    parser.add_argument("--short", action="store_true", help="only try them, with SHORT = True")
    flags, status = parser.parse_args(arguments), 0
    for path in flags.notebooks or notebooks():
        started = time.perf_counter()
        notebook = executed(path, short=flags.short)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
        if flags.short:
            continue
        nbformat.write(notebook, path)
        for fault in faults(path):
            print(f"{path.name}: {fault}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
