"""Configuration files, overrides and what is refused."""

import collections
import dataclasses
import inspect
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from xlstm_jax import tasks
from xlstm_jax.config import (
    NESTED,
    SECTIONS,
    default_config_dict,
    find_key,
    flat,
    from_config_dict,
    from_json,
    keys,
    load,
)
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig, mixers
from xlstm_jax.parallel.devices import compute_dtype

ROOT = pathlib.Path(__file__).parents[2]
FILES = {
    "quickstart.py": [""],
    "base.py": [""],
    "xlstm_7b.py": [""],
    "gpt3.py": ["", ":350m-15b"],
    "ablations.py": ["", ":lstm", ":xlstm_0_1", ":gates-none_inf", ":memory-post_up"],
    "h3.py": ["", ":350m-15b"],
    "hyena.py": ["", ":350m-15b"],
    "comparison.py": ["", ":gpt3", ":h3", ":rwkv6", ":xlstm_7_1", ":xlstm_0_1", ":memory_post_up"],
    "gla.py": ["", ":350m-15b"],
    "hgrn.py": ["", ":350m-15b"],
    "mamba.py": ["", ":2.7b-15b", ":1.3b-300b"],
    "rwkv4.py": ["", ":2.7b-15b", ":1.3b-300b"],
    "retnet.py": ["", ":350m-15b"],
    **{
        f"{name}.py": ["", *(f":{size}-15b" for size in ("125m", "350m", "760m", "1.3b", "2.7b"))]
        for name in ("rwkv5", "rwkv6", "hgrn2")
    },
    "formal.py": ["", *(f":parity-{name}" for name in ("xlstm_1_1", "xlstm_0_1", "llama"))]
    + [":majority-xlstm_1_0-paper", ":set-llama-repository"],
    "mqar.py": ["", ":256x16-llama", ":2048x256-xlstm_1_0-paper"],
    "nns.py": ["", ":llama-paper"],
    "lra.py": [
        "",
        ":listops-llama-paper",
        ":pathfinder-xlstm_0_1-paper",
        ":rgb_image-llama",
        ":retrieval-llama",
    ],
    "rare_tokens.py": ["", ":llama", ":lstm-small"],
    "scaling.py": ["", ":cpu-llama-64x2", ":dclm-xlstm_7b-1024x24", ":dclm-llama-2560x32"],
    "small_models.py": [],  # of the files for small tasks
    "llama.py": ["", ":2.7b-15b"]
    + [f":{size}-{n}b" for size in ("125m", "350m", "760m", "1.3b") for n in (15, 300)],
    "xlstm_2.7b.py": ["", ":1_0-15b", ":7_1-15b"],
    **{
        f"xlstm_{size}.py": ["", ":1_0-15b", ":7_1-15b", ":1_0-300b", ":7_1-300b"]
        for size in ("125m", "350m", "760m", "1.3b")
    },
}
KEYS = [key.name for key in keys()]
SECTION_CLASSES = {  # whatever has keys, by the part of their names before the last dot
    **SECTIONS,
    "model": ModelConfig,
    "task": tasks.TaskConfig,
    **{f"model.{name}": mixers.find(name).section for name in mixers.names()},
    **{f"task.{name}": tasks.find(name).section for name in tasks.names()},
}


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
        if path.name not in ("base.py", "small_models.py"):
            header = path.read_text().split('"""')[1]
            for word in ("okens", "xpected", "python train.py --config=configs/" + path.name):
                assert word in header, (path.name, word)


def test_the_keys_are_those_of_the_sections_each_once():
    assert sorted(KEYS) == sorted(
        f"{name}.{field.name}"
        for name, section in SECTION_CLASSES.items()
        for field in dataclasses.fields(section)
        if field.metadata
    )
    assert len(set(KEYS)) == len(KEYS)


def test_there_are_fewer_than_100_keys_beside_those_of_the_mixers_and_tasks_which_have_few():
    numbers = collections.Counter(key.rpartition(".")[0] for key in KEYS)
    nested = {name for name in numbers if "." in name}
    assert sum(numbers[name] for name in numbers.keys() - nested) < 100
    assert nested and all(numbers[name] < 20 for name in nested)


