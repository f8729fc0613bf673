"""Perplexity by how often the training data have a token: against NumPy, over all tokens."""

import json
import math
import shutil

import numpy as np
import pytest

import eval as command
from tests.evaluation.conftest import logits_of
from xlstm_jax.evaluation import frequencies


def occurrences_in(text: bytes, token: int) -> int:
    return sum(byte == token for byte in text)


def test_tokens_are_counted_piece_by_piece(monkeypatch):
    class Source:
        tokens = np.array([3, 1, 1, 0, 3, 3, 4], np.uint16)

    monkeypatch.setattr(frequencies, "READ_AT_ONCE", 2)
    assert frequencies.occurrences(Source(), 6).tolist() == [1, 2, 0, 3, 1, 0]


def test_a_model_that_was_not_trained_here_is_refused(run_folder, capsys):
    assert command.main(["eval.py", f"--workdir={run_folder}", "--suite=frequencies"]) == 2
    assert "was not trained here: give a run" in capsys.readouterr().err


@pytest.mark.slow
def test_every_token_is_in_the_bin_of_its_target(run_folder, text_file, tmp_path, monkeypatch):
    """The run's training and held-out text are the same file: digits and spaces."""
    monkeypatch.setattr(frequencies, "EDGES", (100, 150, 1000))
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "checkpoints/0").rename(run / "checkpoints/5")
    arguments = [f"--workdir={run}", "--suite=frequencies", f"--output={tmp_path}"]
    assert command.main(["eval.py", *arguments, "--max_tokens=300"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["suites"]["frequencies"]["bins"]

    text = text_file.read_bytes()
    tokens = np.array([256, *text])[:301]  # a document begins with the end of the one before it
    losses = []
    for start in range(0, 300, 16):
        window = np.zeros((4, 16), int)  # padding behind the end changes nothing before it
        part = tokens[start : start + 17]
        window[0, : len(part) - 1] = part[:-1]
        logs = np.asarray(logits_of()(window))[0]
        losses += [-logs[i, target] for i, target in enumerate(part[1:])]
    counts = [occurrences_in(text, token) for token in tokens[1:]]
    assert [(b["least"], b["below"]) for b in found] == [
        (0, 100),
        (100, 150),
        (150, 1000),
        (1000, None),
    ]
    for number, (least, below) in enumerate([(0, 100), (100, 150), (150, 1000), (1000, 10**9)]):
        own = [x for x, count in zip(losses, counts, strict=True) if least <= count < below]
        assert found[number]["tokens"] == len(own)
        if own:
            assert found[number]["perplexity"] == pytest.approx(math.exp(np.mean(own)), rel=1e-4)
    assert sum(b["tokens"] for b in found) == 300 and sum(b["kinds"] for b in found) == 320
    assert sum(b["tokens"] > 0 for b in found) >= 2
    assert "frequencies.png" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "frequencies.png").stat().st_size > 1000
