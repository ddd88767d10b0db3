"""The principal components of CLIP's image embeddings, and their codes: unCLIP (Ramesh et al. 2022, section 2.2).

The autoregressive prior draws codes of the components, one after another from the largest; what of an embedding is left
in the first few shows what CLIP sees (section 3.3, figure 7). Training only counts: no parameter is learned.
"""

import functools
from collections.abc import Mapping

from jax import lax
from jax import numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from diffjax.errors import UserError
from diffjax.models.abstract import described
from diffjax.models.embeddings import unit_length
from diffjax.models.pixels import to_unit_range
from diffjax.typing import Aux, Codec, Embeddings, ImageSpec, Objective, System, Variables

Statistics = Mapping[str, Array]
_REACH = 4.0  # standard deviations of a component that its codes go to


def build(config, spec: ImageSpec, clip: tuple[System, Variables] | None = None) -> System:
    """Of `clip`'s embeddings, as `config.model` asks. Raises UserError for what does not fit."""
    if clip is None:
        raise UserError("system=pca is of the embeddings of a trained CLIP: set --config.clip=WORKDIR")
    if config.train.accumulate > 1:
        raise UserError("train.accumulate splits the batch, and components are of the whole: leave it at 1")
    about = described(clip[0].clip, clip[1])
    kept, bins = config.model.components, config.model.bins
    if not 1 <= kept <= about.dimensions or bins < 2:
        raise UserError(
            f"model.components={kept}, model.bins={bins}: from 1 to the {about.dimensions} dimensions of the CLIP's "
            "embeddings, and at least 2 codes of each"
        )

    def init(key):
        size = about.dimensions
        return {
            "params": {"model": {}},
            "seen": {
                "mean": jnp.zeros(size),
                "square": jnp.eye(size),  # the mean of outer products
                "basis": jnp.eye(size),  # rows: components, the largest first
                "std": jnp.ones(size),  # of each component
                "agreement": jnp.array([0.0, 1.0]),  # mean and mean square of the dot products of pairs
            },
        }

    def loss(variables, batch, keys, moment):
        bound = clip[0].clip(variables["frozen"]["clip"])
        images = lax.stop_gradient(bound.embed_images(to_unit_range(batch["image"])))
        dots = jnp.sum(images * lax.stop_gradient(bound.embed_texts(batch["tokens"])), axis=-1)
        new = {
            "mean": images.mean(0),
            "square": jnp.einsum("bi,bj->ij", images, images) / len(images),
            "agreement": jnp.stack([dots.mean(), (dots**2).mean()]),
        }
        share = 1.0 / (moment.step + 1.0)  # so that all batches count alike
        seen = {name: variables["seen"][name] * (1 - share) + moment.mean(value) * share for name, value in new.items()}
        covariance = seen["square"] - seen["mean"][:, None] * seen["mean"][None, :]
        values, vectors = jnp.linalg.eigh(covariance)
        order = {"basis": vectors.T[::-1], "std": jnp.sqrt(jnp.maximum(values[::-1], 1e-12))}
        lost = jnp.sum(jnp.maximum(values[::-1][kept:], 0.0)) / jnp.sum(jnp.maximum(values, 0.0))
        return jnp.broadcast_to(lost, dots.shape), Aux({"dot": dots}, {"seen": {**seen, **order}})

    def codec(variables) -> Codec:
        seen = variables["seen"]

        def encode(images):
            return clip[0].clip(variables["frozen"]["clip"]).embed_images(images)

        def to_codes(images):
            z = components(seen, encode(images))[:, :kept] / (_REACH * seen["std"][None, :kept])
            codes = jnp.floor((z + 1.0) / 2.0 * bins)
            return (jnp.clip(codes, 0, bins - 1).astype(jnp.int32)[:, :, None, None],)

        def from_codes(codes):
            z = ((codes[0][:, :, 0, 0] + 0.5) / bins * 2.0 - 1.0) * _REACH * seen["std"][None, :kept]
            return unit_length(z @ seen["basis"][:kept] + seen["mean"][None, :])

        return Codec(
            encode=encode,
            decode=lambda embeddings: embeddings,
            shape=(kept, 1, 1),
            scale=jnp.ones(()),
            to_codes=to_codes,
            from_codes=from_codes,
            grids=((kept, 1, 1),),
            vocabulary=bins,
            agreement=functools.partial(agreement, seen),
        )

    return System(
        Objective(init, {"model": loss}),
        classes=0,
        codec=codec,
        text=about.text,
        frozen={"clip": clip[1]},
        gives=about.dimensions,
        embeds=True,
    )


def components(seen: Statistics, embeddings: Embeddings) -> Float[Array, "B D"]:
    """Of embeddings, the largest component first."""
    return (embeddings - seen["mean"][None, :]) @ seen["basis"].T


def projected(seen: Statistics, embeddings: Embeddings, count: Array | int) -> Embeddings:
    """What of embeddings is in their first `count` principal components, of unit length; `count` may be traced."""
    z = components(seen, embeddings)
    z = jnp.where(jnp.arange(z.shape[1])[None, :] < count, z, 0.0)
    return unit_length(z @ seen["basis"] + seen["mean"][None, :])


def agreement(seen: Statistics, images: Embeddings, texts: Embeddings) -> Float[Array, "B"]:
    """How well pairs agree, as the share of the training set's pairs that agree less; dot products taken as normal."""
    mean, square = seen["agreement"]
    std = jnp.sqrt(jnp.maximum(square - mean**2, 1e-12))
    return norm.cdf((jnp.sum(images * texts, axis=-1) - mean) / std)
