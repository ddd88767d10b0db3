"""Metrics of edited images, sampled from held-out ones: inpainting, and interpolation between two images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Float, Int, UInt8

from diffjax.errors import UserError, unknown
from diffjax.evaluation import alignment
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import (
    MAX_SHOWN,
    Examples,
    Result,
    Row,
    Settings,
    Shown,
    mean_and_error,
    percent_with_error,
    text_with_error,
    with_names,
)
from diffjax.inference import image_grids
from diffjax.inference.overrides import SettingsFactory
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics import similarity
from diffjax.models.diffusion.data_space import PixelSpace
from diffjax.models.diffusion.inpainting_masks import KINDS, mask_of_kind
from diffjax.models.images import downsample, to_grey_levels, to_unit_range
from diffjax.runs.datasets import image_data
from diffjax.runs.loading import Run

_MASKS_FOLD = 2**31 - 2  # folded into an image's key for its mask
_MIN_READABLE = 16  # side of the smallest scenes of `shapes` whose captions are checked
_STRENGTHS = (0.125, 0.25, 0.5, 0.75, 1.0)
_REPEATS = 4  # interpolations of each pair half way, whose differences are the diversity
_SHOWN_PAIRS = 2  # the least number of pairs, too
_POSITIONS = (0.0, 1 / 3, 2 / 3, 1.0)  # of the interpolations that are shown
_IN_A_ROW = 4  # images in each of the two rows that a report shows
_GREY = 128  # masked region of an image that is shown
# Conditions of which two images have different values.
_DIFFERING = {"number", "caption", "clip_text", "image_embedding", "low_res_image"}


def check(name: str, trained: Run, settings: Settings | None) -> None:
    """Raises UserError if the run does not support inpainting or interpolation with these settings."""
    model: Any = trained.system
    if name == "interpolation" and (differing := sorted(_DIFFERING & model.conditions.each.keys())):
        raise UserError(
            f"--metrics={name}: requires a model that is unconditional or conditioned on labels, as two images differ "
            f"in conditions.{differing[0]}; remove it for this run"
        )
    if settings is None:
        return
    if settings.masks not in KINDS:
        raise unknown("masks", settings.masks, KINDS)
    for strength in _strengths(settings, trained):
        model.make_settings(trained.config.sampler, **dict(settings.overrides), strength=strength)


def inpainting(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns how well masked regions of images are inpainted, under the images' own conditions.

    The pixel differences across the border of the masks are those of real images, if the region continues the rest.
    """
    model: Any = trained.system
    count, real = len(examples.images), _in_the_size_of_samples(trained, examples.images)
    masks, factor = _masks(settings, count, real.shape[1]), examples.images.shape[1] // real.shape[1]
    known = 1.0 - masks.repeat(factor, axis=1).repeat(factor, axis=2)
    conditions = {**examples.batch, "image": _unit(examples.images), "mask": known}
    seeds = settings.seed + np.arange(count)
    runner = SampleRunner(model, batch_size=min(settings.batch_size, count))
    sampling = SettingsFactory(model, trained.config.sampler)(**dict(settings.overrides))
    images = runner(trained.variables, seeds, conditions, sampling)
    border, real_border = (similarity.border_difference(each, masks) for each in (images, real))
    measure = _measurer(settings, trained)
    distance = with_names(measure(images, examples.labels)["fd_pixels"])
    values: dict[str, Any] = {
        "border_excess": mean_and_error(border - real_border),
        "border": mean_and_error(border),
        "border_real": mean_and_error(real_border),
        "mse": mean_and_error(similarity.masked_mse(images, real, masks)),
        "fd_pixels": distance,
    }
    rows = [
        Row("difference across the border", f"{text_with_error(**values['border'])} grey levels"),
        Row("  of real images", f"{text_with_error(**values['border_real'])} grey levels"),
        Row("  excess", f"{text_with_error(**values['border_excess'])} grey levels"),
        Row("MSE of the region", text_with_error(**values["mse"])),
        Row("FD-pixels", text_with_error(**distance)),
    ]
    if _has_readable_captions(trained, examples, real.shape[1]):
        assert examples.captions is not None
        values["caption_accuracy"] = with_names(
            alignment.caption_accuracy(images, examples.captions)["caption_accuracy"]
        )
        rows.append(Row("caption accuracy", percent_with_error(**values["caption_accuracy"])))
    masked = np.where(masks > 0.5, _GREY, real).astype(np.uint8)
    shown = [each[:MAX_SHOWN] for each in (real, masked, images)]
    layout = image_grids.Layout(len(shown[0]), ("images", "masked", "inpainted"))
    grid = image_grids.grid(np.concatenate(shown), layout)
    rows.append(Row("inpainting.png", "images, masked and inpainted"))
    half = len(shown[0][:_IN_A_ROW])
    return Result(
        title=f"inpainting of {count} images of {settings.split} with masks {settings.masks}, checkpoint "
        f"{trained.step}",
        values=values,
        rows=rows,
        plots={"inpainting.png": lambda path: image_grids.save(path, grid)},
        shown=Shown(np.concatenate([masked[:half], images[:half]]), f"{half} masked test images above the inpainted"),
        warnings=measure.warnings,
    )