def readers(section: str) -> list[pathlib.Path]:
    """Files of which one has to read a section's keys. A mixer's and a task's own settings are read
    in its own files: that of its module or task, and those that its section is declared in.
    """
    room, _, name = section.partition(".")
    if not name:
        files = [*ROOT.glob("*.py"), *(ROOT / "xlstm_jax").rglob("*.py")]
        return [path for path in files if path.name not in ("config.py", "settings.py")]
    if room == "model":
        mixer = mixers.find(name)
        parts = [mixer.module, *mixer.section.__mro__[:-1]]
    else:
        parts = [tasks.find(name).task]
    return [pathlib.Path(inspect.getsourcefile(part)) for part in parts]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read_by_somebody(key):
    """The key is an attribute of something in a file that has to do with it."""
    section, _, name = key.rpartition(".")
    files = readers(section)
    if key == "model.blocks":  # read where it is declared: everybody else sees the layout
        files = [ROOT / "xlstm_jax/models/config.py"]
    if section == "mesh":  # read together, by their names
        assert name in dataclasses.asdict(SECTIONS["mesh"]())
        files, name = [ROOT / "xlstm_jax/parallel/mesh.py"], "asdict"
    of_settings = "(settings|self)" if "." in section else ""
    assert any(re.search(rf"{of_settings}\.{name}\b", file.read_text()) for file in files)


def test_overrides_reach_every_kind_of_key():
    config = load(
        file("quickstart.py"),
        {
            "model.mlstm.forget_gate_bias": [0, 2],
            "optimizer.learning_rate": 1,
            "model.mlstm.gate_soft_cap": 15,
            "checkpoint.init_from": "x",
        },
    )
    assert config.model.mlstm.forget_gate_bias == (0.0, 2.0)
    assert (
        config.optimizer.learning_rate,
        config.model.mlstm.gate_soft_cap,
        config.checkpoint.init_from,
    ) == (1.0, 15.0, "x")


def test_a_mixers_settings_come_and_go_with_it():
    """A section of a mixer that the stack lacks must keep its defaults, and is not kept."""
    values = {
        "model.blocks": "attention+mlp",
        "model.attention.num_heads": 2,
        "model.mlp.bias": True,
    }
    config = load(file("quickstart.py"), values)
    assert (config.model.attention.num_heads, config.model.mlp.bias) == (2, True)
    assert config.model.values().keys() >= {"attention", "mlp"}
    assert not {"mlstm", "slstm"} & config.model.values().keys()
    assert not any(key.startswith("model.mlstm") for key in flat(config))
    again = load(file("quickstart.py"), {"model.mlstm.num_heads": 4, "model.blocks": "slstm+mlp"})
    assert again.model.mixer_names == ("slstm", "mlp")  # 4 is the default


