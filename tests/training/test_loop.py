"""The training step and loop: traced once, resumed to the bit, stopped by NaN, told apart from other runs."""

import dataclasses
import itertools
import json
import math
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax import registry
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.run import Run, load
from vqvae_jax.training import checkpoint, loop, record, sharding
from vqvae_jax.training.step import init_state, make_train_step


def make(config, seed=0):
    model = registry.build_model(config["model"], (32, 32, 3))
    optimizer = registry.build_optimizer(config["optimizer"], 10_000)
    source = registry.build_source(config["data"], "test")
    batch = {**source.take(np.arange(4)), "mask": np.ones(4, bool)}
    state = init_state(model, optimizer, seed, batch["image"])
    return model, make_train_step(model, optimizer, seed), state, sharding.put_batch(batch)


def final_state(workdir):
    path = checkpoint.newest(workdir)
    leaves = jax.tree_util.tree_leaves_with_path(checkpoint.read_arrays(path / "state"))
    return int(path.name), {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def record_without_times(workdir):
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "most_memory_mb", "unix_time")}
        for line in record.read_record(workdir)
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
    step = make_train_step(model, registry.build_optimizer(config["optimizer"], 10), 0)
    before = state
    for _ in range(3):
        state, metrics = step(state, batch)
    assert int(state.step) == 3
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())


class Dice:
    """A model whose parameters and metrics are nothing but random numbers."""

    def init(self, key, first):
        return {"params": jax.random.uniform(key), "state": ()}

    def loss(self, variables, batch, key):
        return 0 * variables["params"], ((), {"drawn": jax.random.uniform(key)})


def draws(seed, stage, num_steps=50):
    """The first parameter and what every step draws."""
    what = Dice(), registry.optax.sgd(1.0), seed
    state = init_state(*what, None, stage)
    drawn, step = [float(state.params)], make_train_step(*what, stage)
    for _ in range(num_steps):
        state, metrics = step(state, None)
        drawn.append(float(metrics["drawn"]))
    return drawn


def test_stages_seeds_and_steps_share_no_random_numbers():
    streams = {(seed, stage): draws(seed, stage) for seed in (0, 1, 2) for stage in ("model", "prior")}
    assert len({number for stream in streams.values() for number in stream}) == 6 * 51
    assert draws(0, "model") == streams[0, "model"]


def test_both_stages_of_a_run_draw_with_their_name(of_both_stages, tmp_path, monkeypatch):
    named, make_step, init = [], loop.make_train_step, loop.init_state
    monkeypatch.setattr(
        loop, "make_train_step", lambda *args, **more: (named.append(args[-1]), make_step(*args, **more))[1]
    )
    monkeypatch.setattr(loop, "init_state", lambda *args, **more: (named.append(more["stage"]), init(*args, **more))[1])
    loop.train(of_both_stages, tmp_path)
    assert [name for name, _ in itertools.groupby(named)] == ["model", "prior"]


def test_training_lowers_the_bound_on_one_batch(config):
    _, step, state, batch = make(config)
    values = []
    for _ in range(100):
        state, metrics = step(state, batch)
        values.append(float(metrics["bits_per_dim"]))
    assert values[-1] < values[0] - 0.3


@pytest.mark.parametrize("name", ["vector_ema", "vector_gradient"])
def test_what_learns_the_codebook_changes_it(config, tiny_quantizers, name):
    config["model"]["quantizer"] = tiny_quantizers[name]
    model, step, state, batch = make(config)

    def codebook():
        codes = jnp.tile(jnp.arange(5)[:, None, None, None], 2)
        return np.asarray(model.vectors({"params": state.params, "state": state.model_state}, codes))

    first = codebook()
    state, _ = step(state, batch)
    state, _ = step(state, batch)
    assert np.abs(codebook() - first).max() > 0


