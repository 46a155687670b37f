"""Checkpoints, and the only module that knows orbax: save, find, restore.

RUN/checkpoints/{model,prior}/STEP holds `state` (arrays), `meta` (JSON: config, class names, image shape, step, data)
and, once that stage is done, `fitted` (arrays counted on training images). Each appears whole or not at all, with a
digest of all that it says, so that damage is found: disks lose bits, and orbax does not look at every one.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import operator
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from vqvae_jax import __version__
from vqvae_jax.errors import InputError
from vqvae_jax.likelihoods.context import Context

# Orbax tells its progress through absl; what matters here is raised.
logging.getLogger("absl").setLevel(logging.CRITICAL)

KEEP = 2
MODEL, PRIOR = "model", "prior"  # the two stages
DIGEST, DIGESTS = "digest", "digests"  # of `meta` or `fitted`, and in `meta` those of the arrays of `state`


class Damaged(InputError):  # noqa: N818 - it says what the checkpoint is
    """A checkpoint that isn't what was saved."""


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
    metrics = None if score is None else {"score": score}
    meta = {**meta, "metrics": metrics, DIGESTS: digests(state)}
    meta[DIGEST] = _digest_of_json(meta)
    items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
    if not manager.save(meta["step"], args=items, metrics=metrics, force=True):
        raise RuntimeError(f"orbax did not save step {meta['step']}")


def save_fitted(path: Path, fitted: dict) -> None:
    """Add what was counted after the last step to its checkpoint, whole or not at all."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        fitted = jax.tree.map(np.asarray, fitted)  # the same in all processes
        checkpointer.save(path / "fitted", {**fitted, DIGEST: np.frombuffer(bytes.fromhex(digest(fitted)), np.uint8)})


def find(workdir: str | Path, stage: str = MODEL) -> list[Path]:
    """Find the checkpoints of a stage, the newest first."""
    found = [path for path in folder(workdir, stage).glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: -int(path.name))


def newest(workdir: str | Path, stage: str = MODEL, item: str = "") -> Path | None:
    """Find the newest checkpoint of a stage that has an item: "fitted" where the stage is finished."""
    return next((path for path in find(workdir, stage) if (path / item).is_dir()), None)


def of_step(workdir: str | Path, step: int) -> Path:
    """Name the image model's checkpoint of a step; InputError if there is none."""
    path, known = folder(workdir) / str(step), find(workdir)
    if path not in known:
        steps = ", ".join(other.name for other in known) or "none"
        raise InputError(f"no checkpoint {path}: the steps there are {steps}")
    return path


@contextlib.contextmanager
def offering_others(workdir: str | Path) -> Iterator[None]:
    """Add to a message of damage what can be read instead."""
    try:
        yield
    except Damaged as error:
        whole = next((path.name for path in find(workdir) if is_whole(path)), None)
        instead = f"or read the image model alone with --step={whole}" if whole else "no other one is whole"
        raise Damaged(f"{error}: the command that trained it mends it if an older one is whole; {instead}") from error


def read_newest(read: Callable[[Path], Any], workdir: str | Path, stage: str = MODEL, item: str = "") -> Any:
    """Call `read` on the newest checkpoint (see `newest`), or give None; again if training took it away meanwhile."""
    while (path := newest(workdir, stage, item)) is not None:
        try:
            return read(path)
        except Damaged:
            if newest(workdir, stage, item) == path:  # which training keeps
                raise


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint is all that was saved."""
    with contextlib.suppress(Damaged):
        return check(path) is None
    return False


def put_damaged_aside(workdir: str | Path, stage: str) -> None:
    """Rename what is damaged of a stage's checkpoints to STEP.damaged, and say so; InputError if all are."""
    found, damaged = find(workdir, stage), {}
    for path in found:
        try:
            check(path)
        except Damaged as error:
            damaged[path] = error
    if damaged and len(damaged) == len(found):
        what = f"{damaged[found[0]]}: no whole checkpoint is left"
        raise InputError(f"{what}; move {folder(workdir, stage)} away, and this stage is trained again")
    multihost_utils.sync_global_devices("all have looked")  # together, as orbax reads, and before anything moves
    for path, error in damaged.items() if jax.process_index() == 0 else ():
        print(f"{error}: put aside as {put_aside(path, f'{path.name}.damaged').name}", flush=True)
    multihost_utils.sync_global_devices("put aside")


def put_aside(path: Path, name: str) -> Path:
    """Rename a run or a checkpoint to NAME, or to the first of NAME.1, NAME.2, ... that isn't there; give the path."""
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
    aside = next(place for place in map(path.with_name, names) if not place.exists())
    return path.rename(aside)


# Options that earlier runs of 0.2 don't name, and what they did.
LATER_OPTIONS = {
    "data": {"num_workers": 0, "patch_size": None},
    "train": {"average_decay": 0.0},
    "prior": {"average_decay": 0.0},
}
LATER_OPTIONS |= {"model": {"dtype": "float32", "rematerialise": False, "context": dataclasses.asdict(Context())}}
LATER_OF_VECTORS = {"distance": "euclidean", "estimator": "straight_through", "start": "data"}


