"""Configuration files, overrides and what is refused."""

import dataclasses
import pathlib
import re

import jax
import pytest

from xlstm_jax import config as config_lib
from xlstm_jax.config import Config, default_config_dict, from_config_dict, from_json, load
from xlstm_jax.errors import UserError
from xlstm_jax.parallel.devices import compute_dtype

ROOT = pathlib.Path(__file__).parents[2]
FILES = {
    "quickstart.py": [""],
    "base.py": [""],
    "xlstm_7b.py": [""],
    "xlstm_2.7b.py": ["", ":1_0-15b", ":7_1-15b"],
    **{
        f"xlstm_{size}.py": ["", ":1_0-15b", ":7_1-15b", ":1_0-300b", ":7_1-300b"]
        for size in ("125m", "350m", "760m", "1.3b")
    },
}
KEYS = [
    (section.name, field.name)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(section.default_factory)
]


def file(name: str) -> str:
    return str(ROOT / "configs" / name)


def test_every_file_is_listed_here():
    assert {path.name for path in (ROOT / "configs").glob("*.py")} == FILES.keys()


@pytest.mark.parametrize(
    "name", [name + variant for name, variants in FILES.items() for variant in variants]
)
def test_each_file_loads_in_each_variant(name):
    config = load(file(name))
    assert from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("name", "tokens", "rate"),
    [
        ("xlstm_125m.py:7_1-15b", 14.77e9, 3e-3),
        ("xlstm_350m.py:1_0-300b", 314.6e9, 7.5e-4),
        ("xlstm_760m.py:1_0-15b", 14.77e9, 9e-4),
        ("xlstm_1.3b.py", 314.6e9, 5e-4),
        ("xlstm_2.7b.py", 14.77e9, 8e-4),
        ("xlstm_7b.py", 2.307e12, 5e-4),
    ],
)
def test_length_and_learning_rate_are_the_papers(name, tokens, rate):
    config = load(file(name))
    assert (
        config.train.steps * config.data.batch_size * config.data.context_length
        == pytest.approx(tokens, rel=1e-3)
    )
    assert config.optimizer.learning_rate == rate


def test_each_experiment_header_states_tokens_source_loss_and_command():
    for path in (ROOT / "configs").glob("*.py"):
        if path.name != "base.py":
            header = path.read_text().split('"""')[1]
            for word in ("okens", "xpected", "python train.py --config=configs/" + path.name):
                assert word in header, (path.name, word)


def test_there_are_fewer_than_100_keys():
    assert len(KEYS) < 100


@pytest.mark.parametrize(("section", "key"), KEYS, ids=map(".".join, KEYS))
def test_every_key_is_read_by_somebody(section, key):
    """Somewhere outside the configuration's own files the key is an attribute of something."""
    readers = [
        path
        for path in [*ROOT.glob("*.py"), *(ROOT / "xlstm_jax").rglob("*.py")]
        if path.name not in ("config.py", "config_checks.py")
        and re.search(rf"\.{key}\b", path.read_text())
    ]
    if section == "mesh":  # read together, by their names
        readers = (
            [ROOT / "xlstm_jax/parallel/mesh.py"]
            if key in dataclasses.asdict(Config().mesh)
            else []
        )
    # by config_checks' functions
    derived = {"block", "ratio", "slstm_positions", "up_factor", "qk_factor", "ffn_factor"}
    assert readers or (section == "model" and key in derived)


def test_overrides_reach_every_kind_of_key():
    config = load(
        file("quickstart.py"),
        {
            "model.slstm_positions": [0, 2],
            "optimizer.learning_rate": 1,
            "model.gate_soft_cap": 15,
            "checkpoint.init_from": "x",
        },
    )
    assert config.model.slstm_positions == (0, 2)
    assert (
        config.optimizer.learning_rate,
        config.model.gate_soft_cap,
        config.checkpoint.init_from,
    ) == (1.0, 15.0, "x")


