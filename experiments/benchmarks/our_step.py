"""The training step by itself, for `train_step.py`, which times it in turns with others.

    python -m experiments.benchmarks.our_step CASE ours|plain DTYPE

Prints a line of JSON when it is ready, and answers each {"steps": n} with the seconds that each took, and
{"product": 1} with the rate of a matrix product.
"""

import importlib
import json
import sys
import time

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":  # before jax is imported
    with_huge_pages()
    importlib.import_module("vqvae_jax.main")  # which sets XLA's flags

import jax

from experiments.benchmarks.plain_networks import flip_transposed, plain
from experiments.benchmarks.processes import peak_mb
from experiments.benchmarks.step_cases import CASES, memory_mb, optimizer, product_rate, start
from vqvae_jax.models.vqvae import VQVAE
from vqvae_jax.training.step import make_train_step


def main():
    """Answer on standard output."""
    jax.config.update("jax_enable_compilation_cache", False)
    name, form, dtype = sys.argv[1:]
    case = CASES[name]
    model = case.build(dtype)
    state, batch = start(case, model)
    if form == "plain":
        model, state = plain(model), state._replace(params=flip_transposed(state.params))
    traces, loss = [], VQVAE.loss

    def counted(self, variables, batch, key):  # once in every trace of the step
        traces.append(1)
        return loss(self, variables, batch, key)

    VQVAE.loss = counted
    step = make_train_step(model, optimizer(), 0)
    begin = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    about = {"compile_seconds": time.perf_counter() - begin, "planned_mb": memory_mb(compiled)}
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss_nats"]))
    print(json.dumps(about | {"losses": losses}), flush=True)
    for line in sys.stdin:
        request, seconds = json.loads(line), []
        for _ in range(request.get("steps", 0)):
            begin = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - begin)
        answer = {"seconds": seconds, "peak_mb": peak_mb(), "traces": len(traces)}
        print(json.dumps(answer | ({"product": product_rate()} if "product" in request else {})), flush=True)


if __name__ == "__main__":
    main()
