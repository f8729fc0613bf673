"""Models whose memory grows with the text, or that have learned so many positions and no more: what
fits is exact, what does not is refused beforehand.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.conftest import build
from tests.generation.test_session import assert_same
from xlstm_jax.config import Config
from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.tokenizer import ByteTokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.generation import GREEDY, Generator, Sampling, generate, read, session_files, take
from xlstm_jax.generation import __main__ as command
from xlstm_jax.models import ModelConfig
from xlstm_jax.runs.checkpoints import write_params

ROTARY = ModelConfig(
    vocab_size=257,
    dim=16,
    num_blocks=1,
    blocks="attention+mlstm",
    mixers={"attention": {"num_heads": 4, "num_groups": 2}, "mlstm": {"num_heads": 2}},
)
LEARNED = ModelConfig(
    vocab_size=257,
    dim=16,
    num_blocks=1,
    blocks="attention+mlp",
    positions="learned",
    max_positions=24,
    mixers={"attention": {"theta": None}},
)
TEXTS = ["ab", "a longer one"]
RULES = Sampling(temperature=1.5, top_k=200)


@pytest.fixture(scope="module")
def writer() -> Generator:
    return Generator(*build(ROTARY), ByteTokenizer(), cache_length=40)


@pytest.fixture(scope="module")
def of_positions() -> Generator:
    return Generator(*build(LEARNED), ByteTokenizer())


@pytest.fixture(params=["writer", "of_positions"])
def either(request) -> Generator:
    return request.getfixturevalue(request.param)


def test_every_step_is_the_teacher_forced_one(either):
    """Greedy choices are the argmax of the model that reads all at once, without a cache."""
    start = either.read(TEXTS)
    written = either.write(start, 9, sampling=GREEDY, stop_at_end_of_text=False)
    for row, text in enumerate(TEXTS):
        tokens = np.array([[256, *text.encode(), *written.tokens[row]]])
        logits, _ = jax.jit(either.model.apply)({"params": either.params}, tokens)
        begin = len(text)
        assert written.tokens[row] == jnp.argmax(logits[0, begin:-1], axis=-1).tolist()
        np.testing.assert_allclose(written.session.logits[row], logits[0, -1], atol=1e-4)
    assert len(set(written.tokens[1])) > 2  # a model stuck on one token would prove little


def test_a_text_written_in_parts_is_the_text_written_at_once(writer):
    start = writer.read(TEXTS)
    options = {"sampling": RULES, "seeds": [3, 4], "stop_at_end_of_text": False}
    whole = writer.write(start, 20, **options)
    session, tokens = start, [[], []]
    for count in (1, 12, 7):
        part = writer.write(session, count, **options)
        session, tokens = part.session, [a + b for a, b in zip(tokens, part.tokens, strict=True)]
    assert tokens == whole.tokens
    assert_same(session, whole.session)


@pytest.mark.slow
def test_a_row_gets_what_it_gets_alone(writer):
    """Padding takes no place in a cache."""
    together = writer.read(TEXTS)
    for row, text in enumerate(TEXTS):
        assert_same(take(together, [row]), writer.read([text]))
    longer = writer.read(["ab and more", "a longer one goes on"])
    assert_same(writer.read([" and more", " goes on"], together), longer)


@pytest.mark.slow
def test_a_cache_is_of_the_type_that_the_model_computes_in_and_loses_nothing(tmp_path):
    """Half the memory in bfloat16: the same tokens as with a cache of float32, also from a file."""
    model, params = build(dataclasses.replace(ROTARY, dtype="bfloat16"))
    prompt = np.array([[256, *b"a longer one"]])
    small = read(model, params, prompt.tolist(), cache_length=40)
    cache = small.state.blocks["block_0"][0]
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    wide = model.init_state(1, jnp.float32, cache_length=40)
    logits, wide = jax.jit(model.apply)({"params": params}, prompt, wide)
    np.testing.assert_array_equal(small.logits, logits[:, -1])
    np.testing.assert_array_equal(cache.keys, wide.blocks["block_0"][0].keys)
    step = jax.jit(model.apply)({"params": params}, prompt[:, :1], wide)[0][:, -1]
    session_files.save(small, tmp_path / "session.npz", model, params)
    for session in (small, session_files.load(tmp_path / "session.npz", model, params)):
        after = read(model, params, prompt[:, :1].tolist(), session)
        np.testing.assert_array_equal(after.logits, step)
        assert after.state.blocks["block_0"][0].keys.dtype == jnp.bfloat16


def test_the_file_of_a_session_goes_on_as_if_nothing_had_happened(writer, tmp_path):
    model, params = writer.model, writer.params
    session = writer.write(writer.read(TEXTS), 5, sampling=RULES).session
    session_files.save(session, tmp_path / "session.npz", model, params)
    back = session_files.load(tmp_path / "session.npz", model, params)
    jax.tree.map(np.testing.assert_array_equal, back, session)
    # the cache is the file's, whatever another generator would begin with
    other = Generator(model, params, ByteTokenizer(), cache_length=4000)
    assert (
        other.write(back, 9, sampling=RULES).tokens
        == writer.write(session, 9, sampling=RULES).tokens
    )
    with pytest.raises(UserError, match="its attention has room for 40; .*--cache-length"):
        other.write(back, 40)


def test_a_text_that_outgrows_its_cache_is_refused_before_a_token_is_written(writer):
    start = writer.read(TEXTS)  # 3 and 13 tokens
    written = writer.write(start, 27, sampling=RULES, stop_at_end_of_text=False)
    assert [len(tokens) for tokens in written.tokens] == [27, 27]
    message = "the text has 13 tokens and 28 more are to follow.* room for 40; .*--cache-length"
    with pytest.raises(UserError, match=message):
        writer.write(start, 28)
    writer.read(["x" * 37, ""], start)  # each row has its own room
    with pytest.raises(UserError, match="has 3 tokens and 38 more are to follow"):
        writer.read(["x" * 38, ""], start)
    with pytest.raises(UserError, match="has 0 tokens and 41 more are to follow"):
        writer.read(["x" * 40])


def test_a_model_stops_at_its_last_learned_position(of_positions):
    start = of_positions.read(["a longer one"])  # 13 tokens
    written = of_positions.write(start, 11, sampling=RULES, stop_at_end_of_text=False)
    assert np.isfinite(written.session.logits).all()
    message = r"this model has learned 24 positions \(model.max_positions\) and can read no more"
    with pytest.raises(UserError, match=message):
        of_positions.write(start, 12)
    with pytest.raises(UserError, match=message):
        of_positions.read(["x" * 24])
    with pytest.raises(UserError, match=message):
        read(of_positions.model, of_positions.params, [[1] * 25])


@pytest.mark.slow
def test_the_short_form_takes_the_room_that_it_needs(writer, of_positions):
    prompt, key = jnp.array([[256, 97, 98]]), jax.random.key(0)
    model, variables = writer.model, {"params": writer.params}
    tokens = generate(model, variables, prompt, 60, key, temperature=0.0)[0].tolist()
    longer = Generator(writer.model, writer.params, ByteTokenizer(), cache_length=63)
    written = longer.write(longer.read(["ab"]), 60, sampling=GREEDY, stop_at_end_of_text=False)
    assert written.tokens[0] == tokens
    model, variables = of_positions.model, {"params": of_positions.params}
    assert generate(model, variables, prompt, 21, key).shape == (1, 21)
    with pytest.raises(UserError, match="has learned 24 positions"):
        generate(model, variables, prompt, 22, key)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (ROTARY, ["--cache-length=20"], "room for 20; begin it with a larger --cache-length"),
        (ROTARY, ["--cache-length=0"], "--cache_length is '0'; it must be a whole number from 1"),
        (LEARNED, ["--max-new-tokens=21"], "has learned 24 positions (model.max_positions)"),
        (
            ModelConfig(vocab_size=257, dim=16, num_blocks=1),
            ["--cache-length=20"],
            "--cache-length is 20, but the memory of this model does not grow with the text",
        ),
    ],
)
def test_the_command_says_so_in_one_line_before_any_text(
    tmp_path, capsys, config, arguments, message
):
    data = DataConfig(context_length=16)
    write_params(tmp_path / "run", Config(model=config, data=data), build(config)[1])
    call = ["generation", f"--checkpoint={tmp_path / 'run'}", "--prompt=abc", *arguments]
    assert command.main(call) == 2
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1] and shown.out == ""


@pytest.mark.slow
def test_a_session_keeps_the_room_that_it_was_begun_with(tmp_path, capsys):
    write_params(tmp_path / "run", Config(model=ROTARY), build(ROTARY)[1])
    call = ["generation", f"--checkpoint={tmp_path / 'run'}", f"--session={tmp_path / 's.npz'}"]
    call += ["--temperature=1.5", "--max-new-tokens=8"]
    assert command.main([*call, "--prompt=ab", "--cache-length=20"]) == 0
    assert command.main(call) == 0
    assert command.main([*call, "--cache-length=50"]) == 2
    assert "was begun with its own; leave it out" in capsys.readouterr().err
    assert command.main(call) == 2
    assert "room for 20" in capsys.readouterr().err
