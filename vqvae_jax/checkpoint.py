"""Checkpoints, and the only module that knows orbax: save, restore the latest, restore what a reader needs.

RUN/checkpoints/{model,prior}/STEP holds `state` (arrays), `meta` (JSON: config, class names, image shape, step, data)
and, once that stage is done, `fitted` (arrays counted on training images). Each appears whole or not at all.
"""

import hashlib
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
MODEL, PRIOR = "model", "prior"  # the two stages


def folder(workdir: str | Path, stage: str = MODEL) -> Path:
    """Where a run keeps the checkpoints of a stage."""
    return Path(workdir).absolute() / "checkpoints" / stage


def _score(metrics: dict) -> float:
    return metrics["score"]


def open_manager(workdir: str | Path, stage: str = MODEL, read_only: bool = False) -> ocp.CheckpointManager:
    """Open the checkpoints of a stage; the trainer, which isn't `read_only`, also clears away half-written ones."""
    best = checkpoint_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(KEEP), best])
    return ocp.CheckpointManager(
        folder(workdir, stage),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            preservation_policy=None if read_only else policy,
            best_fn=_score,
        ),
    )


def save(manager: ocp.CheckpointManager, state, meta: dict, score: float | None = None) -> None:
    """Save in the background under `state.step`, of which there must not be a checkpoint yet.

    Kept are the newest two, and of those that have a `score` the one with the highest.
    """
    items = {"state": ocp.args.PyTreeSave(state._asdict()), "meta": ocp.args.JsonSave(meta)}
    step, metrics = int(state.step), None if score is None else {"score": score}
    if not manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True):
        raise RuntimeError(f"orbax did not save step {step}")


def digest(tree) -> str:
    """Give a digest of all arrays of a tree, and of where in it they stand."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


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
    fitted = read_fitted(Path(manager.directory), step)
    return {"params": state["params"], "state": state["model_state"], "fitted": fitted}


def is_fitted(folder: Path, step: int) -> bool:
    """Tell whether a checkpoint is the one with which a stage was finished."""
    return (folder / str(step) / "fitted").is_dir()


def save_fitted(folder: Path, step: int, fitted: dict) -> None:
    """Add what was counted after the last step to its checkpoint, whole or not at all."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / str(step) / "fitted", fitted)


def read_fitted(folder: Path, step: int) -> dict:
    """Restore what `fit` counted; {} if the stage was not finished."""
    if not is_fitted(folder, step):
        return {}
    return jax.tree.map(jax.numpy.asarray, _read_arrays(folder / str(step) / "fitted"))


def _read_arrays(path: Path) -> dict:
    """Restore all arrays of an item as NumPy's, whatever they are."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return checkpointer.restore(path, restore_args=arrays)


def finished_step(folder: Path) -> int | None:
    """The checkpoint with which a stage was finished, if it was."""
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    return max((step for step in steps if is_fitted(folder, step)), default=None)


def latest_step(manager: ocp.CheckpointManager, workdir: str | Path) -> int:
    """The newest complete checkpoint's step; InputError if there is none."""
    step = manager.latest_step()
    if step is None:
        raise InputError(f"no checkpoint in {workdir}: train first, or name another run with --workdir")
    return step


def export(workdir: str | Path, target: str | Path) -> None:
    """Copy a finished run's checkpoints to another folder, without what only training needs.

    Paths of the machine that trained are left out.
    """
    for stage in (MODEL, PRIOR):
        source = folder(workdir, stage)
        step = finished_step(source)
        if step is None:
            continue
        with open_manager(workdir, stage, read_only=True) as manager:
            meta = read_meta(manager, step)
        saved = _read_arrays(source / str(step) / "state")
        meta["config"]["data"]["data_dir"] = None
        kept = ocp.args.PyTreeSave({key: saved[key] for key in ("params", "model_state")})
        with open_manager(target, stage) as manager:
            manager.save(step, args=ocp.args.Composite(state=kept, meta=ocp.args.JsonSave(meta)), force=True)
        save_fitted(folder(target, stage), step, read_fitted(source, step))
        for note in folder(target, stage).rglob("commit_success.txt"):  # orbax's, of where it was written
            note.unlink()
