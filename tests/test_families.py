"""Every family against exact sums: its bound is a bound, its gradient is the right one, what it lacks is said."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqvae_jax import api, builders, sharding
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.evaluate import evaluate, other_bounds, print_table
from vqvae_jax.models import categorical, gumbel, importance, quantizer, vae, vimco
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.train_step import init_state, make_train_step

NETWORK = {"likelihood": "logistic", "hidden": 6, "residual_units": 4, "residual_blocks": 1, "downsamplings": 2}
NETWORK |= {"pixel_mean": (0.5,), "pixel_std": (0.25,)}
CODES = {"codebook_size": 3, "num_codebooks": 2, "embedding_dim": 3}
VQVAE = {"commitment_cost": 0.25, "codebook_update": "ema", "ema_decay": 0.9, "ema_epsilon": 1e-5}
OWN = {
    "autoencoder": {"latent_channels": 2},
    "gumbel": CODES | {"temperature": 0.7},
    "vae": {"latent_channels": 2},
    "vimco": CODES | {"samples": 3},
    "vqvae": CODES | VQVAE | {"revival_threshold": 0.05},
}
BOUNDED = [name for name in OWN if name != "autoencoder"]
DRAWING = ["gumbel", "vae", "vimco"]


def section(family, **changes):
    return {"family": family} | NETWORK | OWN[family] | changes


def build(family, shape=(4, 4, 1), **changes):
    return builders.build_model(section(family, **changes), shape)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)


def start(model, images):
    return {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}


def keys_of(images, seed=0):
    return importance.image_keys(jnp.arange(len(images), dtype=jnp.uint32) + seed)


def run_of(model, variables, family, shape):
    meta = {"config": {"model": section(family), "eval": {"batch_size": 4}}, "class_names": ["one"], "step": 0}
    return api.Run(model, variables, meta | {"image_shape": list(shape)})


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
        return log_p_z - model.trunk.distortion(variables, jnp.broadcast_to(z, (len(images), 1, 1, 2)), images)

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
    bound = jax.jit(lambda keys, k: importance.importance_bound(model, variables, images, keys, k))
    means = [np.mean([bound(keys_of(images, 100 * n), k) for n in range(12)], axis=0) for k in (1, 8, 2000)]
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
    one = jax.jit(lambda keys: importance.importance_bound(model, variables, images, keys, 1))
    elbo = jax.jit(lambda keys: sum(model.bound(variables, images, keys)))
    draws = [(one(keys_of(images, 100 * n)), elbo(keys_of(images, 100 * n + 7))) for n in range(400)]
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
    model, mesh = build(family, hidden=16, residual_units=8), sharding.make_mesh()
    drawn = np.random.default_rng(0).choice(16, size=128, p=weights)
    batch = {"image": sharding.put_batch(images[drawn], mesh)}
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 400))
    state = init_state(model, optimizer, 0, batch["image"], mesh)
    step = make_train_step(model, optimizer, 0, mesh)
    for _ in range(400):
        state, _ = step(state, batch)
    variables = {"params": state.params, "state": state.model_state, "fitted": {}}
    nll = [sum(model.bound(variables, images, keys_of(images, 100 * n))) for n in range(20)]
    mean = np.sum(weights * np.mean(nll, axis=0))
    assert entropy < mean
    # Trained, so that the comparison says something: a uniform distribution needs 88.7 nats.
    assert mean < 60
    if family in DRAWING:
        many = importance.importance_bound(model, variables, images, keys_of(images), 300)
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
    distortion = np.mean(model.trunk.distortion(variables, z, images))
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
    model = Given(**vars(build("vimco", samples=2)))
    variables = start(model, images[:1])
    codes = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    pairs = np.array(list(itertools.product(range(9), repeat=2)))
    draws = jnp.asarray(codes[pairs].reshape(81, 2, 1, 1, 1, 2))

    def of_pair(params, pair):
        log_q = model.log_q(params, images[:1])
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
    assert float(jnp.max(jnp.abs(exact["encoder"]["out"]["kernel"]))) > 1e-3 * scale
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
    model = build("vimco", samples=6)
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


@pytest.mark.slow
def test_relaxed_draws_flatter_and_are_never_reported(images):
    model = build("gumbel", temperature=1.0)
    variables = start(model, images)
    variables["params"]["codebook"] = 3 * variables["params"]["codebook"]
    log_q = model.posterior(variables, images)

    def relaxed_distortion(key):
        weights = gumbel.relaxed_draw(log_q, jax.random.uniform(key, log_q.shape), 1.0)
        return model.trunk.distortion(variables, model._mixed(variables["params"], weights), images)

    relaxed = np.mean([relaxed_distortion(jax.random.key(n)) for n in range(50)], axis=0)
    hard = np.mean([model.bound(variables, images, keys_of(images, 100 * n)).distortion for n in range(50)], axis=0)
    assert np.max(np.abs(relaxed - hard)) > 0.5
    _, (_, logged) = model.loss(variables, {"image": images}, jax.random.key(0))
    assert not {"bits_per_dim", "distortion"} & logged.keys()
    # The colder, the nearer: at a low temperature a relaxed draw is a hard one.
    weights = gumbel.relaxed_draw(log_q, jax.random.uniform(jax.random.key(0), log_q.shape), 1e-3)
    np.testing.assert_allclose(np.max(weights, axis=-1), 1.0, atol=1e-3)


def test_nearest_combinations_are_the_cheapest_of_all():
    random = np.random.default_rng(0)
    z_e = random.normal(size=(3, 2, 1, 2, 3)).astype(np.float32)
    codebook = random.normal(size=(2, 4, 3)).astype(np.float32)
    found = jax.jit(quantizer.nearest_combinations, static_argnums=2)(jnp.asarray(z_e), jnp.asarray(codebook), 40)
    assert np.all(found.valid)
    everything = np.array(list(itertools.product(range(4), repeat=4))).reshape(-1, 2, 1, 2)
    for image in range(3):
        chosen = codebook[np.arange(2).reshape(1, 1, 1, 2), everything]
        costs = np.sum((chosen - z_e[image][None]) ** 2, axis=(1, 2, 3, 4))
        of_found = [
            costs[np.all(everything == codes, axis=(1, 2, 3))].item() for codes in np.asarray(found.indices[image])
        ]
        np.testing.assert_allclose(of_found, np.sort(costs)[:40], rtol=1e-4)
        assert len({codes.tobytes() for codes in np.asarray(found.indices[image])}) == 40
    np.testing.assert_array_equal(found.indices[:, 0], quantizer.nearest_code(jnp.asarray(z_e), jnp.asarray(codebook)))


def test_several_codes_are_a_bound_that_gets_better_and_ends_at_the_exact_sum(images):
    model = build("vqvae")
    variables = start(model, images)

    def log_prior(codes):
        return jnp.full(len(codes), -2 * math.log(3))

    bounds = [np.asarray(model.several_codes_bound(variables, images, log_prior, num)) for num in (1, 2, 5, 9, 20)]
    exact = exact_nll(model, variables, images)
    np.testing.assert_allclose(bounds[0], sum(model.bound(variables, images)), rtol=1e-5)
    for one, better in itertools.pairwise(bounds):
        assert np.all(better <= one + 1e-4)
    assert np.all(bounds[2] >= exact - 1e-3)
    np.testing.assert_allclose(bounds[3], exact, rtol=1e-5)
    np.testing.assert_allclose(bounds[4], exact, rtol=1e-5)  # there are no more than nine


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
        ("vae", lambda run, x: run.several_codes_bound(x, 3), "the family vae chooses no code"),
        (
            "vae",
            lambda run, x: run.importance_bound(x, 0),
            "k is 0: an importance-weighted bound needs a whole number",
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
        ("vae", {"likelihood": "squared_error"}, "the family vae needs a likelihood to weigh its rate against"),
        ("vae", {"latent_channels": 0}, "model.latent_channels is 0"),
        ("vimco", {"samples": 1}, "model.samples is 1: VIMCO compares draws"),
        ("gumbel", {"temperature": 0.0}, "model.temperature is 0.0: it must be above 0"),
        ("autoencoder", {"codebook_size": 8}, "unknown option model.codebook_size: known: downsamplings"),
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
