"""Training on a mesh of 8 devices: the same loss and gradients as on one, parameters really spread,
only the collectives that must be.
"""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    check,
    load,
    task_of,
)
from xlstm_jax.data.loader import Batch
from xlstm_jax.errors import UserError
from xlstm_jax.models import build_model
from xlstm_jax.parallel import (
    batch_sharding,
    check_spread,
    filled_rows,
    make_mesh,
    parameter_shardings,
)
from xlstm_jax.runs.params import language_model_params, shardings_of
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state, init_params, init_state
from xlstm_jax.training.step import make_train_step

ROOT = pathlib.Path(__file__).parents[2]
# no parameter has a dimension of 40, 20 or 10: a collective that carries tokens shows
ROWS, TIME = 8, 40
MODELS = {
    "mlstm": ModelConfig(dim=32, num_blocks=1, vocab_size=48),
    "slstm": ModelConfig(dim=32, num_blocks=2, vocab_size=48, blocks="mlstm,slstm+mlp"),
    "7b": ModelConfig(
        dim=32,
        num_blocks=1,
        vocab_size=48,
        blocks="mlstm_7b+mlp",
        norm="rms",
        mixers={
            "mlstm_7b": {
                "num_heads": 4,
                "input_gate_bias": 0.0,
                "input_gate_bias_std": 0.1,
                "norm_eps": 1e-5,
            },
            "mlp": {"activation": "silu", "whole_first": True},
        },
    ),
}
CASES = [
    pytest.param("slstm", (8, 1, 1, 1), marks=pytest.mark.slow),
    pytest.param("mlstm", (1, 8, 1, 1), marks=pytest.mark.slow),
    pytest.param("slstm", (2, 2, 2, 1), marks=pytest.mark.slow),
    pytest.param("mlstm", (1, 2, 1, 4), marks=pytest.mark.slow),
    pytest.param("mlstm", (1, 1, 2, 4), marks=pytest.mark.slow),
    pytest.param("7b", (1, 1, 2, 4), marks=pytest.mark.slow),
]


def mesh_of(shape):
    return make_mesh(MeshConfig(*shape))


def make_batch(rows=ROWS):
    """Documents of all lengths, ragged masks, padding at the end and in the middle: more than a
    whole part of the time.
    """
    r = np.random.default_rng(0)
    tokens = r.integers(0, 48, size=(rows, TIME + 1)).astype(np.int32)
    ids = np.sort(r.integers(0, 5, size=(rows, TIME)), axis=1).astype(np.int32)
    ids[1, 10:20] = ids[2, 8:23] = ids[3, 31:] = ids[4, :11] = -1
    ids[5] = np.repeat([0, 1, 2, 3], 10)
    mask = (ids >= 0) & (r.random(ids.shape) < 0.8)
    return Batch(tokens[:, :-1], np.where(mask, tokens[:, 1:], -1), ids)


@functools.cache
def params_of(name):
    """Initial parameters with noise, so that nothing is 0 or 1."""
    task = task_of(Config(model=MODELS[name]))
    leaves, structure = jax.tree.flatten(init_params(task, task.model(), seed=0))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def loss_and_gradients(name):
    task = task_of(Config(model=MODELS[name], data=DataConfig(reset_at_document=True)))

    def loss(params, batch):
        return task.sums(task.model(), {"params": params}, batch)["loss"][0] / ROWS

    return jax.value_and_grad(loss)


@functools.cache
def on_one_device(name):
    return jax.jit(loss_and_gradients(name))(params_of(name), make_batch())


