"""`train.py --help` lists every key with its default and its meaning, in lines that fit."""

import dataclasses

import pytest

import train
from xlstm_jax import config_flags, models
from xlstm_jax.config import keys
from xlstm_jax.models import mixers
from xlstm_jax.settings import setting


def test_every_key_is_listed_with_its_default_and_meaning():
    listing = config_flags.listing()
    for key in keys():
        assert f"  {key.name}=" in listing, key.name
        assert key.meaning.split()[0] in listing, key.name
    assert max(map(len, listing.splitlines())) <= 100
    assert "model.dim=256 " in listing and "optimizer.decay_steps=none" in listing


def test_help_comes_before_everything_else_that_may_be_wrong(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["train.py", "--config.model.wrong=3", "--help"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "train.py --config=configs/NAME.py" in printed and "--workdir" in printed
    assert config_flags.listing() in printed


def test_the_keys_of_a_mixer_that_is_registered_are_listed_too(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Section:
        """Settings of something new."""

        width: int = setting(7, "how wide it is", choices=(7, 8))

    monkeypatch.setattr(mixers, "_TABLE", dict(mixers._TABLE))
    mlp = mixers.find(mixers.names()[-1])
    models.register("new", mlp._replace(section=Section))
    listing = config_flags.listing()
    assert "Settings of something new." in listing
    assert "model.new.width=7" in listing and "how wide it is (one of 7, 8)" in listing
