"""Metrics of diffusion models: likelihood, progressive coding, reconstruction by DDIM, straightness of trajectories."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import clipping, likelihood
from diffjax.diffusion.denoiser import with_clipping
from diffjax.diffusion.random import split_each
from diffjax.diffusion.straightness import straightness as trajectory_straightness
from diffjax.errors import UserError, unknown
from diffjax.evaluation import plots
from diffjax.evaluation.settings import (
    MAX_SHOWN,
    Examples,
    Result,
    Row,
    Settings,
    map_batches,
    mean_and_error,
    text_with_error,
)
from diffjax.inference import image_grids
from diffjax.metrics import resampling
from diffjax.metrics.stratified_sampling import sample_terms
from diffjax.models.images import to_grey_levels, to_unit_range
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.progress import announced_jit
from diffjax.runs.loading import Run

_TERMS_PER_CALL = 10  # terms of the bound in one call of the compiled program
_CODED_LEVELS = 20  # levels at which the distortion of progressive coding is measured
_STRAIGHTNESS_STEPS = 100  # default number of DDIM's steps, at most T
_RECONSTRUCTION_STEPS = (10, 20, 50, 100)  # default numbers of DDIM's steps, at most T
_EXACT_IMAGES, _EXACT_VALUES = 8, 256  # default number of exact traces, for images of at most so many values


def check(name: str, settings: Settings, trained: Run) -> None:
    """Raises UserError if the run does not support the time grids of a metric."""
    if name in ("nll", "progressive_coding"):
        _bound_settings(name, settings, trained)
    if name == "nll":
        _ode_settings(settings, trained)
    if name == "reconstruction":
        _reconstruction_settings(settings, trained)
    if name == "straightness":
        _straightness_settings(settings, trained)


def nll(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns bits/dim by the variational bound, term by term, and by the probability-flow ODE."""
    bound_settings = _bound_settings("nll", settings, trained)
    bound = _bound(settings, trained, examples, bound_settings)
    ode_settings = _ode_settings(settings, trained)
    ode_steps = ode_settings.num_steps if ode_settings else 0
    columns = _bound_columns(bound, bound_settings.num_steps)
    if ode_settings:
        columns |= _ode_columns(settings, trained, examples, ode_settings)
    by_time = _terms_by_time(bound, np.asarray(bound_settings.times))
    count, steps = len(examples.images), bound_settings.num_steps
    labels = {
        "bound": f"variational bound over {steps} steps",
        "prior": "  L_T, prior term",
        "kl": f"  L_1 to L_{steps - 1}",
        "decoder": f"  L_0, decoder term ({settings.decoder})",
        "ode_hutchinson": f"ODE, {ode_steps} steps, Hutchinson's trace",
        "ode_exact_trace": f"ODE, exact trace, first {len(columns.get('ode_exact_trace', ()))} images",
        "exact_minus_hutchinson": "  minus Hutchinson's trace on these",
    }
    estimates = {name: mean_and_error(values) for name, values in columns.items()}
    title = f"terms of the bound, {count} images of {settings.split}"
    return Result(
        title=f"bits/dim of {count} images of {settings.split}, checkpoint {trained.step}",
        values={
            **estimates,
            "terms": by_time,
            "steps": steps,
            "terms_drawn": bound["which"].shape[1],
            "decoder_convention": settings.decoder,
            "ode_steps": ode_steps,
        },
        rows=[Row(labels[name], text_with_error(**estimate)) for name, estimate in estimates.items()],
        plots={"nll.png": lambda path: plots.bound_terms(path, by_time, title)},
    )


