"""Every key can be set and unset on the command line."""

import math
import pathlib
import types

import pytest

from xlstm_jax import command_line, config_flags
from xlstm_jax.config import Config, find_key, flat, from_json, keys
from xlstm_jax.errors import UserError
from xlstm_jax.settings import allowed_types

FILE = f"--config={pathlib.Path(__file__).parents[2] / 'configs/quickstart.py'}"


def types_of(key: str) -> tuple[type, ...]:
    return allowed_types(find_key(key).hint)


KEYS = [key.name for key in keys()]
OPTIONAL = [key for key in KEYS if types.NoneType in types_of(key)]
BOUNDS = [key for key in OPTIONAL if float in types_of(key)]


def value(config: Config, key: str):
    return flat(config)[key]


def owner_of(key: str) -> list[str]:
    """The arguments that put the mixer of a key such as "model.mlp.factor" into the stack, or
    choose the task of one such as "task.mqar.pairs".
    """
    section, *owner, _ = key.split(".")
    if not owner:
        return []
    if section == "task":
        files = {"pathfinder": "lra.py:pathfinder-xlstm_1_0"}
        return [FILE.replace("quickstart.py", files.get(owner[0], f"{owner[0]}.py"))]
    hidden = ["--config.model.mlp.hidden=64"] if key == "model.mlp.factor" else []
    return [f"--config.model.blocks={owner[0]}", *hidden]


def read(*arguments: str) -> Config:
    file = [] if any(argument.startswith("--config=") for argument in arguments) else [FILE]
    return config_flags.read(["train.py", *file, *arguments])


@pytest.mark.parametrize("word", ["none", "None"])
def test_the_word_none_unsets_every_optional_key(word):
    assert len(OPTIONAL) > 15
    general = [key for key in OPTIONAL if key.count(".") == 1]
    config = read(*(f"--config.{key}={word}" for key in general))
    assert {key: value(config, key) for key in general} == dict.fromkeys(general)
    for key in set(OPTIONAL) - set(general):  # each needs its mixer or its task
        assert value(read(*owner_of(key), f"--config.{key}={word}"), key) is None


@pytest.mark.parametrize("key", [key for key in KEYS if str in types_of(key)])
def test_no_text_key_becomes_the_text_none(key):
    if key in OPTIONAL:
        assert config_flags.parse(key, "None") is None
    else:
        with pytest.raises(UserError, match=f"{key} is 'None'"):
            config_flags.parse(key, "None")


@pytest.mark.parametrize("key", BOUNDS)
def test_an_infinite_bound_is_none(key):
    config = read(*owner_of(key), f"--config.{key}=inf")
    assert value(config, key) is None
    assert from_json(config.to_json()) == config


def test_a_forget_gate_may_be_infinite_and_config_json_keeps_it():
    config = read("--config.model.mlstm.forget_gate_bias=inf,inf")
    assert config.model.mlstm.forget_gate_bias == (math.inf, math.inf)
    assert from_json(config.to_json()) == config
    with pytest.raises(
        UserError, match=r"forget_gate_bias is \(3.0, inf\); there is nothing between"
    ):
        read("--config.model.mlstm.forget_gate_bias=3,inf")


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
        (["--config.model.mlstm.forget_gate_bias=0,2"], "model.mlstm.forget_gate_bias", (0, 2)),
        (["--config.model.mlstm.forget_gate_bias=(0,2)"], "model.mlstm.forget_gate_bias", (0, 2)),
        (["--config.model.mlstm.forget_gate_bias=[1,2]"], "model.mlstm.forget_gate_bias", (1, 2)),
        (["--config.model.mlstm.num_heads=2"], "model.mlstm.num_heads", 2),
        (["--config.model.blocks=slstm+mlp", "--config.model.num_blocks=1"], "model.num_blocks", 1),
        (["--config.checkpoint.init_from=x=y"], "checkpoint.init_from", "x=y"),
        (["--config.model.remat=none"], "model.remat", "none"),
    ],
)
def test_the_forms_of_an_override(arguments, key, expected):
    assert value(read(*arguments), key) == expected


def test_a_single_number_is_a_tuple_of_one():
    for text in ("0", "(0,)", "[0]"):
        assert config_flags.parse("model.mlstm.forget_gate_bias", text) == (0,)


def test_flags_of_the_command_and_of_the_configuration_may_mix():
    argv = ["train.py", "--workdir", "a", FILE, "--config.model.dim", "64", "--profile=1:2"]
    flags = command_line.parse(
        argv, "usage", {"workdir": "folder", "profile": "steps"}, config_flags.without_config
    )
    assert (flags.workdir, flags.profile) == ("a", "1:2")
    assert config_flags.read(argv).model.dim == 64


@pytest.mark.parametrize("given", ["-1", "²", "1.5", "", "9" * 5000, "١"])
def test_a_count_is_written_with_the_digits_0_to_9(given):
    with pytest.raises(UserError, match="must be a whole number of at least 0"):
        command_line.whole("--steps", given)


def test_a_count_has_bounds():
    assert command_line.whole("--seed", "7", 1, 8) == 7
    for given in ("0", "9"):
        with pytest.raises(UserError, match=f"--seed is '{given}'.*from 1 to 8"):
            command_line.whole("--seed", given, 1, 8)
