"""How a training step's time and memory grow with each size, and what it sends between eight devices.

    python -m experiments.benchmarks.scaling [--quick] [--rounds=7] [--series=NAME ...] [--figure=FILE.png] [--out=FILE]

Every size runs in a process of its own. Memory is what XLA plans for the step (`planned_mb`) and the most that the
process took (`peak_mb`). An exponent is the slope of a line through the logarithms of the largest half of a series,
where what is constant no longer hides it: 1 is linear. Of the series of K, `bytes_per_code` is the slope of the planned
memory; a program that kept all distances would have 4 bytes for each of the N vectors of a batch in it.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.processes import peak_mb
from experiments.benchmarks.step_cases import CASES, Case, memory_mb, optimizer, start
from experiments.provenance import report
from vqvae_jax.priors import pixelcnn
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.training import sharding
from vqvae_jax.training.step import init_state, make_train_step

Program = tuple[Callable, tuple]  # a training step, and its first state and batch
BASE = replace(CASES["headline"], batch=16)
# So that the codebook counts.
SMALL = replace(BASE, batch=8, model=dict(BASE.model) | {"hidden": 16, "residual_units": 8})
DEVICES = 8
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def of_model(case: Case) -> Program:
    """A step of the image model."""
    model = case.build()
    return make_train_step(model, optimizer(), 0), start(case, model)


def of_prior(positions: int) -> Program:
    """A step of a PixelCNN on square fields of so many codes."""
    field, size = (math.isqrt(positions), math.isqrt(positions), 1), 512
    codes = np.random.default_rng(0).integers(0, size, (4, *field)).astype(np.int32)
    batch = sharding.put_batch({"codes": codes, "label": np.zeros(4, np.int32)})
    prior = Autoregressive(pixelcnn.Network(field, size, 0, 32, 4, 0.0), (size,), 0, 0.0)
    return make_train_step(prior, optimizer(), 0), (init_state(prior, optimizer(), 0, batch), batch)


def with_codes(**options: int) -> Program:
    """A step of a small network, with other options of its quantizer."""
    return of_model(replace(SMALL, quantizer=dict(SMALL.quantizer) | options))


SERIES: dict[str, tuple[tuple[int, ...], Callable[[int], Program]]] = {
    "batch": ((8, 16, 32, 64, 128, 256), lambda n: of_model(replace(BASE, batch=n))),
    "pixels": ((32**2, 64**2, 128**2, 256**2), lambda n: of_model(replace(BASE, batch=4, side=math.isqrt(n)))),
    "K": (tuple(2**n for n in range(6, 19, 2)), lambda n: with_codes(codebook_size=n)),
    "codebooks": ((1, 2, 4, 8, 16, 32), lambda n: with_codes(num_codebooks=n, embedding_dim=16)),
    "positions": ((8**2, 16**2, 32**2, 64**2), of_prior),
}


def measure(series: str, value: int, rounds: int) -> dict:
    """Compile and time one size, in this process."""
    step, (state, batch) = SERIES[series][1](value)
    compiled, seconds = step.lower(state, batch).compile(), []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(1000 * (time.perf_counter() - begin))
    times = {"ms": round(statistics.median(seconds[1:]), 3), "range": [round(f(seconds[1:]), 3) for f in (min, max)]}
    return {"value": value, **times, "planned_mb": memory_mb(compiled), "peak_mb": peak_mb()}


def collectives(hlo: str) -> dict:
    """Count the bytes of the results of a program's exchanges between devices, by kind, each once."""
    found, sizes = Counter(), Counter()
    for shapes, kind in re.findall(rf"= (.+?) ({COLLECTIVES})(?:-start)?\(", hlo):
        found[kind] += 1
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes):
            sizes[kind] += BYTES[dtype] * math.prod(map(int, filter(None, sides.split(","))))
    return {"count": dict(found), "bytes": dict(sizes), "bytes_per_step": sizes.total()}


def of_devices() -> dict:
    """Say what a step of the image model sends between devices, and how large its gradients are."""
    step, (state, batch) = of_model(BASE)
    parameters = sum(x.nbytes for x in jax.tree.leaves(state.params))
    about = {"devices": jax.device_count(), "bytes_of_parameters": parameters}
    return about | collectives(step.lower(state, batch).compile().as_text())


def apart(*words: str, devices: int = 1) -> dict:
    """Run this program in another process, and read its last line."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | ({"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} if devices > 1 else {})
    line = [sys.executable, "-m", "experiments.benchmarks.scaling", *words]
    return json.loads(subprocess.run(line, env=env, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


def exponent(rows: list[dict], key: str) -> float:
    """Fit the power with which a measure grows, to the larger half of the sizes, at least two."""
    upper = rows[min(len(rows) // 2, len(rows) - 2) :]
    x, y = (np.log([row[name] for row in upper]) for name in ("value", key))
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def summary(rows: list[dict]) -> dict:
    """Give a series with its exponents, and what one more costs in planned memory."""
    last, before = rows[-1], rows[-2]
    slope = 2**20 * (last["planned_mb"] - before["planned_mb"]) / (last["value"] - before["value"])
    return {
        "exponent_of_time": exponent(rows, "ms"),
        "exponent_of_memory": exponent(rows, "planned_mb"),
        "bytes_for_one_more": round(slope),
        "rows": rows,
    }


def draw(found: dict[str, dict], path: Path) -> None:
    """Draw time and memory against each size, with lines of the fitted powers through the last point."""
    from matplotlib.figure import Figure

    figure = Figure((3.2 * len(found), 5.6), layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for axes, (name, series) in zip(grid.T, found.items(), strict=True):
        x = np.array([row["value"] for row in series["rows"]], float)
        for axis, key, of in ((axes[0], "ms", "time"), (axes[1], "planned_mb", "memory")):
            y, power = [row[key] for row in series["rows"]], series[f"exponent_of_{of}"]
            axis.loglog(x, y, "o")
            axis.loglog(x, y[-1] * (x / x[-1]) ** power, lw=1, label=f"power {power:.2f}")
            axis.set(xlabel=name, ylabel="ms a step" if key == "ms" else "MB planned")
            axis.legend(frameon=False)
            axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run the benchmark, or one size of it."""
    parser = argparse.ArgumentParser(description="Measure how the cost of a training step grows.")
    parser.add_argument("--series", action="append", choices=[*SERIES, "devices"], help="default: all; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are timed at each size")
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes of each: shows that it runs")
    parser.add_argument("--figure", type=Path, help="draw the curves here, as PNG")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--one", type=int, help="this size of the series alone, in this process")
    arguments = parser.parse_args()
    chosen = arguments.series or [*SERIES, "devices"]
    if arguments.one is not None:
        one = of_devices if chosen == ["devices"] else partial(measure, chosen[0], arguments.one, arguments.rounds)
        print(json.dumps(one()))
        return 0
    found: dict[str, dict] = {}
    for name in (name for name in SERIES if name in chosen):
        values = SERIES[name][0][: 2 if arguments.quick else None]
        words = f"--series={name}", f"--rounds={arguments.rounds}"
        found[name] = summary([apart(*words, f"--one={value}") for value in tqdm(values, name)])
    if arguments.figure and found:
        draw(found, arguments.figure)
    result = {"benchmark": "scaling", "series": found, "rounds": arguments.rounds}
    if "devices" in chosen:
        result["collectives"] = apart("--series=devices", "--one=0", devices=DEVICES)
    result["vectors_in_series_of_K"] = SMALL.batch * (SMALL.side // SMALL.build().trunk.factor) ** 2
    report(result | {"command": "python -m experiments.benchmarks.scaling"}, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