def test_the_average_is_that_of_all_states_so_far(config):
    model, _, state, batch = make(config)
    optimizer = registry.build_optimizer(config["optimizer"], 10_000)
    state = init_state(model, optimizer, 0, batch["image"], averages=True)
    step = make_train_step(model, optimizer, 0, average_decay=0.15)
    expected = jax.tree.map(np.asarray, state.measured())
    for decay in (0.1, 0.15, 0.15):  # 1/10, then 2/11 and 3/12 are above the option
        state, _ = step(state, batch)
        now = {"params": state.params, "model_state": state.model_state}
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new), expected, now)
    chex.assert_trees_all_close(state.measured(), expected, rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), state.params, state.average["params"])
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_a_run_is_measured_by_its_average(config, tmp_path):
    config["train"]["average_decay"] = 0.5
    run = loop.train(config, tmp_path)
    arrays = checkpoint.read_arrays(checkpoint.newest(tmp_path) / "state")
    chex.assert_trees_all_equal(run.variables["params"], arrays["average"]["params"])
    assert (
        np.abs(
            arrays["average"]["params"]["encoder"]["out"]["kernel"] - arrays["params"]["encoder"]["out"]["kernel"]
        ).max()
        > 0
    )
    assert "average" not in final_keys(tmp_path / "without", config)


def final_keys(workdir, config):
    config["train"]["average_decay"] = 0.0
    loop.train(config, workdir)
    return checkpoint.read_arrays(checkpoint.newest(workdir) / "state")


RUNS = [("vector_ema", 0.9), ("vector_ema", 0.0), ("residual", 0.0)]
RUNS += [pytest.param(name, 0.0, marks=pytest.mark.slow) for name in registry.QUANTIZERS if (name, 0.0) not in RUNS]


@pytest.mark.parametrize(("quantizer", "average_decay"), RUNS)
def test_stopped_and_resumed_run_ends_in_the_same_bits(
    config, tiny_quantizers, tmp_path, monkeypatch, quantizer, average_decay
):
    config["model"]["quantizer"] = tiny_quantizers[quantizer]
    config["optimizer"].update(name="muon", warmup_steps=2)
    config["train"]["average_decay"] = average_decay
    loop.train(config, tmp_path / "whole")

    finish, calls = loop.Loop._finish, []

    def finish_and_stop(self, step, *args):
        finish(self, step, *args)
        if step == 3 and not calls:
            calls.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Loop, "_finish", finish_and_stop)
    with pytest.raises(loop.Stopped, match="stopped at step . and saved"):
        loop.train(config, tmp_path / "parts")
    assert final_state(tmp_path / "parts")[0] in (3, 4)
    run = loop.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    found, sizes = evaluate(run, registry.build_source(config["data"], "test")), run.model.codebook_sizes
    rate = 64 * sum(map(math.log2, sizes)) / 32**2 / 3
    assert found["priors"]["uniform"]["rate"] == pytest.approx(rate, rel=1e-5)
    assert found["priors"]["unigram"]["rate"] < 1.5 * rate
    assert 0 < found["codebook_usage"] <= 1 <= found["perplexity"] <= max(sizes)


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_and_no_line_stands_twice(config, tmp_path, monkeypatch):
    loop.train(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    finish = loop.Loop._finish

    def die(self, step, *args):
        finish(self, step, *args)
        if step == 5:  # the last checkpoint is that of step 4
            raise Killed

    monkeypatch.setattr(loop.Loop, "_finish", die)
    with pytest.raises(Killed):
        loop.train(config, tmp_path / "parts")
    assert record_without_times(tmp_path / "parts")[-1]["step"] == 5
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # killed in the middle of a line
    monkeypatch.setattr(loop.Loop, "_finish", finish)
    loop.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_ema_counts_survive_a_resume(config, tmp_path):
    # Regression 12.
    loop.train(config, tmp_path)
    _, state = final_state(tmp_path)
    counts = next(leaf for key, leaf in state.items() if "count" in key and "model_state" in key)
    assert np.asarray(counts).sum() > 0
    path = checkpoint.newest(tmp_path)
    meta = checkpoint.read_meta(path)
    model = registry.build_model(meta["config"]["model"], tuple(meta["image_shape"]))
    images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), np.uint8)
    restored = checkpoint.restore_variables(path, jax.eval_shape(model.init, jax.random.key(0), images))
    np.testing.assert_array_equal(restored["state"].count, counts)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer_at_a_constant_rate(config, tmp_path):
    config["optimizer"]["schedule"] = "constant"
    config["train"]["eval_every"] = 3
    loop.train(config, tmp_path / "whole")
    config["train"]["num_steps"] = 3
    loop.train(config, tmp_path / "parts")
    config["train"]["num_steps"] = 6
    loop.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    config["train"]["num_steps"] = 5
    with pytest.raises(InputError, match="already at step 6"):
        loop.train(config, tmp_path / "parts")


