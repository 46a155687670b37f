"""Every family against exact sums: its bound is a bound, its gradient is the right one, what it lacks is said."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqvae_jax import registry
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import bounds
from vqvae_jax.evaluation.evaluate import evaluate, other_bounds
from vqvae_jax.evaluation.tables import print_table
from vqvae_jax.models import categorical, gumbel, vae, vimco
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.priors.counted import Counted
from vqvae_jax.run import Run
from vqvae_jax.training import sharding
from vqvae_jax.training.step import init_state, make_train_step

NETWORK = {"likelihood": "logistic", "hidden": 6, "residual_units": 4, "residual_blocks": 1, "downsamplings": 2}
NETWORK |= {"pixel_mean": (0.5,), "pixel_std": (0.25,), "dtype": "float32", "rematerialise": False}
CODES = {"codebook_size": 3, "num_codebooks": 2, "embedding_dim": 3}
MOVING = {"commitment_cost": 0.25, "ema_decay": 0.9, "ema_epsilon": 1e-5, "revival_threshold": 0.05}
MOVING |= {"distance": "euclidean", "estimator": "straight_through", "start": "data"}
OWN = {
    "autoencoder": {"latent_channels": 2},
    "gumbel": CODES | {"temperature": 0.7},
    "vae": {"latent_channels": 2},
    "vimco": CODES | {"samples": 3, "training_samples": 3},
    "vqvae": {"quantizer": {"name": "vector_ema"} | CODES | MOVING},
}
BOUNDED = [name for name in OWN if name != "autoencoder"]
DRAWING = ["gumbel", "vae", "vimco"]


def section(family, **changes):
    return {"family": family} | NETWORK | OWN[family] | changes


def build(family, shape=(4, 4, 1), **changes):
    return registry.build_model(section(family, **changes), shape)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)


def start(model, images):
    return {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}


def keys_of(images, seed=0):
    return bounds.image_keys(seeds_of(images, seed))


def seeds_of(images, seed=0):
    return jnp.arange(len(images), dtype=jnp.uint32) + seed


def run_of(model, variables, family, shape):
    meta = {"config": {"model": section(family), "eval": {"batch_size": 4}}, "class_names": ["one"], "step": 0}
    return Run(model, variables, meta | {"image_shape": list(shape)})


def exact_nll(model, variables, images):
    """-log sum over all codes of P(x | z) p(z), p(z) uniform; one position, two codebooks of three codes."""
    codes = jnp.array(list(itertools.product(range(3), repeat=2)), jnp.int32)

    def joint(z):
        return -2 * math.log(3) - model.distortion(variables, jnp.broadcast_to(z, (len(images), 1, 1, 2)), images)

    return -np.logaddexp.reduce(np.asarray(jax.jit(lambda: jax.lax.map(joint, codes))(), np.float64), axis=0)


def exact_vae_nll(model, variables, images):
    """The same integral over two normal latents, on a grid."""
    side = np.linspace(-6, 6, 61)
    latents = jnp.array(list(itertools.product(side, repeat=2)), jnp.float32)

    def joint(z):
        log_p_z = -0.5 * jnp.sum(z**2) - math.log(2 * math.pi)
        return log_p_z - model.distortion(variables, jnp.broadcast_to(z, (len(images), 1, 1, 2)), images)

    terms = np.asarray(jax.jit(lambda: jax.lax.map(joint, latents))(), np.float64)
    return -np.logaddexp.reduce(terms, axis=0) - 2 * math.log(side[1] - side[0])


def nll_of(model, variables, images):
    return (exact_vae_nll if isinstance(model, vae.VAE) else exact_nll)(model, variables, images)


@pytest.mark.parametrize("family", DRAWING)
def test_importance_weighted_bounds_come_down_to_the_exact_likelihood(family, images, monkeypatch):
    monkeypatch.setattr(vae, "FIRST_LOG_STD", 0.0)  # untrained posteriors that cover the exact ones
    model = build(family)
    variables = start(model, images)
    exact = nll_of(model, variables, images)
    bound = jax.jit(lambda seeds, k: bounds.importance_bound(variables, k, images, seeds, model=model))
    means = [np.mean([bound(seeds_of(images, 100 * n), k) for n in range(12)], axis=0) for k in (1, 8, 2000)]
    gaps = [np.mean(mean - exact) for mean in means]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.2 * gaps[0]
    assert np.median(means[2] - exact) < 0.02
    assert np.all(means[2] > exact - 0.05), "no bound is below the likelihood but by chance"


@pytest.mark.slow
@pytest.mark.parametrize("family", DRAWING)
def test_the_elbo_is_the_expectation_of_one_draw(family, images):
    model = build(family)
    variables = start(model, images)
    one = jax.jit(lambda seeds: bounds.importance_bound(variables, 1, images, seeds, model=model))
    elbo = jax.jit(lambda keys: sum(model.bound(variables, images, keys)))
    draws = [(one(seeds_of(images, 100 * n)), elbo(keys_of(images, 100 * n + 7))) for n in range(400)]
    for image in range(len(images)):
        a, b = (np.array([draw[n][image] for draw in draws]) for n in (0, 1))
        error = math.sqrt(np.var(a) / len(a) + np.var(b) / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-3
    assert np.mean([b for _, b in draws]) > np.mean(nll_of(model, variables, images))


def known_data():
    """Images of a mixture on a small grid with their probabilities: four patterns, each with one of four marks."""
    random = np.random.default_rng(3)
    patterns = random.integers(40, 216, (4, 4, 4, 1))
    weights = np.outer([0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]).ravel()
    images = np.repeat(patterns, 4, axis=0)
    images[:, 0, 0, 0] = 60 * np.tile(np.arange(4), 4)
    return images.astype(np.uint8), weights


@pytest.mark.slow
@pytest.mark.parametrize("family", BOUNDED)
def test_no_bound_falls_below_the_entropy_of_known_data(family):
    images, weights = known_data()
    entropy = -np.sum(weights * np.log(weights))
    model = build(family, hidden=16, residual_units=8)
    drawn = np.random.default_rng(0).choice(16, size=128, p=weights)
    batch = {"image": sharding.put_batch(images[drawn])}
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 400))
    seed = 1  # with others some families are far from done after so few steps
    state = init_state(model, optimizer, seed, batch["image"])
    step = make_train_step(model, optimizer, seed)
    for _ in range(400):
        state, _ = step(state, batch)
    variables = {"params": state.params, "state": state.model_state, "fitted": {}}
    nll = [sum(model.bound(variables, images, keys_of(images, 100 * n))) for n in range(20)]
    mean = np.sum(weights * np.mean(nll, axis=0))
    assert entropy < mean
    # Trained, so that the comparison says something: a uniform distribution needs 88.7 nats.
    assert mean < 60
    if family in DRAWING:
        many = bounds.importance_bound(variables, 300, images, seeds_of(images), model=model)
        assert entropy < np.sum(weights * np.asarray(many)) < mean + 0.1


def test_kl_of_a_gaussian_is_what_sampling_finds():
    q = vae.Posterior(jnp.array([[[[0.7, -1.5, 0.0]]]]), jnp.array([[[[-0.4, 0.3, -2.0]]]]))
    noise = np.random.default_rng(0).normal(size=(200_000, 3))
    mean, log_std = (np.asarray(x, np.float64).ravel() for x in q)
    z = mean + np.exp(log_std) * noise
    sampled = np.mean(0.5 * (z**2 - noise**2) - log_std, axis=0)
    np.testing.assert_allclose(np.ravel(vae.kl_to_standard_normal(q)), sampled, atol=0.02)


def test_vae_weighs_rate_and_distortion_in_the_same_units(images):
    # Regression 13: the loss is the negative ELBO over sub-pixels, so neither term is everything.
    model = build("vae")
    variables = start(model, images)
    key = jax.random.key(5)
    total, (_, logged) = jax.jit(model.loss)(variables, {"image": images}, key)
    q = model.posterior(variables, images)
    z = q.mean + jnp.exp(q.log_std) * jax.random.normal(key, (q.mean.size,)).reshape(q.mean.shape)
    rate = np.mean(np.sum(vae.kl_to_standard_normal(q), axis=(1, 2, 3)))
    distortion = np.mean(model.distortion(variables, z, images))
    np.testing.assert_allclose(total, (rate + distortion) / 16, rtol=1e-5)
    np.testing.assert_allclose(logged["bits_per_dim"], (rate + distortion) / 16 / math.log(2), rtol=1e-5)
    by_channel = sum(logged[f"rate_of_channel_{n:02d}"] for n in range(2))
    np.testing.assert_allclose(by_channel, logged["rate"], rtol=1e-5)


class Given(vimco.Vimco):
    """VIMCO with draws that a test chooses."""

    draws = None

    def _draws(self, log_q, key):
        return Given.draws


def test_vimcos_gradient_is_that_of_its_bound_on_average(images):
    # Two draws of nine codes each: all 81 pairs are summed, on both sides, so nothing is left to chance.
    model = Given(**vars(build("vimco", training_samples=2)))
    variables = start(model, images[:1])
    codes = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    pairs = np.array(list(itertools.product(range(9), repeat=2)))
    draws = jnp.asarray(codes[pairs].reshape(81, 2, 1, 1, 1, 2))

    def of_pair(params, pair):
        log_q = model.posterior({"params": params}, images[:1])
        log_q = jax.vmap(categorical.log_prob_of, (None, 0))(log_q, pair)
        log_p = model._log_joint(params, pair, images[:1])
        return jnp.exp(jnp.sum(log_q)), jnp.mean(jax.nn.logsumexp(log_p - log_q, axis=0)) - math.log(2)

    def expected_bound(params):
        q, bound = jax.lax.map(lambda pair: of_pair(params, pair), draws)
        return jnp.sum(q * bound)

    def estimated(params):
        def weighted(pair):
            Given.draws = pair
            q = jax.lax.stop_gradient(of_pair(params, pair)[0])
            return q * model.loss({"params": params}, {"image": images[:1]}, jax.random.key(0))[0] * -images[0].size

        return jnp.sum(jax.lax.map(weighted, draws))

    exact, vimcos = (jax.jit(jax.grad(f))(variables["params"]) for f in (expected_bound, estimated))
    scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(exact))
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(vimcos), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * scale, rtol=1e-3)
    # The encoder's are small beside the decoder's: by their own measure.
    of_encoder, vimcos_own = (tree["encoder"]["out"]["kernel"] for tree in (exact, vimcos))
    np.testing.assert_allclose(vimcos_own, of_encoder, atol=0.02 * float(jnp.max(jnp.abs(of_encoder))))
    assert float(jnp.max(jnp.abs(of_encoder))) > 1e-4 * scale
    np.testing.assert_allclose(
        jax.jit(expected_bound)(variables["params"]), jax.jit(estimated)(variables["params"]), rtol=1e-5
    )


def test_vimcos_signals_are_worked_out_by_hand():
    log_weights = np.array([[1.0, -3.0], [2.0, 0.5], [4.0, 0.0]])
    found = vimco.signals(jnp.asarray(log_weights, jnp.float32))
    for b in range(2):
        w = np.exp(log_weights[:, b])
        np.testing.assert_allclose(found.bound[b], np.log(w.mean()), rtol=1e-5)
        for s in range(3):
            others = np.delete(w, s)
            without = (others.sum() + others.prod() ** 0.5) / 3
            np.testing.assert_allclose(found.advantage[s, b], np.log(w.mean()) - np.log(without), rtol=1e-4)
            np.testing.assert_allclose(found.weight[s, b], w[s] / w.sum(), rtol=1e-5)


@pytest.mark.slow
def test_draws_through_the_decoder_in_parts_are_the_same(images, monkeypatch):
    model = build("vimco", training_samples=6)
    variables = start(model, images)
    whole = jax.value_and_grad(lambda p: model.loss({"params": p}, {"image": images}, jax.random.key(1))[0])
    monkeypatch.setattr(vimco, "DRAWS_AT_ONCE", 6)
    one = jax.jit(whole)(variables["params"])
    monkeypatch.setattr(vimco, "DRAWS_AT_ONCE", 4)  # parts of three, since four doesn't divide six
    other = jax.jit(lambda p: whole(p))(variables["params"])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_codes_are_drawn_with_their_probabilities():
    log_q = jax.nn.log_softmax(jnp.array([2.0, -1.0, 0.5, 0.0])).reshape(1, 1, 1, 1, 4)
    uniforms = (jnp.arange(20_000) + 0.5) / 20_000
    draws = jax.vmap(lambda u: categorical.draw_codes(log_q, u.reshape(1, 1, 1, 1)))(uniforms)
    shares = np.bincount(np.ravel(draws), minlength=4) / 20_000
    np.testing.assert_allclose(shares, np.exp(np.ravel(log_q)), atol=1e-4)
    assert categorical.draw_codes(log_q, jnp.ones((1, 1, 1, 1))).item() == 3, "never beyond the last code"


def test_relaxed_figures_have_names_of_their_own(images):
    model = build("gumbel")
    _, (_, logged) = jax.jit(model.loss)(start(model, images), {"image": images}, jax.random.key(0))
    assert logged.keys() == {"loss_nats", "rate", "relaxed_distortion", "relaxed_bits_per_dim"}
    total = float(logged["rate"] + logged["relaxed_distortion"])
    assert float(logged["relaxed_bits_per_dim"]) == pytest.approx(total, rel=1e-6)
    assert float(logged["loss_nats"]) == pytest.approx(total * math.log(2), rel=1e-5)


def test_cold_relaxed_draws_are_the_hard_ones_of_the_same_noise():
    logits = np.array([2.0, -1.0, 0.5, 0.0])
    log_q = np.broadcast_to(logits - np.logaddexp.reduce(logits), (4000, 4)).astype(np.float32)
    uniforms = np.random.default_rng(0).random(log_q.shape).astype(np.float32)
    hard = np.argmax(log_q - np.log(-np.log(uniforms.astype(np.float64))), axis=-1)
    relaxed = np.asarray(jax.jit(gumbel.relaxed_draw)(log_q, uniforms, 1e-4))
    np.testing.assert_array_equal(np.argmax(relaxed, axis=-1), hard)
    assert np.mean(np.max(relaxed, axis=-1) > 0.999) > 0.99
    # Hard draws of Gumbel noise have the probabilities of q; relaxed ones are in between codes.
    np.testing.assert_allclose(np.bincount(hard, minlength=4) / 4000, np.exp(log_q[0]), atol=0.03)
    warm = np.asarray(jax.jit(gumbel.relaxed_draw)(log_q, uniforms, 1.0))
    np.testing.assert_allclose(warm.sum(-1), 1.0, rtol=1e-5)
    assert np.mean(np.max(warm, axis=-1) > 0.999) < 0.1


def test_several_codes_are_a_bound_that_gets_better_and_ends_at_the_exact_sum(images):
    model = build("vqvae")
    variables = start(model, images)

    prior = Counted("uniform", (3, 3))

    def bound(num):
        constants = {"model": model, "prior": prior, "num": num}
        return jax.jit(lambda: bounds.several_codes_bound(variables, prior.fit(), images, **constants))()

    found = [np.asarray(bound(num)) for num in (1, 2, 5, 9, 20)]
    exact = exact_nll(model, variables, images)
    np.testing.assert_allclose(found[0], sum(model.bound(variables, images)), rtol=1e-5)
    for one, better in itertools.pairwise(found):
        assert np.all(better <= one + 1e-4)
    assert np.all(found[2] >= exact - 1e-3)
    np.testing.assert_allclose(found[3], exact, rtol=1e-5)
    np.testing.assert_allclose(found[4], exact, rtol=1e-5)  # there are no more than nine


def test_an_autoencoders_samples_have_the_moments_of_its_latents():
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    model = build("autoencoder", (8, 8, 1))
    variables = start(model, images)
    mask = np.arange(64) < 50
    fitted = model.fit(jax.jit(model.fit_sums)(variables, images, mask))
    z = np.asarray(model.encode(variables, images), np.float64)[mask]
    np.testing.assert_allclose(fitted["latent_mean"], z.mean(0), atol=1e-4)
    flat = z.reshape(-1, 2)
    pooled = flat.T @ flat / len(flat) - z.mean(0).reshape(-1, 2).T @ z.mean(0).reshape(-1, 2) / 4
    np.testing.assert_allclose(fitted["latent_covariance"], pooled, atol=1e-4)
    drawn = model.sample_latents({**variables, "fitted": fitted}, jax.random.key(0), (20_000, 2, 2))
    np.testing.assert_allclose(np.mean(drawn, axis=0), fitted["latent_mean"], atol=0.05)
    centred = np.asarray(drawn - fitted["latent_mean"][None], np.float64).reshape(-1, 2)
    np.testing.assert_allclose(centred.T @ centred / len(centred), pooled, atol=0.05 * pooled.max())


def does(call):
    """Whether a call gives something, or says that the family can't do it."""
    try:
        call()
    except InputError:
        return False
    return True


