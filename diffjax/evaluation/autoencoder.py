"""What is measured of autoencoders and of priors over codes."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from diffjax.errors import UserError
from diffjax.evaluation.settings import SHOWN, Examples, Settings, mean_and_error, over, text_with_error
from diffjax.inference import image_grids
from diffjax.inference.batching import Spread
from diffjax.inference.sampler_runner import Generator
from diffjax.metrics import similarity
from diffjax.models.pixels import to_unit_range
from diffjax.nn.pretrained import lpips
from diffjax.runs.loading import Run


def reconstruction(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How close images come back, as 8-bit pictures, and how much of the codebook that takes."""
    images = examples.images
    distances = _lpips(settings, images) if settings.lpips else None
    generator = Generator(trained.system, batch_size=min(settings.batch_size, len(images)))
    back = generator.reconstruct(trained.variables, images)
    columns = {name: measure(images, back) for name, measure in similarity.MEASURES.items()}
    result = {name: mean_and_error(values) for name, values in columns.items()}
    print(f"reconstruction of {len(images)} images of {settings.split}, checkpoint {trained.step}")
    for name, values in result.items():
        print(f"  {similarity.EXPLAINED[name]:34} {text_with_error(**values)}")
    if distances:
        result["lpips"] = mean_and_error(distances(images, back))
        print(f"  {'LPIPS (lower is better)':34} {text_with_error(**result['lpips'])}")
    if trained.codec.to_codes:
        result["codes"] = _usage(settings, trained, examples)
        for level, used in enumerate(result["codes"]):
            grid, perplexity = "x".join(map(str, used["grid"])), f"{used['perplexity']:.1f} of {used['vocabulary']}"
            print(f"  codes of level {level} ({grid}): perplexity {perplexity}, {used['used']:.1%} in use")
    picture = trained.workdir.results / "reconstruction.png"
    shown = np.concatenate([images[:SHOWN], back[:SHOWN]])
    image_grids.save(picture, image_grids.grid(shown, columns=len(images[:SHOWN])))
    print(f"{picture}: the images over their reconstructions")
    return result


def _lpips(settings: Settings, images: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a function that computes LPIPS of each pair of two batches of images.

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
    compiled = Spread(size).compile(distance)
    return lambda images, back: compiled(params, (images, back))


def _usage(settings: Settings, trained: Run, examples: Examples) -> list[dict]:
    """Of each level, the coarsest first: perplexity exp(entropy) of its codes and the share of them in use."""

    @jax.jit
    def to_codes(variables, images):
        return trained.system.codec(variables).to_codes(to_unit_range(images))

    measure = lambda keys, batch: to_codes(trained.variables, batch["image"])  # noqa: E731
    levels, found = over(settings, "codes", measure, examples), []
    for codes, grid in zip(levels, trained.codec.grids, strict=True):
        size = trained.codec.vocabulary
        share = np.stack([np.bincount(book.ravel(), minlength=size) for book in np.moveaxis(codes, -1, 0)])
        share = share / share.sum(axis=-1, keepdims=True)
        entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), axis=-1)
        found.append(
            {
                "grid": grid,
                "vocabulary": size,
                "perplexity": float(np.exp(entropy).mean()),
                "used": float((share > 0).mean()),
            }
        )
    return found


def nll(settings: Settings, trained: Run, examples: Examples) -> dict:
    """Bits/dim of images by bounds, or of their codes."""
    bits = jax.jit(functools.partial(trained.system.likelihood, samples=settings.draws))
    found = over(settings, "nll", functools.partial(bits, trained.variables), examples)
    explained = {
        "elbo": "bits/dim, ELBO",
        "nll": "  of that: reconstruction",
        "kl": "  of that: KL",
        "importance_weighted": f"bits/dim, importance-weighted, {settings.draws} draws",
        "codes": "bits/dim of the images, in codes",
        "bits_per_code": "bits a code",
        "bits_per_token": "bits a token of the captions",
    }
    result = {name: mean_and_error(found[name]) for name in explained if name in found}
    print(f"{len(examples.images)} images of {settings.split}, checkpoint {trained.step}")
    for name, values in result.items():
        print(f"  {explained[name]:42} {text_with_error(**values)}")
    return result | {"draws": settings.draws}