def collectives(program, *kinds):
    """The shapes of what such operations put out, one list of them per operation."""
    found = re.findall(rf"= (.*?) (?:{'|'.join(kinds)})(?:-start)?\(", program)
    return [
        [tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", shapes)]
        for shapes in found
    ]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_a_mesh_changes_neither_loss_nor_gradients_and_moves_no_tokens(name, shape):
    mesh, params = mesh_of(shape), params_of(name)
    spread = shardings_of(language_model_params(build_model(MODELS[name]), mesh))
    batch = jax.device_put(make_batch(), batch_sharding(mesh, ROWS, TIME))
    with jax.set_mesh(mesh):
        step = jax.jit(loss_and_gradients(name), out_shardings=(None, spread))
        compiled = step.lower(jax.device_put(params, spread), batch).compile()
        loss, gradients = compiled(jax.device_put(params, spread), batch)

    expected_loss, expected = on_one_device(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    expected = dict(jax.tree_util.tree_leaves_with_path(expected))
    for path, got in jax.tree_util.tree_leaves_with_path(gradients):
        # A layer's kernel and bias have one scale: a gate's bias gradient is what a sum of much
        # larger terms leaves.
        size = max(
            np.abs(want).max() for other, want in expected.items() if other[:-1] == path[:-1]
        )
        np.testing.assert_allclose(
            got, expected[path], rtol=0, atol=1e-5 * size, err_msg=jax.tree_util.keystr(path)
        )

    data, fsdp, tensor, sequence = shape
    rows, time, dim = ROWS // (data * fsdp), TIME // sequence, MODELS[name].dim
    program = compiled.as_text()

    def carries_tokens(dims):
        return not {TIME, time}.isdisjoint(dims) and np.prod(dims) >= rows * time * dim

    moved = [
        dims
        for shapes in collectives(program, "all-gather", "all-to-all", "collective-permute")
        for dims in shapes
    ]
    moved = [dims for dims in moved if carries_tokens(dims)]
    # The sLSTM's heads are put together again over the axis tensor, as no product follows that
    # could: once forward, once back.
    assert moved == [(rows, time, dim)] * (2 if name == "slstm" and tensor > 1 else 0)
    summed = [
        dims
        for shapes in collectives(program, "all-reduce")
        for dims in shapes
        if carries_tokens(dims)
    ]
    assert (len(summed) > 0) == (tensor > 1), "activations are summed over the axis tensor alone"


GOLDEN = {
    "mlstm": """
        backbone/block_0/mlstm/conv/bias               tensor
        backbone/block_0/mlstm/conv/kernel             - tensor
        backbone/block_0/mlstm/down_projection/kernel  tensor fsdp
        backbone/block_0/mlstm/forget_gate/bias        -
        backbone/block_0/mlstm/forget_gate/kernel      - -
        backbone/block_0/mlstm/head_norm/scale         tensor
        backbone/block_0/mlstm/input_gate/bias         -
        backbone/block_0/mlstm/input_gate/kernel       - -
        backbone/block_0/mlstm/key/kernel              tensor - -
        backbone/block_0/mlstm/query/kernel            tensor - -
        backbone/block_0/mlstm/skip                    tensor
        backbone/block_0/mlstm/up_projection/kernel    fsdp tensor
        backbone/block_0/mlstm/value/kernel            tensor - -
        backbone/block_0/mlstm_norm/scale              fsdp
        backbone/final_norm/scale                      fsdp
        embedding/embedding                            tensor fsdp
        lm_head/kernel                                 fsdp tensor
    """,
    "slstm": """
        backbone/block_1/mlp/down_projection/kernel    tensor fsdp
        backbone/block_1/mlp/up_projection/kernel      fsdp tensor
        backbone/block_1/mlp_norm/scale                fsdp
        backbone/block_1/slstm/bias                    - tensor fsdp
        backbone/block_1/slstm/conv/bias               tensor
        backbone/block_1/slstm/conv/kernel             - tensor
        backbone/block_1/slstm/gates/kernel            - tensor fsdp -
        backbone/block_1/slstm/head_norm/scale         tensor
        backbone/block_1/slstm/recurrent_kernel        - tensor fsdp -
        backbone/block_1/slstm_norm/scale              fsdp
    """,
    "7b": """
        backbone/block_0/mlp/down_projection/kernel    tensor fsdp
        backbone/block_0/mlp/up_projection/kernel      fsdp tensor
        backbone/block_0/mlp_norm/scale                fsdp
        backbone/block_0/mlstm_7b/forget_gate/bias     -
        backbone/block_0/mlstm_7b/forget_gate/kernel   - -
        backbone/block_0/mlstm_7b/head_norm/scale      tensor
        backbone/block_0/mlstm_7b/input_gate/bias      -
        backbone/block_0/mlstm_7b/input_gate/kernel    - -
        backbone/block_0/mlstm_7b/key/kernel           fsdp tensor
        backbone/block_0/mlstm_7b/out_projection/kernel tensor fsdp
        backbone/block_0/mlstm_7b/output_gate/kernel   fsdp tensor
        backbone/block_0/mlstm_7b/query/kernel         fsdp tensor
        backbone/block_0/mlstm_7b/value/kernel         fsdp tensor
        backbone/block_0/mlstm_7b_norm/scale           fsdp
    """,
}


def places_of(model):
    """The mesh axes of every parameter, by its path."""
    abstract = language_model_params(model, mesh_of((2, 2, 2, 1)))
    return {
        "/".join(key.key for key in path): " ".join(str(axis or "-") for axis in leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_lies_where_the_table_says(name):
    found = places_of(build_model(MODELS[name]))
    golden = dict(line.split(maxsplit=1) for line in GOLDEN[name].strip().splitlines())
    if name == "slstm":  # its mLSTM block is the one above
        found = {path: axes for path, axes in found.items() if "block_1" in path}
    elif name == "7b":
        found = {path: axes for path, axes in found.items() if "block_0" in path}
    assert found == golden


def test_parameters_of_stacked_blocks_lie_as_those_of_one_block():
    """Their leading axis, over the blocks, is whole on every device."""
    model = dataclasses.replace(MODELS["slstm"], num_blocks=6)
    stacked = places_of(build_model(model, stacked=True))
    single = places_of(build_model(MODELS["slstm"]))
    assert stacked == {
        path.replace("backbone/", "backbone/blocks_0_to_5/") if "block_" in path else path: (
            f"- {axes}" if "block_" in path else axes
        )
        for path, axes in single.items()
    }


def training(model=MODELS["mlstm"], **mesh):
    config = Config(model=model, mesh=MeshConfig(**mesh), optimizer=OptimizerConfig(warmup_steps=2))
    schedule = make_schedule(config.optimizer, config.train.steps)
    task, optimizer = task_of(config), make_optimizer(config.optimizer, schedule)
    return config, task, task.model(stacked=True), optimizer, schedule


@pytest.mark.slow
def test_the_state_is_made_spread_and_never_whole():
    """Every device makes its own part of parameters and moments; the values are those that one
    device makes.
    """
    config, task, model, optimizer, _ = training(
        dataclasses.replace(MODELS["mlstm"], dim=256), data=1, fsdp=8
    )
    mesh = make_mesh(config.mesh)
    abstract = abstract_state(task, model, optimizer, config.train, mesh)
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(
                lambda: init_state(task, model, optimizer, config.train),
                out_shardings=shardings_of(abstract),
            )
            .lower()
            .compile()
        )
        state = compiled()
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    shards = sorted(leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state.params))
    assert sorted(leaf.sharding.shard_shape(leaf.shape) for leaf in moments) == sorted(2 * shards)
    memory, size = (
        compiled.memory_analysis(),
        sum(leaf.nbytes for leaf in jax.tree.leaves(state.params)),
    )
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < size, (
        "with both moments, and still less than the parameters"
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        state.params,
        jax.jit(lambda: init_params(task, model, config.train.seed))(),
    )


@pytest.mark.parametrize("name", ["xlstm_125m", "xlstm_1.3b", "xlstm_7b"])
def test_the_papers_models_are_spread(name):
    """By default both kinds of blocks; over eight devices along fsdp, and over fsdp and tensor."""
    model = build_model(load(str(ROOT / f"configs/{name}.py")).model, stacked=True)
    for shape in ((1, 8, 1, 1), (1, 4, 2, 1)):
        mesh = mesh_of(shape)
        check_spread(language_model_params(model, mesh), mesh)


def test_parameters_that_are_not_spread_are_refused():
    mesh = mesh_of((1, 8, 1, 1))
    model = build_model(dataclasses.replace(MODELS["mlstm"], dim=2048))
    with pytest.raises(
        UserError, match=r"holds 100% of the parameters.*should leave it 12%.*up_projection"
    ):
        check_spread(
            language_model_params(
                model, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            ),
            mesh,
        )


@pytest.mark.slow
def test_a_run_compiles_its_step_once_and_keeps_the_shardings():
    config, task, model, optimizer, schedule = training(data=1, fsdp=2, tensor=2, sequence=2)
    mesh = make_mesh(config.mesh)
    abstract = abstract_state(task, model, optimizer, config.train, mesh)
    batch = jax.device_put(make_batch(), batch_sharding(mesh, ROWS, TIME))
    with jax.set_mesh(mesh):
        state = jax.jit(
            lambda: init_state(task, model, optimizer, config.train),
            out_shardings=shardings_of(abstract),
        )()
        step = make_train_step(task, model, optimizer, schedule, config.train)
        losses = []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert losses[2] < losses[1] < losses[0]
    assert jax.tree.all(
        jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, state, abstract)
    )


def test_a_dimension_that_the_mesh_does_not_divide_stays_whole():
    mesh = mesh_of((1, 8, 1, 1))
    box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((12, 16), jnp.float32), ("embed", "inner"))
    assert parameter_shardings(box, mesh).spec == jax.sharding.PartitionSpec(None, None)