def progressive_coding(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns rate and distortion of images that are sent step by step: DDPM (Ho et al. 2020), section 4.3.

    The rate of x_t is the prior's term and the terms of the bound of the steps to it; the distortion is that of the
    estimate of x_0 from x_t. The last term of the bound sends the rest.
    """
    sampling = _bound_settings("progressive_coding", settings, trained)
    bound = _bound(dataclasses.replace(settings, terms=0), trained, examples, sampling)
    steps, times = sampling.num_steps, np.asarray(sampling.times)
    system: Any = trained.system
    terms = bound["terms"][:, np.argsort(bound["which"][0])]  # of the steps from x_T on
    rates = bound["prior"][:, None] + np.cumsum(terms, axis=-1) - terms
    shown = np.unique(np.linspace(0, steps - 1, _CODED_LEVELS).round().astype(int))

    @announced_jit("the distortion")
    def distortions(variables, keys, conditions, x0, sampling):
        model = system.bind(variables, conditions)
        denoise, levels = with_clipping(model.denoiser, clipping.clip), model.process.schedule(sampling.times)
        return likelihood.distortions(keys, denoise, model.encode(x0), levels, jnp.asarray(shown)).T

    def compute(keys, batch):
        return distortions(trained.variables, keys, batch, to_unit_range(batch["image"]), sampling)

    squares = map_batches(settings, "distortion", compute, examples)
    entries = []
    for i, errors in zip(shown, 127.5**2 * squares.T, strict=True):
        rmse = resampling.square_root(resampling.mean(errors))
        distortion = {"mean": rmse.value, "standard_error": rmse.standard_error}
        entries.append({"t": float(times[i]), "rate": mean_and_error(rates[:, i]), "rmse": distortion})
    rows = [
        Row(f"t = {e['t']:g}", f"{text_with_error(**e['rate'])} bits/dim, RMSE {text_with_error(**e['rmse'])}")
        for e in entries
    ]
    last = mean_and_error(terms[:, -1])
    rows.append(Row("L_0, the rest", f"{text_with_error(**last)} bits/dim"))
    title = f"rate and distortion of {len(examples.images)} images of {settings.split}"
    return Result(
        title=f"{title} in {steps} steps, checkpoint {trained.step} (RMSE in grey levels)",
        values={"rows": entries, "rate": entries[-1]["rate"], "rmse": entries[-1]["rmse"], "decoder": last},
        rows=rows,
        plots={"progressive_coding.png": lambda path: plots.rate_distortion(path, entries, title)},
    )


def _bound_settings(metric: str, settings: Settings, trained: Run) -> SamplingSettings:
    """Returns the times of the variational bound. Raises UserError for a run or settings without one."""
    if trained.config.system == "latent":
        raise UserError(f"--metrics={metric}: the likelihood of latents is not that of images; remove it for this run")
    if settings.decoder not in likelihood.DECODERS:
        raise unknown("decoder", settings.decoder, likelihood.DECODERS)
    steps = settings.steps[0] if settings.steps else _timesteps(trained)
    sampling = _ddim_settings(settings, trained, steps, "trailing")
    if sampling.times[sampling.num_steps] > 0:
        raise UserError(f"--grid={settings.grid}: the likelihood is that of clean images; remove the option end")
    return sampling


def _bound(settings: Settings, trained: Run, examples: Examples, sampling: SamplingSettings) -> dict[str, Any]:
    """Returns the prior's term of each image [N], and K of its other terms with their indices and weights [N, K]."""
    steps = sampling.num_steps
    system: Any = trained.system
    drawn = min(max(2, settings.terms) if settings.terms else steps, steps)
    calls = -(-drawn // _TERMS_PER_CALL)
    rng = np.random.default_rng(settings.seed)

    @jax.jit
    def prior(variables, conditions, x0, sampling):
        model = system.bind(variables, conditions)
        return jax.vmap(likelihood.prior_term, (0, None))(model.encode(x0), model.process.schedule(sampling.times[0]))

    @announced_jit("the likelihood bound")
    def terms(variables, keys, conditions, x0, sampling, which):
        model = system.bind(variables, conditions)
        denoise = with_clipping(model.denoiser, clipping.clip)  # as DDPM evaluates it
        levels, variance = model.process.schedule(sampling.times), model.process.variance.bind()
        convention = {"variance": variance, "decoder": settings.decoder}
        return likelihood.bound_terms(keys, denoise, model.encode(x0), levels, which, **convention).T

    def compute(keys, batch):
        which, weight = sample_terms(rng, steps, drawn)
        padded = np.resize(which, calls * _TERMS_PER_CALL).reshape(calls, _TERMS_PER_CALL)
        x0 = to_unit_range(batch["image"])
        values = [terms(trained.variables, keys, batch, x0, sampling, some) for some in padded]
        return {
            "prior": prior(trained.variables, batch, x0, sampling),
            "terms": np.concatenate(jax.device_get(values), axis=-1)[:, :drawn],
            "which": np.tile(which, (len(x0), 1)),
            "weight": np.tile(weight, (len(x0), 1)),
        }

    return map_batches(settings, "nll", compute, examples)


def _bound_columns(bound: Mapping[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Returns the bound of each image and its parts, [N] each."""
    is_decoder, weighted = bound["which"] == steps - 1, bound["weight"] * bound["terms"]
    parts = {
        "prior": bound["prior"],
        "kl": np.sum(np.where(is_decoder, 0.0, weighted), axis=-1),
        "decoder": np.sum(np.where(is_decoder, weighted, 0.0), axis=-1),
    }
    return {"bound": parts["prior"] + parts["kl"] + parts["decoder"], **parts}


def _terms_by_time(bound: Mapping[str, Any], times: np.ndarray) -> dict[str, list[float]]:
    """Returns the mean of each sampled term over the images, and its time."""
    which = bound["which"].ravel()
    sampled, counts = np.unique(which, return_counts=True)
    sums = np.bincount(which, bound["terms"].ravel())[sampled]
    return {"t": times[sampled].tolist(), "bits_per_dim": (sums / counts).tolist()}


def _ode_columns(
    settings: Settings, trained: Run, examples: Examples, sampling: SamplingSettings
) -> dict[str, np.ndarray]:
    """Returns bits/dim of each image by the ODE, with Hutchinson's trace [N], and with the exact one for the first."""
    system: Any = trained.system

    @announced_jit("the likelihood by the ODE", static_argnames="exact")
    def ode(variables, keys, conditions, x0, sampling, exact):
        model = system.bind(variables, conditions)
        dequantize_key, probe_key = split_each(keys)
        x0 = likelihood.dequantized(dequantize_key, model.encode(x0))
        levels = model.process.schedule(sampling.times)
        return likelihood.ode_bits(probe_key, model.denoiser, x0, levels, sampling["steps"], exact=exact)

    def compute(exact: bool) -> Callable:
        return lambda keys, batch: ode(
            trained.variables, keys, batch, to_unit_range(batch["image"]), sampling, exact=exact
        )

    columns = {"ode_hutchinson": map_batches(settings, "likelihood by the ODE", compute(exact=False), examples)}
    count = settings.exact_trace
    if count is None:
        count = _EXACT_IMAGES if examples.images[0].size <= _EXACT_VALUES else 0
    if count:
        count = max(count, 2)  # 2: for a standard error
        exact = map_batches(settings, "exact trace", compute(exact=True), examples.first(count))
        difference = exact - columns["ode_hutchinson"][:count]
        columns |= {"ode_exact_trace": exact, "exact_minus_hutchinson": difference}
    return columns


def reconstruction(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the error of encoding with DDIM and decoding in as many steps: DDIM (Song et al. 2021), table 2."""
    images, grid = examples.images, settings.grid or trained.config.sampler.grid
    system: Any = trained.system

    @announced_jit("DDIM encoding and decoding")
    def encode_and_decode(variables, keys, conditions, x0, sampling):
        latent = system.bind(variables, conditions).invert(x0, sampling)
        return latent, system.sample(variables, keys, {**conditions, "latent": latent}, sampling)

    entries, shown, labels = [], [images[:MAX_SHOWN]], ["images"]
    for sampling in _reconstruction_settings(settings, trained):

        def compute(keys, batch, sampling=sampling):
            conditions = dict(batch)
            x0 = to_unit_range(conditions.pop("image"))  # an image among the conditions would be edited
            latent, x = encode_and_decode(trained.variables, keys, conditions, x0, sampling)
            return jnp.mean(((x - x0) / 2) ** 2, axis=(1, 2, 3)), jnp.std(latent, axis=(1, 2, 3)), x

        errors, stds, x = map_batches(settings, f"{sampling.num_steps} steps", compute, examples)
        entries.append({"steps": sampling.num_steps, "mse": mean_and_error(errors), "latent_std": float(np.mean(stds))})
        shown.append(np.asarray(to_grey_levels(x[:MAX_SHOWN])))
        labels.append(f"{sampling.num_steps} steps")
    rows = [
        Row(f"{e['steps']} steps", f"MSE {text_with_error(**e['mse'])}, std of x_T {e['latent_std']:.3f}")
        for e in entries
    ]
    rows.append(Row("reconstruction.png", "the images, then one row per number of steps"))
    grid_image = image_grids.grid(np.concatenate(shown), image_grids.Layout(len(shown[0]), labels))
    return Result(
        title=f"reconstruction of {len(images)} images of {settings.split}, checkpoint {trained.step}, grid {grid}",
        values={"grid": grid, "rows": entries, "mse": entries[-1]["mse"]},
        rows=rows,
        plots={"reconstruction.png": lambda path: image_grids.save(path, grid_image)},
    )


def straightness(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the straightness of trajectories, relative to the squared distance of their ends.

    The trajectories are those of DDIM from random noise, under the conditions of the examples and without guidance.

    Reference: Liu et al. 2023, "Flow straight and fast" (rectified flow), sec. 2.2.
    """
    model: Any = trained.system
    sampling = _straightness_settings(settings, trained)

    @announced_jit("the straightness")
    def compute(variables, keys, conditions, sampling):
        bound = model.bind(variables, conditions)
        levels = bound.process.schedule(sampling.times)
        x = bound.initial_latents(keys, sampling)
        return trajectory_straightness(bound.denoiser, x, levels, sampling["steps"])

    deviations, distances = map_batches(
        settings, "straightness", lambda keys, batch: compute(trained.variables, keys, batch, sampling), examples
    )
    ratio, scale = np.mean(deviations) / np.mean(distances), np.mean(distances)
    relative = mean_and_error(ratio + (deviations - ratio * distances) / scale)  # first order of a ratio of means
    absolute = mean_and_error(deviations / np.prod(model.data_space.shape))
    count, steps = len(examples.images), sampling.num_steps
    return Result(
        title=f"straightness of {count} trajectories in {steps} steps, checkpoint {trained.step} (0: straight)",
        values={"relative": relative, "absolute": absolute, "steps": steps, "grid": settings.grid or "trailing"},
        rows=[
            Row("relative to the squared distance", text_with_error(**relative)),
            Row("per value", text_with_error(**absolute)),
        ],
    )


def _ode_settings(settings: Settings, trained: Run) -> SamplingSettings | None:
    """Returns the times of the likelihood's ODE; None: it is not computed."""
    steps = min(settings.ode_steps, _timesteps(trained))
    return _ddim_settings(settings, trained, steps, "log_snr") if steps else None


def _reconstruction_settings(settings: Settings, trained: Run) -> list[SamplingSettings]:
    """Returns the times of each number of steps, with one capacity so that they share a compilation."""
    counts = settings.steps or sorted({min(steps, _timesteps(trained)) for steps in _RECONSTRUCTION_STEPS})
    grid = trained.config.sampler.grid
    return [_ddim_settings(settings, trained, steps, grid, max(counts)) for steps in counts]


def _straightness_settings(settings: Settings, trained: Run) -> SamplingSettings:
    """Returns the times of the trajectories."""
    steps = settings.steps[0] if settings.steps else min(_STRAIGHTNESS_STEPS, _timesteps(trained))
    return _ddim_settings(settings, trained, steps, "trailing")


def _timesteps(trained: Run) -> int:
    """Returns T, the largest number of steps of a grid."""
    return trained.config.diffusion.timesteps


def _ddim_settings(
    settings: Settings, trained: Run, steps: int, grid: str, capacity: int | None = None
) -> SamplingSettings:
    """Returns settings of DDIM without noise, guidance and thresholds; `settings.grid` replaces `grid`."""
    sampler = {"name": "ddim", "steps": steps, "grid": settings.grid or grid, "threshold": "none"}
    model: Any = trained.system
    return model.make_settings(sampler, capacity=capacity)
