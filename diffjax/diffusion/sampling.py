"""The one loop that drives every sampler over every grid, down to an image and back up to its latent."""

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int, Key

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import Noise, perturb, prior_std, transfer, transition_variance
from diffjax.diffusion.samplers import Sampler

Keys = Key[Array, "B"]
Examples = Float[Array, "B ..."]


def sample(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    *,
    shape: tuple[int, ...],
    repeats: Int[Array, ""] | int = 1,
) -> Examples:
    """Draws a batch: from pure noise down `levels` (leaves [N + 1], N >= steps) in `steps` steps.

    `steps` may be traced, so grids padded to one length share one compilation. Example i depends on `keys[i]` alone;
    its initial noise does not depend on the grid or the sampler. Every key is consumed once.

    Args:
      shape: shape of one example, for instance (H, W, C).
      repeats: see `run`.
    """
    initial, keys = split(keys)
    x = prior_std(at(levels, 0)) * noise_of(initial, shape)
    return run(keys, denoiser, sampler, levels, steps, x, repeats=repeats)


def run(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    x: Examples,
    *,
    begin: Int[Array, ""] | int = 0,
    repeats: Int[Array, ""] | int = 1,
) -> Examples:
    """Takes `x`, at levels[begin], down to levels[steps]. Both numbers may be traced.

    Each step is taken `repeats` times, with noise back up to where it began in between: the resampling of RePaint
    (Lugmayr et al. 2022, algorithm 1), which brings an in-painted region into harmony with the known one.
    """

    def body(i, state):
        x, carry = state
        now, next = at(levels, i), at(levels, i + 1)

        def again(r, state):
            y, _ = state
            step_key, up_key = split(fold_in(fold_in(keys, i), r))
            y = lax.cond(r > 0, lambda: _up(up_key, y, next, now), lambda: y)
            return sampler.step(step_key, denoiser, carry, y, now, next)

        return lax.fori_loop(0, repeats, again, (x, carry))

    return lax.fori_loop(begin, steps, body, (x, sampler.init(x)))[0]


def edit(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    image: Examples,
    *,
    begin: Int[Array, ""] | int,
) -> Examples:
    """Image to image: noise `image` to levels[begin], and down again. SDEdit (Meng et al. 2022), algorithm 1."""
    initial, keys = split(keys)
    x = perturb(image, noise_of(initial, image.shape[1:]), at(levels, begin))
    return run(keys, denoiser, sampler, levels, steps, x, begin=begin)


def encode(denoiser: Denoiser, x0: Examples, levels: Noise, steps: Int[Array, ""] | int, first: Noise) -> Examples:
    """The latent x_T whose deterministic sample is `x0`: DDIM's steps from the image up (Song et al. 2021, eq. 14).

    An image has no noise to estimate, so it is taken for one at `first`, the least noisy level that the network knows,
    as ADM's code does.
    """

    def body(j, x):
        i = steps - j  # from the clean level, levels[steps], to levels[0]
        now = jax.tree.map(lambda a, b: jnp.where(j == 0, a, b), first, at(levels, i))
        return transfer(x, denoiser(x, now).x0, now, at(levels, i - 1))

    return lax.fori_loop(0, steps, body, x0)


def slerp(a: Examples, b: Examples, weight: Float[Array, "B"]) -> Examples:
    """Along the great circle from `a` (weight 0) to `b` (weight 1), example by example: DDIM, app. D.5, eq. 67.

    Keeps the length that Gaussian latents have, which a straight line loses.
    """

    def one(a, b, weight):
        cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
        angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
        straight = angle < 1e-4
        sine = jnp.where(straight, 1.0, jnp.sin(angle))
        from_a = jnp.where(straight, 1 - weight, jnp.sin((1 - weight) * angle) / sine)
        from_b = jnp.where(straight, weight, jnp.sin(weight * angle) / sine)
        return from_a * a + from_b * b

    return jax.vmap(one)(a, b, weight)


def split(keys: Keys) -> tuple[Keys, Keys]:
    """Two keys of each key."""
    return tuple(jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0))


def fold_in(keys: Keys, i: Int[Array, ""]) -> Keys:
    """A key of each key and a number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, i)


def noise_of(keys: Keys, shape: tuple[int, ...]) -> Examples:
    """N(0, I), an example of `shape` a key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def at(levels: Noise, i: Int[Array, ""] | int) -> Noise:
    """Level i of a trajectory."""
    return jax.tree.map(lambda leaf: leaf[i], levels)


def _up(keys: Keys, x: Examples, now: Noise, up: Noise) -> Examples:
    """A draw from q(x_up | x_now): the forward process between two levels."""
    return up.alpha / now.alpha * x + jnp.sqrt(transition_variance(up, now)) * noise_of(keys, x.shape[1:])
