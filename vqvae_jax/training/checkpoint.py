"""Checkpoints, and the only module that knows orbax: save, find, restore.

RUN/checkpoints/{model,prior}/STEP holds `state` (arrays), `meta` (JSON: config, class names, image shape, step, data)
and, once that stage is done, `fitted` (arrays counted on training images). Each appears whole or not at all.
"""

import hashlib
import logging
import operator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vqvae_jax import __version__
from vqvae_jax.errors import InputError

# Orbax tells its progress through absl; what matters here is raised.
logging.getLogger("absl").setLevel(logging.CRITICAL)

KEEP = 2
MODEL, PRIOR = "model", "prior"  # the two stages


def folder(workdir: str | Path, stage: str = MODEL) -> Path:
    """Where a run keeps the checkpoints of a stage."""
    return Path(workdir).absolute() / "checkpoints" / stage


def open_manager(workdir: str | Path, stage: str = MODEL) -> ocp.CheckpointManager:
    """Open the checkpoints of a stage to train it; half-written ones are cleared away."""
    score = operator.itemgetter("score")
    best = checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(KEEP), best])
    options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, preservation_policy=policy, best_fn=score)
    return ocp.CheckpointManager(folder(workdir, stage), options=options)


def save(manager: ocp.CheckpointManager, state: dict, meta: dict, score: float | None = None) -> None:
    """Save in the background under `meta["step"]`, of which there must not be a checkpoint yet.

    Kept are the newest two, and of those that have a `score` the one with the highest.
    """
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    metrics = None if score is None else {"score": score}
    if not manager.save(meta["step"], args=items, metrics=metrics, force=True):
        raise RuntimeError(f"orbax did not save step {meta['step']}")


def save_fitted(path: Path, fitted: dict) -> None:
    """Add what was counted after the last step to its checkpoint, whole or not at all."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "fitted", fitted)


def newest(workdir: str | Path, stage: str = MODEL, item: str = "state") -> Path | None:
    """Find the newest complete checkpoint of a stage that has an item: "fitted" where the stage is finished."""
    found = [path.parent for path in folder(workdir, stage).glob(f"*/{item}") if path.parent.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


# Options that earlier runs of 0.2 don't name, and what they did.
LATER_OPTIONS = {"data": {"num_workers": 0}, "model": {"dtype": "float32", "rematerialise": False}}
LATER_OPTIONS |= {"train": {"average_decay": 0.0}, "prior": {"average_decay": 0.0}}


def with_all_options(config: dict) -> dict:
    """Add the options that an earlier run's config lacks."""
    config = config | {section: added | config[section] for section, added in LATER_OPTIONS.items()}
    if "samples" in config["model"]:  # VIMCO trained on as many draws as it was measured by
        config["model"] = {"training_samples": config["model"]["samples"]} | config["model"]
    return config


def read_meta(path: Path) -> dict:
    """Read what a checkpoint says of itself; InputError if a version with another layout wrote it."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(path / "meta")
    version = meta.get("version", "0.1.0")
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise InputError(
            f"the run in {path.parents[2]} was made by vqvae_jax {version}; this is {__version__}: read it with a "
            f"checkout of version {version}, or train it again"
        )
    return meta | {"config": with_all_options(meta["config"])}


def restore_state(path: Path, abstract_state: dict) -> dict:
    """Restore a training state, or a part of one, with the shapes and shardings of `abstract_state`."""
    placed = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.PyTreeRestore(abstract_state, restore_args=placed, partial_restore=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path / "state", args=args)


def restore_variables(path: Path, abstract_variables: dict, averaged: bool = False) -> dict:
    """Restore what a reader needs, {"params", "state", "fitted"}; `fitted` is {} in an unfinished run.

    If `averaged`, they are the moving averages, which the state must have.
    """
    wanted = {"params": abstract_variables["params"], "model_state": abstract_variables["state"]}
    state = restore_state(path, {"average": wanted})["average"] if averaged else restore_state(path, wanted)
    fitted = read_arrays(path / "fitted") if (path / "fitted").is_dir() else {}
    fitted = jax.tree.map(jax.numpy.asarray, fitted)
    return {"params": state["params"], "state": state["model_state"], "fitted": fitted}


def read_arrays(path: Path) -> dict:
    """Restore all arrays of a checkpoint's item as NumPy's, whatever they are."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return checkpointer.restore(path, restore_args=arrays)


def digest(tree) -> str:
    """Give a digest of all arrays of a tree, and of where in it they stand."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
