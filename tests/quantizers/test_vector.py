"""The quantizer against brute force and hand-worked cases, and where its gradients and statistics may go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ema import array, random, run

from vqvae_jax.quantizers import GradientVectorQuantizer, VectorQuantizer, nearest, straight_through, vector
from vqvae_jax.quantizers.ema import Ema, ema_codebook, ema_init, ema_update, revive

# The last two K are cut into equal parts, and into parts with a rest; then one code at a time.
SIZES = [  # (b, h, w, G, D), K, CODES_AT_ONCE
    ((2, 3, 4, 3, 2), 7, 1024),
    ((1, 5, 2, 2, 4), 1, 1024),
    ((2, 3, 4, 2, 3), 12, 4),
    ((2, 3, 4, 1, 3), 11, 4),
    ((1, 2, 3, 2, 1), 6, 1),
]


@pytest.mark.parametrize(("shape", "K", "at_once"), SIZES)
def test_nearest_code_equals_brute_force(monkeypatch, shape, K, at_once):
    monkeypatch.setattr(nearest, "CODES_AT_ONCE", at_once)
    z_e, codebook = random(shape, 0), random((shape[3], K, shape[4]), 1)
    differences = z_e.astype(np.float64)[..., None, :] - codebook.astype(np.float64)
    expected = np.argmin((differences**2).sum(-1), axis=-1)
    indices = run(nearest.nearest_code, z_e, codebook)
    z_q = run(nearest.look_up, codebook, indices)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, expected)
    for *position, g in np.ndindex(expected.shape):
        np.testing.assert_array_equal(z_q[*position, g], codebook[g, expected[*position, g]])


@pytest.mark.parametrize("at_once", [1024, 3, 2, 1])
def test_nearest_code_gives_ties_to_the_lowest_index(monkeypatch, at_once):
    monkeypatch.setattr(nearest, "CODES_AT_ONCE", at_once)
    # Small integers with the mean 1, so that every distance is exact: 0 is as far from the codes of 1 and -1, 3 from
    # those of 1 and 5; 5 is exactly at two codes.
    codebook, z_e = array([5, 1, -1, 5, 1, 1, -1, -3], (1, 8, 1)), array([0, 5, 3, -9], (1, 1, 4, 1, 1))
    np.testing.assert_array_equal(run(nearest.nearest_code, z_e, codebook).ravel(), [1, 0, 0, 7])


@pytest.mark.parametrize("at_once", [1024, 100])
def test_an_offset_that_all_vectors_share_changes_no_code(monkeypatch, at_once):
    monkeypatch.setattr(nearest, "CODES_AT_ONCE", at_once)
    z_e, codebook = (1000 + random(shape, n) / 10 for n, shape in enumerate([(1, 50, 2, 8), (2, 512, 8)]))
    differences = z_e.astype(np.float64)[..., None, :] - codebook.astype(np.float64)
    expected = (differences**2).sum(-1)
    np.testing.assert_array_equal(run(nearest.nearest_code, z_e, codebook), np.argmin(expected, axis=-1))
    np.testing.assert_allclose(run(nearest.squared_distances, z_e, codebook), expected, rtol=1e-4)


def test_numpy_arrays_give_what_arrays_of_jax_give():
    z_e, codebook, key = random((4, 2, 3), 0), random((2, 5, 3), 1), jax.random.key(0)

    def everything(z_e, codebook):
        indices = nearest.nearest_code(z_e, codebook)
        z_q, ema = nearest.look_up(codebook, indices), ema_init(key, z_e, 5)
        losses = vector.codebook_loss(z_e, z_q), vector.commitment_loss(z_e, z_q)
        moved = revive(key, ema_update(ema, z_e, indices, 0.9), z_e, 0.1)
        return indices, straight_through(z_e, np.asarray(z_q)), losses, ema_codebook(moved, 1e-5)

    found = everything(z_e, codebook)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, found, everything(jnp.asarray(z_e), jnp.asarray(codebook)))
    for quantizer in (VectorQuantizer(5, 2, 3), GradientVectorQuantizer(5, 2, 3)):
        params, state = quantizer.init(key, z_e.reshape(4, 6))
        on_device = {"params": params, "state": state}
        plain = jax.tree.map(np.asarray, on_device)
        expected = quantizer(on_device, jnp.asarray(z_e.reshape(4, 6)))
        got = quantizer(plain, z_e.reshape(4, 6))
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        np.testing.assert_array_equal(quantizer.look_up(plain, np.asarray(got.indices)).reshape(4, 6), expected.z_q)


def test_look_up_fetches_each_code_from_its_own_codebook():
    codebook = array(range(12), (2, 3, 2))
    z_q = run(nearest.look_up, codebook, np.array([[[[0, 0], [2, 1]]]], np.int32))
    np.testing.assert_array_equal(z_q, [[[[[0, 1], [6, 7]], [[4, 5], [8, 9]]]]])


def test_straight_through_gives_exactly_z_q():
    # z_e + (z_q - z_e) would round to 0 where z_e is large.
    z_q, z_e = jnp.asarray(random((2, 3, 3, 2, 4), 0)), jnp.asarray(1e8 * random((2, 3, 3, 2, 4), 1))
    assert np.asarray(straight_through(z_e, z_q)).tobytes() == np.asarray(z_q).tobytes()
    assert run(straight_through, z_e, z_q).tobytes() == np.asarray(z_q).tobytes()


def test_straight_through_sends_the_gradient_unchanged_to_z_e_and_none_to_z_q():
    z_e, z_q, upstream = (random((2, 3, 3, 2, 4), seed) for seed in range(3))
    to_z_e, to_z_q = run(lambda z_e, z_q, u: jax.vjp(straight_through, z_e, z_q)[1](u), z_e, z_q, upstream)
    np.testing.assert_array_equal(to_z_e, upstream)
    np.testing.assert_array_equal(to_z_q, 0)


@pytest.mark.parametrize(
    ("loss", "moves_z_e", "moves_z_q"), [("codebook_loss", False, True), ("commitment_loss", True, False)]
)
def test_each_loss_moves_its_own_side_only(loss, moves_z_e, moves_z_q):
    z_e, z_q = random((2, 3, 1, 2, 4), 0), random((2, 3, 1, 2, 4), 1)
    difference = z_e.astype(np.float64) - z_q
    value, (to_z_e, to_z_q) = run(jax.value_and_grad(getattr(vector, loss), (0, 1)), z_e, z_q)
    np.testing.assert_allclose(value, np.mean(difference**2), rtol=1e-6)
    np.testing.assert_allclose(to_z_e, moves_z_e * 2 * difference / z_e.size, rtol=1e-5, atol=0)
    np.testing.assert_allclose(to_z_q, -moves_z_q * 2 * difference / z_e.size, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("loss", "to_z_e", "to_codebook"),
    [  # a mean over four vectors: code 0 is pulled by 1, 3 and -1, code 1 by 9 - 10
        (straight_through, [1, 1, 1, 1], [0, 0, 0]),
        (vector.codebook_loss, [0, 0, 0, 0], [-1.5, 0.5, 0]),
        (vector.commitment_loss, [0.5, 1.5, -0.5, -0.5], [0, 0, 0]),
    ],
)
def test_only_the_codebook_loss_reaches_the_codes_and_only_those_in_use(loss, to_z_e, to_codebook):
    def total(z_e, codebook):
        return jnp.sum(loss(z_e, nearest.look_up(codebook, nearest.nearest_code(z_e, codebook))))

    z_e, codebook = array([1, 3, 9, -1], (1, 2, 2, 1, 1)), array([0, 10, 20], (1, 3, 1))
    gradients = run(jax.grad(total, (0, 1)), z_e, codebook)
    np.testing.assert_array_equal(gradients[0].ravel(), to_z_e)
    np.testing.assert_array_equal(gradients[1].ravel(), to_codebook)


def test_count_codes_equals_bincount():
    indices = np.random.default_rng(0).integers(0, 6, (3, 4, 5, 2), np.int32)
    counts = run(lambda indices: nearest.count_codes(indices, 7), indices)
    np.testing.assert_array_equal(counts, [np.bincount(indices[..., g].ravel(), minlength=7) for g in range(2)])


def test_sum_by_code_equals_a_loop():
    indices, vectors = np.random.default_rng(0).integers(0, 5, (2, 3, 4, 2), np.int32), random((2, 3, 4, 2, 3))
    expected = np.zeros((2, 5, 3))
    for *position, g in np.ndindex(indices.shape):
        expected[g, indices[*position, g]] += vectors[*position, g]
    sums = run(lambda vectors, indices: nearest.sum_by_code(vectors, indices, 5), vectors, indices)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)


AXES = [(), (24,), (6, 4), (2, 3, 4), (1, 2, 3, 2, 2)]


@pytest.mark.parametrize("axes", AXES)
def test_leading_axes_are_free_in_every_function(axes):
    count = int(np.prod(axes))
    z_e, codebook = random((count, 2, 3)), jnp.asarray(random((2, 5, 3), 1))
    ema = Ema(array([[3, 0, 1, 2, 0], [0, 1, 1, 0, 4]], (2, 5)), random((2, 5, 3), 2))
    key, ema = jax.random.key(3), jax.tree.map(jnp.asarray, ema)

    def everything(z_e):
        indices = nearest.nearest_code(z_e, codebook)
        per_position = indices, nearest.look_up(codebook, indices)
        summed = (
            nearest.count_codes(indices, 5),
            nearest.sum_by_code(z_e, indices, 5),
            nearest.draw_vectors(key, z_e, 5),
        )
        moved = (
            ema_init(key, z_e, 5),
            ema_update(ema, z_e, indices, 0.9),
            revive(key, ema, z_e, 0.1),
        )
        return per_position, (summed, moved)

    of_positions, of_batch = run(everything, z_e)
    others, same = run(everything, z_e.reshape(*axes, 2, 3))
    for expected, got in zip(of_positions, others, strict=True):
        np.testing.assert_array_equal(got, expected.reshape(*axes, *expected.shape[1:]))
    jax.tree.map(np.testing.assert_array_equal, same, of_batch)


def distances_to_vectors(places, z_e, g):
    """Largest difference along D between every place [N,D] and every vector of codebook g."""
    return np.abs(places[:, None] - z_e[..., g, :].reshape(1, -1, z_e.shape[-1])).max(-1)


def draw_many(z_e, num, draws=20):
    keys = jax.random.split(jax.random.key(0), draws)
    return run(jax.vmap(lambda key: nearest.draw_vectors(key, jnp.asarray(z_e), num)), keys)


@pytest.mark.parametrize("num", [1, 5, 11, 24])
def test_draw_vectors_draws_none_twice_and_each_codebook_its_own(num):
    z_e = random((2, 3, 4, 3, 2))
    for drawn in draw_many(z_e, num):
        assert drawn.shape == (3, num, 2)
        for g in range(3):
            assert np.all(distances_to_vectors(drawn[g], z_e, g).min(1) == 0)
            assert len(np.unique(drawn[g], axis=0)) == num


def test_draw_vectors_can_draw_every_vector():
    z_e = random((2, 3, 4, 1, 1))
    np.testing.assert_array_equal(np.unique(draw_many(z_e, 5, draws=200)), np.unique(z_e))


def test_draw_vectors_fills_up_from_a_batch_that_is_too_small():
    z_e = random((1, 1, 3, 2, 2))
    for drawn in draw_many(z_e, 8):
        for g in range(2):
            assert np.all(distances_to_vectors(drawn[g], z_e, g).min(1) == 0)
            assert len(np.unique(drawn[g], axis=0)) == 3
