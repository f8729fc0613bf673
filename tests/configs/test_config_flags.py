"""Every key can be set and unset on the command line."""

import dataclasses
import math
import pathlib
import types

import pytest

from xlstm_jax import command_line, config_checks, config_flags
from xlstm_jax.config import Config, from_json, types_of
from xlstm_jax.errors import UserError

FILE = f"--config={pathlib.Path(__file__).parents[2] / 'configs/quickstart.py'}"
KEYS = [
    f"{section.name}.{field.name}"
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default_factory)
]
OPTIONAL = [key for key in KEYS if types.NoneType in types_of(key)]


def value(config: Config, key: str):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def read(*arguments: str) -> Config:
    return config_flags.read(["train.py", FILE, *arguments])


@pytest.mark.parametrize("word", ["none", "None"])
def test_the_word_none_unsets_every_optional_key(word):
    assert len(OPTIONAL) > 15
    config = read(*(f"--config.{key}={word}" for key in OPTIONAL))
    assert {key: value(config, key) for key in OPTIONAL} == dict.fromkeys(OPTIONAL)


@pytest.mark.parametrize("key", [key for key in KEYS if str in types_of(key)])
def test_no_text_key_becomes_the_text_none(key):
    if key in OPTIONAL:
        assert config_flags.parse(key, "None") is None
    else:
        with pytest.raises(UserError, match=f"{key} is 'None'"):
            config_flags.parse(key, "None")


@pytest.mark.parametrize("key", config_checks.UNBOUNDED_AT_INFINITY)
def test_an_infinite_bound_is_none(key):
    arguments = ["--config.model.slstm_positions=(1,)", f"--config.{key}=inf"]
    config = read(*arguments)
    assert value(config, key) is None
    assert from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["inf", "-inf", "nan"])
def test_what_is_no_bound_must_be_finite(text):
    assert not math.isfinite(float(text))
    with pytest.raises(UserError, match="must be a finite number"):
        read(f"--config.optimizer.eps={text}")


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (["--config.model.dim=64"], "model.dim", 64),
        (["--config.model.dim", "64"], "model.dim", 64),
        (["--config.model.dim=64", "--config.model.dim=32"], "model.dim", 32),
        (["-config.model.dim=64"], "model.dim", 64),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.optimizer.learning_rate=1e-4"], "optimizer.learning_rate", 1e-4),
        (["--config.log.tensorboard=false"], "log.tensorboard", False),
        (["--noconfig.log.tensorboard"], "log.tensorboard", False),
        (["--config.model.tie_embeddings"], "model.tie_embeddings", True),
        (["--config.model.slstm_positions=0,2"], "model.slstm_positions", (0, 2)),
        (["--config.model.slstm_positions=(0,)"], "model.slstm_positions", (0,)),
        (["--config.model.slstm_positions=0"], "model.slstm_positions", (0,)),
        (["--config.model.forget_gate_bias=[1,2]"], "model.forget_gate_bias", (1, 2)),
        (["--config.checkpoint.init_from=x=y"], "checkpoint.init_from", "x=y"),
        (["--config.model.remat=none"], "model.remat", "none"),
    ],
)
def test_the_forms_of_an_override(arguments, key, expected):
    assert value(read(*arguments), key) == expected


def test_flags_of_the_command_and_of_the_configuration_may_mix():
    argv = ["train.py", "--workdir", "a", FILE, "--config.model.dim", "64", "--profile=1:2"]
    flags = command_line.parse(
        argv, "usage", {"workdir": "folder", "profile": "steps"}, with_config=True
    )
    assert (flags.workdir, flags.profile) == ("a", "1:2")
    assert command_line.config_of(argv).model.dim == 64


@pytest.mark.parametrize("given", ["-1", "²", "1.5", "", "9" * 5000, "١"])
def test_a_count_is_written_with_the_digits_0_to_9(given):
    with pytest.raises(UserError, match="must be a whole number of at least 0"):
        command_line.whole("--steps", given)


def test_a_count_has_bounds():
    assert command_line.whole("--seed", "7", 1, 8) == 7
    for given in ("0", "9"):
        with pytest.raises(UserError, match=f"--seed is '{given}'.*from 1 to 8"):
            command_line.whole("--seed", given, 1, 8)