def test_a_longer_run_under_a_schedule_is_another_run(config):
    changed = json.loads(json.dumps(config))
    changed["train"]["num_steps"] = 99
    assert config["optimizer"]["schedule"] == "cosine"
    assert loop.differences(config, changed) == ["train.num_steps (6 there, 99 now)"]


def test_sections_have_the_keys_of_their_options_and_lowest_values(config):
    zero_is_fine = {"dropout", "label_dropout", "patience", "validation_images", "test_images", "fit_images"}
    zero_is_fine |= {"final_fit_images", "samples", "subset_images", "subset_samples"}
    for section, options in loop.SECTIONS.items():
        values = config[section]
        assert {field.name for field in dataclasses.fields(options)} == values.keys()
        numbers = {key for key, value in values.items() if type(value) in (int, float)} - {"average_decay"}
        assert numbers >= {"train": {"log_every"}, "prior": {"dropout"}, "eval": {"samples"}, "logging": set()}[section]
        for key in numbers:
            number, lowest = type(values[key]), int(key not in zero_is_fine)
            options(**values | {key: number(lowest)})
            message = f"^{section}.{key} is {number(lowest - 1)}: it must be at least {lowest}$"
            with pytest.raises(InputError, match=message):
                options(**values | {key: number(lowest - 1)})
    for key in ("dropout", "label_dropout"):
        with pytest.raises(InputError, match=f"^prior.{key} is 1.0: it must be below 1$"):
            loop.PriorOptions(**config["prior"] | {key: 1.0})
    for section, key, wrong in (("train", "average_decay", 1.0), ("prior", "average_decay", -0.1)):
        with pytest.raises(InputError, match=f"^{section}.{key} is {wrong}: it must be at least 0"):
            loop.SECTIONS[section](**config[section] | {key: wrong})
    with pytest.raises(InputError, match="unknown prior.codes 'cache': did you mean 'cached'"):
        loop.PriorOptions(**config["prior"] | {"codes": "cache"})


def test_what_does_not_change_the_maths_may_differ(config):
    changed = json.loads(json.dumps(config))
    changed["data"] |= {"data_dir": "/elsewhere", "num_threads": 7}
    changed["logging"]["tensorboard"] = True
    changed["train"] |= {"log_every": 9, "eval_every": 9, "checkpoint_every": 9}
    assert loop.differences(config, changed) == []
    changed["model"]["hidden"] = 7
    changed["data"]["flip"] = False
    assert loop.differences(config, changed) == ["data.flip (True there, False now)", "model.hidden (6 there, 7 now)"]


