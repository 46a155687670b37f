"""Time ten training steps of the paper's CIFAR-10 network (256 units, 256-way softmax, batch 128).

    python -m experiments.benchmarks.paper_steps [--out=FILE]

On random images: the time doesn't depend on them. The last line is one JSON object.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import cifar10
from experiments.provenance import report
from vqvae_jax import builders, sharding
from vqvae_jax.train_step import init_state, make_train_step


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time ten steps of the paper's network.")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    config, mesh = cifar10.get_config("").to_dict(), sharding.make_mesh()
    model = builders.build_model(config["model"], (32, 32, 3))
    optimizer = builders.build_optimizer(config["optimizer"], config["train"]["num_steps"])
    images = np.random.default_rng(0).integers(0, 256, (config["data"]["batch_size"], 32, 32, 3), dtype=np.uint8)
    batch = sharding.put_batch({"image": images}, mesh)
    state = init_state(model, optimizer, config["seed"], batch["image"], mesh)
    step, times, bounds = make_train_step(model, optimizer, config["seed"], mesh), [], []
    for n in tqdm(range(arguments.steps + 1), desc="steps"):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        bounds.append(float(metrics["bits_per_dim"]))
        if n:  # the first one compiles
            times.append(time.perf_counter() - start)
    result = {
        "benchmark": "paper_steps",
        "seconds_per_step": round(statistics.median(times), 2),
        "seconds_range": [round(min(times), 2), round(max(times), 2)],
        "steps": arguments.steps,
        "bits_per_dim_on_noise": [round(b, 3) for b in bounds],
        "command": "python -m experiments.benchmarks.paper_steps",
        "data": "one batch of 128 random images of 32x32x3",
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
