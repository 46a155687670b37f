"""The health of a codebook against brute force, and its figure."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vqvae_jax import registry
from vqvae_jax.evaluation import codebook
from vqvae_jax.run import Run


@pytest.fixture
def run(config, tiny_quantizers):
    """Give a run of any quantizer with these counts of codes [h,w,G,K], as if it were finished."""

    def of(name, counts):
        section = config["model"] | {"quantizer": tiny_quantizers[name]}
        model = registry.build_model(section, (8, 12, 3))
        images = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)
        fitted = {"code_counts": jnp.asarray(counts, jnp.float32)}
        variables = {**model.init(jax.random.key(0), images), "fitted": fitted}
        return Run(model, variables, {"config": config, "class_names": ["one"], "image_shape": [8, 12, 3], "step": 0})

    return of


COUNTS = np.array([[4, 0, 1, 2, 0], [0, 3, 3, 1, 0]])


@pytest.mark.parametrize("name", ["vector_ema", "residual"])
def test_distances_are_those_of_the_nearest_other_code_in_use(name, run):
    made = run(name, COUNTS[None, None].repeat(2, axis=0))
    health = codebook.look(made)
    np.testing.assert_array_equal(health.counts, 2 * COUNTS)
    expected, common = [], (0, 1)
    for group, used in enumerate(([0, 3, 2], [1, 2, 3])):  # by use, the lower number first where it is equal
        vectors = []
        for code in used:
            position = list(common)
            position[group] = code
            vectors.append(np.asarray(made.model.vectors(made.variables, np.array([[[position]]], np.int32)))[0, 0, 0])
        expected += [min(math.dist(v, w) for w in vectors if w is not v) for v in vectors]
    np.testing.assert_allclose(health.nearest, expected, rtol=1e-4)
    fields = np.array([[0, 1], [3, 1], [2, 1]], np.int32)[:, None, None].repeat(5, axis=1).repeat(5, axis=2)
    np.testing.assert_array_equal(health.painted, made.decode(fields)[:, 4:-4, 4:-4])


def test_codebooks_of_different_sizes_are_counted_to_their_own(run, tmp_path):
    counts = np.zeros((1, 1, 2, 128 * 3 * 3))
    made = run("finite_scalar", counts)
    sizes = made.model.codebook_sizes
    counts = np.zeros((1, 1, len(sizes), max(sizes)))
    counts[..., 0] = 7
    health = codebook.look(run("finite_scalar", counts))
    assert codebook.summary(health) == f"{len(sizes)} of {sum(sizes):,} in use, perplexity 1.0 of {np.mean(sizes):.0f}"
    codebook.draw(tmp_path / "codebook.png", health, [], "one code")
    assert Image.open(tmp_path / "codebook.png").size == (1680, 432)


def test_a_line_says_how_many_codes_are_in_use_and_how_far_apart(run, tmp_path):
    health = codebook.look(run("vector_ema", COUNTS[None, None]))
    line = codebook.summary(health._replace(nearest=np.array([0.5, 1.0, 2.0])))
    even = math.exp(-sum(p * math.log(p) for p in (4 / 7, 1 / 7, 2 / 7)))
    other = math.exp(-sum(p * math.log(p) for p in (3 / 7, 3 / 7, 1 / 7)))
    assert line == (
        f"6 of 10 in use, perplexity {(even + other) / 2:.1f} of 5; from a code to its nearest 1 (5 to 95 %: 0.55 to 1.9)"
    )
    record = [{"step": 1, "eval/codebook_usage": 0.5}, {"step": 2, "train/loss_nats": 1.0}]
    codebook.draw(tmp_path / "codebook.png", health, record, "some codes")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "codebook.png").convert("L")))) > 10


def test_there_is_nothing_to_say_before_codes_are_counted(run):
    made = run("vector_ema", COUNTS[None, None])
    made.variables["fitted"].clear()
    assert codebook.look(made) is None


def test_few_codes_in_use_are_answered_with_the_options_to_change():
    counts = np.zeros((2, 10))
    counts[0], counts[1, :2] = 1, 5  # the second codebook uses two codes of ten, both together twelve of twenty
    health = codebook.Health(counts, (10, 10), np.zeros(0), np.zeros(0))
    said = codebook.advice(health, "do this")
    assert said == "20.0 % of the codes of codebook 2 are in use: in model.quantizer, do this"
    assert codebook.advice(health, "") is None
    assert codebook.advice(health._replace(sizes=(10, 6)), "do this") is None
    one = codebook.Health(counts[1:], (10,), np.zeros(0), np.zeros(0))
    assert codebook.advice(one, "do this").startswith("20.0 % of the codes are in use: ")


@pytest.mark.parametrize("name", registry.QUANTIZERS)
def test_advice_names_options_that_the_quantizer_has(name):
    words = set(re.findall(r"[a-z]+_[a-z_]+", registry.QUANTIZERS[name].advice)) - registry.QUANTIZERS.keys()
    assert words <= registry.arguments(registry.QUANTIZERS[name])
    assert registry.QUANTIZERS[name].advice
