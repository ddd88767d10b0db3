"""Principal components of CLIP image embeddings, and codes of them.

unCLIP's autoregressive prior samples codes of the components in order, largest first. An embedding projected on its
first components shows what CLIP represents in them (section 4, figure 7). Training accumulates moments; it learns no
parameter.

References:
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents", section 2.2.
"""

import dataclasses
import functools
from collections.abc import Mapping

from jax import lax
from jax import numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown, validate_integer
from diffjax.models.base import Autoencoder, ContrastiveModel, abstract_value
from diffjax.models.images import to_unit_range
from diffjax.nn.layers import unit_norm
from diffjax.typing import (
    Aux,
    Batch,
    Codec,
    Codes,
    Embeddings,
    Images,
    ImageSpec,
    LossFn,
    PRNGKey,
    PRNGKeys,
    StepContext,
    Variables,
)

Statistics = Mapping[str, Array]
_RANGE = 4.0  # codes cover this many standard deviations on both sides


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCA(Autoencoder):
    """Principal components of the image embeddings of a frozen CLIP, whose variables are the frozen "clip".

    Attributes:
      output_size: dimension of the embeddings.
      components: number of components that have codes.
      bins: number of codes of a component.
    """

    contrastive: ContrastiveModel
    output_size: int
    components: int
    bins: int
    outputs_embeddings: bool = True

    def init(self, key: PRNGKey) -> Variables:
        size = self.output_size
        statistics = {
            "mean": jnp.zeros(size),
            "square": jnp.eye(size),  # mean of outer products
            "basis": jnp.eye(size),  # components in rows, largest first
            "std": jnp.ones(size),  # standard deviation of each component
            "agreement": jnp.array([0.0, 1.0]),  # mean and mean square of the dot products of pairs
        }
        return {"params": {"model": {}}, "statistics": statistics}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the fraction of the variance that is outside the components, for each example."""
        clip = self.contrastive.clip(variables["frozen"]["clip"])
        images = lax.stop_gradient(clip.embed_images(to_unit_range(batch["image"])))
        dots = jnp.sum(images * lax.stop_gradient(clip.embed_texts(batch["tokens"])), axis=-1)
        moments = {
            "mean": images.mean(0),
            "square": jnp.einsum("bi,bj->ij", images, images) / len(images),
            "agreement": jnp.stack([dots.mean(), (dots**2).mean()]),
        }
        weight = 1.0 / (context.step + 1.0)  # all batches count equally
        before = variables["statistics"]
        after = {k: before[k] * (1 - weight) + context.mean(value) * weight for k, value in moments.items()}
        covariance = after["square"] - after["mean"][:, None] * after["mean"][None, :]
        values, vectors = jnp.linalg.eigh(covariance)
        spectrum = {"basis": vectors.T[::-1], "std": jnp.sqrt(jnp.maximum(values[::-1], 1e-12))}
        lost = jnp.sum(jnp.maximum(values[::-1][self.components :], 0.0)) / jnp.sum(jnp.maximum(values, 0.0))
        return jnp.broadcast_to(lost, dots.shape), Aux({"dot": dots}, {"statistics": {**after, **spectrum}})

    def codec(self, variables: Variables) -> Codec:
        """Returns a codec from images to their CLIP embeddings; decoded codes are unit-norm embeddings."""
        statistics, count = variables["statistics"], self.components

        def encode(images: Images) -> Embeddings:
            return self.contrastive.clip(variables["frozen"]["clip"]).embed_images(images)

        def to_codes(images: Images) -> Codes:
            z = scores(statistics, encode(images))[:, :count] / (_RANGE * statistics["std"][None, :count])
            codes = jnp.floor((z + 1.0) / 2.0 * self.bins)
            return (jnp.clip(codes, 0, self.bins - 1).astype(jnp.int32)[:, :, None, None],)

        def from_codes(codes: Codes) -> Embeddings:
            centre = (codes[0][:, :, 0, 0] + 0.5) / self.bins * 2.0 - 1.0
            z = centre * _RANGE * statistics["std"][None, :count]
            return unit_norm(z @ statistics["basis"][:count] + statistics["mean"][None, :], 1e-8)

        return Codec(
            encode=encode,
            decode=lambda embeddings: embeddings,
            shape=(count, 1, 1),
            scale=jnp.ones(()),
            to_codes=to_codes,
            from_codes=from_codes,
            grids=((count, 1, 1),),
            vocabulary=self.bins,
            agreement=functools.partial(agreement, statistics),
        )


def build(config: ConfigDict, spec: ImageSpec, clip: tuple[ContrastiveModel, Variables] | None = None) -> PCA:
    """Builds the principal components of the embeddings of `clip`.

    Raises:
      UserError: a missing CLIP, or an invalid field.
    """
    if clip is None:
        raise UserError("clip='': system=pca requires a trained CLIP; set --config.clip=WORKDIR")
    if config.train.accumulate > 1:
        raise UserError(
            f"train.accumulate={config.train.accumulate}: must be 1 for system=pca, whose components are those of the "
            "whole batch"
        )
    for field in config.model:
        if field not in ("components", "bins"):
            raise unknown("field of config.model", field, ("components", "bins"))
    clip_spec = abstract_value(clip[0].clip, clip[1])
    return PCA(
        contrastive=clip[0],
        output_size=clip_spec.dimensions,
        components=validate_integer("model.components", config.model.components, high=clip_spec.dimensions),
        bins=validate_integer("model.bins", config.model.bins, low=2),
        text=clip_spec.text,
        frozen={"clip": clip[1]},
    )


def scores(statistics: Statistics, embeddings: Embeddings) -> Float[Array, "B D"]:
    """Returns the coordinates of embeddings along the components, largest first."""
    return (embeddings - statistics["mean"][None, :]) @ statistics["basis"].T


def project(statistics: Statistics, embeddings: Embeddings, count: Array | int) -> Embeddings:
    """Projects embeddings on their first `count` principal components, to unit norm; `count` may be traced."""
    z = scores(statistics, embeddings)
    z = jnp.where(jnp.arange(z.shape[1])[None, :] < count, z, 0.0)
    return unit_norm(z @ statistics["basis"] + statistics["mean"][None, :], 1e-8)


def agreement(statistics: Statistics, images: Embeddings, texts: Embeddings) -> Float[Array, " B"]:
    """Returns the quantile [0, 1] of the similarity of each pair among the training pairs, taken as normal."""
    mean, square = statistics["agreement"]
    std = jnp.sqrt(jnp.maximum(square - mean**2, 1e-12))
    return norm.cdf((jnp.sum(images * texts, axis=-1) - mean) / std)
