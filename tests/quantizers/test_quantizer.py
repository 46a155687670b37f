"""The contract of every quantizer of the table: any axes, any dtype, both modes of differentiation, ranges, memory."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from vqvae_jax.errors import InputError
from vqvae_jax.quantizers import (
    FiniteScalarQuantizer,
    GradientVectorQuantizer,
    LookupFreeQuantizer,
    Projected,
    ResidualQuantizer,
    SimVectorQuantizer,
    VectorQuantizer,
    straight_through,
)
from vqvae_jax.registry import QUANTIZERS

SMALL = {"codebook_size": 5, "num_codebooks": 2, "embedding_dim": 3}
# Every quantizer, and those of its options under which it computes something else; six dimensions a position.
CASES = {
    "finite_scalar": FiniteScalarQuantizer(levels=(4, 3, 5, 3, 3, 3)),
    "lookup_free": LookupFreeQuantizer(bits=6),
    "residual": ResidualQuantizer(codebook_size=5, num_codebooks=2, embedding_dim=6),
    "residual, shared": ResidualQuantizer(
        codebook_size=5, num_codebooks=3, embedding_dim=6, shared=True, quantizer_dropout=0.5
    ),
    "vector_ema": VectorQuantizer(**SMALL),
    "vector_ema, cosine": VectorQuantizer(**SMALL, distance="cosine", estimator="rotation", start="kmeans"),
    "vector_gradient": GradientVectorQuantizer(**SMALL),
    "vector_simvq": SimVectorQuantizer(**SMALL),
    "projected": Projected(VectorQuantizer(codebook_size=5, num_codebooks=2, embedding_dim=2), dim=6),
}
VECTORS = [name for name in QUANTIZERS if name.startswith("vector_")]
WITH_DISTANCES = [case for case, quantizer in CASES.items() if quantizer.has_distances]
KEY = jax.random.key(0)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(case, z_e=None, **changes):
    """A quantizer with the variables of a first batch."""
    quantizer = replace(CASES[case], **changes)
    params, state = jax.jit(quantizer.init)(KEY, random((64, quantizer.dim), 9) if z_e is None else z_e)
    return quantizer, {"params": params, "state": state}


def assert_trees_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_defaults_are_enough_for_ten_lines(name):
    quantizer = QUANTIZERS[name]()
    z_e = random((700, quantizer.dim))

    @jax.jit
    def ten_lines(z_e):
        params, state = quantizer.init(KEY, z_e)
        variables = {"params": params, "state": state}
        quantized = quantizer(variables, z_e)
        looked_up = quantizer.look_up(variables, quantized.indices)
        return state, quantized, looked_up, quantizer.next_state(variables, z_e, quantized.indices, KEY)

    state, (z_q, indices, losses), looked_up, new = ten_lines(z_e)
    assert set(quantizer.codebook_sizes) == {512}
    assert indices.shape == (700, 4 if name == "residual" else 1)
    assert indices.dtype == jnp.int32
    np.testing.assert_allclose(looked_up, z_q, rtol=1e-6, atol=1e-6)
    if name in {"vector_ema", "vector_gradient"}:
        # The codebook starts at distinct vectors of the batch, which are therefore their own codes.
        assert np.sum(np.all(np.isclose(z_q, z_e, atol=1e-4), axis=-1)) == 512
    assert losses.keys() == quantizer.loss_weights.keys()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize(("case", "axes"), [("vector_ema", (6, 4)), *((case, (2, 3, 4)) for case in CASES)])
def test_any_leading_axes_give_what_flat_vectors_give(case, axes):
    z_e = random((24, 6))
    quantizer, variables = make(case, z_e)
    _, of_axes = make(case, z_e.reshape(*axes, 6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), of_axes, variables)

    def everything(z_e):
        z_q, indices, losses = quantizer(variables, z_e)
        per_position = z_q, indices, quantizer.look_up(variables, indices)
        if quantizer.has_distances:
            per_position = *per_position, quantizer.distances(variables, z_e)
        return per_position, (losses, quantizer.next_state(variables, z_e, indices, KEY))

    flat, of_batch = jax.jit(everything)(z_e)
    shaped, same = jax.jit(everything)(z_e.reshape(*axes, 6))
    for expected, got in zip(flat, shaped, strict=True):
        np.testing.assert_array_equal(got, expected.reshape(*axes, *expected.shape[1:]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), same, of_batch)
    if case not in {"vector_ema", "residual", "lookup_free"}:
        return
    mapped, _ = jax.jit(jax.vmap(everything))(z_e.reshape(*axes, 6))
    for expected, got in zip(flat, mapped, strict=True):
        np.testing.assert_allclose(got, expected.reshape(*axes, *expected.shape[1:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_program_gives_the_indices_of_single_operations(name):
    z_e = random((2, 3, 4, 6))
    quantizer, variables = make(name)
    one, other = quantizer(variables, z_e), jax.jit(quantizer)(variables, z_e)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_allclose(one.z_q, other.z_q, rtol=1e-6)
    assert len(np.unique(one.indices)) > 1


@pytest.mark.parametrize("case", CASES)
def test_forward_and_reverse_mode_agree_and_go_straight_through(case):
    z_e, v, u = (random((4, 3, 6), seed) for seed in range(3))
    quantizer, variables = make(case)
    params, at_params = variables["params"], jax.tree.map(lambda x: random(x.shape, 5), variables["params"])

    def outputs(params, z_e):
        z_q, _, losses = quantizer(variables | {"params": params}, z_e)
        return z_q, losses

    (z_q, _), moved = jax.jit(lambda *at: jax.jvp(outputs, *at))((params, z_e), (at_params, v))
    weights = jnp.linspace(0.3, -1.7, len(quantizer.loss_weights))
    upstream = u, dict(zip(quantizer.loss_weights, weights, strict=True))
    back = jax.jit(lambda params, z_e, u: jax.vjp(outputs, params, z_e)[1](u))(params, z_e, upstream)

    def product(a, b):
        return sum(
            np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64))
            for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )

    assert product(moved, upstream) == pytest.approx(product(back, (at_params, v)), rel=1e-5)
    if case in {"finite_scalar", "vector_ema, cosine", "projected"}:
        return  # bounded, normalised and projected before
    np.testing.assert_allclose(moved[0], v, rtol=1e-6)
    if case.startswith("residual"):
        return  # each stage has its own part
    # The commitment is mean |z_e - z_q|² with z_q held still, whatever the parameters do.
    expected = 2 * np.mean((np.asarray(z_e, np.float64) - np.asarray(z_q)) * np.asarray(v))
    assert float(moved[1]["commitment"]) == pytest.approx(expected, rel=1e-4)


def test_straight_through_differentiates_forwards():
    z_e, z_q, v, w = (random((3, 4), seed) for seed in range(4))
    out, moved = jax.jvp(straight_through, (z_e, z_q), (v, w))
    np.testing.assert_array_equal(out, z_q)
    np.testing.assert_array_equal(moved, v)


@pytest.mark.parametrize(("case", "dtype"), [("vector_ema", jnp.float16), *((case, jnp.bfloat16) for case in CASES)])
def test_low_precision_comes_in_and_float32_goes_out(case, dtype):
    low = jnp.asarray(random((3, 8, 6)), dtype)

    @jax.jit
    def everything(z_e):
        quantizer, variables = make(case, z_e)
        quantized = quantizer(variables, z_e)
        state = quantizer.next_state(variables, z_e, quantized.indices, KEY)
        return variables, quantized, state, quantizer.distances(variables, z_e) if quantizer.has_distances else ()

    got, expected = everything(low), everything(low.astype(jnp.float32))
    kinds = {np.dtype(x.dtype).name for x in jax.tree.leaves(got)}
    assert kinds == {"float32", "int32"}
    assert_trees_equal(got, expected)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_where_float64_is_the_default(case):
    with jax.enable_x64(True):
        z_e = np.random.default_rng(0).normal(size=(64, 6))
        quantizer, variables = make(case, jnp.asarray(z_e))
        quantized = jax.jit(quantizer)(variables, z_e)
        new = jax.jit(quantizer.next_state)(variables, z_e, quantized.indices, KEY)
        looked_up = jax.jit(quantizer.look_up)(variables, quantized.indices)
        found = jax.tree.leaves((variables, quantized.z_q, quantized.losses, new, looked_up))
        assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.float32)}
        assert quantized.indices.dtype == jnp.int32


@pytest.mark.parametrize("case", WITH_DISTANCES)
def test_distances_equal_brute_force_and_are_least_at_the_chosen_code(case):
    z_e = random((3, 4, 6))
    quantizer, variables = make(case)
    inner, small, own = quantizer, np.asarray(z_e, np.float64), variables
    if case == "projected":
        inner, own = quantizer.quantizer, {"params": {}, "state": variables["state"]}
        small = small @ np.asarray(variables["params"]["in"], np.float64)
    every = jnp.broadcast_to(jnp.arange(5)[:, None], (5, 2))
    codebook = np.asarray(inner.look_up(own, every), np.float64).reshape(5, 2, -1).swapaxes(0, 1)
    small = small.reshape(3, 4, 2, 1, -1)
    if "cosine" in case:
        small /= np.linalg.norm(small, axis=-1, keepdims=True)
    expected = np.sum((small - codebook) ** 2, axis=-1)
    distances = jax.jit(quantizer.distances)(variables, z_e)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.argmin(distances, axis=-1), quantizer(variables, z_e).indices)


@pytest.mark.parametrize("name", VECTORS)
def test_losses_are_unweighted_means_and_their_weights_are_those_of_eq_3(name):
    z_e = random((3, 4, 6))
    quantizer, variables = make(name, commitment_cost=0.7)
    assert quantizer.loss_weights == {"codebook": 1.0, "commitment": 0.7}
    z_q, _, losses = quantizer(variables, z_e)
    expected = np.mean((np.asarray(z_e, np.float64) - np.asarray(z_q)) ** 2)
    for loss in losses.values():
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_state_moves_by_the_moving_average_alone():
    z_e = random((40, 6), 3)
    gradient, variables = make("vector_gradient")
    indices = gradient(variables, z_e).indices
    assert gradient.next_state(variables, z_e, indices, KEY) is variables["state"]
    ema, variables = make("vector_ema", revival_threshold=0.0, ema_decay=0.75)
    count = np.asarray(variables["state"].count)
    indices = ema(variables, z_e).indices
    used = np.stack([np.bincount(indices[:, g], minlength=5) for g in range(2)])
    new = ema.next_state(variables, z_e, indices, KEY)
    np.testing.assert_allclose(new.count, 0.75 * count + 0.25 * used, rtol=1e-6)


def test_codes_out_of_use_are_revived_by_the_next_state():
    # All vectors are at one of two places far from most codes, which fade.
    quantizer, variables = make("vector_ema", num_codebooks=1, ema_decay=0.5)
    z_e = jnp.repeat(jnp.array([[100.0, 0, 0], [0, 100, 0]]), 32, axis=0)
    for n in range(12):
        indices = quantizer(variables, z_e).indices
        variables["state"] = quantizer.next_state(variables, z_e, indices, jax.random.key(n))
    codes = np.asarray(quantizer.look_up(variables, jnp.arange(5)[:, None]))
    assert np.abs(codes[:, None] - np.array([[100, 0, 0], [0, 100, 0]])[None]).max(-1).min(1).max() < 1


RANGES_OF_VECTORS = [
    ({"distance": "cosin"}, "unknown quantizer.distance 'cosin': did you mean 'cosine'"),
    ({"estimator": "rotate"}, "unknown quantizer.estimator 'rotate': .*known: rotation, straight_through"),
    ({"start": "k-means"}, "unknown quantizer.start 'k-means': did you mean 'kmeans'"),
]
OF_RESIDUALS = [
    ({"quantizer_dropout": 1.5}, "quantizer.quantizer_dropout is 1.5: it must be 0 to 1"),
    ({"estimator": "rotate"}, "unknown quantizer.estimator 'rotate'"),
    ({"start": "k-means"}, "unknown quantizer.start 'k-means'"),
]
OF_OTHERS = [
    (FiniteScalarQuantizer, {"levels": ()}, "quantizer.levels is empty: give the levels of each dimension"),
    (FiniteScalarQuantizer, {"levels": (8, 2)}, "quantizer.levels is 2: it must be at least 3"),
    (FiniteScalarQuantizer, {"levels": (2**14 + 1, 3)}, "quantizer.levels has 16385 levels in a dimension"),
    (LookupFreeQuantizer, {"bits": 0}, "quantizer.bits is 0: it must be at least 1"),
    (LookupFreeQuantizer, {"temperature": 0.0}, "quantizer.temperature is 0.0: it must be above 0, and finite"),
    (LookupFreeQuantizer, {"entropy_weight": -1.0}, "quantizer.entropy_weight is -1.0: it must be at least 0"),
    (LookupFreeQuantizer, {"diversity": -1.0}, "quantizer.diversity is -1.0: it must be at least 0"),
    (
        LookupFreeQuantizer,
        {"commitment_cost": math.inf},
        "quantizer.commitment_cost is inf: it must be at least 0, and",
    ),
]
RANGES = [
    ({"codebook_size": 0}, "quantizer.codebook_size is 0: it must be at least 1"),
    ({"num_codebooks": 0}, "quantizer.num_codebooks is 0: it must be at least 1"),
    ({"embedding_dim": 0}, "quantizer.embedding_dim is 0: it must be at least 1"),
    ({"commitment_cost": -0.1}, "quantizer.commitment_cost is -0.1: it must be at least 0"),
    ({"commitment_cost": math.nan}, "quantizer.commitment_cost is nan: it must be at least 0"),
]
OF_EMA = [
    ({"ema_decay": -0.1}, "quantizer.ema_decay is -0.1: it must be at least 0"),
    ({"ema_decay": 1.0}, "quantizer.ema_decay is 1.0: it must be below 1"),
    ({"ema_epsilon": 0.0}, "quantizer.ema_epsilon is 0.0: it must be above 0, as the count of a code may be 0"),
    ({"ema_epsilon": math.nan}, "quantizer.ema_epsilon is nan: it must be above 0"),
    ({"revival_threshold": 0.1}, r"quantizer.revival_threshold is 0.1: it must be 0 \(never\) to below 0.1"),
    ({"revival_threshold": -0.01}, "quantizer.revival_threshold is -0.01: it must be 0"),
    ({"revival_threshold": math.nan}, "quantizer.revival_threshold is nan: it must be 0"),
]


@pytest.mark.parametrize(
    ("quantizer", "options", "message"),
    [
        *((quantizer, *case) for quantizer in (VectorQuantizer, ResidualQuantizer) for case in RANGES + OF_EMA),
        *((SimVectorQuantizer, *case) for case in RANGES_OF_VECTORS),
        *((ResidualQuantizer, *case) for case in OF_RESIDUALS),
        *OF_OTHERS,
    ],
)
def test_options_out_of_range_are_one_clear_line(quantizer, options, message):
    with pytest.raises(InputError, match=message) as caught:
        quantizer(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["init", "__call__", "distances"])
@pytest.mark.parametrize("case", CASES)
def test_vectors_of_another_dimension_are_refused_in_one_line(case, method):
    quantizer, variables = make(case)
    if method == "distances" and not quantizer.has_distances:
        return
    first = KEY if method == "init" else variables
    with pytest.raises(InputError, match="z_e has 7 dimensions a position, this quantizer takes 6") as caught:
        getattr(quantizer, method)(first, random((4, 7)))
    assert "\n" not in str(caught.value)


def sizes_of_arrays(function, *arguments):
    """The sizes of all arrays in a program as it is lowered for every platform."""
    program = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(*arguments).mlir_module()
    shapes = re.findall(r"tensor<((?:\d+x)*)[a-z]", program)
    return {math.prod(int(n) for n in shape.split("x") if n) for shape in shapes}


LARGE = {name: {"codebook_size": 2048, "embedding_dim": 2} for name in VECTORS}
LARGE |= {"residual": {"codebook_size": 2048, "embedding_dim": 4}}
LARGE |= {"finite_scalar": {"levels": (8, 4, 8, 8)}, "lookup_free": {"bits": 11}}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_no_array_of_positions_times_codes_exists_on_any_platform(name):
    positions, size = 333, 2048
    quantizer = replace(CASES[name], **LARGE[name])
    assert quantizer.codebook_sizes[0] == size
    z_e = random((positions, quantizer.dim))
    quantizer, variables = make(name, z_e, **LARGE[name])

    def step(variables, z_e):
        def loss(params, z_e):
            z_q, indices, losses = quantizer(variables | {"params": params}, z_e)
            return jnp.sum(z_q) + sum(losses.values()), indices

        gradients, indices = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], z_e)
        return gradients, quantizer.next_state(variables, z_e, indices, KEY)

    largest = max(sizes_of_arrays(step, variables, z_e))
    assert largest < positions * size
    if quantizer.has_distances:  # the test sees such an array where there is one
        assert positions * 512 <= largest
        assert max(sizes_of_arrays(quantizer.distances, variables, z_e)) >= positions * size
