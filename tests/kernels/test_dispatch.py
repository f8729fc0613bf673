"""Which backend a call gets, and what is said when none can serve it."""

import functools
import importlib
import logging

import jax
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.testing import cases


def serves(x):
    return x + 1


def refuses(x):
    raise NotImplementedError("float32 is not served")


def fails(x):
    raise TypeError("a bug")


BACKENDS = {"serves": serves, "refuses": refuses, "fails": fails}


@pytest.fixture
def log(caplog):
    dispatch._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="pallas_kernels"):
        yield caplog


def test_a_name_is_taken_and_none_takes_the_order(log):
    assert dispatch.dispatch("op", BACKENDS, "serves", ("refuses",), 1) == 2
    assert dispatch.dispatch("op", BACKENDS, None, ("refuses", "serves"), 1) == 2


def test_a_tuple_tries_one_after_the_other_and_says_so_once(log):
    for _ in range(3):
        assert dispatch.dispatch("op", BACKENDS, ("refuses", "serves"), (), 1) == 2
    assert len(log.messages) == 1
    assert "op runs on backend 'serves' for cpu" in log.messages[0]
    assert "refuses: float32 is not served" in log.messages[0]


def test_a_backend_that_cannot_serve_gives_its_reason():
    with pytest.raises(
        NotImplementedError,
        match="op: no backend can serve this call. refuses: float32 is not served",
    ):
        dispatch.dispatch("op", BACKENDS, "refuses", (), 1)


def test_any_other_error_is_a_bug_and_no_reason_to_go_on():
    with pytest.raises(TypeError, match="a bug"):
        dispatch.dispatch("op", BACKENDS, ("fails", "serves"), (), 1)


@pytest.mark.parametrize("backend", ("chunkwize", ("recurrent", "chunkwize")))
def test_a_misspelled_name_is_a_mistake(backend):
    inputs = cases.in_dtype(cases.mlstm_inputs(2), "float32")
    with pytest.raises(
        ValueError,
        match="mlstm: there is no backend 'chunkwize'.*'recurrent', 'parallel', 'chunkwise'",
    ):
        cases.run_mlstm(inputs, backend=backend)


@pytest.mark.parametrize("cell", ("mlstm", "slstm", "row_norm"))
def test_every_name_that_none_tries_is_a_backend_and_the_last_runs_anywhere(cell):
    api = importlib.import_module(f"pallas_kernels.{cell}.api")
    for order in (api.ORDER, getattr(api, "STEP_ORDER", api.ORDER)):
        assert order.keys() == {"tpu", "hopper", "gpu", "cpu"}
        for names in order.values():
            assert api.BACKENDS.keys() >= set(names)
            assert not names[-1].startswith("pallas")


@pytest.mark.parametrize(
    ("platform", "kind", "family"),
    [
        ("cpu", "cpu", "cpu"),
        ("tpu", "TPU v5 lite", "tpu"),
        ("gpu", "NVIDIA H100 80GB HBM3", "hopper"),
        ("gpu", "NVIDIA H200", "hopper"),
        ("gpu", "NVIDIA GH200 480GB", "hopper"),
        ("gpu", "NVIDIA A100-SXM4-80GB", "gpu"),
        ("gpu", "NVIDIA B200", "gpu"),
    ],
)
def test_none_takes_the_order_of_the_device_family(platform, kind, family):
    order = {name: (name,) for name in ("cpu", "tpu", "hopper", "gpu")}
    backends = {name: lambda name=name: name for name in order}
    device = jax.sharding.AbstractDevice(kind, None, platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        assert dispatch.dispatch("op", backends, None, order) == family


@pytest.mark.parametrize(("time", "expected"), ((1, "recurrent"), (2, "chunkwise")))
def test_one_token_is_a_step_and_more_are_chunks(log, time, expected):
    inputs = cases.in_dtype(cases.mlstm_inputs(time), "float32")
    jax.eval_shape(cases.run_mlstm, inputs)
    assert f"mlstm runs on backend {expected!r} for cpu" in log.messages[-1]


def test_the_device_is_the_one_the_program_is_lowered_for():
    """A mesh of absent devices decides, as in ahead-of-time compilation; without a mesh it is the
    default device.
    """
    assert dispatch.target_device() == ("cpu", "cpu")
    absent = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=absent)
    with jax.sharding.use_abstract_mesh(mesh):
        assert dispatch.target_device() == ("gpu", "NVIDIA H200")


def test_the_result_of_a_tuple_is_that_of_its_first_that_serves():
    inputs = cases.in_dtype(cases.mlstm_inputs(5), "float32")
    first_that_serves, expected = (
        jax.jit(functools.partial(cases.run_mlstm, backend=backend))(inputs)
        for backend in (("pallas_gpu", "recurrent"), "recurrent")
    )
    jax.tree.map(np.testing.assert_array_equal, first_that_serves, expected)