def test_a_folder_with_another_run_is_refused_or_put_aside(config, tmp_path):
    workdir = tmp_path / "run"
    loop.train(config, workdir)
    changed = {**config, "model": {**config["model"], "hidden": 7}}
    refused = r"another config: model.hidden \(6 there, 7 now\).*--resume=never"
    with pytest.raises(InputError, match=refused):
        loop.train(changed, workdir)
    assert json.loads((workdir / "config.json").read_text())["model"]["hidden"] == 6
    (workdir / "config.json").unlink()  # the checkpoint knows, too
    with pytest.raises(InputError, match=refused):
        loop.train(changed, workdir)
    (tmp_path / "run.1").mkdir()
    with loop.claimed(changed, workdir, resume=False):
        assert (tmp_path / "run.2" / "checkpoints").is_dir()
        assert [path.name for path in workdir.iterdir()] == ["lock"]
        with pytest.raises(InputError, match="is being trained by"):
            loop.train(changed, workdir, resume=False)
    assert workdir.is_dir()


def test_a_wrong_option_leaves_the_folder_alone(config, tmp_path):
    dead = config["model"]["quantizer"] | {"revival_threshold": 0.2}
    for section, key, value, message in (
        ("optimizer", "schedule", "cosin", "unknown optimizer.schedule 'cosin'"),
        ("train", "log_every", 0, "train.log_every is 0: it must be at least 1"),
        ("eval", "images", 3, "unknown option eval.images: did you mean 'fit_images'"),
        ("model", "quantizer", dead, r"quantizer.revival_threshold is 0.2: it must be 0 \(never\) to below 0.1"),
    ):
        wrong = {**config, section: {**config[section], key: value}}
        with pytest.raises(InputError, match=message):
            loop.train(wrong, tmp_path / "run", resume=False)
    with pytest.raises(InputError, match="unknown option config.priors: did you mean 'prior'"):
        loop.train({**config, "priors": {}}, tmp_path / "run")
    del config["eval"]["fit_images"]
    with pytest.raises(InputError, match="the config lacks eval.fit_images"):
        loop.train(config, tmp_path / "run")
    del config["prior"]
    with pytest.raises(InputError, match="^the config lacks config.prior$"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRONG = {
    "seed": (99999999999999999999, "config.seed is 99999999999999999999: it must be below 4294967296"),
    "optimizer.learning_rate": (0, "optimizer.learning_rate is 0: it must be above 0"),
    "optimizer.learning_rate ": (-1, "optimizer.learning_rate is -1: it must be at least 0"),
    "optimizer.learning_rate  ": (float("nan"), "optimizer.learning_rate is nan: it must be at least 0"),
    "optimizer.learning_rate   ": (float("inf"), "optimizer.learning_rate is inf: it must be at least 0, and finite"),
    "optimizer.warmup_steps": (-5, "optimizer.warmup_steps is -5: it must be at least 0"),
    "model.hidden": (-3, "model.hidden is -3: it must be at least 1"),
    "model.hidden ": (0, "model.hidden is 0: it must be at least 1"),
    "model.hidden  ": (
        10**7,
        "parameters, gradients and optimizer of the model: this needs at least .* make it smaller",
    ),
    "model.residual_blocks": (-1, "model.residual_blocks is -1: it must be at least 0"),
    "model.pixel_std": ((0.0,), r"model.pixel_std is \(0.0,\): it must be above 0"),
    "model.pixel_mean": ((float("nan"),), r"model.pixel_mean is \(nan,\): it must be finite"),
    "model.quantizer.ema_decay": (1.5, "quantizer.ema_decay is 1.5: it must be below 1"),
    "model.quantizer.codebook_size": (10**8, "the codebooks of the config: this needs at least .* make it smaller"),
    "data.batch_size": (10**9, "data.batch_size is 1000000000: this needs at least .* make it smaller"),
}


@pytest.mark.parametrize("option", WRONG)
def test_a_value_out_of_range_is_one_line_before_anything_is_tried(config, tmp_path, option):
    value, message = WRONG[option]
    *sections, key = option.strip().split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(InputError, match=f"^{message}") as caught:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert checkpoint.newest(tmp_path / "run") is None


def test_a_finished_run_says_so_and_takes_new_options_of_evaluation(config, tmp_path, capsys):
    first = loop.train(config, tmp_path)
    lines = capsys.readouterr()
    assert "finished" not in lines.out
    assert ", 0 images/s" not in lines.err
    config["eval"]["test_images"] = first.meta["config"]["eval"]["test_images"] + 7
    run = loop.train(json.loads(json.dumps(config)), tmp_path)
    assert capsys.readouterr().out == "model: finished at step 6 already\n"
    assert run.meta["config"]["eval"]["test_images"] == config["eval"]["test_images"]
    assert run.fingerprint() == first.fingerprint()


@pytest.mark.slow
def test_a_stop_after_the_last_step_loses_nothing(config, tmp_path, monkeypatch):
    loop.train(config, tmp_path / "whole")
    fit = Run.fit
    monkeypatch.setattr(
        Run, "fit", lambda self, s, n=0: fit(self, s, n) if n else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tmp_path / "parts")
    assert final_state(tmp_path / "parts")[0] == 6
    assert checkpoint.newest(tmp_path / "parts", item="fitted") is None
    monkeypatch.setattr(Run, "fit", fit)
    loop.train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    one, other = (load(tmp_path / name).variables["fitted"] for name in ("whole", "parts"))
    chex.assert_trees_all_equal(one, other)
    assert np.sum(one["code_counts"]) > 0


def test_other_training_images_are_refused(config, tmp_path, monkeypatch):
    loop.train(config, tmp_path)
    build = registry.build_source

    def changed(section, split):
        source = build(section, split)
        source.images[0] ^= 1
        return source

    monkeypatch.setattr(registry, "build_source", changed)
    with pytest.raises(InputError, match="training images are not those of the run"):
        loop.train(config, tmp_path)


def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    make_step = loop.make_train_step

    def poisoned(*args, **more):
        step = make_step(*args, **more)

        def wrapped(state, batch):
            state, metrics = step(state, batch)
            bad = state.step == 4
            return state, {**metrics, "loss_nats": jnp.where(bad, jnp.nan, metrics["loss_nats"])}

        return wrapped

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    with pytest.raises(InputError, match="loss_nats is nan at step 4: training stopped"):
        loop.train(config, tmp_path)
    assert final_state(tmp_path)[0] == 2


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "model",
            "pixel_std",
            (1e-40,),
            r"commitment_loss is \w+ \(of the encoder's output\) at step 1: .*look at model.pixel_mean",
        ),
        (
            "optimizer",
            "learning_rate",
            1e39,
            r"params\.[\w.]+ is nan at step \d: training stopped.*; lower optimizer.learning_rate",
        ),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named_with_the_option_to_look_at(
    config, tmp_path, section, key, value, message
):
    config[section] |= {key: value}
    config["optimizer"] |= {"schedule": "constant", "warmup_steps": 0}
    with pytest.raises(InputError, match=f"^{message}"):
        loop.train(config, tmp_path)


