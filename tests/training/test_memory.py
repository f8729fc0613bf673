"""`model.remat=auto`: as much is kept as the memory holds, said and then fixed."""

import json

import jax
import pytest

from tests.training.conftest import CONFIG_FILE
from xlstm_jax.config import load
from xlstm_jax.models.remat import INPUTS, RICHEST_FIRST
from xlstm_jax.parallel import make_mesh
from xlstm_jax.training import loop, memory
from xlstm_jax.training.memory import kept_bytes, richest_that_fits, room_of

NEEDED = {"everything": 90, "most": 50, "cell": 30, "block": 20}
KEPT = {"everything": 70, "most": 40, "cell": 15, "block": 10}


@pytest.mark.parametrize(
    ("room", "chosen", "compiled"),
    [
        (100, "everything", ["everything"]),
        (90, "everything", ["everything"]),
        (80, "most", ["everything", "most"]),  # more is needed than is kept
        (60, "most", ["most"]),  # what is kept alone is too much for the first
        (45, "cell", ["most", "cell"]),
        (25, "block", ["cell"]),
        (5, "block", []),
    ],
)
def test_the_richest_setting_that_fits_is_taken(room, chosen, compiled):
    asked = []

    def needed(remat):
        asked.append(remat)
        return NEEDED[remat]

    remat, size = richest_that_fits(tuple(NEEDED), KEPT.get, needed, room)
    assert remat == chosen and asked == compiled
    assert size == (None if chosen == "block" else NEEDED[chosen])


def test_the_same_program_is_not_compiled_twice():
    """Of a mixer without names every setting keeps the same."""
    kept = {"a": 7, "b": 7, "c": 5, "d": 5}
    asked = []
    assert richest_that_fits("abcd", kept.get, lambda remat: asked.append(remat) or 9, 8)[0] == "d"
    assert asked == ["a"]


def test_what_is_kept_is_counted_without_compiling():
    config = load(str(CONFIG_FILE), {"model.remat": "auto", "data.path": "synthetic"})
    mesh = make_mesh(config.mesh)
    sizes = [kept_bytes(config, mesh, remat) for remat in RICHEST_FIRST]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] > 0


def test_a_devices_own_word_counts_where_it_is_less(monkeypatch):
    class Small:
        device_kind, process_index, platform = "NVIDIA A100-SXM4-40GB", jax.process_index(), "gpu"

        def memory_stats(self):
            return {"bytes_limit": 30e9}

    class Mesh:
        class devices:
            flat = [Small()]

    monkeypatch.setattr(jax, "local_devices", lambda: Mesh.devices.flat)
    assert room_of(Mesh) == memory.SHARE * 30e9
    monkeypatch.setattr(jax, "local_devices", list)  # a device that is not here
    assert room_of(Mesh) == memory.SHARE * 80e9


@pytest.mark.slow
def test_a_run_says_its_choice_and_keeps_it(corpus, tmp_path, monkeypatch, capsys):
    """On a CPU nothing is tried. Where a run goes on, config.json counts, whatever fits now."""
    config = load(
        str(CONFIG_FILE), {"model.remat": "auto", "data.path": str(corpus), "train.steps": 2}
    )
    loop.train(config, tmp_path / "run")
    assert f"model.remat auto: '{INPUTS}'" in capsys.readouterr().out
    text = json.loads((tmp_path / "run/config.json").read_text())
    assert text["model"]["remat"] == INPUTS

    monkeypatch.setattr(memory, "choose", lambda *_: pytest.fail("it was chosen already"))
    loop.train(config, tmp_path / "run")
    assert f"model.remat auto: '{INPUTS}', as config.json says" in capsys.readouterr().out
