"""Eight virtual devices give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
import jax, numpy as np
from configs import families, quickstart
from vqvae_jax import api, builders, sharding
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.evaluate import evaluate
from vqvae_jax.learned import Learned
from vqvae_jax.train_step import init_state, make_train_step

config = quickstart.get_config("smoke").to_dict()
config["model"] |= {"hidden": 6, "residual_units": 4, "codebook_size": 24, "num_codebooks": 2, "embedding_dim": 3}
# So that the encoder moves, and codes that are left behind are dead at the second step already.
config["model"] |= {"ema_decay": 0.3, "revival_threshold": 0.09}
config["optimizer"] |= {"learning_rate": 1e-2, "warmup_steps": 0}
family = sys.argv[2]
if family != "vqvae":
    config["model"] = families.get_config(family + "_smoke").to_dict()["model"] | {"hidden": 6, "residual_units": 4}
images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
source = ArraySource("tiny", "test", images[:11], np.zeros(11, np.int32), ("one",))
mesh = sharding.make_mesh()
model = builders.build_model(config["model"], (8, 8, 3))
optimizer = builders.build_optimizer(config["optimizer"], 10)
state = init_state(model, optimizer, 0, sharding.put_batch(images, mesh), mesh)
step = make_train_step(model, optimizer, 0, mesh)
revived = 0
for _ in range(3):
    state, metrics = step(state, sharding.put_batch({"image": images}, mesh))
    new_code = 0.1 * 16 * 2 * 2 / 24
    revived += family == "vqvae" and int(np.sum(np.asarray(state.model_state.count) == np.float32(new_code)))
run = api.Run(model, {"params": state.params, "state": state.model_state, "fitted": {}},
              {"config": config, "image_shape": [8, 8, 3], "step": 3})
run = api.Run(model, {**run.variables, "fitted": run.fit(source)}, run.meta)
result = evaluate(run, source)
leaves = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}
kept = ("bits_per_dim", "rate", "distortion", "perplexity")
leaves |= {key: np.asarray(result[key]) for key in kept if result.get(key) is not None}
leaves |= {"metric/" + key: np.asarray(value) for key, value in metrics.items()}
if family == "vqvae":  # the second stage: a step, log-probabilities and samples of 11 fields
    section = config["prior"] | {"conditional": True, "features": 4, "layers": 1}
    prior = builders.build_prior(section, run.field, 24, 3)
    codes, labels = run.encode(images), np.arange(16, dtype=np.int32) % 3
    batch = sharding.put_batch({"codes": codes, "label": labels}, mesh)
    optimizer = builders.build_optimizer(section["optimizer"] | {"learning_rate": 0.1, "warmup_steps": 0}, 10)
    state = init_state(prior, optimizer, 0, batch, mesh)
    step = make_train_step(prior, optimizer, 0, mesh)
    for _ in range(3):
        state, metrics = step(state, batch)
    leaves["prior_loss"] = np.asarray(metrics["loss_nats"])
    frequencies = jax.numpy.log(jax.numpy.full(3, 1 / 3))
    learned = Learned("pixelcnn", prior, {"params": state.params}, frequencies, 8)
    leaves["prior_log_prob"], leaves["prior_given"] = learned.log_prob(codes[:11]), learned.log_prob(codes, labels)
    leaves["sampled"] = learned.sample(codes[:11], keep=3, seed=4)
np.savez(sys.argv[1], devices=jax.device_count(), revived=revived, **leaves)
"""


def run_on(devices, path, family):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), family], env=env, check=True)
    return dict(np.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vqvae", "vae", "vimco"])
def test_eight_devices_equal_one_after_three_steps_and_in_evaluation(tmp_path, family):
    # Codebook sums, revival, first codebook, losses, fit and evaluation (11 images, not divisible): regression 10.
    one, eight = run_on(1, tmp_path / "1.npz", family), run_on(8, tmp_path / "8.npz", family)
    assert (int(one.pop("devices")), int(eight.pop("devices"))) == (1, 8)
    assert one["revived"] > 0 or family != "vqvae"
    assert one.keys() == eight.keys()
    for key in one:
        np.testing.assert_allclose(eight[key], one[key], rtol=1e-5, atol=1e-5, err_msg=key)
