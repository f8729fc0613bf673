"""Files of the Hugging Face hub (or of the server that HF_ENDPOINT names), checked by size and
hash.

`huggingface_hub` lists them and knows addresses and tokens. Its downloads begin anew in every
process, so files are fetched here: what has arrived stays in a `.partial` file, and the next
attempt, in this process or a later one, asks for the rest.
"""

import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.request

from xlstm_jax.data.writing import DISK_FULL
from xlstm_jax.errors import UserError
from xlstm_jax.installation import install

CHUNK = 1 << 16  # bytes that are read from a connection at a time
PATIENCE = 60.0  # seconds after which a connection that brings no byte is given up
# After so many attempts in a row that brought no byte a download is given up. The pauses between
# them are 1, 2, 4, ... seconds.
ATTEMPTS = 6
WRONG = 2  # complete downloads that may differ from what the hub says, before it is given up
TOKENIZER = "tokenizer.json"


def list_files(name: str) -> tuple[str, list[tuple[str, int, str | None]]]:
    """The data set with its commit, "owner/name@commit", and its files: path, bytes, sha256 where
    it is known.

    `name` is "owner/name" or "owner/name@revision".

    Raises:
        UserError: no network, no such data set, or no access to it.
    """
    repo, _, revision = name.partition("@")
    library = _library()
    api = library.HfApi(endpoint=_endpoint())
    try:
        commit = api.dataset_info(repo, revision=revision or "main").sha
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
        files = [
            (entry.path, entry.size, entry.lfs and entry.lfs.sha256)
            for entry in tree
            if isinstance(entry, library.hf_api.RepoFile)
        ]
    except Exception as error:  # the library raises many types, httpx's among them
        raise UserError(
            f"{name!r} is no file or folder, and as a data set it can't be listed on "
            f"{_endpoint()}: {_first_line(error)}"
        ) from None
    return f"{repo}@{commit}", files


def download(
    name: str, file: str, size: int, sha256: str | None, folder: pathlib.Path
) -> pathlib.Path:
    """Downloads one file of a data set "owner/name@commit" into `folder`, or finds it there;
    returns its path.

    Raises:
        UserError: it can't be had, or its size or hash is not what the hub says.
    """
    path = folder / file
    if path.is_file() and _difference(path, size, sha256) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    repo, _, commit = name.partition("@")
    url = _library().hf_hub_url(
        repo, file, repo_type="dataset", revision=commit, endpoint=_endpoint()
    )
    for _ in range(WRONG):
        with open(partial, "ab") as output:
            # A worker of a preparation that was killed a moment ago may still write to this file.
            fcntl.flock(output, fcntl.LOCK_EX)
            problem = _fetch(url, output, size)
        if problem is None and (problem := _difference(partial, size, sha256)) is None:
            partial.replace(path)
            return path
        if partial.stat().st_size < size:
            break  # the file is not complete, but what there is of it is kept for later
        partial.unlink()
    raise UserError(
        f"{file!r} of {name!r} can't be downloaded from {_endpoint()}: {problem}; the same command "
        f"goes on from here"
    )


def download_tokenizer(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer.json of a model "name" or "owner/name" on the hub.

    Raises:
        UserError: it can't be had, or `name` is the path of a file that is not there.
    """
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or name.endswith(".json"):
        raise UserError(
            f"--tokenizer {name!r} does not exist; give 'byte', the path of a tokenizer.json, or "
            f"the name of a model on the hub, e.g. gpt2"
        )
    library = _library()
    try:
        # This question is asked once, while a download that finds no server asks for 24 s.
        library.HfApi(endpoint=_endpoint()).model_info(name, revision="main", timeout=PATIENCE)
        return pathlib.Path(
            library.hf_hub_download(name, TOKENIZER, local_dir=folder, endpoint=_endpoint())
        )
    except Exception as error:
        raise UserError(
            f"--tokenizer {name!r} is no file, and its {TOKENIZER} can't be had from "
            f"{_endpoint()}: {_first_line(error)}"
        ) from None


def _fetch(url: str, output, size: int) -> str | None:
    """Appends what is missing of `size` bytes, whatever happens to the connection; else what went
    wrong, in words.
    """
    failures, problem = 0, None
    while (have := output.seek(0, os.SEEK_END)) < size:
        if failures == ATTEMPTS:
            return problem
        if failures:
            time.sleep(2.0 ** (failures - 1))
        try:
            _append(url, output, have)
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}"
            if error.code in (401, 403, 404):  # another attempt would get the same answer
                return problem
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # this machine's disk is full; another attempt would not help
            problem = _first_line(error)
        else:
            problem = "the connection broke"
        failures = failures + 1 if output.seek(0, os.SEEK_END) <= have else 0
    return None


def _append(url: str, output, have: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    for key, value in _library().utils.build_hf_headers().items():
        # Not sent on where the hub redirects us: the user's token is for the hub alone.
        request.add_unredirected_header(key, value)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        if have and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            output.truncate(0)  # the server can't send a part, and begins with the first byte
        while chunk := response.read1(CHUNK):
            output.write(chunk)
            output.flush()


def _difference(path: pathlib.Path, size: int, sha256: str | None) -> str | None:
    """What is wrong with a downloaded file, in words."""
    if (found := path.stat().st_size) != size:
        return f"it has {found:,} bytes instead of {size:,}"
    if sha256 is not None:
        with open(path, "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                return "its sha256 is not that of the hub"
    return None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or _library().constants.ENDPOINT


def _library():
    try:
        import huggingface_hub
        import huggingface_hub.hf_api
    except ImportError:
        raise UserError(f"sources on the hub need the extra `hf`: {install('hf')}") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