def with_all_options(config: dict) -> dict:
    """Add the options that an earlier run's config lacks."""
    config = config | {section: added | config[section] for section, added in LATER_OPTIONS.items()}
    if quantizer := config["model"].get("quantizer"):
        later = LATER_OF_VECTORS if quantizer["name"] in {"vector_ema", "vector_gradient"} else {}
        config["model"] = config["model"] | {"quantizer": later | quantizer}
    if "samples" in config["model"]:  # VIMCO trained on as many draws as it was measured by
        config["model"] = {"training_samples": config["model"]["samples"]} | config["model"]
    return config


def read_meta(path: Path) -> dict:
    """Read what a checkpoint says of itself; InputError if it is damaged, or a version with another layout wrote it."""
    with _reading(path / "meta"), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(path / "meta")
    # Earlier runs have neither.
    if {DIGEST, DIGESTS} & meta.keys() and meta.pop(DIGEST, None) != _digest_of_json(meta):
        raise Damaged(f"{path / 'meta'} is damaged")
    version = meta.get("version", "0.1.0")
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise InputError(
            f"the run in {path.parents[2]} was made by vqvae_jax {version}; this is {__version__}: read it with a "
            f"checkout of version {version}, or train it again"
        )
    return meta | {"config": with_all_options(meta["config"])}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever orbax makes of damage into one line that names the file, if orbax does."""
    try:
        yield
    except Exception as error:  # orbax, TensorStore and JSON have many
        inside = re.search(re.escape(str(path)) + r"/[^\s\"':\]]+", str(error))
        raise Damaged(f"{inside[0] if inside else path} is damaged or missing ({type(error).__name__})") from error


def check(path: Path) -> None:
    """Raise Damaged unless a checkpoint is all that was saved."""
    meta, state = read_meta(path), read_arrays(path / "state")
    _compare(path, state, meta)
    if missing := meta.get(DIGESTS, {}).keys() - digests(state).keys():
        raise Damaged(f"{path / 'state'} is damaged: the array {min(missing)} is missing")
    if meta.get("metrics"):
        with _reading(path / "metrics"):
            if json.loads((path / "metrics" / "metrics").read_text()) != meta["metrics"]:
                raise ValueError("another score")
    if (path / "fitted").is_dir():
        read_fitted(path)


def _compare(path: Path, state: dict, meta: dict) -> None:
    """Raise Damaged unless the arrays of a checkpoint's state, or of a part of it, are those that were saved."""
    if DIGESTS in meta:
        for name, found in digests(state).items():
            if meta[DIGESTS].get(name) != found:
                raise Damaged(f"{path / 'state'} is damaged: the array {name} isn't what was saved")


def check_finished(path: Path, section: str) -> None:
    """Raise InputError if a stage came to its end, and what was counted then is not in a checkpoint of it.

    Without that, the numbers would silently be those of another prior.
    """
    meta, step = read_meta(path), int(path.name)
    options, scores = meta["config"][section], {}
    for other in path.parent.glob("*/metrics/metrics"):
        with _reading(other.parent):
            scores[int(other.parents[1].name)] = json.loads(other.read_text())["score"]
    waited = step - max(scores, key=lambda step: scores[step], default=step)
    over = options.get("patience") and waited >= options["patience"] * options["eval_every"]
    if step == options["num_steps"] or over:
        raise InputError(
            f"{path.parent} lacks what is counted after training (`fitted`): run the command that trained it again"
        )


def restore_state(path: Path, abstract_state: dict) -> dict:
    """Restore a training state, or a part of one, with the shapes and shardings of `abstract_state`."""
    placed = ocp.checkpoint_utils.construct_restore_args(abstract_state)
    args = ocp.args.PyTreeRestore(abstract_state, restore_args=placed, partial_restore=True)
    with _reading(path / "state"), ocp.PyTreeCheckpointer() as checkpointer:
        state = checkpointer.restore(path / "state", args=args)
    _compare(path, state, read_meta(path))
    return state


def restore_variables(path: Path, abstract_variables: dict, averaged: bool = False) -> dict:
    """Restore what a reader needs, {"params", "state", "fitted"}; `fitted` is {} in an unfinished run.

    If `averaged`, they are the moving averages, which the state must have.
    """
    wanted = {"params": abstract_variables["params"], "model_state": abstract_variables["state"]}
    state = restore_state(path, {"average": wanted})["average"] if averaged else restore_state(path, wanted)
    fitted = read_fitted(path) if (path / "fitted").is_dir() else {}
    fitted = jax.tree.map(jax.numpy.asarray, fitted)
    return {"params": state["params"], "state": state["model_state"], "fitted": fitted}


def read_fitted(path: Path) -> dict:
    """Restore what was counted after the last step; InputError if it is damaged."""
    fitted, meta = read_arrays(path / "fitted"), read_meta(path)
    expected = fitted.pop(DIGEST, None)
    if DIGESTS in meta and (expected is None or expected.tobytes().hex() != digest(fitted)):
        raise Damaged(f"{path / 'fitted'} is damaged")
    return fitted


def read_arrays(path: Path) -> dict:
    """Restore all arrays of a checkpoint's item as NumPy's, whatever they are."""
    with _reading(path), ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return checkpointer.restore(path, restore_args=arrays)


def digests(tree) -> dict[str, str]:
    """Give the digest of every array of a tree by its place, e.g. "params.encoder.out.bias"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): digest(leaf) for path, leaf in leaves}


def _digest_of_json(content: dict) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def digest(tree) -> str:
    """Give a digest of all arrays of a tree, and of where in it they stand."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
