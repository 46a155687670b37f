"""Damage to a checkpoint is found and named, never read; training goes on from the newest whole one to the same bits."""

import json
import random
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_loop import assert_same_run

from vqvae_jax import commands
from vqvae_jax import run as run_module
from vqvae_jax.errors import InputError
from vqvae_jax.run import load
from vqvae_jax.training import checkpoint, loop

FLIPS = 20
# What orbax writes for itself and for readers that don't know the arrays: nothing of it is read here.
UNREAD = ("ocdbt.process_0", "_sharding", "_CHECKPOINT_METADATA", "commit_success.txt", "array_metadatas")


@pytest.fixture(scope="module")
def config(of_both_stages):
    return {**of_both_stages, "train": of_both_stages["train"] | {"checkpoint_every": 1}}


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A run of both stages: checkpoints 2 and 3 of the model, two or three of the prior."""
    folder = tmp_path_factory.mktemp("trained") / "run with späces"
    loop.train(config, folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def fitted(folder, stage):
    return checkpoint.newest(folder, stage, "fitted")


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def everything(path):
    arrays = {item: checkpoint.read_arrays(path / item) for item in ("state", "fitted") if (path / item).is_dir()}
    return {"meta": checkpoint.read_meta(path)["config"], "arrays": checkpoint.digests(arrays)}


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def is_found(path, file, before):
    """Damage is one line that names the checkpoint; or it is where nothing is read, and nothing differs."""
    message = said(path)
    if message is None:
        assert everything(path) == before, file
        return False
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200, message
    return True


def said(path):
    try:
        checkpoint.check(path)
    except checkpoint.Damaged as error:
        return str(error)


@pytest.mark.parametrize("stage", ["model", "prior"])
def test_flipped_bits_are_named_or_change_nothing(run, stage):
    path, numbers = fitted(run, stage), random.Random(stage)
    before, found = everything(path), 0
    read = [file for file in files(path) if not set(UNREAD) & {*file.parts}]
    for _ in range(FLIPS // 2):
        file = numbers.choice(read)
        bit = numbers.randrange(8 * file.stat().st_size)
        flip(file, bit)
        found += is_found(path, file, before)
        flip(file, bit)
    assert found > FLIPS // 4
    checkpoint.check(path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["model", "prior"])
def test_every_file_that_is_cut_or_gone_is_named_unless_nothing_reads_it(run, stage):
    path = fitted(run, stage)
    before = everything(path)
    for file in files(path):
        data = file.read_bytes()
        for content in (None, b"", data[: len(data) // 2]):
            file.unlink() if content is None else file.write_bytes(content)
            assert is_found(path, file, before) or set(UNREAD) & {*file.parts}, file
            file.write_bytes(data)


def change_a_bit(path):
    """Flip a bit of a number where orbax has no checksum: what it reads is another number, and it is content."""
    state = checkpoint.read_arrays(path / "state")
    first = next(leaf for leaf in jax.tree.leaves(state["params"]) if leaf.size > 1)
    first.view(np.uint8).flat[1] ^= 1
    shutil.rmtree(path / "state")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)


def test_one_bit_of_an_array_is_named_and_other_steps_are_offered(run):
    change_a_bit(run / "checkpoints/model/3")
    message = r"checkpoints/model/3/state is damaged: the array [\w.]+ isn't what was saved: .*--step=2$"
    with pytest.raises(InputError, match=message):
        commands.evaluate(workdir=run)
    assert load(run, step=2).meta["step"] == 2
    assert load(run, step=2).learned is None
    with pytest.raises(InputError, match="no checkpoint .*model/7: the steps there are 3, 2"):
        load(run, step=7)
    shutil.rmtree(run / "checkpoints/model/2/meta")
    with pytest.raises(InputError, match="model/3/state is damaged.* no other one is whole"):
        load(run)


@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(what, marks=pytest.mark.slow) for what in ("item gone", "gone", "fitted gone"))],
)
def test_training_goes_on_from_the_newest_whole_model_to_the_same_bits(config, trained, run, damage, capsys):
    newest = run / "checkpoints/model/3"
    if damage == "flipped":
        change_a_bit(newest)
    else:
        shutil.rmtree(newest / {"item gone": "meta", "gone": "", "fitted gone": "fitted"}[damage])
    with pytest.raises(InputError) as caught:  # nothing else is read instead, and the prior is not to blame
        load(run)
    assert "delete" not in str(caught.value)
    finished = loop.train(config, run)
    said = "model/3/state is damaged.*put aside as 3.damaged\n" if damage == "flipped" else ""
    said += "model: resumed at step 3" if damage == "fitted gone" else "model: resumed at step 2"
    assert re.search(said, capsys.readouterr().out)
    assert_same_run(trained, run)
    assert newest.with_name("3.damaged").exists() is (damage in ("flipped", "item gone"))
    assert finished.learned is not None
    assert finished.fingerprint() == load(trained).fingerprint()
    for stage in ("model", "prior"):
        assert everything(fitted(run, stage)) == everything(fitted(trained, stage))


def test_the_prior_goes_on_from_its_newest_whole_checkpoint(config, trained, run, capsys):
    path = fitted(run, "prior")
    change_a_bit(path)
    with pytest.raises(InputError, match=f"prior/{path.name}/state is damaged.*the image model alone with --step=3"):
        load(run)
    older = [other for other in checkpoint.find(run, "prior") if other != path]
    loop.train(config, run)
    assert f"prior: resumed at step {older[0].name}" in capsys.readouterr().out
    assert everything(fitted(run, "prior"))["arrays"] == everything(fitted(trained, "prior"))["arrays"]


def test_a_prior_without_what_was_counted_is_no_reason_to_fall_back(run):
    shutil.rmtree(fitted(run, "prior") / "fitted")
    with pytest.raises(InputError, match=r"checkpoints/prior lacks what is counted .*run the command that trained it"):
        load(run)


def test_where_nothing_is_whole_training_says_so_and_leaves_all_as_it_is(config, run):
    for path in checkpoint.find(run):
        (path / "meta" / "metadata").write_text("{}}")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"model/3/meta is damaged.*no whole checkpoint is left; move .*model away"
        ):
            loop.train(config, run)
        assert [path.name for path in checkpoint.find(run)] == ["3", "2"]


def test_another_score_in_the_file_that_orbax_reads_is_found(run):
    path = fitted(run, "prior") / "metrics" / "metrics"
    path.write_text('{"score": -0.5}')
    assert not checkpoint.is_whole(fitted(run, "prior"))


def test_what_training_took_away_meanwhile_is_read_again(run, monkeypatch):
    expected, restore, newest = load(run).fingerprint(), checkpoint.restore_variables, run / "checkpoints/model/3"
    shutil.move(newest, run / "later")

    def race(path, *args):
        if path.name == "2":  # training writes step 3 and takes step 2 away
            shutil.move(run / "later", newest)
            shutil.rmtree(path / "state")
        return restore(path, *args)

    monkeypatch.setattr(run_module.checkpoint, "restore_variables", race)
    assert load(run).fingerprint() == expected


def test_a_run_of_before_digests_is_read(trained, run):
    for path in checkpoint.find(run):
        meta = checkpoint.read_meta(path)
        del meta["digests"]
        (path / "meta" / "metadata").write_text(json.dumps(meta))
    checkpoint.check(fitted(run, "model"))
    assert load(run).fingerprint() == load(trained).fingerprint()


def test_a_digest_tells_arrays_apart_by_every_bit():
    tree = {"a": np.zeros((2, 3), np.float32), "b": (np.float32(1), jax.numpy.ones(2))}
    names = checkpoint.digests(tree)
    assert list(names) == ["a", "b.0", "b.1"]
    tree["a"].view(np.uint8)[1, 5] ^= 1
    assert checkpoint.digests(tree)["a"] != names["a"]
    assert checkpoint.digests({"a": np.zeros((3, 2), np.float32)})["a"] != names["a"]
