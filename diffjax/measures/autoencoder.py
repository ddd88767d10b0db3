"""What is measured of autoencoders and of priors over codes."""

import functools

import jax
import numpy as np

from diffjax import pictures
from diffjax.errors import UserError
from diffjax.evals import similarity
from diffjax.generate import Generator
from diffjax.measures.settings import SHOWN, Examples, Settings, mean_and_error, over
from diffjax.nn import lpips
from diffjax.run import Run
from diffjax.spread import Spread
from diffjax.systems.pixels import to_unit_range


def reconstruction(settings: Settings, trained: Run, examples: Examples) -> dict:
    """How close images come back, as 8-bit pictures, and how much of the codebook that takes."""
    images = examples.images
    generator = Generator(trained.system, batch_size=min(settings.batch_size, len(images)))
    back = generator.reconstruct(trained.variables, images)
    columns = {name: measure(images, back) for name, measure in similarity.MEASURES.items()}
    result = {name: mean_and_error(values) for name, values in columns.items()}
    print(f"reconstruction of {len(images)} images of {settings.split}, checkpoint {trained.step}")
    for name, values in result.items():
        print(f"  {similarity.EXPLAINED[name]:34} {values['mean']:9.5f} +- {values['standard_error']:.5f}")
    if settings.lpips:
        result["lpips"] = mean_and_error(_lpips(settings, images, back))
        print(f"  {'LPIPS (lower is better)':34} {result['lpips']['mean']:9.5f}")
    if trained.codec.to_codes:
        result["codes"] = _usage(settings, trained, examples)
        for level, used in enumerate(result["codes"]):
            grid, perplexity = "x".join(map(str, used["grid"])), f"{used['perplexity']:.1f} of {used['vocabulary']}"
            print(f"  codes of level {level} ({grid}): perplexity {perplexity}, {used['used']:.1%} in use")
    picture = trained.workdir.results / "reconstruction.png"
    shown = np.concatenate([images[:SHOWN], back[:SHOWN]])
    pictures.save(picture, pictures.grid(shown, columns=len(images[:SHOWN])))
    print(f"{picture}: the images over their reconstructions")
    return result


def _lpips(settings: Settings, images: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Of each pair. Raises UserError for weights that cannot be read, or images too small for the network."""
    params = lpips.load(*settings.lpips)

    def distance(params, pair):
        return lpips.distance(params, *map(to_unit_range, pair))

    try:
        return Spread(min(settings.batch_size, len(images))).compile(distance)(params, (images, back))
    except ValueError as error:
        raise UserError(f"--lpips: {error}") from error


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
        print(f"  {explained[name]:42} {values['mean']:8.4f} +- {values['standard_error']:.4f}")
    return result | {"draws": settings.draws}