def test_a_config_dict_is_locked():
    with pytest.raises((KeyError, AttributeError)):
        default_config_dict().model.no_such_key = 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.dims": 3}, "unknown config key model.dims; did you mean model.dim"),
        ({"nothing": 3}, "unknown config key nothing"),
        ({"model.dim": "wide"}, "model.dim .*'wide'"),
        ({"model.dim": 129}, "model.dim is 129, not divisible by model.num_heads 4"),
        (
            {"model.num_blocks": 4, "model.slstm_positions": (4,)},
            "model.slstm_positions has 4.*below model.num_blocks 4",
        ),
        ({"model.slstm_positions": (1, 1)}, "twice"),
        ({"model.slstm_positions": (1.5,)}, "type int"),
        ({"model.ratio": "7:1", "model.slstm_positions": ()}, "no multiple of the 8 blocks"),
        ({"model.ratio": "7-1", "model.slstm_positions": ()}, 'it must be "a:b"'),
        ({"model.ratio": "1:1"}, "exclude each other"),
        ({"model.block": "8b"}, "model.block is '8b'; it must be one of 'paper', '7b'"),
        ({"model.qk_factor": 1.0}, "model.qk_factor is 1.0, but no block of this model reads it"),
        ({"model.vocab_size": 0}, "model.vocab_size is 0; it must be at least 1"),
        ({"model.dropout": 1.5}, "model.dropout is 1.5; it must lie between 0 and 1"),
        ({"model.dropout": 1.0}, "model.dropout is 1.0; it must be below 1"),
        ({"model.forget_gate_bias": (3.0,)}, "model.forget_gate_bias is .*two entries"),
        (
            {"optimizer.learning_rate": float("inf")},
            "optimizer.learning_rate is inf; it must be a finite number",
        ),
        ({"optimizer.beta2": 1.0}, "optimizer.beta2 is 1.0; it must be below 1"),
        ({"optimizer.eps": -1.0}, "optimizer.eps is -1.0; it must be at least 0.0"),
        ({"model.gate_soft_cap": -1.0}, "model.gate_soft_cap is -1.0; it must be above 0"),
        (
            {"data.batch_size": 15, "train.accumulation_steps": 2},
            "data.batch_size is 15, not divisible",
        ),
        ({"train.steps": 10}, "do not fit into train.steps 10"),
        ({"mesh.data": -1, "mesh.fsdp": -1}, "at most one may be -1"),
        (
            {"model.mlstm_backend": "chunkwize"},
            "model.mlstm_backend is 'chunkwize'; it must be one of .*'chunkwise'.*or unset",
        ),
        (
            {"model.slstm_backend": "chunkwise"},
            "model.slstm_backend is 'chunkwise'; it must be one of 'recurrent'",
        ),
        ({"optimizer.schedule": "linear"}, "optimizer.schedule is 'linear'"),
    ],
)
def test_what_is_wrong_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        load(file("quickstart.py"), overrides)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/file.py", "'no/such/file.py' does not exist"),
        (
            file("xlstm_1.3b.py") + ":9_9-15b",
            "variant '9_9-15b' does not exist; .*1_0-15b, 7_1-15b, 1_0-300b, 7_1-300b",
        ),
        (file("xlstm_2.7b.py") + ":7_1-300b", "variant '7_1-300b' does not exist"),
    ],
)
def test_a_file_or_variant_that_does_not_exist_is_named(path, message):
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_missing_variant_argument_is_an_error_of_the_user():
    with pytest.raises(UserError, match="takes no variant"):
        load(file("quickstart.py") + ":big")


@pytest.mark.parametrize("key", sorted(config_lib.config_checks.CHOICES))
def test_every_choice_is_checked(key):
    values = default_config_dict()
    section, name = key.split(".")
    values[section][name] = "none of them"
    with pytest.raises(UserError, match=f"{key} is 'none of them'; it must be one of"):
        from_config_dict(values)


def test_float64_needs_64_bits_and_nothing_computes_less_in_silence():
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        load(file("quickstart.py"), {"model.dtype": "float64"})
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        compute_dtype("float64")
    with jax.enable_x64(True):
        assert load(file("quickstart.py"), {"model.dtype": "float64"}).model.dtype == "float64"
        assert compute_dtype("float64") == "float64"
