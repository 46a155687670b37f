"""Eight virtual devices give what one gives, in one process and in two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqvae_jax.training import sharding

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from vqvae_jax.training import processes
processes.start(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
import jax, numpy as np
from configs import families, quickstart
from vqvae_jax.run import Run
from vqvae_jax import registry
from vqvae_jax.training import sharding
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.priors.trained import TrainedPrior
from vqvae_jax.training.step import init_state, make_train_step

config = quickstart.get_config("smoke").to_dict()
config["model"] |= {"hidden": 6, "residual_units": 4, "likelihood": "logistic"}
quantizer = config["model"]["quantizer"]
quantizer |= {"codebook_size": 24, "num_codebooks": 2, "embedding_dim": 3}
# So that the encoder moves, and codes that are left behind are dead at the second step already.
quantizer |= {"ema_decay": 0.3, "revival_threshold": 0.09}
config["optimizer"] |= {"name": "adam", "learning_rate": 1e-2, "warmup_steps": 0}
family = sys.argv[2]
if family != "vqvae":
    config["model"] = families.get_config(family + "_smoke").to_dict()["model"] | {"hidden": 6, "residual_units": 4}
images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
source = ArraySource("tiny", "test", images[:11], np.zeros(11, np.int32), ("one",))
model = registry.build_model(config["model"], (8, 8, 3))
optimizer = registry.build_optimizer(config["optimizer"], 10)
state = init_state(model, optimizer, 0, sharding.put_rows(images))
step = make_train_step(model, optimizer, 0)
revived = 0
for _ in range(3):
    state, metrics = step(state, sharding.put_rows({"image": images}))
    new_code = 0.1 * 16 * 2 * 2 / 24
    revived += family == "vqvae" and int(np.sum(np.asarray(state.model_state.count) == np.float32(new_code)))
run = Run(model, {"params": state.params, "state": state.model_state, "fitted": {}},
              {"config": config, "image_shape": [8, 8, 3], "step": 3})
run = Run(model, {**run.variables, "fitted": run.fit(source)}, run.meta)
result = evaluate(run, source)
leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
kept = ("bits_per_dim", "rate", "distortion", "perplexity")
leaves |= {key: np.asarray(result[key]) for key in kept if result.get(key) is not None}
leaves |= {"metric/" + key: np.asarray(value) for key, value in metrics.items()}
if family == "vqvae":  # the second stage: a step, log-probabilities and samples of 11 fields
    section = config["prior"] | {"conditional": True, "features": 4, "layers": 1}
    prior = registry.build_prior(section, run.field, (24, 24), 3)
    codes, labels = run.encode(images), np.arange(16, dtype=np.int32) % 3
    batch = sharding.put_rows({"codes": codes, "label": labels})
    optimizer = registry.build_optimizer(section["optimizer"] | {"learning_rate": 0.1, "warmup_steps": 0}, 10)
    state = init_state(prior, optimizer, 0, batch)
    step = make_train_step(prior, optimizer, 0)
    for _ in range(3):
        state, metrics = step(state, batch)
    leaves["prior_loss"] = np.asarray(metrics["loss_nats"])
    frequencies = jax.numpy.log(jax.numpy.full(3, 1 / 3))
    variables = {"params": state.params, "fitted": {"log_class_frequencies": frequencies}}
    learned = TrainedPrior("pixelcnn", prior, variables, 8)
    leaves["prior_log_prob"], leaves["prior_given"] = learned.log_prob(codes[:11]), learned.log_prob(codes, labels)
    leaves["sampled"] = learned.sample(codes[:11], keep=3, seed=4)
if family == "vae":
    leaves["sampled"] = [run.sample(5).mean(), run.draw(run.encode(images[:3]), 1).mean()]
    leaves["importance_bound"] = run.importance_bound(images[:5], 3)
np.savez(sys.argv[1], devices=jax.device_count(), revived=revived, **leaves)
"""


def run_on(devices, path, family, number=1):
    """Run the program as so many processes, which have so many devices together; give what the last one found."""
    flags = f"--xla_force_host_platform_device_count={devices // number}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    lines = [[str(path.with_suffix(f".{n}.npz")), family, coordinator, str(number), str(n)] for n in range(number)]
    started = [subprocess.Popen([sys.executable, "-c", PROGRAM, *line], env=env) for line in lines]
    assert [process.wait() for process in started] == [0] * number
    return dict(np.load(lines[-1][0]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vqvae", "vae", "vimco"])
def test_eight_devices_equal_one_after_three_steps_and_in_evaluation(tmp_path, family):
    # Codebook sums, revival, first codebook, losses, fit and evaluation (11 images, not divisible): regression 10.
    one, eight = run_on(1, tmp_path / "1.npz", family), run_on(8, tmp_path / "8.npz", family)
    assert (int(one.pop("devices")), int(eight.pop("devices"))) == (1, 8)
    assert one["revived"] > 0 or family != "vqvae"
    assert_near(one, eight)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vqvae", "vae"])
def test_two_processes_of_four_devices_equal_one_of_eight(tmp_path, family):
    assert_near(run_on(8, tmp_path / "8.npz", family), run_on(8, tmp_path / "4.npz", family, number=2))


def assert_near(one, eight):
    assert one.keys() == eight.keys()
    # Weights are exponentials of some hundred nats, of which float32 has the last 3e-5.
    tolerance = {"metric/effective_draws": 3e-4}
    for key in one:
        wanted = tolerance.get(key, 1e-5)
        np.testing.assert_allclose(eight[key], one[key], rtol=wanted, atol=wanted, err_msg=key)


class Result:
    """What a device is computing; it says when it is fetched."""

    def __init__(self, events, rows):
        self.events, self.rows = events, np.asarray(rows)
        events.append(f"queued {self.rows.max()}")

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetched {self.rows.max()}")
        return self.rows


@pytest.mark.parametrize("total", [1, 4, 11])
def test_the_next_batch_is_queued_before_the_last_is_fetched(total):
    events, rows = [], np.arange(total)
    result = sharding.map_rows(lambda rows, other: {"a": Result(events, rows), "b": other}, 4, rows, -rows)
    np.testing.assert_array_equal(result["a"], rows)
    np.testing.assert_array_equal(result["b"], -rows)
    last = {1: ["queued 0", "fetched 0"], 4: ["queued 3", "fetched 3"]}
    assert events == last.get(total, ["queued 3", "queued 7", "fetched 3", "queued 10", "fetched 7", "fetched 10"])
