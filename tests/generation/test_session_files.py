"""A session's file goes on as if nothing had happened, belongs to the parameters that made it, and
is replaced whole or not at all.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.generation.conftest import FAMILIES
from tests.interop.test_interop import shapes_of
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session_files
from xlstm_jax.generation.session import TAIL, empty_session, widened
from xlstm_jax.generation.session_files import load, save
from xlstm_jax.generation.weights import cast_weights, fingerprint
from xlstm_jax.models import build_model


@functools.cache
def build(family: str):
    """(model, parameters) with values that no compiler had to make."""
    rng = np.random.default_rng(0)
    config = FAMILIES[family]
    shapes = shapes_of(config)
    return build_model(config), jax.tree.map(
        lambda leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), shapes
    )


@pytest.fixture(scope="module")
def session():
    rng = np.random.default_rng(0)
    empty = jax.eval_shape(lambda: empty_session(build("paper")[0], 2))
    return jax.tree.map(lambda leaf: rng.integers(0, 2, leaf.shape).astype(leaf.dtype), empty)


@pytest.fixture
def file(session, tmp_path):
    save(session, tmp_path / "session.npz", *build("paper"), origin="step 3 of runs/a")
    return tmp_path / "session.npz"


def test_a_stored_session_goes_on_as_if_nothing_had_happened(session, file):
    jax.tree.map(np.testing.assert_array_equal, load(file, *build("paper")), session)


def test_a_tail_that_a_long_stop_string_has_widened_is_kept(session, tmp_path):
    wide = session._replace(tail=widened(session.tail, 3 * TAIL))
    assert wide.tail.tokens.shape == (2, 4 * TAIL)
    save(wide, tmp_path / "wide.npz", *build("paper"))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "wide.npz", *build("paper")), wide)


def test_it_belongs_to_the_model_and_to_the_very_parameters(file):
    model, params = build("paper")
    with pytest.raises(UserError, match=r"of another model \(of step 3 of runs/a\)"):
        load(file, *build("7b"))
    after_a_step = jax.tree.map(lambda leaf: leaf * (1 - 1e-6), params)
    with pytest.raises(UserError, match=r"of other parameters \(of step 3 of runs/a\)"):
        load(file, model, after_a_step)


def test_a_change_of_any_one_array_is_seen_and_a_cast_is_none():
    model, params = build("7b")
    leaves, tree = jax.tree.flatten(params)
    known = fingerprint(params, model.config)
    for changed in range(len(leaves)):
        others = [leaf + 0.1 if k == changed else leaf for k, leaf in enumerate(leaves)]
        assert fingerprint(jax.tree.unflatten(tree, others), model.config) != known
    for family in ("7b", "paper"):
        model, params = build(family)
        config = dataclasses.replace(model.config, dtype="bfloat16")
        params = jax.tree.map(jax.numpy.asarray, params)
        assert fingerprint(cast_weights(params, config), config) == fingerprint(params, config)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:200] + bytes(byte ^ 255 for byte in content[200:260]) + content[260:]


@pytest.mark.parametrize(
    "damage", [cut_off, flipped, lambda content: b"", lambda content: b"some text\n"]
)
def test_a_damaged_file_or_one_that_is_none_is_refused_by_name(file, damage):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"session.npz' is no session, or is damaged") as error:
        load(file, *build("paper"))
    assert "pickle" not in str(error.value)


def test_arrays_that_are_no_session_are_refused(file):
    np.savez(file, logits=np.zeros(3))
    with pytest.raises(UserError, match="other entries"):
        load(file, *build("paper"))
    np.save(file.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(UserError, match="is no session"):
        load(file.with_suffix(".npy"), *build("paper"))


@pytest.mark.parametrize("name", ["position", "logits", "state/segment", "tail/tokens"])
def test_an_array_that_is_missing_or_of_another_type_is_named(file, name):
    arrays = session_files.read_arrays(file)
    np.savez(file, **{**arrays, name: arrays[name].astype(np.float64)})
    with pytest.raises(UserError, match=f"damaged: {name} is missing, or has another shape or"):
        load(file, *build("paper"))


@pytest.mark.parametrize("written", [0, 500])
def test_a_file_that_can_not_be_written_leaves_the_old_one(session, file, monkeypatch, written):
    before = file.read_bytes()

    def no_room(stream, **arrays):
        stream.write(b"x" * written)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", no_room)
    with pytest.raises(UserError, match="can't be written .No space left on device."):
        save(session, file, *build("paper"))
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_a_link_stays_a_link(session, file):
    link = file.with_name("link.npz")
    link.symlink_to(file.name)
    save(session, link, *build("paper"), origin="again")
    assert link.is_symlink() and str(session_files.read_arrays(file)["origin"]) == "again"
