"""Moving averages against hand-worked cases: the codebook, its update, and codes that are revived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.quantizers.ema import NEW_CODE_SHARE, Ema, ema_codebook, ema_init, ema_update, revive


def run(function, *arguments):
    """One program, traced afresh: far sooner compiled than one for every operation."""
    return jax.tree.map(np.asarray, jax.jit(lambda *traced: function(*traced))(*arguments))


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def array(values, shape):
    return np.array(values, np.float32).reshape(shape)


def distances_to_vectors(places, z_e, g):
    """Largest difference along D between every place [N,D] and every vector of codebook g."""
    return np.abs(places[:, None] - z_e[..., g, :].reshape(1, -1, z_e.shape[-1])).max(-1)


def test_ema_update_equals_a_hand_worked_case_of_two_codes():
    ema = Ema(count=array([4, 2], (1, 2)), total=array([[4, 8], [2, -2]], (1, 2, 2)))
    z_e = array([[1, 1], [3, 5], [2, 0]], (1, 1, 3, 1, 2))
    indices = np.array([0, 0, 1], np.int32).reshape(1, 1, 3, 1)
    new = run(lambda *arguments: ema_update(*arguments, decay=0.75), ema, z_e, indices)
    # 3/4 of the old and 1/4 of the batch, whose counts are 2 and 1 and whose sums (4, 6) and (2, 0).
    np.testing.assert_array_equal(new.count, [[3.5, 1.75]])
    np.testing.assert_array_equal(new.total, [[[4.0, 7.5], [2.0, -1.5]]])


def test_ema_update_keeps_codebooks_apart():
    ema = Ema(count=np.zeros((2, 2), np.float32), total=np.zeros((2, 2, 1), np.float32))
    z_e = array([[1, 10], [2, 20]], (1, 1, 2, 2, 1))
    indices = np.array([[0, 1], [1, 1]], np.int32).reshape(1, 1, 2, 2)
    new = run(lambda *arguments: ema_update(*arguments, decay=0.0), ema, z_e, indices)
    np.testing.assert_array_equal(new.count, [[1, 1], [0, 2]])
    np.testing.assert_array_equal(new.total[..., 0], [[1, 2], [0, 30]])


def test_repeated_ema_updates_reach_the_mean_of_each_codes_vectors():
    z_e, indices = random((2, 3, 4, 1, 2)), np.arange(24, dtype=np.int32).reshape(2, 3, 4, 1) % 3

    def updated(ema, z_e, indices):
        ema = jax.lax.fori_loop(0, 60, lambda _, ema: ema_update(ema, z_e, indices, 0.5), ema)
        return ema_codebook(ema, 1e-9)

    codebook = run(updated, Ema(count=array([1, 1, 1], (1, 3)), total=array([9] * 6, (1, 3, 2))), z_e, indices)
    np.testing.assert_allclose(codebook[0], [z_e.reshape(-1, 2)[k::3].mean(0) for k in range(3)], rtol=1e-5)


def test_ema_update_gives_no_gradient_to_the_encoder():
    ema, z_e = Ema(jnp.ones((1, 2)), jnp.ones((1, 2, 3))), random((1, 2, 2, 1, 3))
    indices = jnp.zeros((1, 2, 2, 1), jnp.int32)
    gradient = run(jax.grad(lambda z_e: jnp.sum(ema_update(ema, z_e, indices, 0.5).total)), z_e)
    np.testing.assert_array_equal(gradient, 0)


def test_ema_codebook_smooths_the_counts_as_worked_by_hand():
    ema = Ema(count=array([[3, 0], [1, 1]], (2, 2)), total=array([6, 1, 2, -4], (2, 2, 1)))
    # First codebook: n = 3, (3 + 1/2) / (3 + 2/2) · 3 = 21/8 and (0 + 1/2) / 4 · 3 = 3/8. Second: counts stay 1.
    codebook = run(lambda ema: ema_codebook(ema, 0.5), ema)
    np.testing.assert_allclose(codebook[..., 0], [[6 * 8 / 21, 8 / 3], [2, -4]], rtol=1e-6)


def test_ema_init_puts_every_code_at_a_vector_of_the_batch():
    z_e = random((2, 3, 4, 2, 3))
    ema = run(lambda z_e: ema_init(jax.random.key(0), z_e, 6), z_e)
    np.testing.assert_allclose(ema.count, np.full((2, 6), NEW_CODE_SHARE * 24 / 6), rtol=1e-6)
    codebook = run(lambda ema: ema_codebook(ema, 1e-5), ema)
    for g in range(2):
        distances = distances_to_vectors(codebook[g], z_e, g)
        assert np.all(distances.min(1) < 1e-5)
        assert len(np.unique(distances.argmin(1))) == 6


# Two codebooks of four codes and 32 positions, so a uniform share is 8, and codes below a tenth of it are dead.
COUNT = array([[8, 0, 0.79, 0.81], [0, 20, 3, 5]], (2, 4))
DEAD = COUNT < 0.8
LATENTS = random((2, 4, 4, 2, 3))
# What is left of the sums of dead codes would put them far away from any vector.
EMA = Ema(COUNT, random((2, 4, 3), 7) + np.float32(1000) * DEAD[..., None])


def revived(ema, threshold, seed=0):
    return run(lambda ema, z_e: revive(jax.random.key(seed), ema, z_e, threshold), ema, LATENTS)


def test_revive_moves_dead_codes_to_vectors_of_the_batch_and_leaves_live_ones():
    new = revived(EMA, 0.1)
    np.testing.assert_array_equal(new.count[~DEAD], EMA.count[~DEAD])
    np.testing.assert_array_equal(new.total[~DEAD], EMA.total[~DEAD])
    np.testing.assert_allclose(new.count[DEAD], NEW_CODE_SHARE * 8, rtol=1e-6)
    places = new.total / new.count[..., None]
    for g in range(2):
        assert np.all(distances_to_vectors(places[g][DEAD[g]], LATENTS, g).min(1) < 1e-6)


@pytest.mark.parametrize("used", [False, True])
def test_a_revived_code_stays_at_its_vector_through_the_next_update(used):
    new = revived(EMA, 0.1)
    # The batch's vector at which each code is, or ought to be.
    nearest = [distances_to_vectors(new.total[g] / new.count[g, :, None], LATENTS, g).argmin(1) for g in range(2)]
    places = np.stack([LATENTS[..., g, :].reshape(-1, 3)[nearest[g]] for g in range(2)])
    if used:  # the next batch has for every code vectors exactly at its place
        z_e = np.broadcast_to(places.swapaxes(0, 1), (2, 1, 4, 2, 3))
        indices = np.broadcast_to(np.arange(4, dtype=np.int32).reshape(1, 1, 4, 1), (2, 1, 4, 2))
    else:  # it has something for live codes only
        z_e, indices = LATENTS, np.broadcast_to(np.array([0, 1], np.int32).reshape(1, 1, 1, 2), (2, 4, 4, 2))
    new = run(lambda *arguments: ema_update(*arguments, decay=0.9), new, z_e, indices)
    np.testing.assert_allclose((new.total / new.count[..., None])[DEAD], places[DEAD], rtol=1e-5)


def test_a_revived_code_is_not_revived_again_at_once():
    once = revived(EMA, NEW_CODE_SHARE)
    twice = revived(once, NEW_CODE_SHARE, seed=1)
    np.testing.assert_array_equal(twice.count, once.count)
    np.testing.assert_array_equal(twice.total, once.total)


def test_revive_at_threshold_0_changes_nothing():
    new = revived(EMA, 0.0)
    np.testing.assert_array_equal(new.count, EMA.count)
    np.testing.assert_array_equal(new.total, EMA.total)
