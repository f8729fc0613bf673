"""Sessions are exact: padding, cutting, forking and stopping change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import VOCABULARY, initial_params
from xlstm_jax.errors import UserError
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.decoding import decode, row_keys
from xlstm_jax.generation.sampling import GREEDY, Sampling
from xlstm_jax.generation.session import NOTHING, read, take
from xlstm_jax.models import build_model

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, VOCABULARY, length).tolist() for length in (5, 1, 12)]
SPACE = 12
DRAWN = Sampling(temperature=1.5)


def write(model, params, session, seeds=None, sampling=GREEDY, stop_tokens=None, num_tokens=SPACE):
    """(session, tokens, ended) after up to `num_tokens` more; one program per set of rules."""
    batch = len(session.position)
    keys = row_keys(range(batch) if seeds is None else seeds)
    ended = jnp.zeros(batch, bool)
    session, tokens, ended = decode(
        model,
        params,
        session,
        keys,
        ended,
        num_tokens,
        space=SPACE,
        sampling=sampling,
        stop_tokens=stop_tokens,
    )
    return session, np.asarray(tokens), np.asarray(ended)


def assert_same(first, second, atol=2e-5):
    """Equal sessions; states as C·exp(m), which is what they mean."""
    np.testing.assert_allclose(first.logits, second.logits, atol=atol)
    np.testing.assert_array_equal(first.position, second.position)
    np.testing.assert_array_equal(first.seen, second.seen)
    np.testing.assert_array_equal(first.tail.tokens, second.tail.tokens)
    for one, other in zip(meaning(first), meaning(second), strict=True):
        scale = max(1.0, float(np.abs(one).max()))
        np.testing.assert_allclose(one, other, atol=atol * scale)


def meaning(session) -> list[np.ndarray]:
    """The states' arrays, stabilisers multiplied out (small models: exp does not overflow)."""

    def unscaled(node):
        if not hasattr(node, "m"):
            return node
        m = np.asarray(node.m, np.float64)
        wide = {
            name: np.asarray(x, np.float64) for name, x in node._asdict().items() if name != "m"
        }
        scale = {
            name: np.exp(m).reshape(m.shape + (1,) * (x.ndim - m.ndim)) for name, x in wide.items()
        }
        return [x if name == "h" else x * scale[name] for name, x in wide.items()]

    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves(
            jax.tree.map(unscaled, session.state.blocks, is_leaf=lambda x: hasattr(x, "m"))
        )
    ]


def test_the_logits_of_every_step_are_the_teacher_forced_ones(model_and_params):
    model, params = model_and_params
    session = read(model, params, PROMPTS[2:])
    tokens, seen = [], [np.asarray(session.logits)]
    for _ in range(SPACE):
        session, token, _ = write(model, params, session, num_tokens=1)
        tokens.append(int(token[0, 0]))
        seen.append(np.asarray(session.logits))
    text = np.array([PROMPTS[2] + tokens])
    expected, _ = jax.jit(model.apply)({"params": params}, text)
    np.testing.assert_allclose(np.concatenate(seen), expected[0, len(PROMPTS[2]) - 1 :], atol=1e-4)
    assert tokens == expected[0, len(PROMPTS[2]) - 1 : -1].argmax(axis=-1).tolist()
    assert len(set(tokens)) > 2  # a model stuck on one token would prove little
    _, at_once, _ = write(model, params, read(model, params, PROMPTS[2:]))
    assert at_once[0].tolist() == tokens


@pytest.mark.slow
def test_a_padded_prompt_gives_what_it_gives_alone(model_and_params):
    model, params = model_and_params
    together = read(model, params, PROMPTS)
    after, tokens, _ = write(model, params, together, seeds=[7, 8, 9], sampling=DRAWN)
    for row in (1, 2):  # the longest and the shortest
        alone = read(model, params, PROMPTS[row : row + 1])
        assert_same(take(together, [row]), alone)
        after_alone, tokens_alone, _ = write(model, params, alone, seeds=[7 + row], sampling=DRAWN)
        np.testing.assert_array_equal(tokens[row], tokens_alone[0])
        assert_same(take(after, [row]), after_alone)


def test_pieces_grow_so_that_few_programs_read_any_length(monkeypatch):
    monkeypatch.setattr(sessions, "PIECE", 8)
    assert sessions.cuts(3, 4) == [0, 3]
    assert sessions.cuts(8 + 6, 0) == [0, 6, 14]
    assert sessions.cuts(6 * 8 + 4, 4) == [0, 4, 12, 20, 52]
    assert sessions.cuts(2 * 32, 4) == [0, 32, 64]


@pytest.mark.slow
def test_a_long_prompt_is_read_piece_by_piece(paper_model, monkeypatch):
    model, params = paper_model
    whole = read(model, params, PROMPTS)
    monkeypatch.setattr(sessions, "PIECE", 4)
    assert_same(read(model, params, PROMPTS), whole)
    monkeypatch.setattr(sessions, "PIECE", 1)
    monkeypatch.setattr(sessions, "PIECES", 2 * len(PROMPTS))
    monkeypatch.setattr(sessions, "platform", lambda: "gpu")
    assert_same(read(model, params, PROMPTS), whole)