def test_a_config_dict_is_locked():
    with pytest.raises((KeyError, AttributeError)):
        default_config_dict().model.no_such_key = 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.dims": 3}, "unknown config key model.dims; did you mean model.dim"),
        ({"nothing": 3}, "unknown config key nothing"),
        ({"model.dim": "wide"}, "model.dim .*'wide'"),
        ({"model.dim": 129}, "model.dim is 129, not divisible by model.slstm.num_heads 4"),
        (
            {"model.num_blocks": 4, "model.blocks": "7*mlstm,slstm+mlp"},
            "model.num_blocks is 4, no multiple of the 8 blocks of model.blocks",
        ),
        ({"model.blocks": "7-mlstm"}, "of which '7-mlstm' is no block; write for example"),
        ({"model.blocks": "0*mlstm,slstm+mlp"}, "of which '0.mlstm' is no block"),
        ({"model.blocks": ""}, "of which '' is no block"),
        (
            {"model.blocks": "m1stm"},
            "model.blocks names the mixer 'm1stm'; there are mlstm, mlstm_7b, slstm, attention",
        ),
        (
            {"model.mlstm_7b.qk_factor": 1.0},
            "model.mlstm_7b.qk_factor is 1.0, but no block of this model reads it",
        ),
        (
            {"model.mlstm.up_facter": 2.0},
            "unknown config key model.mlstm.up_facter; did you mean model.mlstm.up_factor",
        ),
        ({"model.mlstn.up_factor": 2.0}, "unknown config key model.mlstn.up_factor; did you mean"),
        ({"model.mlstm": 2.0}, "unknown config key model.mlstm; did you mean"),
        (
            {"model.mlstm.input_gate": "sigmoid", "model.mlstm.eps": 0.5},
            "model.mlstm.eps is 0.5, but a sigmoid input gate has no normaliser",
        ),
        ({"task.formal.held_out_samples": 3}, "held_out_samples is 3, but task.name is 'language"),
        ({"model.vocab_size": 0}, "model.vocab_size is 0; it must be at least 1"),
        ({"model.dropout": 1.5}, "model.dropout is 1.5; it must be below 1"),
        ({"model.dropout": 1.0}, "model.dropout is 1.0; it must be below 1"),
        ({"model.mlstm.forget_gate_bias": (3.0,)}, "mlstm.forget_gate_bias is .*have 2 entries"),
        ({"model.mlstm.forget_gate_bias": ("a", 3.0)}, "forget_gate_bias is .*of type float"),
        ({"model.mlstm.num_heads": (1.5,)}, "model.mlstm.num_heads is .*it must be int"),
        (
            {"optimizer.learning_rate": float("inf")},
            "optimizer.learning_rate is inf; it must be a finite number",
        ),
        ({"optimizer.beta2": 1.0}, "optimizer.beta2 is 1.0; it must be below 1"),
        ({"optimizer.eps": -1.0}, "optimizer.eps is -1.0; it must be at least 0"),
        ({"model.mlstm.gate_soft_cap": -1.0}, "mlstm.gate_soft_cap is -1.0; it must be above 0"),
        (
            {"data.batch_size": 15, "train.accumulation_steps": 2},
            "data.batch_size is 15, not divisible",
        ),
        ({"train.steps": 10}, "do not fit into train.steps 10"),
        ({"mesh.data": -1, "mesh.fsdp": -1}, "at most one may be -1"),
        (
            {"model.mlstm.backend": "chunkwize"},
            "model.mlstm.backend is 'chunkwize'; it must be one of .*'chunkwise'",
        ),
        (
            {"model.slstm.backend": "chunkwise"},
            "model.slstm.backend is 'chunkwise'; it must be one of 'recurrent'",
        ),
        ({"optimizer.schedule": "linear"}, "optimizer.schedule is 'linear'"),
        (
            {"optimizer.schedule": "constant", "optimizer.decay_steps": 900},
            "optimizer.decay_steps is 900, but optimizer.schedule 'constant' has no decay; leave",
        ),
        (
            {"optimizer.schedule": "constant", "optimizer.final_fraction": 0.5},
            "optimizer.final_fraction is 0.5, but optimizer.schedule 'constant' has no decay",
        ),
        ({"train.spike_window": 8}, "train.spike_window is 8, but without train.spike_deviations"),
        ({"train.watchdog_ends": True}, "train.watchdog_ends is True, but without train.watchdog_"),
        ({"model.norm": "none", "model.norm_eps": 1e-6}, "model.norm_eps is 1e-06, but model.norm"),
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


CHOICES = [
    f"{name}.{field.name}"
    for name, section in SECTION_CLASSES.items()
    for field in dataclasses.fields(section)
    if field.metadata and field.metadata["bounds"].choices
]


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_checked(key):
    """In a file and in an override, also where the part that has the key is not in use."""
    message = f"{key} is 'none of them'; it must be one of"
    with pytest.raises(UserError, match=message):
        from_config_dict(default_config_dict(), {key: "none of them"})
    values = default_config_dict()
    *sections, name = key.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[name] = "none of them"
    with pytest.raises(UserError, match=message):
        from_config_dict(values)


def test_the_nearest_names_are_offered_for_a_key_that_does_not_exist():
    assert find_key("model.mlp.factor").default == 1.3
    assert NESTED.keys() == {"model", "task"}
    with pytest.raises(UserError, match="unknown config key optimizer.lerning_rate; did you mean"):
        find_key("optimizer.lerning_rate")


def test_float64_needs_64_bits_and_nothing_computes_less_in_silence():
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        load(file("quickstart.py"), {"model.dtype": "float64"})
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        compute_dtype("float64")
    with jax.enable_x64(True):
        assert load(file("quickstart.py"), {"model.dtype": "float64"}).model.dtype == "float64"
        assert compute_dtype("float64") == "float64"


def test_reading_a_configuration_starts_no_backend():
    """Several processes have to find one another before jax computes anything."""
    program = (
        "from jax._src import xla_bridge; from xlstm_jax.config import load; "
        "load('configs/xlstm_125m.py:7_1-15b'); load('configs/formal.py'); "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