def test_a_record_that_is_torn_or_deleted_meanwhile_stops_nothing(config, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "a": 1}\n{"step": 0, "a"\n\xff\xfe\n[3]\n{"step": 0, "b": 2}\n{"step"')
    writer = record.MetricWriter(tmp_path, "x", 0, 3, tensorboard=False)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 0, "a": 1}, {"step": 0, "b": 2}]
    path.unlink()
    writer.scalars(1, {"a": 2.0})
    writer.scalars(2, {"a": 3.0})
    writer.close()
    assert record.read_record(tmp_path) == [{"step": 1, "a": 2.0}, {"step": 2, "a": 3.0}]


@pytest.mark.parametrize(("bad", "at"), [({4: jnp.nan, 6: jnp.inf}, 4), ({6: -jnp.inf}, 6)])
def test_the_first_step_that_was_not_finite_is_named_at_the_next_log(config, tmp_path, monkeypatch, bad, at):
    make_step = loop.make_train_step

    def poisoned(*args, **more):
        step = make_step(*args, **more)

        def wrapped(state, batch):
            state, metrics = step(state, batch)
            return state, metrics | {"gradient_norm": jnp.float32(bad.get(int(state.step), 1.0))}

        return wrapped

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    config["train"] |= {"num_steps": 9, "log_every": 7, "eval_every": 9, "checkpoint_every": 3}
    with pytest.raises(InputError, match=f"gradient_norm is {bad[at]} at step {at}: training stopped"):
        loop.train(config, tmp_path)
    assert final_state(tmp_path)[0] == 3  # not 6: no checkpoint is written before the flag is read
    assert record_without_times(tmp_path) == []