# latents, has_bound, draws_posterior, samples_latents, takes_prior, has_distances
ABLE = {
    "autoencoder": ("continuous", False, False, True, False, False),
    "gumbel": ("codes", True, True, True, False, False),
    "vae": ("continuous", True, True, True, False, False),
    "vimco": ("codes", True, True, True, False, False),
    "vqvae": ("codes", True, False, False, True, True),
}


@pytest.mark.parametrize("family", OWN)
def test_what_a_family_says_that_it_can_do_is_what_it_does(family, images):
    model = build(family)
    latents, has_bound, draws_posterior, samples_latents, takes_prior, has_distances = ABLE[family]
    said = model.has_bound, model.draws_posterior, model.samples_latents, model.takes_prior, model.has_distances
    assert (model.latents, *said) == ABLE[family]
    run = run_of(model, start(model, images), family, (4, 4, 1))
    fitted = run.fit(ArraySource("tiny", "train", images, np.zeros(6, np.int32), ("one",)))
    run = replace(run, variables={**run.variables, "fitted": fitted})
    encoded = run.encode(images)
    if latents == "codes":
        assert encoded.dtype == np.int32
        assert encoded.shape == (6, 1, 1, len(model.codebook_sizes))
        assert 0 <= encoded.min() <= encoded.max() < max(model.codebook_sizes)
    else:
        assert encoded.dtype == np.float32
        assert encoded.shape == (6, 1, 1, model.latent_channels)
    assert does(lambda: run.bound(images)) == does(lambda: run.bits_per_dim(images)) == has_bound
    assert (run.prior is not None) == has_bound
    assert does(lambda: run.importance_bound(images, 2)) == draws_posterior
    assert does(lambda: run.several_codes_bound(images, 2)) == has_distances
    assert does(lambda: run.sample(2)) == samples_latents
    assert ("code_counts" in fitted) == takes_prior
    if has_bound:
        one, other = (np.asarray(sum(model.bound(run.variables, images, keys_of(images, n)))) for n in (0, 100))
        assert np.any(one != other) == draws_posterior


