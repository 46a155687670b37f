"""What is measured of a batch of images: their bound, and bounds from several latents.

Importance-weighted bounds and sums over several choices of codes add up terms of P(x) one latent at a time, so memory
does not grow with their number. Noise comes from `seeds`, a number for every image.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer, Key

from vqvae_jax.evaluation import metrics
from vqvae_jax.likelihoods.interface import Images
from vqvae_jax.priors.counted import COUNTED, Counted
from vqvae_jax.priors.interface import Prior


def log_sum(num: int | Integer[Array, ""], size: int, log_term: Callable, divisor: float | Array = 1.0) -> Array:
    """Give the log of the sum of exp(log_term(n)), each [size], over n < `num`, divided by `divisor`.

    What is kept is the largest term so far and the sum over it: adding up logarithms themselves rounds every time, and
    at -10,000 nats a thousand roundings can raise the sum.
    """

    def add(n, sums):
        term = log_term(n)
        largest = jnp.maximum(sums[0], term)
        at = jnp.where(jnp.isfinite(largest), largest, 0.0)
        return largest, sums[1] * jnp.exp(sums[0] - at) + jnp.exp(term - at)

    largest, total = jax.lax.fori_loop(0, num, add, (jnp.full(size, -jnp.inf), jnp.zeros(size)))
    return largest + jnp.log(total / divisor)


def image_keys(seeds: Integer[Array, "b"]) -> Key[Array, "b"]:
    """Give every image a key of its own, so that its noise depends on no other image of the batch."""
    return jax.vmap(jax.random.key)(seeds)


def measure(variables, images: Images, seeds: Integer[Array, "b"], *, model) -> dict[str, Array]:
    """Everything that is known of each image: nats [B], reconstruction measures [B], codes."""
    latents = model.encode(variables, images)  # XLA sees that `bound` needs the same
    x_recon = model.decode(variables, latents)
    mse = metrics.mean_squared_error(x_recon, images)
    result = {"mse": mse, "psnr": metrics.psnr(mse), "ssim": metrics.ssim(x_recon, images)}
    if model.has_bound:
        bound = model.bound(variables, images, image_keys(seeds))
        result |= {"distortion": bound.distortion, f"rate/{model.prior_name}": bound.rate}
    else:
        result["distortion"] = model.distortion(variables, latents, images)
    if model.likelihood.head is not None and not model.draws_posterior:
        result["distortion_pixelwise"] = model.distortion_of_head(variables, latents, images)
    if model.latents == "codes":
        result["codes"] = latents
    counts = variables["fitted"].get("code_counts")
    if counts is None:
        return result
    for name in COUNTED:
        # The frequencies at a position say nothing of images of another size.
        if name != "positionwise" or counts.shape[:2] == latents.shape[1:3]:
            prior = Counted(name, model.codebook_sizes)
            result[f"rate/{name}"] = -prior.log_prob(prior.fit(counts), latents)
    return result


def importance_bound(
    variables, k: int | Integer[Array, ""], images: Images, seeds: Integer[Array, "b"], *, model
) -> Float[Array, "b"]:
    """Bound the NLL in nats per image: -log of the mean of P(x, z) / q(z | x) over `k` draws of z from q.

    A bound in expectation, never worse than that of fewer draws, and the NLL itself as k grows (Burda et al. 2016).
    """
    posterior, keys = model.posterior(variables, images), image_keys(seeds)

    def log_weight(n):
        return model.log_weight(variables, posterior, images, jax.vmap(jax.random.fold_in, (0, None))(keys, n))

    return -log_sum(k, images.shape[0], log_weight, jnp.asarray(k, jnp.float32))


def several_codes_bound(variables, of_prior, images: Images, *, model, prior: Prior, num: int) -> Float[Array, "b"]:
    """Bound the NLL by the sum over `num` distinct codes, the chosen one among them: -log sum P(x | z) p(z), nats.

    The codes are the most probable ones under q(z | x) ~ exp(-|z_e - e|^2 / T), the same for every T. A sum over
    some codes is never below one of its terms nor above the sum over all, so this is a bound, and at least as
    good as that of one code.
    """
    chosen, distances = model.encode(variables, images), model.distances(variables, images)
    indices, valid = jax.vmap(partial(nearest_combinations, num=num))(distances, chosen)

    def log_joint(n):
        codes = indices[:, n]
        joint = prior.log_prob(of_prior, codes) - model.distortion(variables, codes, images)
        return jnp.where(valid[:, n], joint, -jnp.inf)

    return -log_sum(valid.shape[1], images.shape[0], log_joint)


def nearest_combinations(
    distances: Float[Array, "*field k"], chosen: Int[Array, "*field"], num: int
) -> tuple[Int[Array, "n *field"], Bool[Array, "n"]]:
    """Find the `num` choices of an image's codes with the least total squared distance, the nearest codes first.

    Exact: a choice that uses something else than the num - 1 cheapest changes of one latent each has at least `num`
    cheaper ones before it. `distances` are squared, of every latent to every code, of which `chosen` is the nearest.
    The second result is False where fewer choices exist.
    """
    field, size = distances.shape[:-1], distances.shape[-1]
    distances, nearest = distances.reshape(-1, size), chosen.reshape(-1)
    # Rounded otherwise than where it was chosen, a code may seem nearer than the nearest.
    extra = jnp.maximum(distances - jnp.take_along_axis(distances, nearest[:, None], axis=-1), 0)
    extra = jnp.where(jnp.arange(size).reshape(1, -1) == nearest[:, None], jnp.inf, extra)
    steps = min(max(num - 1, 1), extra.size)
    cost, change = jax.lax.top_k(-extra.reshape(-1), steps)
    cost, place, code = -cost, change // size, (change % size).astype(jnp.int32)

    def consider(n, beam):
        """Try change n on top of every choice so far, and keep the cheapest."""
        costs, used = beam
        taken = jnp.any(used & (place == place[n]).reshape(1, -1), axis=1)
        new_costs = jnp.concatenate([costs, jnp.where(taken, jnp.inf, costs + cost[n])])
        new_used = jnp.concatenate([used, used.at[:, n].set(True)])
        best = jax.lax.top_k(-new_costs, num)[1]
        return new_costs[best], new_used[best]

    costs = jnp.full(num, jnp.inf, jnp.float32).at[0].set(0.0)
    costs, used = jax.lax.fori_loop(0, steps, consider, (costs, jnp.zeros((num, steps), bool)))
    # A change that isn't used is written nowhere.
    rows = jnp.where(used, place.reshape(1, -1), len(nearest))
    indices = jax.vmap(lambda where: nearest.at[where].set(code, mode="drop"))(rows)
    return indices.reshape(num, *field), jnp.isfinite(costs)
