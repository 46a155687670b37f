"""Time the training step of every row of `experiments.compare_quantizers`, in turns.

    python -m experiments.benchmarks.quantizer_steps [--out=FILE]

The images are random: the time does not depend on them. The last line is one JSON object with the median of each row,
its ratio to the first one's, and the memory that XLA plans for a step.
"""

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.step_cases import memory_mb
from experiments.compare_quantizers import ROWS, config_of
from experiments.provenance import report
from vqvae_jax import registry
from vqvae_jax.training import sharding
from vqvae_jax.training.step import init_state, make_train_step

SHAPE = (32, 32, 3)
STEPS_A_TURN = 4  # the first of which isn't counted: it finds the caches full of another program's data


class Timed:
    """The training of a row, a few steps at a time."""

    def __init__(self, name: str):
        config = config_of(name, 0, 400, 1, None, {})
        images = np.random.default_rng(0).integers(0, 256, (config["data"]["batch_size"], *SHAPE), dtype=np.uint8)
        self.batch = sharding.put_batch({"image": images})
        what = (
            registry.build_model(config["model"], SHAPE),
            registry.build_optimizer(config["optimizer"], config["train"]["num_steps"]),
            config["seed"],
        )
        self.state, self.seconds = init_state(*what, self.batch["image"]), []
        self.step = make_train_step(*what).lower(self.state, self.batch).compile()
        self.memory_mb = memory_mb(self.step)

    def turn(self) -> None:
        """Do some steps, and note how long all but the first of them took."""
        for n in range(STEPS_A_TURN):
            start = time.perf_counter()
            self.state, metrics = self.step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
            if n:
                self.seconds.append(time.perf_counter() - start)


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the training step with each quantizer.")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help=f"some of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=9, help=f"turns of each row, of {STEPS_A_TURN} steps")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    for name in arguments.rows:
        if name not in ROWS:
            parser.error(f"unknown row {name}: known: {', '.join(ROWS)}")
    timed = {name: Timed(name) for name in tqdm(arguments.rows, "compiling")}
    for _ in tqdm(range(arguments.rounds), "turns"):
        for row in timed.values():
            row.turn()
    median = {name: 1000 * statistics.median(row.seconds) for name, row in timed.items()}
    first = median[arguments.rows[0]]
    rows = [
        {"name": name, "ms": median[name], "over_first": median[name] / first, "planned_mb": row.memory_mb}
        for name, row in timed.items()
    ]
    report({"benchmark": "quantizer_steps", "rounds": arguments.rounds, "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