def test_nothing_is_fetched_between_logs_and_two_steps_are_in_flight(config, tmp_path, monkeypatch):
    """A step is waited for when two later ones are queued; on CPUs, jax's guard sees transfers to the device alone."""
    events, make_step, finish, batches = [], loop.make_train_step, loop.Loop._finish, loop.ImageStage.batches

    def dispatched(*args, **more):
        step = make_step(*args, **more)
        return lambda state, batch: (
            events.append(f"step {1 + len([e for e in events if e[:4] == 'step'])}"),
            step(state, batch),
        )[1]

    def finished(self, step, metrics, *args):
        finish(self, step, metrics, *args)
        assert all(value.is_ready() for value in metrics.values())
        events.append(f"done {step}")

    def guarded(self, steps):
        for number, batch in enumerate(batches(self, steps), 1):
            if number in (1, 12):  # that compile, and validate and save
                yield batch
            else:
                with jax.transfer_guard("disallow"):
                    yield batch

    def spy(name):
        original = getattr(array, name)
        return lambda self, *args, **more: (events.append("fetch"), original(self, *args, **more))[1]

    monkeypatch.setattr(loop, "make_train_step", dispatched)
    monkeypatch.setattr(loop.Loop, "_finish", finished)
    monkeypatch.setattr(loop.ImageStage, "batches", guarded)
    monkeypatch.setattr(loop.ImageStage, "validate", lambda *_: events.append("validate"))
    config["train"] |= {"num_steps": 12, "log_every": 5, "eval_every": 12, "checkpoint_every": 12}
    array = type(jnp.zeros(()))
    for name in ("__array__", "__float__", "__int__", "__bool__", "__index__"):
        monkeypatch.setattr(array, name, spy(name))
    loop.train(config, tmp_path)
    events = events[events.index("step 1") : events.index("validate")]
    fetched = {events[n + 1 :][0] for n, event in enumerate(events[:-1]) if event == "fetch"} - {"fetch"}
    assert fetched == {"done 5", "done 10", "done 12"}
    expected = [
        "step 1",
        "step 2",
        *(f"{what} {n + 2 * (what == 'step')}" for n in range(1, 11) for what in ("step", "done")),
    ]
    assert [event for event in events if event != "fetch"] == [*expected, "done 11", "done 12"]
    assert [line["step"] for line in record.read_record(tmp_path)] == [5, 10, 12]


def test_batch_size_that_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(sharding.jax, "device_count", lambda: 8)
    with pytest.raises(
        InputError, match="data.batch_size is 12, which cannot be split over 8 devices: choose a multiple of 8, e.g. 8"
    ):
        sharding.check_batch_size("data.batch_size", 12)
    sharding.check_batch_size("data.batch_size", 16)


def test_metrics_that_are_not_finite_are_null_in_json(tmp_path):
    record.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": 2}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": 2}}


def test_tensorboard_has_curves_and_reconstructions(config, tmp_path):
    config["logging"]["tensorboard"] = True
    loop.train(config, tmp_path)
    data = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for tag in (b"train/bits_per_dim", b"eval/bits_per_dim", b"eval/codebook_usage", b"reconstructions"):
        assert tag in data
