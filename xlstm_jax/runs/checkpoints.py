"""Checkpoints: what is kept of a run, and parameters from elsewhere.

One Orbax composite per step, `checkpoints/<step>/`: `params`, blocks named by number; `optimizer`
(what else the training has to keep: step, moments, guard); `run` (a small JSON: format version,
step, position in the data, resolved configuration). All random numbers follow from the
configuration's seeds and the step. Evaluation and `checkpoint.init_from` read `params` and `run`
alone, so a folder without `optimizer` will do.
"""

import contextlib
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from xlstm_jax.config import Config
from xlstm_jax.errors import UserError
from xlstm_jax.parallel import is_first_process
from xlstm_jax.runs.damage import (
    DamagedCheckpoint,
    first_line,
    guarded,
    is_full_disk,
    set_aside,
    silence_orbax,
    unlistable,
)
from xlstm_jax.runs.folder import RunFolder, find_run, open_run, write_config

FORMAT_VERSION = 3
SHOWN_DIFFERENCES = 5


class Checkpoints:
    """The checkpoints that a training run writes: every `every` steps and at the end; the latest,
    the best and some are kept.
    """

    def __init__(self, folder: RunFolder, config: Config):
        self._folder, self._path, self._config, self._saving = (
            folder,
            folder.checkpoints,
            config,
            None,
        )
        keys = config.checkpoint
        kept = [
            policies.LatestN(keys.keep_latest),
            policies.BestN(get_metric_fn=_loss_of, reverse=True, n=keys.keep_best),
        ]
        if keys.keep_every is not None:
            kept.append(policies.EveryNSteps(keys.keep_every))
        options = policies.CheckpointManagerOptions(
            save_decision_policy=policies.AnySavePolicy(
                [
                    policies.FixedIntervalPolicy(keys.every),
                    policies.SpecificStepsPolicy({config.train.steps}),
                ]
            ),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            # The policies decide. But without best_fn Orbax doesn't write the metrics, and a
            # resumed run forgets the best.
            best_fn=_loss_of,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        silence_orbax()
        if is_first_process():
            for damaged, reason in unlistable(self._path).items():
                set_aside(folder, damaged, reason)
        _wait_for_all("checkpoints listed")
        self._manager = _open(self._path, options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        try:
            self.finish()
        finally:
            try:
                self._manager.close()
            except Exception as error:  # Orbax raises again what was told already
                if not is_full_disk(error):
                    raise

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether this step is to be saved."""
        return self._manager.should_save(step)

    def save(
        self,
        params: Any,
        optimizer: dict[str, Any],
        step: int,
        position: dict[str, Any],
        held_out_loss: float | None,
        *,
        force: bool = False,
    ) -> None:
        """Starts saving; returns when the device's memory has been read, while files are still
        being written.

        A full disk is reported, the save given up and what it has written removed. `force` saves a
        step that is not due.

        Raises:
            Exception: whatever else this save or, as it was not waited for, the one before has
                failed with.
        """
        self.finish()
        self._saving = step
        with self._reporting_a_full_disk():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    optimizer=ocp.args.StandardSave(optimizer),
                    run=_run(step, position, self._config),
                ),
                metrics={} if held_out_loss is None else {"loss": held_out_loss},
                force=force,
            )

    def finish(self) -> None:
        """Waits for the save in progress; raises its error if it has failed with one."""
        if self._saving is not None:
            with self._reporting_a_full_disk():
                self._manager.wait_until_finished()
            self._saving = None

    @contextlib.contextmanager
    def _reporting_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_full_disk(error):
                raise
            step, self._saving = self._saving, None
            # What failed may be one of several parts: the others are still being written.
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()
            for remains in self._path.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(remains, ignore_errors=True)
            print(
                f"step {step}: the disk is full, so this step is NOT saved ({self._path}; "
                f"{first_line(error)}). Training goes on; "
                f"the newest checkpoint is of step {self.latest_step()}",
                file=sys.stderr,
                flush=True,
            )

    def restore(self, params: Any, optimizer: dict[str, Any]) -> "Restored | None":
        """The newest state that can be read; the arguments have its shapes, dtypes and shardings.

        Checkpoints that are damaged are reported on the way and moved to `damaged_checkpoints`.
        None where there never was one.

        Raises:
            UserError: all checkpoints are damaged, or the newest is of another format or model.
        """
        damage = None
        while (step := self.latest_step()) is not None:
            restored, damage = None, None
            try:
                restored = self._restore(step, params, optimizer)
            except DamagedCheckpoint as error:
                damage = error
            if _everywhere(damage is None):
                return restored
            if is_first_process():
                set_aside(self._folder, step, damage or "another process can't read it")
            _wait_for_all(f"checkpoint {step} set aside")
            self._manager.reload()
        if damage is not None:
            raise UserError(
                f"no checkpoint of {str(self._folder.root)!r} can be read any more; they are in "
                f"damaged_checkpoints there"
            )
        return None

    def _restore(self, step: int, params: Any, optimizer: dict[str, Any]) -> "Restored":
        run = _read_run(self._manager, self._path, step)
        _check_shapes(self._manager, self._path, step, params)
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            optimizer=ocp.args.StandardRestore(optimizer),
        )
        restored = guarded(self._path, step, lambda: self._manager.restore(step, args=args))
        return Restored(restored.params, restored.optimizer, run["position"], step)


class Restored(NamedTuple):
    """What a checkpoint holds: parameters, what else the training keeps, the position in the data,
    the step.
    """

    params: Any
    optimizer: dict[str, Any]
    position: dict[str, Any]
    step: int


def read_params(
    root: str | pathlib.Path, abstract_params: Any, step: int | None = None
) -> tuple[int, Any]:
    """The step and parameters of a run's, or an imported folder's, newest checkpoint or of the one
    of `step`.

    Raises:
        UserError: no such folder or checkpoint, or its parameters differ in name or shape; the
            first differences are listed.
    """
    folder = find_run(root)
    if not folder.checkpoints.is_dir():
        raise UserError(
            f"folder {str(folder.root)!r} holds no checkpoints; give the folder of a run or of an "
            f"imported model"
        )
    manager = _open(folder.checkpoints, policies.CheckpointManagerOptions(create=False))
    with manager:
        steps = manager.all_steps()
        if not steps:
            raise UserError(f"folder {str(folder.checkpoints)!r} holds no finished checkpoint")
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {str(folder.checkpoints)!r}; there are "
                f"{list(steps)}"
            )
        step = max(steps) if step is None else step
        _read_run(manager, folder.checkpoints, step)
        _check_shapes(manager, folder.checkpoints, step, abstract_params)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        return step, guarded(
            folder.checkpoints, step, lambda: manager.restore(step, args=args)
        ).params


def write_params(root: str | pathlib.Path, config: Config, params: Any) -> None:
    """A folder that `read_params`, `checkpoint.init_from` and eval.py take: config.json and the
    parameters as step 0.

    Raises:
        UserError: the folder holds something else already.
    """
    folder = open_run(root, config)
    write_config(folder, config)
    with _open(folder.checkpoints, policies.CheckpointManagerOptions()) as manager:
        if manager.all_steps():
            raise UserError(
                f"folder {str(folder.root)!r} holds checkpoints already; give another one"
            )
        manager.save(
            0,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                run=_run(0, {}, config),
            ),
        )


def shape_differences(found: Any, wanted: Any) -> list[str]:
    """What a tree of arrays or shapes has too little, too much, or with another shape than wanted;
    one line per leaf.
    """
    found, wanted = _named_shapes(found), _named_shapes(wanted)
    return (
        [f"{name} is missing" for name in wanted if name not in found]
        + [f"{name} is not part of the model" for name in found if name not in wanted]
        + [
            f"{name} has the shape {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ]
    )


def _run(step: int, position: dict[str, Any], config: Config) -> ocp.args.JsonSave:
    return ocp.args.JsonSave(
        {
            "format_version": FORMAT_VERSION,
            "step": step,
            "position": position,
            "config": json.loads(config.to_json()),
        }
    )


def _open(path: pathlib.Path, options: policies.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "run": ocp.JsonCheckpointHandler(),
    }
    try:
        if options.create:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir {str(path.parent)!r} can't be written to: {error.strerror}; give another "
            f"folder"
        ) from None
    try:
        return ocp.CheckpointManager(path, options=options, item_handlers=handlers)
    except Exception as error:  # the metrics of every checkpoint are read here
        raise DamagedCheckpoint(
            f"the checkpoints in {str(path)!r} can't be listed, one is damaged: {first_line(error)}"
        ) from error


def _loss_of(metrics: dict[str, float]) -> float:
    """A checkpoint between two evaluations has no loss and is never the best."""
    return metrics.get("loss", math.inf)


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _everywhere(good: bool) -> bool:
    """Whether it is so in all processes."""
    return good if jax.process_count() == 1 else bool(multihost_utils.process_allgather(good).all())


def _read_run(manager: ocp.CheckpointManager, path: pathlib.Path, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(run=ocp.args.JsonRestore())
    run = guarded(path, step, lambda: manager.restore(step, args=args).run)
    if not isinstance(run, dict) or not {"format_version", "position"} <= run.keys():
        raise DamagedCheckpoint(f"checkpoint {str(path / str(step))!r} is damaged: run/metadata")
    if run["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"checkpoint {str(path / str(step))!r} has the format version {run['format_version']}, "
            f"this program reads "
            f"{FORMAT_VERSION}; use the version of the program that wrote it"
        )
    return run


def _check_shapes(
    manager: ocp.CheckpointManager, path: pathlib.Path, step: int, abstract_params: Any
) -> None:
    found = guarded(path, step, lambda: manager.item_metadata(step)["params"].tree)
    differences = shape_differences(found, abstract_params)
    if differences:
        shown = differences[:SHOWN_DIFFERENCES]
        if more := len(differences) - len(shown):
            shown.append(f"and {more} more")
        raise UserError(
            f"the parameters in {str(path / str(step))!r} are not those of the configured model: "
            f"{'; '.join(shown)}. Make the model's configuration equal to that of the checkpoint"
        )


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: hasattr(node, "shape")
    )[0]
    return {
        "/".join(str(entry.key) for entry in key_path): tuple(leaf.shape)
        for key_path, leaf in leaves
    }