def interpolation(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the reconstruction error, diversity and quality of interpolations between noised images, by strength.

    Reference: DDPM (Ho et al. 2020), section 4.4 and figure 9.
    """
    model: Any = trained.system
    pairs = _pairs(examples.labels if model.classes else np.zeros_like(examples.labels))
    if len(pairs) < _SHOWN_PAIRS:
        kind = " of one class" if model.classes else ""
        raise UserError(
            f"--num={len(examples.images)}: --metrics=interpolation requires {_SHOWN_PAIRS} pairs of images{kind}, not "
            f"{len(pairs)}; raise --num"
        )
    measured = _mixes(len(pairs), (0.0, 1.0, *[0.5] * _REPEATS), (0, 0, *range(_REPEATS)))
    shown = _mixes(_SHOWN_PAIRS, _POSITIONS, (0,) * len(_POSITIONS))
    pair, weight, repeat = map(np.concatenate, zip(measured, shown, strict=True))
    first, second = (examples.images[pairs[:, end]] for end in (0, 1))
    conditions = {
        "label": examples.labels[pairs[pair, 0]],
        "image": _unit(first[pair]),
        "other_image": _unit(second[pair]),
        "other_weight": weight.astype(np.float32),
    }
    seeds = settings.seed + pair * _REPEATS + repeat  # the ends and the first repeat have the same noise
    make_settings = SettingsFactory(model, trained.config.sampler)
    runner = SampleRunner(model, batch_size=min(settings.batch_size, len(seeds)))
    measure, entries, strips = _measurer(settings, trained), [], []
    real, real_other = (_in_the_size_of_samples(trained, images) for images in (first, second))
    for strength in _strengths(settings, trained):
        sampling = make_settings(**dict(settings.overrides), strength=strength)
        images = runner(trained.variables, seeds, conditions, sampling)
        groups, strip = np.split(images, [len(measured.pair)])
        groups = groups.reshape(len(pairs), -1, *images.shape[1:])
        errors = (similarity.mse(groups[:, 0], real) + similarity.mse(groups[:, 1], real_other)) / 2
        distance = measure(groups[:, 2], examples.labels[pairs[:, 0]])["fd_pixels"]
        entries.append(
            {
                "strength": strength,
                "t": float(sampling.times[int(sampling["begin"])]),
                "reconstruction": mean_and_error(errors),
                "diversity": mean_and_error(similarity.diversity(groups[:, 2:])),
                "fd_pixels": with_names(distance),
            }
        )
        strips.append(strip)
    last = {name: entries[-1][name] for name in ("reconstruction", "diversity", "fd_pixels")}
    sources = mean_and_error(similarity.mse(real, real_other))
    rows = [
        Row(
            f"t = {e['t']:g}",
            f"reconstruction MSE {text_with_error(**e['reconstruction'])}, diversity "
            f"{text_with_error(**e['diversity'])}, FD-pixels {text_with_error(**e['fd_pixels'])}",
        )
        for e in entries
    ]
    rows.append(Row("the images of a pair", f"MSE {text_with_error(**sources)}"))
    rows.append(Row("interpolation.png", "the first pair of images and interpolations between them, one row per t"))
    lines = [np.concatenate([real[:1], strip[: len(_POSITIONS)], real_other[:1]]) for strip in strips]
    columns = ["source", *(f"{position:.2g}" for position in _POSITIONS), "source"]
    layout = image_grids.Layout(len(columns), [f"t = {e['t']:g}" for e in entries], columns)
    grid = image_grids.grid(np.concatenate(lines), layout)
    return Result(
        title=f"interpolation between {len(pairs)} pairs of images of {settings.split}, checkpoint {trained.step}",
        values={"rows": entries, "sources": sources, "pairs": len(pairs), **last},
        rows=rows,
        plots={"interpolation.png": lambda path: image_grids.save(path, grid)},
        shown=Shown(strips[-1], f"interpolations between {_SHOWN_PAIRS} pairs of test images, one row each"),
        warnings=measure.warnings,
    )


def _strengths(settings: Settings, trained: Run) -> tuple[float, ...]:
    if settings.strength:
        return settings.strength
    return (trained.config.sampler.strength,) if "strength" in trained.config.sampler else _STRENGTHS


def _pairs(groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, "P 2"]:
    """Returns the indices of disjoint pairs of one group, in order; an odd one is left out."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return np.concatenate([each[: len(each) // 2 * 2].reshape(-1, 2) for each in members])


class _Mixes(NamedTuple):
    """Interpolations, of which several have the same pair of images.

    Attributes:
      pair: index of the pair.
      weight: that of the second image.
      repeat: number of the noise.
    """

    pair: Int[np.ndarray, " N"]
    weight: Float[np.ndarray, " N"]
    repeat: Int[np.ndarray, " N"]


def _mixes(pairs: int, weights: Sequence[float], repeats: Sequence[int]) -> _Mixes:
    """Returns the interpolations of each pair, with these weights and repeats."""
    return _Mixes(np.arange(pairs).repeat(len(weights)), np.tile(weights, pairs), np.tile(repeats, pairs))


def _masks(settings: Settings, count: int, side: int) -> Float[np.ndarray, "N side side 1"]:
    """Returns the masks of images, 1 where they are inpainted; that of image i depends on `settings.seed` + i."""

    def mask(seed):
        return mask_of_kind(jax.random.fold_in(jax.random.key(seed), _MASKS_FOLD), side, settings.masks)

    return np.asarray(jax.jit(jax.vmap(mask))((settings.seed + np.arange(count)).astype(np.uint32)))


def _in_the_size_of_samples(trained: Run, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N h w C"]:
    """Returns images averaged down as those that the model samples."""
    model: Any = trained.system
    factor = model.data_space.factor if isinstance(model.data_space, PixelSpace) else 1
    return np.asarray(to_grey_levels(downsample(jnp.asarray(_unit(images)), factor)))


def _unit(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
    """Returns images in [-1, 1]."""
    return np.asarray(to_unit_range(jnp.asarray(images)))


def _measurer(settings: Settings, trained: Run) -> Measurer:
    return Measurer(["fd_pixels"], trained, with_errors=True, batch_size=settings.batch_size, seed=settings.seed)


def _has_readable_captions(trained: Run, examples: Examples, side: int) -> bool:
    is_conditioned = trained.system.text is not None and examples.captions is not None
    return is_conditioned and image_data(trained.config).name == "shapes" and side >= _MIN_READABLE
