"""Files of the Hugging Face hub (or of the server that HF_ENDPOINT names), checked by size and hash.

`huggingface_hub` lists and downloads: an interrupted download goes on where it stopped, also in another process.
"""

import hashlib
import os
import pathlib

from xlstm_jax.errors import UserError

ATTEMPTS = 3  # whole ones; within each, `huggingface_hub` takes a broken connection up again by itself
TOKENIZER = "tokenizer.json"


def list_files(name: str) -> tuple[str, list[tuple[str, int, str | None]]]:
    """The data set with its commit, "owner/name@commit", and its files: path, bytes, sha256 where it is known.

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
        files = [(entry.path, entry.size, entry.lfs and entry.lfs.sha256) for entry in tree if isinstance(entry, library.hf_api.RepoFile)]
    except Exception as error:  # the library raises many types, httpx's among them
        raise UserError(f"data set {name!r} can't be listed on {_endpoint()}: {_first_line(error)}") from None
    return f"{repo}@{commit}", files


def download(name: str, file: str, size: int, sha256: str | None, folder: pathlib.Path) -> pathlib.Path:
    """Downloads one file of a data set "owner/name@commit" into `folder`, or finds it there; returns its path.

    Raises:
        UserError: it can't be had, or its size or hash is not what the hub says, `ATTEMPTS` times.
    """
    repo, _, revision = name.partition("@")
    damaged = False
    for _ in range(ATTEMPTS):
        try:
            path = _fetch(repo, file, revision, "dataset", folder, force=damaged)
        except Exception as error:
            problem = _first_line(error)
            continue
        problem = _difference(path, size, sha256)
        damaged = problem is not None
        if problem is None:
            return path
    raise UserError(f"{file!r} of {name!r} can't be downloaded from {_endpoint()}: {problem}; run the command again to go on")


def download_tokenizer(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The tokenizer.json of a model on the hub.

    Raises:
        UserError: it can't be had.
    """
    try:
        return _fetch(name, TOKENIZER, None, "model", folder, force=False)
    except Exception as error:
        raise UserError(
            f"--tokenizer {name!r} is no file, and its tokenizer.json can't be had from {_endpoint()}: {_first_line(error)}"
        ) from None


def _fetch(repo: str, file: str, revision: str | None, kind: str, folder: pathlib.Path, *, force: bool) -> pathlib.Path:
    path = _library().hf_hub_download(
        repo, file, repo_type=kind, revision=revision, local_dir=folder, endpoint=_endpoint(), force_download=force
    )
    return pathlib.Path(path)


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
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # there is one bar, that of the preparation
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # its downloads can't be resumed
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.hf_api
    except ImportError:
        raise UserError("sources on the hub need the extra `hf`: pip install 'xlstm-jax-stack[hf]'") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
