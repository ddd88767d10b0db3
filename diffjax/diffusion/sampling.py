"""Sampling loops, for every sampler and time grid: down to images, and back up to their latents."""

from collections.abc import Callable

import chex
import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Bool, Float, Int

from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.noise import (
    Noise,
    ddim_step,
    flow_time,
    for_examples,
    initial_std,
    perturb,
    transition_variance,
)
from diffjax.diffusion.random import Keys, brownian_increment, fold_in_each, normal_each, split_each
from diffjax.diffusion.samplers import Evaluations, Sampler, StepNoise

Examples = Float[Array, "B ..."]
_REPEATS = 2**16  # folded into the keys of a step's repeats, apart from the numbers of its parts
# Called at the start of step i with (i, x, noise level of x); returns whether to stop, after the step.
Observe = Callable[[Int[Array, ""], Examples, Noise], Bool[Array, ""]]
# Called while the loop is traced, with the evaluations of a sampler with adaptive step sizes; never for other samplers.
Report = Callable[[Evaluations], None]


def sample(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    *,
    shape: tuple[int, ...],
    resample_steps: Int[Array, ""] | int = 1,
    temperature: Float[Array, ""] | float = 1.0,
    brownian: bool = False,
    observe: Observe | None = None,
    report: Report | None = None,
) -> Examples:
    """Samples a batch from pure noise.

    Example i depends on `keys[i]` only. Its initial noise does not depend on the grid or the sampler.

    Args:
      keys: [B], consumed.
      denoiser: the model.
      sampler: a choice of samplers.
      levels: noise levels of the grid, leaves [N + 1] with N >= steps.
      steps: number of steps; may be traced, so that grids padded to one length share one compilation.
      shape: of one example, for instance (H, W, C).
      resample_steps, temperature, brownian, observe, report: see `run`.

    Returns:
      Samples [B, *shape].
    """
    initial, keys = split_each(keys)
    x = initial_std(at(levels, 0)) * normal_each(initial, shape)
    options = {"resample_steps": resample_steps, "temperature": temperature, "brownian": brownian}
    return run(keys, denoiser, sampler, levels, steps, x, observe=observe, report=report, **options)


def run(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    x: Examples,
    *,
    begin: Int[Array, ""] | int = 0,
    resample_steps: Int[Array, ""] | int = 1,
    temperature: Float[Array, ""] | float = 1.0,
    brownian: bool = False,
    observe: Observe | None = None,
    report: Report | None = None,
) -> Examples:
    """Moves `x` from levels[begin] down to levels[steps].

    Args:
      keys: [B], consumed.
      denoiser: the model.
      sampler: a choice of samplers.
      levels: noise levels of the grid, leaves [N + 1] with N >= steps.
      steps: index of the last level; may be traced.
      x: [B, ...] at levels[begin].
      begin: index of the first level; may be traced.
      resample_steps: how many times to take each step, noised back to its start in between: RePaint (Lugmayr et al.
        2022, algorithm 1), which harmonises an inpainted region with the known one.
      temperature: factor of the noise that steps add: S_noise of k-diffusion; ADM (Dhariwal & Nichol 2021, app. G).
      brownian: whether the noise of steps is that of one Brownian path per example, in the time of a rectified flow,
        so that samples with different numbers of steps are close. Otherwise each step has its own noise. A repeated
        step has the same noise again.
      observe: called at the start of each step; can end the loop early. None: the loop is not observed.
      report: called with the evaluations of a sampler with adaptive step sizes; of a repeated step the last counts.

    Returns:
      Samples at levels[steps].
    """

    chex.assert_equal_shape_prefix((keys, x), 1)

    def body(i, state):
        x, carry = state
        now, next = at(levels, i), at(levels, i + 1)

        def resample(r, state):
            y, _ = state
            step_key, up_key = split_each(fold_in_each(fold_in_each(keys, i), r))
            y = lax.cond(r > 0, lambda: _up(up_key, y, next, now), lambda: y)
            noise = _step_noise(keys if brownian else step_key, y, temperature, brownian)
            return sampler.step(noise, denoiser, carry, y, now, next)

        return lax.fori_loop(0, resample_steps, resample, (x, carry))

    state = x, sampler.init(x)
    if observe is None:
        x, carry = lax.fori_loop(begin, steps, body, state)
    else:

        def observed_body(loop):
            i, state, _ = loop
            stops = observe(i, state[0], at(levels, i))
            return i + 1, body(i, state), stops

        loop = jnp.asarray(begin), state, jnp.array(False)
        x, carry = lax.while_loop(lambda loop: (loop[0] < steps) & ~loop[2], observed_body, loop)[1]
    if report is not None and sampler.evaluations is not None:
        report(sampler.evaluations(carry))
    return x


