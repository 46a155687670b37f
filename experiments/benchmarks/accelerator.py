"""Measure a device in at most eight minutes, and print one table.

    python -m experiments.benchmarks.accelerator [--minutes=8] [--quick] [--out=FILE]

Rates of a matrix product and the training step (128/32 units, K = 512, one logistic; 32x32 and 128x128) in float32,
TensorFloat-32 and bfloat16; evaluation; drawing 32x32 codes; and PyTorch's step, eager and compiled, if torch can be
imported. `share` is that of the matrix product of the same precision. What fails (out of memory) is a line of the
table; what there is no time for is left out and named. --quick: sizes that any CPU can do. The last line is one JSON
object.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":  # before jax is imported
    with_huge_pages()

import jax
import jax.numpy as jnp

from experiments.benchmarks import sampling
from experiments.benchmarks.step_cases import CASES, Case, memory_mb, optimizer, product_rate, start, write_network
from experiments.provenance import report
from vqvae_jax.main import keep_compiled
from vqvae_jax.run import Run
from vqvae_jax.training.step import make_train_step

# How JAX multiplies float32, and the dtype of activations.
PRECISIONS = {"float32": ("highest", "float32"), "tf32": ("tensorfloat32", "float32"), "bf16": ("highest", "bfloat16")}
STYLES = {"ms": ".3g", "per second": ",.0f", "GFLOP/s": ",.0f", "share": ".1%", "MB": ",.0f", "note": ""}
COLUMNS = ("what", *STYLES)
Row = dict[str, Any]  # a number, or a note, of each column


def median_seconds(function: Callable[[], object], wait: Callable, calls: int) -> float:
    """Time `calls` calls in a row, with one wait at the end; the median of five, per call."""
    wait(function())
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(calls):
            result = function()
        wait(result)
        times.append((time.perf_counter() - begin) / calls)
    return statistics.median(times)


def product(precision: str, size: int) -> Row:
    """A product of square matrices."""
    multiply, dtype = PRECISIONS[precision]
    with jax.default_matmul_precision(multiply):
        rate = product_rate(jnp.dtype(dtype), size, size)
    return {"ms": 2 * size**3 / rate / 1e6, "GFLOP/s": rate}


def of_step(case: Case, seconds: float, megabytes: int | None) -> Row:
    """What a step's time says."""
    row = {"ms": 1000 * seconds, "per second": case.batch / seconds, "GFLOP/s": case.flops() / seconds / 1e9}
    return row | ({} if megabytes is None else {"MB": megabytes})


def step(case: Case, precision: str, calls: int) -> Row:
    """Our training step; memory is what XLA plans."""
    multiply, dtype = PRECISIONS[precision]
    with jax.default_matmul_precision(multiply):
        model = case.build(dtype)
        state, batch = start(case, model)
        compiled = make_train_step(model, optimizer(), 0).lower(state, batch).compile()

        def once():
            nonlocal state
            state, metrics = compiled(state, batch)
            return metrics

        return of_step(case, median_seconds(once, jax.block_until_ready, calls), memory_mb(compiled))


