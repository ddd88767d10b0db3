"""How a trained diffusion model is sampled, as a config and a command line choose it."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import flax.struct
import jax
import numpy as np
from jax import Array
from jax import numpy as jnp

from diffjax.diffusion import clipping, guidance, samplers, sampling, time_grids
from diffjax.diffusion.denoiser import Denoiser, thresholded
from diffjax.diffusion.noise import prior_std
from diffjax.errors import UserError, checked_number, checked_whole
from diffjax.models.diffusion.data_space import kept_in
from diffjax.models.diffusion.process import GIVEN, Process
from diffjax.registry import check_options, choose, options
from diffjax.typing import Embeddings, Images, PRNGKeys

_SCALES = {  # of the guidance: traced inputs
    "guidance": 1.0,  # s = 1 + w of classifier-free guidance
    "guidance_rescale": 0.0,
    "guidance_low": 0.0,  # guided above this sigma / alpha ...
    "guidance_high": float("inf"),  # ... and up to this
    "classifier_scale": 1.0,  # of a classifier, where one is given
    "weak_scale": 1.0,  # of autoguidance, where a weaker model is given
    "clip_scale": 0.0,  # of a CLIP of noised images, where one is given
    "augmentation": 0.0,  # level that a smaller image to be enlarged is degraded to
}
_DEFAULTS = {
    "grid": "trailing",
    "threshold": "clip",
    "strength": 1.0,  # share of the process that an image to be edited is taken back
    "repeats": 1,  # times that each step is taken, for in-painting
    **_SCALES,
}
SETTINGS = {"name", "steps", *_DEFAULTS}


@flax.struct.dataclass
class Plan:
    """How to sample: every leaf is a traced input, so plans with equal static fields and shapes share a compilation."""

    times: Array  # [capacity + 1], zeros after the last
    steps: Array  # int32
    begin: Array  # int32: the step that an image to be edited starts at
    repeats: Array  # int32
    scales: dict[str, Array]
    options: dict[str, Array]  # the sampler's own
    sampler: str = flax.struct.field(pytree_node=False)
    threshold: str = flax.struct.field(pytree_node=False)


class Model(NamedTuple):
    """A trained diffusion model, bound to its parameters and a condition."""

    process: Process
    denoiser: Denoiser
    unconditional: Denoiser | None  # what classifier-free guidance leads away from
    shape: tuple[int, ...]  # of one example of what is diffused
    encode: Callable[[Images], Array] = lambda images: images  # pictures to that
    decode: Callable[[Array], Array] = lambda x: x  # and back


def make_plan(
    process: Process,
    sampler_config,
    *,
    guided: bool,
    pixels: bool = True,
    takes: Collection[str] = (),
    capacity: int | None = None,
    **overrides,
) -> Plan:
    """A Plan of a config's `sampler` section with `overrides`, its times padded to `capacity` steps.

    Overrides are settings, or the sampler's own options. `guided` says whether the model can be guided without a
    classifier, `pixels` whether it diffuses pixels, `takes` what it is made of (typing.System). Raises UserError for
    what does not exist or does not fit.
    """
    own = {name: value for name, value in overrides.items() if name not in SETTINGS}
    settings = {**_DEFAULTS, **sampler_config, **{k: v for k, v in overrides.items() if k in SETTINGS}}
    check_options("the config's sampler section", SETTINGS, settings)
    sampler = choose("sampler", samplers, settings["name"], given=GIVEN)
    check_options(f"sampler {sampler.name!r}", options(sampler.function) - set(GIVEN), own)
    _check_threshold(settings["threshold"])
    for name in _SCALES:
        if not (settings[name] == math.inf and name == "guidance_high"):
            checked_number(f"sampler.{name}", settings[name])
    checked_number("sampler.guidance_rescale", settings["guidance_rescale"], low=0, high=1)
    for name, value in {**sampler.options, **own}.items():
        if not (value == math.inf and name == "high"):
            checked_number(f"sampler.name={sampler.name}, {name}", value, low=0)
    for name in ("steps", "repeats"):
        checked_whole(f"sampler.{name}", settings[name])
    if settings["guidance"] != 1.0 and not guided:
        raise UserError(
            f"sampler.guidance={settings['guidance']:g} needs a model trained with diffusion.label_dropout > 0, or "
            "another condition's dropout, which this one was not: leave it at 1"
        )
    if settings["threshold"] != "none" and not pixels:
        raise UserError(
            f"sampler.threshold={settings['threshold']} keeps pixels in their range, and latents and embeddings have "
            "none: set it to none"
        )
    if not 0 <= settings["augmentation"] <= 1:
        raise UserError(f"augmentation={settings['augmentation']:g}: a level from 0 to 1")
    if settings["augmentation"] and "smaller_image" not in takes:
        raise UserError(
            f"augmentation={settings['augmentation']:g} is of the smaller picture of an upsampler, which this is not"
        )
    if not 0 < settings["strength"] <= 1:
        raise UserError(f"strength={settings['strength']:g}: a share of the process, above 0 and up to 1")
    times = _times(process, settings)
    steps = len(times) - 1
    begin = np.sum(times > settings["strength"] * process.schedule.timesteps)
    return Plan(
        times=jnp.asarray(np.pad(times, (0, max(0, (capacity or 0) - steps))), jnp.float32),
        steps=jnp.asarray(steps),
        begin=jnp.asarray(min(int(begin), steps - 1)),
        repeats=jnp.asarray(int(settings["repeats"])),
        scales=_arrays({name: settings[name] for name in _SCALES}),
        options=_arrays({**sampler.options, **own}),
        sampler=sampler.name,
        threshold=settings["threshold"],
    )


def draw(
    model: Model,
    keys: PRNGKeys,
    plan: Plan,
    condition: Mapping[str, Array],
    *,
    classify: Callable | None = None,
    weak: Denoiser | None = None,
    similar: tuple[Callable, Embeddings] | None = None,
) -> Array:
    """Draws pictures [-1, 1], or whatever else the model decodes to, as `plan` says.

    Args:
      condition: leaves [B, ...]; here "image" [-1, 1] is one to be edited, or with a "mask" the one whose masked part
        (1) is kept, "latent" the x_T to start from.
      classify: (x, Noise) -> logits, to guide by towards condition["label"].
      weak: a weaker model's denoiser, for autoguidance.
      similar: (x, Noise) -> embeddings by a CLIP, and the embeddings of captions to guide towards.
    """
    process, steps = model.process, plan.steps
    levels = process.schedule(plan.times)
    if "image" in condition:
        condition = {**condition, "image": model.encode(condition["image"])}
    if "mask" in condition:
        condition = {**condition, "mask": kept_in(condition["mask"][..., :1], model.shape[0])}
    denoise = _guided(model, plan, condition, classify, weak, similar)
    make_sampler = choose("sampler", samplers, plan.sampler).bind(
        schedule=process.schedule, steps=steps, variance=process.variance.bind()
    )
    sampler = make_sampler(**plan.options)
    if "latent" in condition:
        x = sampling.run(keys, denoise, sampler, levels, steps, condition["latent"])
    elif "image" in condition and "mask" not in condition:
        x = sampling.edit(keys, denoise, sampler, levels, steps, condition["image"], begin=plan.begin)
    else:
        x = sampling.sample(keys, denoise, sampler, levels, steps, shape=model.shape, repeats=plan.repeats)
    return model.decode(x)


def latents(model: Model, keys: PRNGKeys, plan: Plan) -> Array:
    """The x_T [B, *shape] that `draw` starts from."""
    first, _ = sampling.split(keys)
    return prior_std(model.process.schedule(plan.times[0])) * sampling.noise_of(first, model.shape)


def encode(model: Model, images: Images, plan: Plan) -> Array:
    """The latents x_T of images by DDIM's steps, unguided: see sampling.encode."""
    schedule, x0 = model.process.schedule, model.encode(images)
    return sampling.encode(model.denoiser, x0, schedule(plan.times), plan.steps, schedule(schedule.first))


