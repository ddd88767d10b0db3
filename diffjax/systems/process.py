"""A diffusion process as a config chooses it: what every diffusion system shares, whatever its data space."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
from jax import Array
from jax import numpy as jnp

from diffjax.choice import check_options, choose, options
from diffjax.diffusion import (
    denoiser,
    grids,
    guidance,
    parameterizations,
    samplers,
    sampling,
    schedules,
    times,
    variance,
    weighting,
)
from diffjax.diffusion.denoiser import Network
from diffjax.diffusion.noise import Noise, perturb
from diffjax.errors import UserError
from diffjax.typing import PRNGKeys

_SETTINGS = {"name", "steps", "grid", "guidance", "clip"}  # of every sampler; its own options stand beside them


@flax.struct.dataclass
class Plan:
    """How to sample: every leaf is a traced input, so plans with equal static fields and shapes share a compilation."""

    levels: Noise  # [capacity + 1]
    steps: Array  # int32
    guidance: Array  # scale s of classifier-free guidance; 1 is unguided
    options: dict[str, Array]  # the sampler's own
    sampler: str = flax.struct.field(pytree_node=False)
    clip: bool = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Process:
    """The choices of a config's `diffusion` section, looked up."""

    schedule: schedules.Schedule
    parameterization: Callable
    weighting: Callable
    times: Callable
    variance: Callable

    @classmethod
    def from_config(cls, config) -> "Process":
        """Reads the `diffusion` section. Raises UserError for a choice that does not exist, with the nearest."""
        schedule = choose("diffusion.schedule", schedules, config.schedule)
        check_options(f"schedule {config.schedule!r}", options(schedule) - {"continuous"}, config.schedule_options)
        if config.timesteps < 1:
            raise UserError(f"diffusion.timesteps={config.timesteps}: a process has at least one step")
        return cls(
            schedule=schedule(config.timesteps, continuous=config.continuous, **config.schedule_options),
            parameterization=choose("diffusion.parameterization", parameterizations, config.parameterization),
            weighting=choose("diffusion.weighting", weighting, config.weighting),
            times=choose("diffusion.times", times, config.times),
            variance=choose("diffusion.variance", variance, config.variance),
        )

    def loss(self, network: Network, x0: Array, keys: PRNGKeys) -> Array:
        """DDPM (Ho et al. 2020), algorithm 1, for any parameterization: weight * mean |F - target|^2, [B].

        Args:
          network: (x [B, ...], t [B]) -> F [B, ...].
          x0: clean examples [B, ...].
        """
        time_key, eps_key = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        noise = self.schedule(jax.vmap(self.times, (0, None))(time_key, self.schedule))
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(eps_key)
        x = jax.vmap(perturb)(x0, eps, noise)
        c = self.parameterization(noise)
        target = jax.vmap(lambda c, x0, x: (x0 - c.skip * x) / c.out)(c, x0, x)
        output = network(jax.vmap(jnp.multiply)(c.input, x), noise.t)
        error = jnp.mean((output - target) ** 2, axis=range(1, x0.ndim))
        return self.weighting(noise, c) * error

    def plan(self, sampler_config, *, guided: bool, capacity: int | None = None, **overrides) -> Plan:
        """A Plan of a config's `sampler` section with `overrides`, its levels padded to `capacity` steps.

        `guided` says whether the model can be guided. Raises UserError for what does not exist or does not fit.
        """
        settings = {**sampler_config, **overrides}
        make_sampler = choose("sampler", samplers, settings["name"])
        own = options(make_sampler) - {"variance"}
        check_options(f"sampler {settings['name']!r}", own, overrides.keys() - _SETTINGS)
        grid = choose("sampler.grid", grids, settings["grid"])
        steps, scale, last = int(settings["steps"]), float(settings["guidance"]), self.schedule.timesteps
        if not 1 <= steps <= last:
            raise UserError(f"sampler.steps={steps}: this model has {last} timesteps, so choose from 1 to {last}")
        if scale != 1.0 and not guided:
            raise UserError(
                f"sampler.guidance={scale:g} needs a model trained with labels and diffusion.label_dropout > 0, "
                "which this one was not: leave it at 1"
            )
        return Plan(
            levels=sampling.lay(self.schedule, grid(steps, last), capacity),
            steps=jnp.asarray(steps),
            guidance=jnp.asarray(scale, jnp.float32),
            options={name: jnp.asarray(settings[name], jnp.float32) for name in sorted(own & settings.keys())},
            sampler=settings["name"],
            clip=bool(settings["clip"]),
        )

    def sample(self, network: Network, unconditional: Network | None, keys: PRNGKeys, plan: Plan, *, shape) -> Array:
        """Draws x_0 [B, *shape] as `plan` says, guided away from `unconditional` where there is one."""
        denoise = denoiser.from_network(network, self.parameterization)
        if unconditional is not None:
            unconditional = denoiser.from_network(unconditional, self.parameterization)
            denoise = guidance.classifier_free(denoise, unconditional, plan.guidance)
        if plan.clip:
            denoise = denoiser.clip(denoise)
        make_sampler = choose("sampler", samplers, plan.sampler)
        fixed = {"variance": self.variance} if "variance" in options(make_sampler) else {}
        return sampling.sample(
            keys, denoise, make_sampler(**fixed, **plan.options), plan.levels, plan.steps, shape=shape
        )
