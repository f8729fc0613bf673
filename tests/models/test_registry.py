"""What every mixer of the table keeps, whichever it is: one that is registered is tested here
without a line more, but for a row in `SETTINGS` where its defaults do not fit a small model.

Most of the time goes into compiling. A model therefore has six programs, most of which the tests
share: its gradients, with the logits beside them, on 23 tokens; a call of 11 tokens and one of a
single token, each going on from a state; one of 11 tokens that knows nothing of documents and
states; one in bfloat16; its gradients on a mesh. Where there is a cache of programs they are kept
in it, small as they are: a mixer then takes 3 s instead of 15.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose, assert_array_equal

from tests.models.conftest import SETTINGS
from xlstm_jax import config as whole_config
from xlstm_jax.config import Config, DataConfig, MeshConfig, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.generation import generate
from xlstm_jax.models import ModelConfig, build_model, mixers
from xlstm_jax.models.config import check_model
from xlstm_jax.models.mixer import Parts
from xlstm_jax.models.remat import RICHEST_FIRST
from xlstm_jax.parallel import make_mesh, parameter_shardings
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.folder import find_run
from xlstm_jax.tasks import TaskConfig
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.starting import Keeper
from xlstm_jax.training.state import abstract_state

VOCABULARY = 23
LONG, SHORT, ONE = 23, 11, 1  # numbers of tokens


def small(blocks: str, num_blocks: int = 1, *, settings=None, **changes) -> ModelConfig:
    used = settings or {name: SETTINGS[name] for name in blocks.split("+") if name in SETTINGS}
    changes |= {"blocks": blocks, "num_blocks": num_blocks, "mixers": used}
    return ModelConfig(dim=64, vocab_size=VOCABULARY, **changes)


# every mixer by itself; two stacks with settings that change what is remembered or read
CASES = {name: small(name) for name in mixers.names()} | {
    "without_conv": small(
        "mlstm,slstm",
        num_blocks=2,
        settings={"mlstm": {"input_gate": "sigmoid", "conv_width": 0}, "slstm": {"conv_width": 0}},
        positions="learned",
        max_positions=LONG + 1,
        tie_embeddings=True,
        norm_bias=True,
    ),
    "llama": small("attention+mlp", settings={"attention": {"num_groups": 2}}, norm="rms"),
}


def has(quality: str, config: ModelConfig) -> list[bool]:
    return [getattr(config.of(name)[0], quality) for name in config.mixer_names]


QUICK = ("mlstm", "attention")


def cases(names) -> pytest.MarkDecorator:
    """The others are slow until the cache has their programs."""
    marks = {name: () if name in QUICK else pytest.mark.slow for name in names}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks[name]) for name in names]
    )


every = cases(CASES)
each_that_resets = cases([name for name, config in CASES.items() if all(has("resets", config))])

TOKENS = np.random.default_rng(2).integers(0, VOCABULARY, (2, LONG)).astype(np.int32)
ONE_DOCUMENT = np.full((2, LONG), 3, np.int32)
BORDERS = [0, SHORT, SHORT + ONE, LONG]
DOCUMENTS = np.repeat([4, 2, 9], np.diff(BORDERS)).astype(np.int32)[None].repeat(2, 0)


def strewn(config: ModelConfig) -> np.ndarray:
    """Padding strewn in, and in the first row documents where they reset."""
    rng = np.random.default_rng(5)
    ids = np.cumsum(rng.random((2, LONG)) < [[0.2], [0]], axis=1)
    ids = ids if all(has("resets", config)) else np.zeros_like(ids)
    return np.where(rng.random((2, LONG)) < 0.2, -1, ids).astype(np.int32)


class Small:
    """A model with random parameters and its programs."""

    def __init__(self, config: ModelConfig, variables):
        self.config, self.variables, self.module = config, variables, build_model(config)
        self.grows = any(has("grows", config))
        self.strewn = strewn(config)
        self.empty = functools.partial(self.module.init_state, 2, cache_length=2 * LONG)
        self._apply = jax.jit(self.module.apply)
        self._gradients = jax.jit(gradients(self.module))

    def on(self, tokens, ids, state):
        """Logits and state of 11 tokens or one."""
        assert tokens.shape[1] in (SHORT, ONE)
        return self._apply(self.variables, tokens, state, segments=ids)

    def whole(self, ids, tokens=TOKENS):
        """Logits and state of 23 tokens, without a state before."""
        return self._gradients(self.variables["params"], tokens, ids)[0][1]

    def gradients(self, ids):
        """Of the parameters."""
        return self._gradients(self.variables["params"], TOKENS, ids)[1]

    def goes_on(self, state):
        """What it makes of one more token."""
        ids = np.full((2, ONE), 7, np.int32)
        return self.on(TOKENS[:, 5:6], ids, state._replace(segment=ids[:, 0]))[0]


def gradients(module):
    """Of the sum over the tokens that are no padding, over the number of all; logits and state
    beside.
    """

    def loss(params, tokens, ids):
        logits, state = module.apply({"params": params}, tokens, segments=ids)
        target = (tokens[..., None] + 1) % VOCABULARY
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
        return -jnp.sum(jnp.where(ids >= 0, chosen, 0)) / ids.size, (logits, state)

    return jax.value_and_grad(loss, has_aux=True)


@pytest.fixture(scope="module")
def model_of(random_variables):
    return functools.cache(lambda name: Small(CASES[name], random_variables(CASES[name], 0.1)))


def close(found, expected, tolerance=2e-4):
    """As near as sums of another order let them be."""
    scale = max(np.abs(expected).max(), 1)
    assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def trees_are_close(found, expected, tolerance):
    """Leaf by leaf; one that is small beside all others is judged by their size."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        atol = tolerance * max(np.abs(other).max(), 1e-2 * largest)
        assert_allclose(leaf, other, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@every
def test_pieces_with_their_states_equal_the_whole(name, model_of):
    """A text read at once without a state, in pieces, and as a prompt with steps after it."""
    model = model_of(name)
    ids, empty = model.strewn, model.empty()
    whole, last = model.whole(ids)
    assert all_finite((whole, last))
    states = [] if model.grows else [last]  # what grows returns none where it got none
    for ends in ([SHORT, SHORT + ONE, LONG], range(SHORT, LONG + 1)):
        state, parts, start = empty, [], 0
        for end in ends:
            part, state = model.on(TOKENS[:, start:end], ids[:, start:end], state)
            assert all_finite((part, state)) and types(state) == types(empty)
            parts.append(part)
            start = end
        real = ids >= 0
        close(np.concatenate(parts, axis=1)[real], whole[real])
        states.append(state)
    for state in states[1:]:
        close(model.goes_on(state), model.goes_on(states[0]))


@every
def test_a_text_without_documents_and_state_is_one_document(name, model_of):
    """As most training reads it; also where that is another form, such as a convolution by FFT."""
    model, tokens = model_of(name), TOKENS[:, :SHORT]
    plain, after = jax.jit(model.module.apply)(model.variables, tokens)
    logits, state = model.on(tokens, ONE_DOCUMENT[:, :SHORT], model.empty())
    close(plain, logits)
    if not model.grows:
        close(model.goes_on(after), model.goes_on(state))


@every
def test_what_is_written_is_what_the_whole_text_says(name, model_of):
    """A prompt and the likeliest token again and again, read as one text: none was likelier."""
    model = model_of(name)
    prompt = TOKENS[:, :SHORT]
    written = generate(
        model.module, model.variables, prompt, LONG - SHORT, jax.random.key(0), temperature=0.0
    )
    text = np.concatenate([prompt, written], axis=1)
    said = np.asarray(model.whole(ONE_DOCUMENT, text)[0])[:, SHORT - 1 : -1]
    close(np.take_along_axis(said, np.asarray(written)[..., None], 2)[..., 0], said.max(axis=-1))


@each_that_resets
def test_packed_documents_equal_separate_ones(name, model_of):
    model = model_of(name)
    packed, _ = model.whole(DOCUMENTS)
    parts = zip(BORDERS, BORDERS[1:], strict=False)
    separate = [model.on(TOKENS[:, a:b], DOCUMENTS[:, a:b], model.empty())[0] for a, b in parts]
    close(packed, np.concatenate(separate, axis=1))
    # each alone in a batch that is padding for the rest
    alone = [model.gradients(np.where(DOCUMENTS == document, 0, -1)) for document in (4, 2, 9)]
    together = jax.tree.map(lambda *leaves: sum(leaves), *alone)
    trees_are_close(model.gradients(DOCUMENTS), together, 2e-4)
    other = np.where(DOCUMENTS == 4, (TOKENS + 5) % VOCABULARY, TOKENS)
    changed, _ = model.whole(DOCUMENTS, other)
    assert_array_equal(changed[:, SHORT:], packed[:, SHORT:])


def test_a_mixer_that_can_not_forget_refuses_documents_by_its_name():
    for name in (name for name in mixers.names() if not mixers.find(name).resets):
        config = Config(model=CASES[name], data=DataConfig(reset_at_document=True))
        message = f"data.reset_at_document is True, but the mixer '{name}'"
        with pytest.raises(UserError, match=message):
            whole_config.check(config)


@every
def test_padding_changes_no_state_and_no_other_token(name, model_of):
    """In front, in the middle, at the end; and a call of nothing else."""
    model = model_of(name)
    plain, state = [], model.empty()
    for t in range(5):
        logits, state = model.on(TOKENS[:, t : t + 1], ONE_DOCUMENT[:, :1], state)
        plain.append(logits)
    rows, places = np.arange(2)[:, None], np.array([[6, 7, 8, 9, 10], [0, 1, 3, 6, 8]])
    ids, tokens = np.full((2, SHORT), -1, np.int32), TOKENS[:, :SHORT].copy()
    ids[rows, places], tokens[rows, places] = 3, TOKENS[:, :5]
    padded, after = model.on(tokens, ids, model.empty())
    assert all_finite(padded)
    close(padded[rows, places], np.concatenate(plain, axis=1))
    close(model.goes_on(after), model.goes_on(state))
    before = jax.tree.map(np.array, state)
    _, untouched = model.on(tokens, np.full_like(ids, -1), state)
    jax.tree.map(assert_array_equal, untouched, before)


@every
def test_no_token_sees_a_later_one(name, model_of):
    model, at = model_of(name), 12
    other = TOKENS.copy()
    other[:, at] = (other[:, at] + 1) % VOCABULARY
    (logits, _), (changed, _) = (model.whole(ONE_DOCUMENT, tokens) for tokens in (TOKENS, other))
    close(changed[:, :at], logits[:, :at], 1e-6)
    assert (np.abs(changed - logits)[:, at].max(axis=-1) > 1e-3).all()


@every
def test_bfloat16_is_of_activations_alone(name, model_of):
    """States are those of a float32 model; results are near its."""
    model = model_of(name)
    low = build_model(dataclasses.replace(model.config, dtype="bfloat16"))
    assert types(low.init_state(2, cache_length=LONG)) == types(
        model.module.init_state(2, cache_length=LONG)
    )

    @jax.jit
    def hidden(variables, state):
        return low.apply(variables, TOKENS, state, segments=model.strewn, method="hidden")

    y, state = hidden(model.variables, model.empty())
    assert y.dtype == jnp.bfloat16 and types(state) == types(model.empty())
    expected, _ = model.whole(model.strewn)
    found = low.apply(model.variables, y, method="head")
    assert found.dtype == jnp.float32
    real = model.strewn >= 0
    assert np.linalg.norm((found - expected)[real]) < 0.05 * np.linalg.norm(expected[real])


@every
def test_stacked_blocks_can_be_initialised_and_carry_their_states(name):
    """Their depth is traced then; nothing is compiled."""
    module = build_model(dataclasses.replace(CASES[name], num_blocks=6), stacked=True)

    def step(key):
        state = module.init_state(2, cache_length=LONG)
        (_, after), _ = module.init_with_output(key, TOKENS[:, :1], state)
        return state, after

    before, after = jax.eval_shape(step, jax.random.key(0))
    assert before == after


@every
def test_a_stacked_training_goes_on_from_its_checkpoint_to_the_bit(name, tmp_path):
    """Parameters and moments, what the whole stack shares among them; the file has blocks by
    number. Nothing is trained.
    """
    model = dataclasses.replace(CASES[name], num_blocks=6)
    config = Config(model=model, task=TaskConfig(name="formal"))
    task, mesh = task_of(config), make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 1000))
    arguments = task, task.model(stacked=True), optimizer
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.integers(0, 9, leaf.shape), leaf.dtype),
        abstract_state(*arguments, config.train),
    )
    with Checkpoints(find_run(tmp_path), config) as checkpoints:
        keeper = Keeper(*arguments, config, checkpoints, mesh)
        stored = keeper.by_number(state)
        assert {f"block_{n}" for n in range(6)} <= stored.params["backbone"].keys()
        keeper.save(stored, 3, None, force=True)
        checkpoints.finish()
        found, step = keeper.start()
    assert step == 3 and jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(assert_array_equal, found, state)