def _guided(model: Model, plan: Plan, condition: Mapping[str, Array], classify, weak, similar) -> Denoiser:
    """Every guidance that there is, one around the other."""
    scales, denoise = plan.scales, model.denoiser
    interval = scales["guidance_low"], scales["guidance_high"]
    if model.unconditional is not None:
        denoise = guidance.classifier_free(
            denoise,
            model.unconditional,
            scales["guidance"],
            rescale=scales["guidance_rescale"],
            interval=interval,
        )
    if weak is not None:
        denoise = guidance.autoguidance(denoise, weak, scales["weak_scale"], interval=interval)
    if classify is not None:
        denoise = guidance.classifier(denoise, classify, condition["label"], scales["classifier_scale"])
    if similar is not None:
        denoise = guidance.clip_similarity(denoise, *similar, scales["clip_scale"])
    denoise = thresholded(denoise, choose("threshold", clipping, plan.threshold).bind())
    if "mask" in condition:
        denoise = guidance.inpaint(denoise, condition["image"], condition["mask"])
    return denoise


def _check_threshold(text: str) -> None:
    """Raises UserError for one that does not exist, or with options out of range."""
    threshold = choose("sampler.threshold", clipping, text)
    try:
        jax.eval_shape(threshold.bind(), jnp.zeros((1, 1)))
    except ValueError as error:
        raise UserError(f"sampler.threshold={text}: {error}") from error


def _times(process: Process, settings: Mapping) -> np.ndarray:
    grid = choose("grid", time_grids, settings["grid"])
    try:
        with np.errstate(all="ignore"):
            times = grid.bind()(int(settings["steps"]), process.schedule, *grid.values)
        if not (np.isfinite(times).all() and (np.diff(times) < 0).all()):
            raise ValueError("its times do not fall: use other options")
        return times
    except (ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"sampler.steps={settings['steps']}, sampler.grid={settings['grid']}: {error}") from error


def _arrays(values: Mapping[str, float]) -> dict[str, Array]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in sorted(values.items())}
