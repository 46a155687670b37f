"""Time the training step against the same network in `nn.Conv` and `nn.ConvTranspose`, and against PyTorch's form.

    python -m venv PEERS && PEERS/bin/pip install -r experiments/benchmarks/requirements-peers.txt
    python -m experiments.benchmarks.train_step --peer=PEERS/bin/python [--cases=all] [--bfloat16] [--out=FILE]

The cases: "headline" (128 units, 32 residual units, K = 512, D = 64, one discretised logistic, batch 128, 32x32x3),
"batch32" and "pixels128" (the same network, batch 32, and batch 16 of 128x128), and "paper" (256 units, 8x8x10 codes,
256-way softmax, batch 128). Every program is a process of its own; all take turns in one run, and wait while another
is timed. PyTorch runs contiguous and channels-last, each with and without huge pages, and its best median counts.

From the same parameters, loss and gradients of our network and the plain one must agree to 1e-5, and the losses of
three steps with PyTorch's to 1e-4. The last line is one JSON object. `speedup` is the plain step's median time over
ours, `over_pytorch` PyTorch's over ours; the exit status is 1 below their goals, or where results differ.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.plain_networks import flip_transposed, plain
from experiments.benchmarks.processes import HUGE_PAGES, Process
from experiments.benchmarks.step_cases import CASES, Case, write_network
from experiments.provenance import report
from vqvae_jax.data import batches
from vqvae_jax.data.sources import ArraySource

# Of the plain step's time over ours; on an accelerator both may be the same program.
GOALS = {"cpu": 2.0}
STEPS_A_TURN = 3  # the first of which isn't counted: it finds the caches full of another program's data
LAYOUTS = ("channels_last", "contiguous")
COMMAND = "python -m experiments.benchmarks.train_step --peer=PEERS/bin/python --cases=all --bfloat16"


def largest_difference(case: Case) -> float:
    """Compare loss and gradients of our network and the plain one: the largest difference over the largest entry.

    Where an input of a ReLU is within rounding of zero, both may be right and still differ. In a batch of 128 images
    there often is such an input, in one of four (of 32x32) there rarely is: this is the median over five of these, each
    with its own parameters.
    """
    model = case.build()

    def of(model):
        def loss(params, state, images):
            return model.loss({"params": params, "state": state}, {"image": images}, jax.random.key(0))[0]

        return jax.jit(jax.value_and_grad(loss))

    init, ours, other, found = jax.jit(model.init), of(model), of(plain(model)), []
    for seed in range(5):
        images = case.images(max(1, 4 * 32**2 // case.side**2), seed)
        with jax.default_matmul_precision("highest"):
            params, state = map(init(jax.random.key(seed), images).get, ("params", "state"))
            one, two = ours(params, state, images), other(flip_transposed(params), state, images)
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves((two[0], flip_transposed(two[1]))), strict=True)
        found.append(np.max([jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in pairs]))
    return float(np.median(found))


def programs(name: str, peer: str | None, bfloat16: bool, folder: Path) -> dict[str, tuple[list[str], dict]]:
    """Give the command and the environment of everything that is timed of a case."""
    as_it_is = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ  # several processes share an accelerator
    without = {key: value for key, value in as_it_is.items() if key not in HUGE_PAGES}
    ours = [sys.executable, "-m", "experiments.benchmarks.our_step", name]
    found = {"ours": ([*ours, "ours", "float32"], as_it_is)}
    if name in ("headline", "tiny"):
        found["plain"] = ([*ours, "plain", "float32"], as_it_is)
    if bfloat16 and "dtype" in CASES[name].options():
        found["ours_bfloat16"] = ([*ours, "ours", "bfloat16"], as_it_is)
    if peer:
        network = folder / f"{name}.npz"
        write_network(CASES[name], network)
        line = [peer, str(Path(__file__).with_name("torch_step.py")), str(network)]
        for layout in LAYOUTS:
            found[f"pytorch_{layout}"] = ([*line, layout, "float32"], without)
            found[f"pytorch_{layout}_huge_pages"] = ([*line, layout, "float32"], without | HUGE_PAGES)
            if bfloat16:
                found[f"pytorch_bfloat16_{layout}"] = ([*line, layout, "bfloat16"], without | HUGE_PAGES)
    return found


def measure(commands: dict[str, tuple[list[str], dict]], rounds: int, title: str) -> tuple[dict, dict, list]:
    """Time programs in turns; give what each said at first and last, the times of each, and rates of products."""
    about, times, products = {}, {kind: [] for kind in commands}, []
    with ExitStack() as stack:
        running = {}
        for kind, (line, environment) in commands.items():
            # One after the other: compilation is timed as well.
            running[kind] = stack.enter_context(Process(line, environment))
            about[kind] = running[kind].answer()
        for _ in tqdm(range(rounds), title):
            products.append(running["ours"].ask(product=1)["product"])
            for kind, process in running.items():
                answer = process.ask(steps=STEPS_A_TURN)
                times[kind] += answer.pop("seconds")[1:]
                about[kind] |= answer
    return about, times, products


def summary(case: Case, about: dict, times: dict, products: list) -> dict:
    """Put together what was measured of a case."""
    median = {kind: 1000 * statistics.median(values) for kind, values in times.items()}
    peak, ours = statistics.median(products), median["ours"]
    result = {
        "ours_ms": round(ours, 1),
        "images_per_second": round(1000 * case.batch / ours, 1),
        "gflop": round(case.flops() / 1e9, 2),
        "product_gflops": round(peak, 1),
        "product_gflops_range": [round(min(products), 1), round(max(products), 1)],
        "share_of_peak": round(case.flops() / ours / 1e6 / peak, 3),
        "compile_seconds": round(about["ours"]["compile_seconds"], 1),
        "planned_mb": about["ours"]["planned_mb"],
        "peak_mb": {kind: found["peak_mb"] for kind, found in about.items()},
        "traces_of_our_step": about["ours"]["traces"],
        "milliseconds": {kind: round(value, 1) for kind, value in median.items()},
        "range": {kind: [round(1000 * f(values), 1) for f in (min, max)] for kind, values in times.items()},
    }
    if "plain" in median:
        result |= {"plain_ms": round(median["plain"], 1), "speedup": round(median["plain"] / ours, 2)}
    if "ours_bfloat16" in median:
        result["bfloat16_ms"] = round(median["ours_bfloat16"], 1)
    for start_of_name, end in (("pytorch_c", ""), ("pytorch_bfloat16_", "_bfloat16")):
        kinds = [kind for kind in median if kind.startswith(start_of_name)]
        if not kinds:
            continue
        best = min(kinds, key=median.__getitem__)
        result |= {f"pytorch{end}_ms": round(median[best], 1), f"pytorch{end}_best": best}
        if f"ours{end}" in median:
            result[f"over_pytorch{end}"] = round(median[best] / median[f"ours{end}"], 3)
        if not end:
            result["pytorch_peak_mb"] = about[best]["peak_mb"]
            losses = [np.array(about[kind]["losses"]) / about["ours"]["losses"] for kind in kinds]
            result["losses_of_pytorch_differ_by"] = float(np.max(np.abs(np.array(losses) - 1)))
            result["torch"] = about[best]["torch"]
    return result


def failures(case: Case, result: dict) -> list[str]:
    """Say which goals a case misses."""
    found = []
    if not result["largest_relative_difference"] < 1e-5:  # as NaN is not
        found.append(f"gradients differ by {result['largest_relative_difference']:.1e} of the largest")
    if result["traces_of_our_step"] != 1:
        found.append(f"the step was traced {result['traces_of_our_step']} times")
    goal = GOALS.get(jax.default_backend(), 0.9) if case.goal else 0
    if result.get("speedup", goal) < goal:
        found.append(f"{result['speedup']} times as fast as plain layers, not {goal}")
    if not result.get("losses_of_pytorch_differ_by", 0) < 1e-4:
        found.append(f"PyTorch's losses differ by {result['losses_of_pytorch_differ_by']:.1e}")
    if result.get("over_pytorch", case.goal) < case.goal:
        found.append(f"{result['over_pytorch']} times as fast as PyTorch, not {case.goal}")
    return found


def batches_per_second(count: int = 400) -> float:
    """Measure how fast the input makes batches of 128 when nobody else computes."""
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    source = ArraySource("noise", "train", images, np.zeros(len(images), np.int32), ("noise",))
    begin = time.perf_counter()
    for _ in batches.train_batches(source, 128, 0, True, range(count), 2, stage="model"):
        pass
    return count / (time.perf_counter() - begin)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the training step against plain layers and PyTorch.")
    parser.add_argument("--peer", help="a Python with torch; without it, PyTorch is left out")
    parser.add_argument("--cases", default="headline", help=f"all, or some of {', '.join(CASES)}; default: headline")
    parser.add_argument("--rounds", type=int, default=9, help=f"turns of each program, of {STEPS_A_TURN} steps")
    parser.add_argument("--bfloat16", action="store_true", help="time bfloat16 as well")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    names = [name for name in CASES if name != "tiny"] if arguments.cases == "all" else arguments.cases.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}: known: {', '.join(CASES)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cases, failed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            case, difference = CASES[name], largest_difference(CASES[name])
            commands = programs(name, arguments.peer, arguments.bfloat16, Path(folder))
            cases[name] = summary(case, *measure(commands, arguments.rounds, name))
            cases[name]["largest_relative_difference"] = difference
            failed += [f"{name}: {what}" for what in failures(case, cases[name])]
    rate, first = batches_per_second(), cases.get("headline", cases[names[0]])
    result = {
        "benchmark": "train_step",
        **first,
        "input_batches_per_second": round(rate, 1),
        "input_over_step": round(rate * first["ours_ms"] / 1000, 1),
        "cases": cases,
        "failed": failed,
        "rounds": arguments.rounds,
        "data": "random images",
        "command": COMMAND,
    }
    report(result, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
