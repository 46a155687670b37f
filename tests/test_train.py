"""The training step and loop: traced once, resumed to the bit, stopped by NaN, told apart from other runs."""

import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax import api, builders, checkpoint, metric_writer, sharding, train
from vqvae_jax.errors import InputError
from vqvae_jax.train_step import init_state, make_train_step


def make(config, seed=0):
    model = builders.build_model(config["model"], (32, 32, 3))
    optimizer = builders.build_optimizer(config["optimizer"], 10_000)
    mesh = sharding.make_mesh()
    source = builders.build_source(config["data"], "test")
    batch = {**source.take(np.arange(4)), "mask": np.ones(4, bool)}
    state = init_state(model, optimizer, seed, batch["image"], mesh)
    return model, make_train_step(model, optimizer, seed, mesh), state, sharding.put_batch(batch, mesh)


def final_state(workdir):
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        step = manager.latest_step()
        saved = manager.restore(step, args=checkpoint.ocp.args.Composite(state=checkpoint.ocp.args.PyTreeRestore()))
    return step, {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved["state"])
    }


def record_without_times(workdir):
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "most_memory_mb", "unix_time")}
        for line in metric_writer.read_record(workdir)
    ]


def assert_same_run(one, other):
    (step_one, state_one), (step_other, state_other) = final_state(one), final_state(other)
    assert step_one == step_other
    assert state_one.keys() == state_other.keys()
    for key in state_one:
        np.testing.assert_array_equal(np.asarray(state_one[key]), np.asarray(state_other[key]), err_msg=key)
    assert record_without_times(one) == record_without_times(other)


def test_the_step_is_traced_once_and_donates_its_state(config, monkeypatch):
    model, _, state, batch = make(config)
    loss = chex.assert_max_traces(type(model).loss, n=1)
    monkeypatch.setattr(type(model), "loss", loss)
    step = make_train_step(model, builders.build_optimizer(config["optimizer"], 10), 0, sharding.make_mesh())
    before = state
    for _ in range(3):
        state, metrics = step(state, batch)
    assert int(state.step) == 3
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())


def test_training_lowers_the_bound_on_one_batch(config):
    _, step, state, batch = make(config)
    values = []
    for _ in range(100):
        state, metrics = step(state, batch)
        values.append(float(metrics["bits_per_dim"]))
    assert values[-1] < values[0] - 0.3


@pytest.mark.parametrize("codebook_update", ["ema", "gradient"])
def test_what_learns_the_codebook_changes_it(config, codebook_update):
    config["model"]["codebook_update"] = codebook_update
    model, step, state, batch = make(config)

    def codebook():
        return np.asarray(model.codebook({"params": state.params, "state": state.model_state}))

    first = codebook()
    state, _ = step(state, batch)
    state, _ = step(state, batch)
    assert np.abs(codebook() - first).max() > 0


def test_stopped_and_resumed_run_ends_in_the_same_bits(config, tmp_path, monkeypatch):
    config["optimizer"]["warmup_steps"] = 2
    train.train(config, tmp_path / "whole")

    finish, calls = train.Loop._finish, []

    def finish_and_stop(self, step, *args):
        finish(self, step, *args)
        if step == 3 and not calls:
            calls.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Loop, "_finish", finish_and_stop)
    with pytest.raises(train.Stopped, match="stopped at step . and saved"):
        train.train(config, tmp_path / "parts")
    assert final_state(tmp_path / "parts")[0] in (3, 4)
    train.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_and_no_line_stands_twice(config, tmp_path, monkeypatch):
    train.train(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    finish = train.Loop._finish

    def die(self, step, *args):
        finish(self, step, *args)
        if step == 5:  # the last checkpoint is that of step 4
            raise Killed

    monkeypatch.setattr(train.Loop, "_finish", die)
    with pytest.raises(Killed):
        train.train(config, tmp_path / "parts")
    assert record_without_times(tmp_path / "parts")[-1]["step"] == 5
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # killed in the middle of a line
    monkeypatch.setattr(train.Loop, "_finish", finish)
    train.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_ema_counts_survive_a_resume(config, tmp_path):
    # Regression 12.
    train.train(config, tmp_path)
    _, state = final_state(tmp_path)
    counts = next(leaf for key, leaf in state.items() if "count" in key and "model_state" in key)
    assert np.asarray(counts).sum() > 0
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        step = manager.latest_step()
        meta = checkpoint.read_meta(manager, step)
        model = builders.build_model(meta["config"]["model"], tuple(meta["image_shape"]))
        images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), np.uint8)
        restored = checkpoint.restore_variables(manager, step, jax.eval_shape(model.init, jax.random.key(0), images))
    np.testing.assert_array_equal(restored["state"].count, counts)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer_at_a_constant_rate(config, tmp_path):
    config["optimizer"]["schedule"] = "constant"
    config["train"]["eval_every"] = 3
    train.train(config, tmp_path / "whole")
    config["train"]["num_steps"] = 3
    train.train(config, tmp_path / "parts")
    config["train"]["num_steps"] = 6
    train.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    config["train"]["num_steps"] = 5
    with pytest.raises(InputError, match="already at step 6"):
        train.train(config, tmp_path / "parts")


