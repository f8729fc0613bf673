"""What a run does with its data: several held-out sets, a mixture, the record, and the place in the
data after a stop.
"""

import json

import pytest

from xlstm_jax.data import shards
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.runs.folder import find_run
from xlstm_jax.training import loop
from xlstm_jax.training.metrics import read_records


@pytest.fixture
def mixture(tmp_path):
    """Overrides for a run on two prepared folders with three held-out sets."""
    for letter in "ab":
        shards.write_shards(tmp_path / letter, "train", ByteTokenizer(), [letter * 300] * 3)
        shards.write_shards(tmp_path / letter, "validation", ByteTokenizer(), [letter * 40])
    return {
        "data.path": f"{tmp_path}/a:0.7,{tmp_path}/b:0.3",
        "data.validation_path": f"{tmp_path}/a",
        "data.validation_sets": f"as={tmp_path}/a,bs={tmp_path}/b",
        "train.steps": 4,
        "eval.every": 2,
        "checkpoint.every": 2,
    }


@pytest.mark.slow
def test_each_held_out_set_is_evaluated_by_name_and_what_was_used_is_recorded(
    tiny, mixture, tmp_path, no_op_step, capsys
):
    loop.train(tiny(mixture), tmp_path / "run")
    folder = find_run(tmp_path / "run")
    evaluated = {
        (entry["step"], entry["split"]): entry
        for entry in read_records(folder.metrics)
        if entry["split"] != "train"
    }
    assert set(evaluated) == {
        (step, split)
        for step in (2, 4)
        for split in ("validation", "validation/as", "validation/bs")
    }
    assert (
        evaluated[4, "validation"]["loss"]
        == evaluated[4, "validation/as"]["loss"]
        != evaluated[4, "validation/bs"]["loss"]
    )
    assert {entry["tokens"] for entry in evaluated.values()} == {41}
    told = json.loads(folder.data_record.read_text())
    assert [part["weight"] for part in told["train"]["mixture"]] == [0.7, 0.3] and set(told) == {
        "train",
        "validation",
        "as",
        "bs",
    }
    printed = capsys.readouterr().out
    assert "70.0% of train: " in printed and "step 4/4  bs: loss " in printed


@pytest.mark.slow
def test_shards_prepared_anew_with_another_order_are_refused(tiny, mixture, tmp_path, no_op_step):
    loop.train(tiny(mixture), tmp_path / "run")
    (tmp_path / "b/train/manifest.json").unlink()
    shards.write_shards(
        tmp_path / "b", "train", ByteTokenizer(), ["b" * 299 + "c", *["b" * 300] * 2]
    )
    with pytest.raises(UserError, match="have changed since the run began: 'train' differs"):
        loop.train(tiny(mixture), tmp_path / "run")
    (tmp_path / "run/data.json").unlink()  # the checkpoint knows it too
    with pytest.raises(UserError, match="data have changed since step 4"):
        loop.train(tiny(mixture), tmp_path / "run")