@pytest.mark.parametrize(
    ("model", "mesh", "message"),
    [
        ("slstm", {"sequence": 4}, "mesh.sequence is 4.*sLSTM blocks.*next token's gates"),
        ("slstm", {"sequence": -1, "data": 1}, "mesh.sequence is -1.*sLSTM"),
        ("mlstm", {"tensor": 8}, "mesh.tensor is 8.*model.mlstm.num_heads 4"),
        ("mlstm", {"sequence": 3}, "mesh.sequence is 3.*data.context_length"),
    ],
)
def test_a_mesh_that_can_not_be_is_refused(model, mesh, message):
    with pytest.raises(UserError, match=message):
        check(Config(model=MODELS[model], mesh=MeshConfig(**mesh)))


def test_a_mesh_takes_the_devices_that_it_names():
    assert mesh_of((2, 1, 1, 1)).size == 2
    assert make_mesh(MeshConfig(data=-1, tensor=2)).shape["data"] == 4
    with pytest.raises(UserError, match="does not fit 8 devices"):
        mesh_of((16, 1, 1, 1))


def test_rows_that_can_not_be_dealt_out_are_refused_with_their_number():
    """Of training; an evaluation fills up its batches."""
    mesh = mesh_of((2, 4, 1, 1))
    assert batch_sharding(mesh, 16).spec[0] == ("data", "fsdp")
    with pytest.raises(
        UserError,
        match="^12 rows .data.batch_size 12, train.accumulation_steps 1. can't be dealt out to 8 "
        "devices",
    ):
        batch_sharding(mesh, 12)
    with pytest.raises(
        UserError,
        match="^4 rows .data.batch_size 16, train.accumulation_steps 4. can't be dealt out to 8 "
        "devices",
    ):
        batch_sharding(mesh, 16, accumulation_steps=4)
    assert [filled_rows(mesh, rows) for rows in (1, 8, 9)] == [8, 8, 16]