def test_a_longer_run_under_a_schedule_is_another_run(config):
    changed = json.loads(json.dumps(config))
    changed["train"]["num_steps"] = 99
    assert config["optimizer"]["schedule"] == "cosine"
    assert train.differences(config, changed) == ["train.num_steps (6 there, 99 now)"]


def test_what_does_not_change_the_maths_may_differ(config):
    changed = json.loads(json.dumps(config))
    changed["data"] |= {"data_dir": "/elsewhere", "num_threads": 7}
    changed["logging"]["tensorboard"] = True
    changed["train"] |= {"log_every": 9, "eval_every": 9, "checkpoint_every": 9}
    assert train.differences(config, changed) == []
    changed["model"]["hidden"] = 7
    changed["data"]["flip"] = False
    assert train.differences(config, changed) == ["data.flip (True there, False now)", "model.hidden (6 there, 7 now)"]


def test_a_folder_with_another_run_is_refused_or_put_aside(config, tmp_path):
    workdir = tmp_path / "run"
    train.train(config, workdir)
    changed = {**config, "model": {**config["model"], "hidden": 7}}
    refused = r"another config: model.hidden \(6 there, 7 now\).*--resume=never"
    with pytest.raises(InputError, match=refused):
        train.train(changed, workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["hidden"] == 6
    (workdir / "config.json").unlink()  # the checkpoint knows, too
    with pytest.raises(InputError, match=refused):
        train.train(changed, workdir)
    (tmp_path / "run.1").mkdir()
    train.prepare_workdir(changed, workdir, resume=False)
    assert (tmp_path / "run.2" / "checkpoints").is_dir()
    assert list(workdir.iterdir()) == []


def test_a_wrong_option_leaves_the_folder_alone(config, tmp_path):
    for section, key, value, message in (
        ("optimizer", "schedule", "cosin", "unknown optimizer.schedule 'cosin'"),
        ("train", "log_every", 0, "train.log_every is 0: it must be at least 1"),
        ("eval", "images", 3, "unknown option eval.images: did you mean 'fit_images'"),
        ("model", "revival_threshold", 0.2, r"model.revival_threshold is 0.2: it must be 0 \(never\) to below 0.1"),
    ):
        wrong = {**config, section: {**config[section], key: value}}
        with pytest.raises(InputError, match=message):
            train.train(wrong, tmp_path / "run", resume=False)
    del config["eval"]["fit_images"]
    with pytest.raises(InputError, match="the config lacks eval.fit_images"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stop_after_the_last_step_loses_nothing(config, tmp_path, monkeypatch):
    train.train(config, tmp_path / "whole")
    fit = api.Run.fit
    monkeypatch.setattr(
        api.Run, "fit", lambda self, s, n=0: fit(self, s, n) if n else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "parts")
    assert final_state(tmp_path / "parts")[0] == 6
    assert not checkpoint.is_fitted(checkpoint.folder(tmp_path / "parts"), 6)
    monkeypatch.setattr(api.Run, "fit", fit)
    train.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    one, other = (checkpoint.read_fitted(checkpoint.folder(tmp_path / name), 6) for name in ("whole", "parts"))
    chex.assert_trees_all_equal(one, other)
    assert np.sum(one["code_counts"]) > 0


def test_other_training_images_are_refused(config, tmp_path, monkeypatch):
    train.train(config, tmp_path)
    build = builders.build_source

    def changed(section, split):
        source = build(section, split)
        source.images[0] ^= 1
        return source

    monkeypatch.setattr(builders, "build_source", changed)
    with pytest.raises(InputError, match="training images are not those of the run"):
        train.train(config, tmp_path)


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    make_step = train.make_train_step

    def poisoned(*args):
        step = make_step(*args)

        def wrapped(state, batch):
            state, metrics = step(state, batch)
            bad = state.step == 4
            return state, {**metrics, "loss_nats": jnp.where(bad, jnp.nan, metrics["loss_nats"])}

        return wrapped

    monkeypatch.setattr(train, "make_train_step", poisoned)
    with pytest.raises(InputError, match="loss_nats is nan at step 4: training stopped"):
        train.train(config, tmp_path)
    assert final_state(tmp_path)[0] == 2


def test_batch_size_that_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding.jax, "device_count", lambda: 8)
    with pytest.raises(
        InputError, match="batch size 12 cannot be split over 8 devices: choose a multiple of 8, e.g. 8"
    ):
        sharding.check_batch_size(12)
    sharding.check_batch_size(16)


def test_metrics_that_are_not_finite_are_null_in_json(tmp_path):
    metric_writer.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": 2}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": 2}}


def test_tensorboard_has_curves_and_reconstructions(config, tmp_path):
    config["logging"]["tensorboard"] = True
    train.train(config, tmp_path)
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for tag in (b"train/bits_per_dim", b"eval/bits_per_dim", b"eval/codebook_usage", b"reconstructions"):
        assert tag in data
