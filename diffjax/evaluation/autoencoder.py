"""Metrics of autoencoders, and of priors over codes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from diffjax.errors import UserError
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
from diffjax.inference.batching import DataParallelMap
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics import similarity
from diffjax.models.images import to_unit_range
from diffjax.nn.pretrained import lpips
from diffjax.progress import announced_jit
from diffjax.runs.loading import Run


def reconstruction(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the errors of reconstructions, as 8-bit images, and the use of the codebook."""
    images = examples.images
    distances = _lpips(settings, images) if settings.lpips else None
    generator = SampleRunner(trained.system, batch_size=min(settings.batch_size, len(images)))
    reconstructed = generator.reconstruct(trained.variables, images)
    values: dict[str, Any] = {
        name: mean_and_error(measure(images, reconstructed)) for name, measure in similarity.METRICS.items()
    }
    rows = [Row(similarity.DESCRIPTIONS[name], text_with_error(**value)) for name, value in values.items()]
    if distances:
        values["lpips"] = mean_and_error(distances(images, reconstructed))
        rows.append(Row("LPIPS (lower is better)", text_with_error(**values["lpips"])))
    if trained.codec.to_codes:
        values["codes"] = _code_usage(settings, trained, examples)
        for level, usage in enumerate(values["codes"]):
            grid = "x".join(map(str, usage["grid"]))
            perplexity = f"perplexity {usage['perplexity']:.1f} of {usage['vocabulary']}"
            rows.append(Row(f"codes of level {level} ({grid})", f"{perplexity}, {usage['used']:.1%} in use"))
    rows.append(Row("reconstruction.png", "images above their reconstructions"))
    grid_image = image_grids.pairs(images[:MAX_SHOWN], reconstructed[:MAX_SHOWN])
    return Result(
        title=f"reconstruction of {len(images)} images of {settings.split}, checkpoint {trained.step}",
        values=values,
        rows=rows,
        plots={"reconstruction.png": lambda path: image_grids.save(path, grid_image)},
    )


def _lpips(
    settings: Settings, images: UInt8[np.ndarray, "N H W C"]
) -> Callable[[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, "N H W C"]], Float[np.ndarray, " N"]]:
    """Returns a function that computes the LPIPS distance of each pair of two sets of images.

    Raises:
      UserError: the weights cannot be read, or the images are too small for the network.
    """
    params = lpips.load(*settings.lpips)
    size = min(settings.batch_size, len(images))

    def distance(params, pair):
        return lpips.distance(params, *map(to_unit_range, pair))

    batch = jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype)
    try:
        jax.eval_shape(distance, params, (batch, batch))
    except ValueError as error:
        raise UserError(f"--lpips={','.join(settings.lpips)}: {error}") from error
    compiled = DataParallelMap(size).compile(distance, "LPIPS")
    return lambda images, reconstructed: compiled(params, (images, reconstructed))


def _code_usage(settings: Settings, trained: Run, examples: Examples) -> list[dict[str, Any]]:
    """Returns, for each level from the coarsest on, its grid, vocabulary, perplexity exp(entropy), and share in use."""

    model: Any = trained.system

    @announced_jit("the encoder")
    def to_codes(variables, images):
        return model.codec(variables).to_codes(to_unit_range(images))

    def encode(keys, batch):
        return to_codes(trained.variables, batch["image"])

    usage = []
    for codes, grid in zip(map_batches(settings, "codes", encode, examples), trained.codec.grids, strict=True):
        size = trained.codec.vocabulary
        counts = np.stack([np.bincount(book.ravel(), minlength=size) for book in np.moveaxis(codes, -1, 0)])
        share = counts / counts.sum(axis=-1, keepdims=True)
        entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), axis=-1)
        perplexity, used = float(np.exp(entropy).mean()), float((share > 0).mean())
        usage.append({"grid": grid, "vocabulary": size, "perplexity": perplexity, "used": used})
    return usage


def nll(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns bounds of an autoencoder in bits/dim, or bits/dim of a prior over codes."""
    model: Any = trained.system
    bits = announced_jit("the likelihood")(functools.partial(model.likelihood, samples=settings.draws))
    values = map_batches(settings, "nll", functools.partial(bits, trained.variables), examples)
    labels = {
        "elbo": "bits/dim, ELBO",
        "nll": "  reconstruction term",
        "kl": "  KL term",
        "importance_weighted": f"bits/dim, importance-weighted, {settings.draws} samples",
        "codes_elbo": "bits/dim of the images, as codes, ELBO",
        "bits_per_code_elbo": "bits per code, ELBO",
        "codes": "bits/dim of the images, as codes",
        "bits_per_code": "bits per code",
        "bits_per_token": "bits per token of the captions",
    }
    estimates = {name: mean_and_error(values[name]) for name in labels if name in values}
    return Result(
        title=f"{len(examples.images)} images of {settings.split}, checkpoint {trained.step}",
        values=estimates | {"draws": settings.draws},
        rows=[Row(labels[name], text_with_error(**estimate)) for name, estimate in estimates.items()],
    )
