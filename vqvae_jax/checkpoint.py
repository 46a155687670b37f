"""Checkpoints, and the only module that knows orbax: save, restore the latest, restore what a reader needs.

RUN/checkpoints/model/STEP holds `state` (arrays), `meta` (JSON: config, class names, image shape, step, data) and,
once the run is done, `fitted` (arrays counted on training images). Each appears whole or not at all.
"""

import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vqvae_jax.errors import InputError

# Orbax tells its progress through absl; what matters here is raised.
logging.getLogger("absl").setLevel(logging.CRITICAL)

KEEP = 2


def folder(workdir: str | Path) -> Path:
    """Where a run keeps the checkpoints of its image model."""
    return Path(workdir).absolute() / "checkpoints" / "model"


def open_manager(workdir: str | Path, read_only: bool = False) -> ocp.CheckpointManager:
    """Open a run's checkpoints; the trainer, which isn't `read_only`, also clears away half-written ones."""
    policy = checkpoint_managers.LatestN(KEEP)
    return ocp.CheckpointManager(
        folder(workdir),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            preservation_policy=None if read_only else policy,
        ),
    )


def save(manager: ocp.CheckpointManager, state, meta: dict) -> None:
    """Save in the background under `state.step`, of which there must not be a checkpoint yet."""
    items = {"state": ocp.args.PyTreeSave(state._asdict()), "meta": ocp.args.JsonSave(meta)}
    step = int(state.step)
    if not manager.save(step, args=ocp.args.Composite(**items), force=True):
        raise RuntimeError(f"orbax did not save step {step}")


def _restore(manager, step, name, abstract, partial=False):
    args = ocp.args.PyTreeRestore(
        abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=partial
    )
    return manager.restore(step, args=ocp.args.Composite(**{name: args}))[name]


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict:
    """Read what a checkpoint says of itself."""
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def restore_state(manager: ocp.CheckpointManager, step: int, abstract_state):
    """Restore a whole training state, with the shapes and shardings of `abstract_state`."""
    return type(abstract_state)(**_restore(manager, step, "state", abstract_state._asdict()))


def restore_variables(manager: ocp.CheckpointManager, step: int, abstract_variables: dict) -> dict:
    """Restore what a reader needs, {"params", "state", "fitted"}; `fitted` is {} in an unfinished run."""
    wanted = {"params": abstract_variables["params"], "model_state": abstract_variables["state"]}
    state = _restore(manager, step, "state", wanted, partial=True)
    fitted = read_fitted(str(manager.directory.parent.parent), step)
    return {"params": state["params"], "state": state["model_state"], "fitted": fitted}


def _fitted_folder(workdir, step):
    return folder(workdir) / str(step) / "fitted"


def is_fitted(workdir: str | Path, step: int) -> bool:
    """Tell whether a checkpoint is that of a run that was finished."""
    return _fitted_folder(workdir, step).is_dir()


def save_fitted(workdir: str | Path, step: int, fitted: dict) -> None:
    """Add what was counted after the last step to its checkpoint, whole or not at all."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(_fitted_folder(workdir, step), fitted)


def read_fitted(workdir: str | Path, step: int) -> dict:
    """Restore what `fit` counted; {} if the run was not finished."""
    if not is_fitted(workdir, step):
        return {}
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = _fitted_folder(workdir, step)
        shapes = checkpointer.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        saved = checkpointer.restore(path, restore_args=arrays)
    return jax.tree.map(jax.numpy.asarray, saved)


def latest_step(manager: ocp.CheckpointManager, workdir: str | Path) -> int:
    """The newest complete checkpoint's step; InputError if there is none."""
    step = manager.latest_step()
    if step is None:
        raise InputError(f"no checkpoint in {workdir}: train first, or name another run with --workdir")
    return step
