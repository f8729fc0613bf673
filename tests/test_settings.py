"""Sections of settings: what a field declares is what a value must be."""

import dataclasses
import math

import pytest

from xlstm_jax import settings
from xlstm_jax.config import default_config_dict
from xlstm_jax.errors import UserError
from xlstm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Gate:
    """A section with a field of each kind."""

    count: int = setting(4, "how many", at_least=1, at_most=9)
    rate: float = setting(0.5, "how fast", at_least=0, below=1)
    scale: float = setting(1.0, "how wide", above=0)
    cap: float | None = setting(None, "how high", above=0)
    window: int | None = setting(None, "how long", at_least=2, may_change=True)
    kind: str = setting("soft", "which", choices=("soft", "hard"))
    ends: tuple[float, ...] = setting((3.0, 6.0), "first and last", entries=2, at_least=0)
    widths: tuple[int, ...] = setting((1,), "of each")
    biased: bool = setting(False, "with a bias")
    table: str | None = setting(None, "a file", place=True)
    ready: object = None  # no setting: made elsewhere


def read(**values) -> Gate:
    return settings.read(Gate, values, "model.gate")


def test_what_is_not_given_has_its_default():
    assert read() == Gate() and read(count=2) == Gate(count=2)
    assert settings.differing(read(count=2, kind="hard")) == {"count": 2, "kind": "hard"}
    assert settings.differing(read()) == {}


def test_the_bounds_belong_to_the_values():
    assert read(count=1, rate=0, ends=(0, 0), window=2) == Gate(1, 0.0, ends=(0.0, 0.0), window=2)
    assert read(count=9).count == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "is 0; it must be at least 1"),
        ({"count": 10}, "is 10; it must be at most 9"),
        ({"rate": 1.0}, "is 1.0; it must be below 1"),
        ({"rate": -0.1}, "is -0.1; it must be at least 0"),
        ({"scale": 0.0}, "is 0.0; it must be above 0"),
        ({"scale": math.inf}, "is inf; it must be a finite number"),
        ({"scale": math.nan}, "is nan; it must be a finite number"),
        ({"cap": math.nan}, "is nan; it must be a finite number"),
        ({"cap": -math.inf}, "is -inf; it must be a finite number"),
        ({"cap": 0.0}, "is 0.0; it must be above 0"),
        ({"window": 1}, "is 1; it must be at least 2"),
        ({"kind": "firm"}, "is 'firm'; it must be one of 'soft', 'hard'"),
        ({"ends": (1.0,)}, r"is \(1.0,\); it must have 2 entries"),
        ({"ends": (1.0, -1.0)}, r"is \(1.0, -1.0\); it must be at least 0"),
        ({"ends": (1.0, math.inf)}, "it must be a finite number"),
        ({"table": "gs://bucket/table"}, "is 'gs://bucket/table', an address"),
        ({"table": "a=here,b=s3://there"}, "an address"),
    ],
)
def test_a_value_out_of_its_bounds_is_named_with_what_would_be_right(values, message):
    [name] = values
    with pytest.raises(UserError, match=f"config key model.gate.{name} .*{message}"):
        read(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": "4"}, r"is '4' \(str\); it must be int"),
        ({"count": 4.0}, r"is 4.0 \(float\); it must be int"),
        ({"count": True}, r"is True \(bool\); it must be int"),
        ({"count": None}, r"is None \(NoneType\); it must be int"),
        ({"window": "all"}, r"is 'all' \(str\); it must be int or unset"),
        ({"biased": 1}, r"is 1 \(int\); it must be bool"),
        ({"rate": "fast"}, "it must be float"),
        ({"ends": 3.0}, "it must be tuple"),
        ({"ends": ("a", 1.0)}, "each entry must be of type float"),
        ({"widths": (1.5,)}, "each entry must be of type int"),
        ({"widths": (True,)}, "each entry must be of type int"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_right_type(values, message):
    [name] = values
    with pytest.raises(UserError, match=f"config key model.gate.{name} .*{message}"):
        read(**values)


def test_whole_numbers_may_stand_for_fractions_and_lists_for_tuples():
    made = read(rate=0, ends=[1, 2], cap=3)
    assert (made.rate, made.ends, made.cap) == (0.0, (1.0, 2.0), 3.0)
    assert all(type(value) is float for value in (made.rate, *made.ends, made.cap))


def test_no_bound_and_an_infinite_one_are_the_same():
    assert read(cap=math.inf) == read(cap=None) == Gate()


def test_an_unknown_key_is_named_with_the_nearest():
    with pytest.raises(UserError, match="key model.gate.cuont; did you mean model.gate.count"):
        read(cuont=3)
    nothing_near = settings.unknown_key("zzz", ["model.gate.count"])
    assert nothing_near == "unknown config key zzz; train.py --help lists all keys"


def test_keys_carry_what_their_fields_say_and_what_is_no_setting_is_no_key():
    found = {key.name: key for key in settings.keys(Gate, "model.gate")}
    fields = [field.name for field in dataclasses.fields(Gate) if field.name != "ready"]
    assert list(found) == [f"model.gate.{name}" for name in fields]
    window, table = found["model.gate.window"], found["model.gate.table"]
    assert (window.default, window.hint, window.meaning) == (None, int | None, "how long")
    assert (window.may_change, window.place) == (True, False)
    assert (table.may_change, table.place) == (False, True)


def test_in_a_config_dict_an_unset_key_takes_values_of_its_type_alone():
    values = default_config_dict()
    assert values.optimizer.decay_steps is None and values.model.mlstm.gate_soft_cap is None
    values.optimizer.decay_steps = 100
    values.model.mlstm.gate_soft_cap = 15.0
    with pytest.raises(TypeError):
        values.checkpoint.init_from = 3
    defaults = settings.defaults(Gate)
    assert "ready" not in defaults and defaults["count"] == 4


def test_what_is_ready_is_taken_as_it_is():
    assert settings.read(Gate, {}, "gate", ready="anything").ready == "anything"
