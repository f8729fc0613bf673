"""The package as it is installed: its programs, its files, and a training run without the clone."""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest

from xlstm_jax import interrupts

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = {
    "xlstm_jax": "xlstm_jax",
    "pallas_kernels": "pallas_kernels",
    "configs": "xlstm_jax/configs",
}


def test_the_programs_are_known_to_interrupts_and_can_be_called():
    assert set(interrupts.SCRIPTS) == PROJECT["scripts"].keys()
    for place in PROJECT["scripts"].values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_program_is_a_command_whose_ctrl_c_is_one_line(monkeypatch):
    assert not interrupts.is_command()  # but pytest's
    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", "/anywhere/bin/xlstm-eval", raising=False
    )
    assert interrupts.is_command()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy of what the package consists of; fetches nothing."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=hidden)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    pip("wheel", *options, f"--wheel-dir={folder}", str(folder / "source"))
    [built] = folder.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


@pytest.mark.slow
def test_the_wheel_has_every_file_and_nothing_at_the_top(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    metadata = {file for file in files if file.split("/")[0].endswith(".dist-info")}
    assert files - metadata == {
        str(pathlib.PurePath(place, path.relative_to(ROOT / name)))
        for name, place in FOLDERS.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The programs of an environment that has the wheel, and else sees the packages of this one.

    Those are found by a path alone: an editable installation of the clone among them stays unseen,
    and nothing is fetched, so that this takes seconds. `make release-check` has a really empty one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    pip("--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel))
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    pathlib.Path(packages, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


MOST_SECONDS = 900  # of a program, on a machine that is busy


def run(installed: pathlib.Path, here: pathlib.Path, program: str, *arguments: str) -> str:
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    done = subprocess.run(
        [installed / program, *arguments],
        cwd=here, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


WHERE = """
import importlib.util, xlstm_jax, xlstm_jax.config_files
print(xlstm_jax.__file__, xlstm_jax.config_files.own_folder(), importlib.util.find_spec("configs"))
"""


@pytest.mark.slow
def test_the_quickstart_trains_without_the_clone(installed, tmp_path):
    package, configs, other = run(installed, tmp_path, "python", "-c", WHERE).split()
    assert package.startswith(str(installed.parent)) and configs.startswith(str(installed.parent))
    assert other == "None"  # no top-level package `configs`
    printed = run(
        installed, tmp_path, "xlstm-train", "--config=quickstart", "--workdir=run",
        "--config.model.blocks=mlstm", "--config.model.num_blocks=1",
        "--config.train.steps=10", "--config.optimizer.warmup_steps=2",
        "--config.eval.max_tokens=5000", "--config.eval.sample_tokens=10",
    )  # fmt: skip
    assert "step   10/10" in printed or "step 10/10" in printed
    assert f"{installed}/xlstm-eval --workdir=run" in printed  # what to do next
    assert (tmp_path / "run/checkpoints/10").is_dir() and (tmp_path / "run/loss.png").is_file()
    assert "bits per byte" in run(
        installed, tmp_path, "xlstm-eval", "--workdir=run", "--max_tokens=2000"
    )
    written = run(
        installed, tmp_path, "xlstm-generate", "--checkpoint=run", "--prompt=def ",
        "--max-new-tokens=5",
    )  # fmt: skip
    assert written.startswith("def ")
    (tmp_path / "text.txt").write_text("one text of a few words")
    run(
        installed, tmp_path, "xlstm-prepare", "--source=text.txt", "--tokenizer=byte",
        "--output=shards",
    )  # fmt: skip
    assert (tmp_path / "shards/train/manifest.json").is_file()