def edit(
    keys: Keys,
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Noise,
    steps: Int[Array, ""] | int,
    image: Examples,
    *,
    begin: Int[Array, ""] | int,
    other: Examples | None = None,
    other_weight: Float[Array, " B"] | None = None,
    temperature: Float[Array, ""] | float = 1.0,
    brownian: bool = False,
    observe: Observe | None = None,
    report: Report | None = None,
) -> Examples:
    """Noises `image` to levels[begin], and samples from there; or from a mix with another noised image.

    Args:
      keys: [B], consumed.
      denoiser: the model.
      sampler: a choice of samplers.
      levels: noise levels of the grid.
      steps: index of the last level; may be traced.
      image: [B, ...].
      begin: index of the first level; may be traced.
      other: second images [B, ...], noised by noise of their own; None: `image` alone.
      other_weight: lambda in (1 - lambda) x_t + lambda x_t', where x_t' are the noised second images. The mix has less
        noise than levels[begin], except at 0 and 1.
      temperature, brownian, observe, report: see `run`.

    Returns:
      Edited images [B, ...].

    Reference: SDEdit (Meng et al. 2022), algorithm 1; of two images DDPM (Ho et al. 2020), section 4.4.
    """
    initial, keys = split_each(keys)
    level = at(levels, begin)
    x = perturb(image, normal_each(initial, image.shape[1:]), level)
    if other is not None and other_weight is not None:
        other_x = perturb(other, normal_each(fold_in_each(initial, 1), other.shape[1:]), level)
        weight = for_examples(other_weight, x)
        x = (1.0 - weight) * x + weight * other_x
    options = {"begin": begin, "temperature": temperature, "brownian": brownian}
    return run(keys, denoiser, sampler, levels, steps, x, observe=observe, report=report, **options)


def encode(denoiser: Denoiser, x0: Examples, levels: Noise, steps: Int[Array, ""] | int, first: Noise) -> Examples:
    """Computes the latent x_T whose deterministic sample is `x0`, by DDIM steps from the image up.

    An image has no noise to estimate, so the first step treats it as an image at `first`, as in ADM's code.

    Args:
      denoiser: the model.
      x0: images [B, ...].
      levels: noise levels of the grid, the clean level at index `steps`.
      steps: may be traced.
      first: least noisy level of the network.

    Returns:
      Latents [B, ...] at levels[0].

    Reference: DDIM (Song et al. 2021), eq. 14.
    """

    def body(j, x):
        i = steps - j  # from the clean level, levels[steps], to levels[0]
        now = jax.tree.map(lambda a, b: jnp.where(j == 0, a, b), first, at(levels, i))
        return ddim_step(x, denoiser(x, now).x0, now, at(levels, i - 1))

    return lax.fori_loop(0, steps, body, x0)


def slerp(a: Examples, b: Examples, weight: Float[Array, " B"]) -> Examples:
    """Interpolates along the great circle from `a` (weight 0) to `b` (weight 1), per example.

    Keeps the length of Gaussian latents, unlike linear interpolation.

    Reference: DDIM, app. D.5, eq. 67.
    """

    def one(a, b, weight):
        cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
        angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
        straight = angle < 1e-4
        sine = jnp.where(straight, 1.0, jnp.sin(angle))
        from_a = jnp.where(straight, 1 - weight, jnp.sin((1 - weight) * angle) / sine)
        from_b = jnp.where(straight, weight, jnp.sin(weight * angle) / sine)
        return from_a * a + from_b * b

    chex.assert_equal_shape((a, b))
    return jax.vmap(one)(a, b, weight)


def at(levels: Noise, i: Int[Array, ""] | int) -> Noise:
    """Returns level i of a trajectory."""
    return jax.tree.map(lambda leaf: leaf[i], levels)


def _step_noise(keys: Keys, x: Examples, temperature: Array | float, brownian: bool) -> StepNoise:
    """Returns the noise of a step on `x`; for the arguments see `run`. `keys` are the path's if `brownian`."""

    def keys_of(repeat: Array | int) -> Keys:
        is_first = isinstance(repeat, int) and repeat == 0
        return keys if is_first else fold_in_each(keys, _REPEATS + repeat)

    def independent(start: Noise, end: Noise, part: Array | int = 0, repeat: Array | int = 0) -> Examples:
        del start, end
        is_first = isinstance(part, int) and part == 0
        part_keys = keys_of(repeat) if is_first else fold_in_each(keys_of(repeat), part)
        return temperature * normal_each(part_keys, x.shape[1:], x.dtype)

    def of_path(start: Noise, end: Noise, part: Array | int = 0, repeat: Array | int = 0) -> Examples:
        del part
        late, early = (jnp.squeeze(flow_time(level)) for level in (start, end))
        return temperature * brownian_increment(keys_of(repeat), late, early, x.shape[1:], x.dtype)

    return of_path if brownian else independent


def _up(keys: Keys, x: Examples, now: Noise, up: Noise) -> Examples:
    """Samples q(x_up | x_now), the forward process between two levels."""
    return up.alpha / now.alpha * x + jnp.sqrt(transition_variance(up, now)) * normal_each(keys, x.shape[1:])