def torch_step(case: Case, precision: str, calls: int, *, compiled: bool) -> Row:
    """PyTorch's training step; memory is the most that it allocated."""
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks import torch_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        write_network(case, path)
        once = torch_step.make_step(str(path), "channels_last", PRECISIONS[precision][1], device, compiled)
    for _ in range(3):
        once()
    if device == "cpu":
        return of_step(case, median_seconds(once, lambda loss: loss, calls), None)
    torch.cuda.reset_peak_memory_stats()
    seconds = median_seconds(once, lambda loss: torch.cuda.synchronize(), calls)
    return of_step(case, seconds, torch.cuda.max_memory_allocated() // 2**20)


def evaluation(case: Case, count: int) -> Row:
    """Bounds and reconstructions of images, from arrays to arrays."""
    model, images = case.build(), case.images(count)
    state = start(case, model)[0]
    variables = {"params": state.params, "state": state.model_state, "fitted": {}}
    meta = {"config": {"eval": {"batch_size": case.batch}}, "image_shape": list(images.shape[1:])}
    run = Run(model, variables, meta)
    seconds = median_seconds(lambda: run.measure(images), lambda found: found, 1)
    return {"ms": 1000 * seconds, "per second": count / seconds}


def drawing(field: tuple[int, int, int], batch: int) -> Row:
    """Codes of a PixelCNN prior, one after the other."""
    case = sampling.Case(field, batch)
    seconds = median_seconds(case.sample, lambda codes: codes, 1)
    return {"ms": 1000 * seconds, "per second": case.codes.size / seconds}


def plan(quick: bool) -> dict[str, Callable[[], Row]]:
    """Give everything that is measured, in the order of what is missed most."""
    cases = {32: replace(CASES["headline"]), 128: replace(CASES["pixels128"], batch=64)}
    size, calls, images, field, batch = 8192, 10, 4096, (32, 32, 1), 64
    if quick:
        cases = {8: CASES["tiny"], 16: replace(CASES["tiny"], side=16)}
        size, calls, images, field, batch = 128, 1, 8, (2, 2, 1), 2
    found: dict[str, Callable[[], Row]] = {f"product, {p}": partial(product, p, size) for p in PRECISIONS}
    for side, case in cases.items():
        found |= {f"step, {side} pixels, {p}": partial(step, case, p, calls) for p in PRECISIONS}
    found |= {f"evaluation, {side} pixels, float32": partial(evaluation, case, images) for side, case in cases.items()}
    found["drawing codes, float32"] = partial(drawing, field, batch)
    if importlib.util.find_spec("torch"):
        for how in ("eager", "compiled"):
            for side, case in cases.items():
                for p in PRECISIONS:
                    row = partial(torch_step, case, p, calls, compiled=how == "compiled")
                    found[f"PyTorch {how}, {side} pixels, {p}"] = row
    return found


def measure(rows: dict[str, Callable[[], Row]], seconds: float) -> tuple[dict[str, Row], list[str]]:
    """Run rows while there is time for one as long as the longest so far; give what they say, and what is left out."""
    found: dict[str, Row] = {}
    begin = last = time.perf_counter()
    longest = 0.0
    for name, row in rows.items():
        if last - begin + longest > seconds:
            return found, [name for name in rows if name not in found]
        print(f"{last - begin:4.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            found[name] = row()
        except Exception as error:  # the other rows are still worth having
            found[name] = {"note": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:80]}"}
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return found, []


def add_shares(found: dict[str, Row]) -> None:
    """Divide rates by that of the product of the same precision."""
    for name, row in found.items():
        peak = found.get(f"product, {name.rpartition(', ')[2]}", {}).get("GFLOP/s")
        if peak and "GFLOP/s" in row and not name.startswith("product"):
            row["share"] = row["GFLOP/s"] / peak


def table(found: dict[str, Row]) -> str:
    """Lay the rows out."""
    lines = [list(COLUMNS)]
    for name, row in found.items():
        lines.append([name, *(format(row[key], style) if key in row else "" for key, style in STYLES.items())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<", *">" * (len(COLUMNS) - 2), "<"]
    texts = [[f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(text).rstrip() for text in texts)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure a device, and print one table.")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, whose figures say nothing")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too
    keep_compiled()
    found, left_out = measure(plan(arguments.quick), 60 * arguments.minutes)
    add_shares(found)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}\n{table(found)}")
    if left_out:
        print(f"left out for want of time: {'; '.join(left_out)}")
    result = {
        "benchmark": "accelerator",
        "device": jax.devices()[0].device_kind,
        "rows": found,
        "left_out": left_out,
        "quick": arguments.quick,
        "command": "python -m experiments.benchmarks.accelerator",
    }
    report(result, arguments.out)
    return 1 if all("note" in row for row in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
