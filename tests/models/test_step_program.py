"""The compiled training step on a CPU: what its program holds, does not hold, and needs in memory."""

import math
import re
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.plain_networks import plain
from experiments.benchmarks.step_cases import CASES, optimizer
from vqvae_jax.quantizers import nearest
from vqvae_jax.training import loop
from vqvae_jax.training.step import init_state, make_train_step

SIZE = 4096
CASE = replace(CASES["headline"], quantizer=CASES["headline"].quantizer | {"codebook_size": SIZE})
WIDTH = CASE.options()["quantizer"]["embedding_dim"]
POSITIONS = CASE.batch * (CASE.side // 4) ** 2
# Of the plain network's temporary memory: rearranged copies for matrix products take as much again as this allows. Both
# have the same quantizer, whose search once took so much that plain layers needed 243 MB and not 158; ours 313, now 277.
MOST_MEMORY = 1.76
# Of a run: the step, the first state, counting, measuring and reconstructing, and small ones between them.
MOST_PROGRAMS = 30


def compiled_step(model):
    """Compile the step of a batch, which is never run."""
    images = jax.ShapeDtypeStruct((CASE.batch, CASE.side, CASE.side, 3), np.uint8)
    state = jax.eval_shape(lambda x: init_state(model, optimizer(), 0, x), images)
    return make_train_step(model, optimizer(), 0).lower(state, {"image": images}).compile()


def operations(program):
    """Every operation of a compiled program: its result's type, its name and its line."""
    found = re.findall(r"^ +(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$", program, re.MULTILINE)
    assert len(found) > program.count(" = ") / 2  # else the form of the text has changed
    return found


def sizes(program):
    """The numbers of elements of all arrays."""
    return {math.prod(map(int, shape.split(","))) for shape in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", program)}


def on_the_host(program):
    """Operations that leave the device, or call what is not XLA's."""
    away = ("infeed", "outfeed", "send", "send-done", "recv", "recv-done", "custom-call", "copy-start", "async-start")
    return [(name, line) for _, name, line in operations(program) if name in away]


def loops_of_numbers(program):
    """Loops that carry floating-point numbers; those of random bits carry integers."""
    return [kind for kind, name, _ in operations(program) if name == "while" and re.search(r"\b(bf16|f\d+)\[", kind)]


@pytest.fixture(scope="module")
def step():
    return compiled_step(CASE.build())


@pytest.fixture(scope="module")
def program(step):
    return step.as_text()


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_the_step_loops_over_random_bits_and_blocks_of_codes_alone(program):
    (over_codes,) = loops_of_numbers(program)
    assert f"f32[{SIZE},{WIDTH}]" in over_codes
    # The others are the rounds of the generator: for three keys, and for the vectors that revived codes start at.
    assert Counter(name for _, name, _ in operations(program))["while"] - 1 <= 4
    naive = text_of(lambda x: jax.lax.map(jnp.sum, x), jnp.ones((5, 3)))
    assert loops_of_numbers(naive)


def test_the_step_never_leaves_the_device(program):
    assert on_the_host(program) == []

    def noisy(x):
        jax.debug.callback(lambda _: None, x)
        return x + 1

    assert on_the_host(text_of(noisy, jnp.ones(3)))


def test_the_step_has_no_array_of_positions_times_codes(program, monkeypatch):
    assert POSITIONS * nearest.CODES_AT_ONCE in sizes(program)
    assert max(sizes(program)) < POSITIONS * SIZE
    monkeypatch.setattr(nearest, "CODES_AT_ONCE", SIZE)
    z_e, codebook = jnp.ones((POSITIONS, 1, WIDTH)), jnp.ones((1, SIZE, WIDTH))
    assert max(sizes(text_of(nearest.nearest_code, z_e, codebook))) >= POSITIONS * SIZE


def test_the_step_needs_little_more_memory_than_that_of_plain_layers(step):
    ours, other = (c.memory_analysis().temp_size_in_bytes for c in (step, compiled_step(plain(CASE.build()))))
    assert POSITIONS * nearest.CODES_AT_ONCE * 4 < ours < MOST_MEMORY * other


def programs_of_a_run(config, workdir, num_steps, caplog):
    """How often each program is compiled, or read from the cache, in a run from its start."""
    config["train"] |= {"num_steps": num_steps, "eval_every": 2, "checkpoint_every": 2, "log_every": 1}
    jax.clear_caches()
    caplog.clear()
    with jax.log_compiles():
        loop.train(config, workdir)
    found = [re.match(r"Finished XLA compilation of jit\((.+)\) in", message) for message in caplog.messages]
    return Counter(match[1] for match in found if match)


@pytest.mark.slow
def test_a_longer_run_compiles_no_more_programs(config, tmp_path, caplog):
    short, long = (programs_of_a_run(config, tmp_path / str(steps), steps, caplog) for steps in (2, 6))
    assert short["step"] == short["init"] == 1
    assert long == short
    assert short.total() <= MOST_PROGRAMS, short