@pytest.mark.slow
def test_reading_goes_on_where_it_stopped(paper_model):
    model, params = paper_model
    session = read(model, params, [prompt[:1] for prompt in PROMPTS])
    assert_same(
        read(model, params, [prompt[1:] for prompt in PROMPTS], session),
        read(model, params, PROMPTS),
    )


@pytest.mark.slow
def test_forks_do_not_touch_each_other_or_their_origin(model_and_params):
    model, params = model_and_params
    origin = read(model, params, PROMPTS)
    before = [np.array(leaf) for leaf in jax.tree.leaves(origin)]
    forks = take(origin, [2, 2, 2])
    _, tokens, _ = write(model, params, forks, seeds=[5, 6, 5], sampling=DRAWN)
    assert (tokens[0] != tokens[1]).any()
    np.testing.assert_array_equal(tokens[0], tokens[2])
    _, alone, _ = write(model, params, take(origin, [2]), seeds=[6], sampling=DRAWN)
    np.testing.assert_array_equal(tokens[1], alone[0])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(origin), before)


def test_a_text_drawn_in_parts_is_the_text_drawn_at_once(paper_model):
    model, params = paper_model
    start = read(model, params, PROMPTS)
    after, tokens, _ = write(model, params, start, sampling=DRAWN)
    session, first, _ = write(model, params, start, sampling=DRAWN, num_tokens=5)
    session, rest, _ = write(model, params, session, sampling=DRAWN, num_tokens=SPACE - 5)
    np.testing.assert_array_equal(
        np.concatenate([first[:, :5], rest[:, : SPACE - 5]], axis=1), tokens
    )
    assert_same(session, after)


@pytest.mark.slow
def test_a_stop_token_ends_its_row_and_freezes_its_state(model_and_params):
    model, params = model_and_params
    start = read(model, params, PROMPTS)
    _, free, _ = write(model, params, start, sampling=DRAWN)
    stop = int(free[0, 3])
    session, tokens, ended = write(model, params, start, sampling=DRAWN, stop_tokens=(stop,))
    for row in range(3):
        at = free[row].tolist().index(stop) + 1 if stop in free[row] else SPACE
        assert ended[row] == (stop in free[row])
        np.testing.assert_array_equal(tokens[row, :at], free[row, :at])
        assert (tokens[row, at:] == NOTHING).all()
    assert ended[0]
    assert_same(
        take(session, [0]),
        read(model, params, [PROMPTS[0] + free[0, : free[0].tolist().index(stop) + 1].tolist()]),
        atol=1e-4,
    )


@pytest.mark.slow
def test_every_row_may_have_its_own_number_of_tokens(paper_model):
    """Each gets what it would get with that number alone."""
    model, params = paper_model
    start = read(model, params, PROMPTS)
    never = (VOCABULARY,)  # rows may end; none does
    limited = write(model, params, start, stop_tokens=never, num_tokens=jnp.array([2, 0, 5]))
    for row, count in enumerate((2, 0, 5)):
        alone = write(model, params, start, stop_tokens=never, num_tokens=count)
        np.testing.assert_array_equal(limited[1][row], alone[1][row])
        assert_same(take(limited[0], [row]), take(alone[0], [row]), atol=0)
    assert not limited[2].any()


def test_states_may_leave_the_device_and_come_back(paper_model):
    """As NumPy arrays, stored wherever one likes."""
    model, params = paper_model
    session = read(model, params, PROMPTS)
    detached = jax.tree.map(np.array, session)
    _, tokens, _ = write(model, params, session)
    np.testing.assert_array_equal(write(model, params, detached)[1], tokens)


@pytest.mark.slow
def test_a_convolution_of_one_tap_goes_on_too(paper_model):
    """Its window is empty."""
    config = paper_model[0].config
    one_tap = {
        name: dataclasses.replace(section, conv_width=1)
        for name, section in config.mixers.items()
        if hasattr(section, "conv_width")
    }
    model = build_model(dataclasses.replace(config, mixers={**config.mixers, **one_tap}))
    params = initial_params(model, seed=3)
    session, tokens, _ = write(model, params, read(model, params, PROMPTS[2:]))
    text = np.array([PROMPTS[2] + tokens[0].tolist()])
    expected, _ = jax.jit(model.apply)({"params": params}, text)
    np.testing.assert_allclose(session.logits[0], expected[0, -1], atol=1e-4)


def test_an_empty_prompt_is_refused(paper_model):
    with pytest.raises(UserError, match="empty"):
        read(*paper_model, [[1], []])


@pytest.mark.slow
def test_a_long_text_stays_finite_at_flat_memory(model_and_params):
    """20,000 tokens."""
    model, params = model_and_params
    session = read(model, params, PROMPTS[:1])
    shapes = jax.tree.map(jnp.shape, session)
    for _ in range(4):
        session, tokens, _ = decode(
            model,
            params,
            session,
            row_keys([0]),
            jnp.zeros(1, bool),
            5000,
            space=5000,
            sampling=DRAWN,
        )
        assert np.asarray(tokens).min() >= 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(session))
        assert jax.tree.map(jnp.shape, session) == shapes
    assert int(session.position[0]) == 20_000 + len(PROMPTS[0])