@pytest.mark.parametrize("family", OWN)
def test_every_family_is_measured_whatever_the_batch_and_the_order(family, capsys):
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 1), dtype=np.uint8)
    source = ArraySource("tiny", "test", images, np.zeros(7, np.int32), ("one",))
    model = build(family, (12, 12, 1))
    run = run_of(model, start(model, images), family, (12, 12, 1))
    run = replace(run, variables={**run.variables, "fitted": run.fit(source)})
    result = evaluate(run, source)
    order = np.random.default_rng(1).permutation(7)
    shuffled = replace(source, images=images[order])
    other = evaluate(
        replace(run, meta=run.meta | {"config": {"model": section(family), "eval": {"batch_size": 2}}}), shuffled
    )
    for key in ("bits_per_dim", "rate", "distortion", "psnr", "ssim"):
        assert (result[key] is None) == (other[key] is None)
        if result[key] is not None:
            np.testing.assert_allclose(other[key], result[key], rtol=1e-5)
    options = {"samples": 4, "subset_images": 3, "subset_samples": 9, "test_images": 5}
    result["other_bounds"] = other_bounds(run, source, options)
    kinds = [(bound.get("draws", bound.get("codes")), bound["num_images"]) for bound in result["other_bounds"]]
    expected = {"autoencoder": [], "vqvae": [(1, 3), (4, 3)]}
    assert kinds == expected.get(family, [(4, 5), (1, 3), (4, 3), (9, 3)])
    of_all = other_bounds(run, source, options | {"subset_images": 0, "samples": 1, "subset_samples": 0})
    assert {bound["num_images"] for bound in of_all if bound.get("codes")} == ({7} if family == "vqvae" else set())
    print_table(result)
    out = capsys.readouterr().out
    assert ("no bound" in out) == (family == "autoencoder")
    assert ("what the codes that were not chosen are worth: at least 0." in out) == (family == "vqvae")
    assert ("bound of 3 draws" in out) == (family == "vimco")
    if family != "autoencoder":
        np.testing.assert_allclose(run.bits_per_dim(images).mean(), result["bits_per_dim"], rtol=1e-5)
    if family != "vqvae":
        assert run.sample(3).shape == (3, 12, 12, 1)


