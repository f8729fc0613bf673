"""A training step that is lowered for an accelerator holds that accelerator's kernels; no such
device is needed here.
"""

import dataclasses

import jax
import pytest

from xlstm_jax.config import Config, ModelConfig, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import init_state
from xlstm_jax.training.step import make_train_step

MLSTM, SLSTM = {"mlstm": {"num_heads": 1, "up_factor": 1.0}}, {"slstm": {"num_heads": 1}}


def model_of(blocks: str, num_blocks: int, mixers: dict) -> ModelConfig:
    return ModelConfig(
        vocab_size=64,
        dim=128,
        num_blocks=num_blocks,
        blocks=blocks,
        mixers=mixers,
        dtype="bfloat16",
    )


MODEL = model_of("mlstm,slstm+mlp", 2, MLSTM | SLSTM)


def lowered_step(device_kind: str, platform: str, model: ModelConfig = MODEL) -> str:
    """The program of a step for one device of that kind, as text; heads of 128 in the mLSTM block
    and in the sLSTM block.
    """
    config = dataclasses.replace(Config(), model=model)
    device = jax.sharding.AbstractDevice(device_kind, None, platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        task = task_of(config)
        network = task.model(stacked=True)
        schedule = make_schedule(config.optimizer, config.train.steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        state = jax.eval_shape(lambda: init_state(task, network, optimizer, config.train))
        batch = task.shapes(2, 256)
        step = make_train_step(task, network, optimizer, schedule, config.train)
        return (
            step.trace(state, batch)
            .lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))
            .as_text()
        )


# What a kernel is in the lowered program, by backend.
TARGETS = {
    "pallas_tpu": "@tpu_custom_call",
    "pallas_gpu": "@mosaic_gpu",
    "pallas_triton": "@__gpu$xla.gpu.triton",
}
MLSTM_ONLY = model_of("mlstm", 1, MLSTM)
SLSTM_ONLY = model_of("slstm+mlp", 1, SLSTM)
# "pallas_gpu" needs jax 0.11; before that an H100 runs what an A100 does.
HOPPER = "pallas_gpu" if jax.__version_info__ >= (0, 11) else "pallas_triton"


def kernels_in(program: str) -> list[str]:
    """The backend of every kernel call in a program."""
    return [
        name
        for name, target in TARGETS.items()
        for _ in range(program.count(f"custom_call {target}"))
    ]


@pytest.mark.parametrize(
    ("device_kind", "platform", "model", "backends"),
    [
        ("TPU v5 lite", "tpu", MLSTM_ONLY, {"pallas_tpu"}),
        ("TPU v5 lite", "tpu", SLSTM_ONLY, {"pallas_tpu"}),
        # what stands around the cell, and the blocks' norms, are Triton's
        ("NVIDIA H100 80GB HBM3", "gpu", MLSTM_ONLY, {HOPPER, "pallas_triton"}),
        ("NVIDIA A100-SXM4-80GB", "gpu", MLSTM_ONLY, {"pallas_triton"}),
    ],
    ids=["v5e-mlstm", "v5e-slstm", "h100-mlstm", "a100-mlstm"],
)
def test_the_step_runs_on_the_devices_own_kernels(device_kind, platform, model, backends):
    """Forward and backward: at least two calls, and of no other backend's."""
    found = kernels_in(lowered_step(device_kind, platform, model))
    assert len(found) >= 2
    assert set(found) == backends


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11),
    reason="pallas_gpu needs jax 0.11, and the sLSTM has no other GPU kernel",
)
def test_the_slstm_of_a_step_for_an_h100_is_a_kernel():
    found = kernels_in(lowered_step("NVIDIA H100 80GB HBM3", "gpu", SLSTM_ONLY))
    assert found.count("pallas_gpu") >= 2
    assert set(found) == {"pallas_gpu", "pallas_triton"}  # the blocks' norms are Triton's


@pytest.mark.parametrize("mixer", ["mlstm", "slstm"])
def test_a_backend_for_another_device_is_the_users_mistake(mixer):
    of_mixer = dataclasses.replace(MODEL.mixers[mixer], backend="pallas_tpu")
    model = dataclasses.replace(MODEL, mixers=MODEL.mixers.copy({mixer: of_mixer}))
    with pytest.raises(
        UserError,
        match=f"config key model.{mixer}.backend is 'pallas_tpu', which can't be used here: .*"
        "it needs a TPU",
    ):
        lowered_step("cpu", "cpu", model)
