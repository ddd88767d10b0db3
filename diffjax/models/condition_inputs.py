"""Inputs that the conditions of a model are computed from."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Array

from diffjax.typing import Clip, Codec, Images, PRNGKeys


class ConditionInputs(NamedTuple):
    """Inputs that conditions are computed from.

    Attributes:
      conditions: arrays [B, ...] by name. In training "label", "tokens", and the images: [-1, 1] as "original" for a
        diffusion model, uint8 as "image" for a prior. For sampling the same without images, where "image_embedding"
        , "low_res_image", or "image" and "mask" (1: known) may take the place of "original".
      keys: one per example.
      clip: frozen CLIP; None: no condition uses one.
      codec: frozen codec of a prior; None for diffusion models.
      encode_image: images to the data space of a diffusion model; None for priors.
      augmentation_level: level [0, 1] of conditioning augmentation; None: random per example, as in training.
    """

    conditions: Mapping[str, Array]
    keys: PRNGKeys
    clip: Clip | None = None
    codec: Codec | None = None
    encode_image: Callable[[Images], Array] | None = None
    augmentation_level: Array | float | None = None