@every
def test_flops_are_counted(name):
    model = build_model(CASES[name])
    head = 2 * CASES[name].dim * VOCABULARY
    assert 0 < model.flops(1) - head <= model.flops(4096) - head < np.inf


@every
def test_neither_a_mesh_nor_recomputing_changes_a_gradient(name, model_of):
    """Parameters and rows over fsdp, heads and channels over tensor; what "auto" may choose, by
    turns (test_remat.py has all of it for the mixers with names of their own).
    """
    model, mesh = model_of(name), make_mesh(MeshConfig(1, 2, 2, 1))
    check_model(model.config, Parts(tensor=2))
    remat = RICHEST_FIRST[list(CASES).index(name) % len(RICHEST_FIRST)]
    module = build_model(dataclasses.replace(model.config, remat=remat))
    boxed = jax.eval_shape(module.init, jax.random.key(0), TOKENS)
    spread = parameter_shardings(boxed, mesh)["params"]
    arguments = jax.device_put(
        (model.variables["params"], TOKENS, model.strewn),
        (spread, *[jax.NamedSharding(mesh, jax.P(("data", "fsdp")))] * 2),
    )
    with jax.set_mesh(mesh):
        step = jax.jit(lambda *a: gradients(module)(*a)[1], out_shardings=spread)
        found = step(*arguments)
    expected = model.gradients(model.strewn)
    assert all_finite(expected)
    trees_are_close(found, expected, 2e-5)
    blocks = nn.meta.unbox(boxed)["params"]["backbone"]["block_0"]
    places = jax.tree.map(lambda place: place.spec, spread["backbone"]["block_0"])
    for kernel, axes in zip(jax.tree.leaves(blocks), jax.tree.leaves(places), strict=True):
        assert kernel.size < model.config.dim**2 or {"fsdp", "tensor"} & set(axes)
