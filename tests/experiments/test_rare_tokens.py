"""Rare tokens as a grid: rows by how often the training text has a token, of the test text where
there is one, and a figure of them.
"""

import math

import pytest

from xlstm_jax.evaluation import frequencies
from xlstm_jax.experiments import __main__ as command
from xlstm_jax.experiments import rows as results

TEXT = "one and two are three, three and four are seven. " * 40


@pytest.mark.slow
def test_every_token_of_the_test_text_is_in_the_group_of_its_frequency(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(frequencies, "EDGES", (100, 200))
    texts = {"train": TEXT, "held_out": TEXT[:600], "test": "and xyz, " + TEXT[:300]}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    where = f"--workdir={tmp_path / 'runs'}"
    overrides = {
        "data.path": tmp_path / "train.txt", "data.validation_path": tmp_path / "held_out.txt",
        "data.validation_sets": f"test={tmp_path / 'test.txt'}", "data.context_length": 16,
        "train.steps": 2, "optimizer.warmup_steps": 1, "model.num_blocks": 1, "mesh.data": 1,
    }  # fmt: skip
    arguments = [f"--config.{key}={value}" for key, value in overrides.items()]
    name = "rare_tokens"
    status = command.main(
        ["experiments", name, where, "--models=lstm,llama", "--dims=16", *arguments]
    )
    assert status == 0, capsys.readouterr()
    folder = tmp_path / "runs" / name / "small"
    rows = results.read(folder / "text-lstm-d16-lr0.001-seed0")
    values = {(row["set"], row["metric"]): (row["value"], row["n"]) for row in rows}
    own = {metric: found for (held_out, metric), found in values.items() if held_out == "test"}
    whole, count = own.pop("perplexity")
    assert whole == pytest.approx(values["validation/test", "perplexity"][0], rel=1e-5)
    names = ("0_to_99", "100_to_199", "200_or_more")
    assert list(own) == [f"perplexity_at_{group}" for group in names]
    nats = [n * math.log(perplexity) for perplexity, n in own.values()]
    assert sum(nats) == pytest.approx(count * math.log(whole), rel=1e-5)
    letters = [TEXT.count(letter) for letter in texts["test"]]
    in_groups = [
        sum(least <= n < below for n in letters)
        for least, below in ((0, 100), (100, 200), (200, math.inf))
    ]
    in_groups[0] += 1  # the end of the text
    assert [n for _, n in own.values()] == in_groups

    assert command.main(["experiments", "report", name, where]) == 0
    printed = capsys.readouterr().out
    assert f"| LSTM | {whole:.4f} |" in printed and "| Llama |" in printed
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "curves.png").exists()  # the groups are the figure
