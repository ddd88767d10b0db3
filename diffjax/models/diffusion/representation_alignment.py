"""Alignment of a network's tokens with the features of a frozen image encoder: REPA.

Reference: Yu et al. 2024, "Representation alignment for generation: training diffusion transformers is easier than you
think".
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.models.base import ContrastiveModel
from diffjax.models.diffusion.process import Penalty, Process
from diffjax.models.lora import is_lora
from diffjax.models.networks import apply, init
from diffjax.nn.dit import DiT
from diffjax.nn.layers import unit_norm
from diffjax.nn.pretrained import dinov2
from diffjax.nn.projection import Projection
from diffjax.nn.uvit import UViT
from diffjax.typing import Images, ImageSpec, PRNGKey, Variables

Encoder = ContrastiveModel | dinov2.DINOv2
_FIELDS = ("clip", "block", "weight", "width", "dimensions")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Alignment of the tokens after a block with the features of an image encoder, a CLIP's or a DINOv2.

    Attributes:
      block: number of blocks before the aligned tokens.
      weight: weight of the similarity in the loss.
      projection: map from tokens to features, which is trained with the network and not used in sampling.
      encoder: encoder, whose variables are variables["frozen"]["alignment"]; None: it is not loaded, in sampling.
    """

    block: int
    weight: float
    projection: Projection
    encoder: Encoder | None = None

    def init(self, key: PRNGKey, width: int) -> Any:
        """Returns fresh parameters of the projection of tokens of `width` channels."""
        return init(self.projection, key, jnp.zeros((1, width)))

    def bind(self, variables: Variables, images: Images) -> Penalty:
        """Returns the function from the tokens [B, h, w, W] of noised `images` to the term of the loss, and metrics."""
        assert self.encoder is not None
        features = lax.stop_gradient(_features(self.encoder, variables["frozen"]["alignment"], images))
        params = variables["params"]["model"]["alignment"]

        def penalty(tokens: Float[Array, "B h w W"]) -> tuple[Float[Array, " B"], dict[str, Array]]:
            value = similarity(apply(self.projection, params, tokens), features)
            return -self.weight * value, {"similarity": value}

        return penalty


def similarity(projected: Float[Array, "B h w D"], features: Float[Array, "B y x D"]) -> Float[Array, " B"]:
    """Returns the mean cosine similarity of projected tokens with features, in [-1, 1].

    A grid of features of another size is resized to that of the tokens, bilinearly. The paper resizes images instead,
    so that both grids have one size.
    """
    batch, *_, dimensions = features.shape
    features = jax.image.resize(features, (batch, *projected.shape[1:3], dimensions), "bilinear")
    products = unit_norm(projected, 1e-12) * unit_norm(features, 1e-12)
    return products.sum(-1).mean((1, 2))


def make_alignment(
    config: ConfigDict,
    spec: ImageSpec,
    process: Process,
    network: nn.Module,
    trained: Sequence[Any] | None,
) -> Alignment | None:
    """Returns the alignment of the section `alignment`; None: the config has no such section.

    Args:
      process: process of the model.
      network: the network whose tokens are aligned.
      trained: the encoder and its variables, or their shapes, first; None: it is not loaded, in sampling.

    Raises:
      UserError: an invalid field, or one that does not fit the loss, the network or the encoder.
    """
    if "alignment" not in config:
        return None
    section = config.alignment
    for field in section:
        if field not in _FIELDS:
            raise unknown("field of config.alignment", field, _FIELDS)
    if not section.clip:
        raise UserError(
            "alignment.clip='': must be a CLIP or a DINOv2; set --config.alignment.clip=RUN, or remove the section"
        )
    if not isinstance(network, DiT | UViT):
        raise UserError(
            "alignment: requires a network of tokens, model.architecture=dit, mmdit or uvit; set one, or remove the "
            "section"
        )
    if process.learns_flow_map or process.matches_distributions:
        raise UserError(
            f"diffusion.loss={process.loss.name}: is not supported with the section alignment; choose a loss of "
            "denoising, or remove the section"
        )
    if process.coupling.name == "reflow":
        raise UserError(
            "diffusion.coupling=reflow: trains on samples of the teacher, which the section alignment has no features "
            "of; set it to independent, or remove the section"
        )
    if is_lora(config):
        raise UserError(
            f"train.lora.rank={config.train.lora.rank}: is not supported with the section alignment, whose projection "
            "LoRA would freeze; set it to 0, or remove the section"
        )
    dimensions = validate_integer("alignment.dimensions", section.dimensions)
    if trained is not None:
        features = _feature_shape(trained[0], trained[1], spec)
        if features[-1] != dimensions:
            raise UserError(
                f"alignment.dimensions={dimensions}: must be {features[-1]}, the channels of the features of "
                "alignment.clip; set it to that"
            )
    return Alignment(
        block=validate_integer("alignment.block", section.block, high=network.layers),
        weight=validate_number("alignment.weight", section.weight, low=0, exclusive="low"),
        projection=Projection(validate_integer("alignment.width", section.width), dimensions),
        encoder=trained[0] if trained else None,
    )


def _features(encoder: Encoder, variables: Variables, images: Images) -> Float[Array, "B y x D"]:
    """Returns the features of images in [-1, 1]."""
    if isinstance(encoder, dinov2.DINOv2):
        return dinov2.patch_tokens(encoder, variables, images)
    clip = encoder.clip(variables)
    assert clip.image_features is not None
    return clip.image_features(images)


def _feature_shape(encoder: Encoder, variables: Variables, spec: ImageSpec) -> tuple[int, ...]:
    """Returns the shape of the features of one image."""
    images = jax.ShapeDtypeStruct((1, spec.size, spec.size, spec.channels), jnp.float32)
    return jax.eval_shape(functools.partial(_features, encoder), variables, images).shape[1:]