@pytest.mark.parametrize(
    ("family", "call", "message"),
    [
        ("autoencoder", lambda run, x: run.bits_per_dim(x), "the family autoencoder has no p.z., so it has no bound"),
        ("autoencoder", lambda run, x: run.importance_bound(x, 3), "draws no latents"),
        ("vqvae", lambda run, x: run.importance_bound(x, 3), "the family vqvae draws no latents"),
        ("vqvae", lambda run, x: run.sample(3), "this run has no learned prior to draw codes from"),
        ("vae", lambda run, x: run.sample(3, options=Options(temperature=0.5)), "draws latents of no class at no temp"),
        ("gumbel", lambda run, x: run.sample(1, labels=np.zeros(1, np.int32)), "draws latents of no class at no temp"),
        ("vqvae", lambda run, x: run.several_codes_bound(x, 3), "the prior of the codes is fitted when the run"),
        ("vae", lambda run, x: run.several_codes_bound(x, 3), "the family vae has no distances to other codes"),
        (
            "vae",
            lambda run, x: run.importance_bound(x, 0),
            "an importance-weighted bound needs a whole number of draws, at least 1, not 0",
        ),
        ("vae", lambda run, x: run.sample(0), "the number of samples is 0"),
        ("autoencoder", lambda run, x: run.sample(2), "the Gaussian of the latents is fitted when the run is finished"),
        ("vae", lambda run, x: run.decode(np.zeros((1, 1, 1, 2), int)), r"latents must be floats \[N,h,w,2\]"),
    ],
)
def test_what_a_family_lacks_is_one_clear_line(family, call, message, images):
    model = build(family)
    with pytest.raises(InputError, match=message) as caught:
        call(run_of(model, start(model, images), family, (4, 4, 1)), images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("vae", {"likelihood": "squared_error"}, "the family VAE needs a likelihood to weigh its rate against"),
        ("vae", {"latent_channels": 0}, "model.latent_channels is 0"),
        ("vimco", {"training_samples": 1}, "model.training_samples is 1: it must be at least 2"),
        ("gumbel", {"temperature": 0.0}, "model.temperature is 0.0: it must be above 0"),
        ("autoencoder", {"codebook_size": 8}, "unknown option model.codebook_size: .*known: downsamplings"),
    ],
)
def test_options_that_a_family_cannot_take_are_one_clear_line(family, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        build(family, **changes)
    assert "\n" not in str(caught.value)


def test_gray_images_are_refused_by_a_bernoulli(images):
    model = build("vae", likelihood="bernoulli")
    run = run_of(model, start(model, images), "vae", (4, 4, 1))
    with pytest.raises(InputError, match="this likelihood is for images of the levels 0, 255 alone"):
        run.measure(images)
    black_and_white = np.where(images > 127, 255, 0).astype(np.uint8)
    assert np.all(np.isfinite(run.bits_per_dim(black_and_white)))
