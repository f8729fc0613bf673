"""Folders of transformers' Llama, GPT-2, Mamba and RWKV-4 are scored as ours are."""

import json
import math

import numpy as np
import pytest
import tokenizers

import eval as command
from tests.interop.transformers_folders import frozen, logits_of, write_folder
from xlstm_jax.data.tokenizer import END_OF_TEXT
from xlstm_jax.interop.opening import open_checkpoint

WORDS = [f"w{number}" for number in range(1, 29)]
WINDOW = 8


def with_words(folder: str) -> None:
    """Gives a folder a tokenizer with an id for each of the frozen models' 29 rows."""
    model = tokenizers.models.WordLevel(
        {word: number for number, word in enumerate([END_OF_TEXT, *WORDS])}, unk_token="w1"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(f"{folder}/tokenizer.json")


@pytest.mark.parametrize(
    "name",
    ["mamba", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt2", "rwkv4"))],
)
def test_a_public_folder_is_scored_as_its_logits_say(tmp_path, name, capsys):
    _, fields, tensors, _, _ = frozen(name)
    folder = write_folder(tmp_path / "theirs", fields, tensors, bytes_per_file=5_000)
    with_words(folder)
    text = np.random.default_rng(0).integers(1, 29, 30)
    (tmp_path / "text.txt").write_text(" ".join(WORDS[number - 1] for number in text))
    arguments = [f"--checkpoint={folder}", f"--data={tmp_path / 'text.txt'}"]
    arguments += [f"--output={tmp_path}", f"--context_length={WINDOW}", "--batch_size=4"]
    assert command.main(["eval.py", *arguments]) == 0, capsys.readouterr()
    suites = json.loads((tmp_path / "results.json").read_text())["suites"]
    (found,) = suites.values()

    tokens = np.array([0, *text, 0])  # an end of text in front and behind
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
    logits = logits_of(open_checkpoint(folder), windows).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    targets = tokens[1:]
    losses = -logs.reshape(-1, 29)[np.arange(len(targets)), targets]
    assert found["tokens"] == len(targets)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
