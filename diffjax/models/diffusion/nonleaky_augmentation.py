"""Non-leaky augmentation of training images: geometric transforms whose parameters the network receives.

Samples are conditioned on parameters of zero, so they look like images that are not transformed.

References:
  Karras et al. 2022, "Elucidating the design space of diffusion-based generative models" (EDM), appendix F.2.
  Karras et al. 2020, "Training generative adversarial networks with limited data", appendix B: the filters of the warp.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.scipy import ndimage
from jaxtyping import Float
from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown, validate_names, validate_number
from diffjax.typing import Images, PRNGKey, PRNGKeys, Scalar

TRANSFORMS = ("x_flip", "y_flip", "scaling", "rotation", "anisotropy", "translation")
NUM_LABELS = 9

# The orthogonal low-pass filter of Daubechies' least asymmetric wavelet with 6 vanishing moments, "sym6".
_SYM6 = np.array([
    0.015404109327027, 0.003490712084217, -0.117990111148191, -0.048311742585633, 0.491055941926747, 0.787641141030194,
    0.337929421727622, -0.072637522786463, -0.021060292512301, 0.044724901770666, 0.001767711864243, -0.007800708325034,
])  # fmt: skip
_CENTRE = 5  # tap of the filter at a pixel's position
_MARGIN = 3  # pixels around the output that the filter reads


class Transform(NamedTuple):
    """A geometric transform of an image about its centre, in the order of the fields. Zeros are the identity.

    Attributes:
      x_flip: 1: mirrored left to right.
      y_flip: 1: mirrored top to bottom.
      scaling: enlarged by 2 ** (0.2 scaling).
      rotation: rotated counter-clockwise by this angle, in radians.
      anisotropy: enlarged by 2 ** (0.2 anisotropy) along an axis, and shrunk as much across it.
      axis: angle of that axis from the horizontal, counter-clockwise, in radians.
      right: translated to the right, in eighths of the side.
      down: translated down, in eighths of the side.
    """

    x_flip: Scalar
    y_flip: Scalar
    scaling: Scalar
    rotation: Scalar
    anisotropy: Scalar
    axis: Scalar
    right: Scalar
    down: Scalar

    @property
    def label(self) -> Float[Array, " 9"]:
        """Parameters as the network receives them: EDM, appendix F.2."""
        turn = jnp.cos(self.rotation) - 1.0, jnp.sin(self.rotation)
        stretch = self.anisotropy * jnp.cos(self.axis), self.anisotropy * jnp.sin(self.axis)
        return jnp.stack([self.x_flip, self.y_flip, self.scaling, *turn, *stretch, self.right, self.down])


def sample_transform(key: PRNGKey, prob: float, transforms: Collection[str] = TRANSFORMS) -> Transform:
    """Samples a transform with EDM's distributions. Consumes `key`.

    Args:
      prob: probability of each transform, independently; that of a flip is half of it. `x_flip` is always 1/2.
      transforms: names of the enabled ones.
    """
    probs = {"x_flip": 1.0} | dict.fromkeys(TRANSFORMS[1:], prob)
    rates = jnp.array([probs[name] if name in transforms else 0.0 for name in TRANSFORMS])
    enabled_key, uniform_key, normal_key = jax.random.split(key, 3)
    x_flip, y_flip, scaling, rotation, anisotropy, translation = jax.random.bernoulli(enabled_key, rates)
    x_side, y_side, is_tilted, angle, axis = jax.random.uniform(uniform_key, (5,))
    log_scale, log_aspect, right, down = jax.random.normal(normal_key, (4,))
    return Transform(
        x_flip=jnp.where(x_flip & (x_side < 0.5), 1.0, 0.0),
        y_flip=jnp.where(y_flip & (y_side < 0.5), 1.0, 0.0),
        scaling=jnp.where(scaling, log_scale, 0.0),
        rotation=jnp.where(rotation, jnp.pi * (2.0 * angle - 1.0), 0.0),
        anisotropy=jnp.where(anisotropy, log_aspect, 0.0),
        axis=jnp.where(anisotropy & (is_tilted < 0.5), jnp.pi * (2.0 * axis - 1.0), 0.0),
        right=jnp.where(translation, right, 0.0),
        down=jnp.where(translation, down, 0.0),
    )


def transform_image(image: Float[Array, "side side C"], transform: Transform) -> Float[Array, "side side C"]:
    """Applies a transform: flips by exchange of pixels, the others together by one `warp`."""
    image = jnp.where(transform.x_flip > 0.0, image[:, ::-1], image)
    image = jnp.where(transform.y_flip > 0.0, image[::-1], image)
    is_warped = jnp.any(jnp.stack(transform[2:]) != 0.0)
    return jnp.where(is_warped, warp(image, transform), image)


def warp(image: Float[Array, "side side C"], transform: Transform) -> Float[Array, "side side C"]:
    """Applies a transform without its flips, band-limited: at twice the resolution, between filters of a wavelet.

    The image continues by reflection for one side, and by zeros beyond. Without a transform the filters cancel. Values
    may leave [-1, 1] at edges.
    """
    side = image.shape[0]
    enlarge, shrink, positions = _filters(side)
    fine = jnp.einsum("yi,xj,ijc->yxc", enlarge, enlarge, image, precision="highest")
    x, y = _sources(transform, positions[None, :], positions[:, None], side)
    origin = -2.0 * (side - 1)  # of `fine`, whose spacing is half a pixel
    interpolate = functools.partial(ndimage.map_coordinates, coordinates=(2 * y - origin, 2 * x - origin), order=1)
    warped = jax.vmap(interpolate, in_axes=-1, out_axes=-1)(fine)
    return jnp.einsum("iy,jx,yxc->ijc", shrink, shrink, warped, precision="highest")


def _filters(side: int) -> tuple[Array, Array, Array]:
    """Returns matrices that enlarge and shrink one axis of an image by 2, and the positions between the two.

    Returns:
      Enlargement [6 side - 4, side] of the pixels, with their reflections from -(side - 1) to 2 (side - 1).
      Its transpose [side, 2 side + 12] for the output, on a smaller range.
      Positions [2 side + 12] of the output before it is shrunk, in pixels.
    """
    reflected = np.pad(np.arange(side), side - 1, mode="reflect")
    pixels, fine = np.arange(1 - side, 2 * side - 1), np.arange(2 * (1 - side), 2 * (2 * side - 1))
    output = np.arange(-2 * _MARGIN, 2 * (side + _MARGIN))
    enlarge = _taps(fine, pixels) @ np.eye(side)[reflected]
    shrink = _taps(output, np.arange(side)).T
    return jnp.asarray(enlarge, jnp.float32), jnp.asarray(shrink, jnp.float32), jnp.asarray(output / 2, jnp.float32)


def _taps(fine: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Returns the weights of pixels at positions of half a pixel's spacing."""
    tap = fine[:, None] - 2 * pixels[None, :] + _CENTRE
    return np.where((tap >= 0) & (tap < len(_SYM6)), _SYM6[tap % len(_SYM6)], 0.0)


def _sources(transform: Transform, x: Array, y: Array, side: int) -> tuple[Array, Array]:
    """Returns the positions in the image, in pixels, that move to the positions x and y."""
    centre = (side - 1) / 2
    x = x - centre - transform.right * side / 8
    y = y - centre - transform.down * side / 8
    stretch = 2.0 ** (0.2 * transform.anisotropy)
    x, y = _rotate(x, y, -transform.axis)
    x, y = _rotate(x / stretch, y * stretch, transform.axis)
    x, y = _rotate(x, y, -transform.rotation)
    scale = 2.0 ** (0.2 * transform.scaling)
    return x / scale + centre, y / scale + centre


def _rotate(x: Array, y: Array, angle: Scalar) -> tuple[Array, Array]:
    """Rotates positions about zero, counter-clockwise as y points down."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


@dataclasses.dataclass(frozen=True)
class NonLeakyAugmentation:
    """Non-leaky augmentation of images, one transform per example.

    Attributes:
      prob: probability of each transform: see `sample_transform`.
      transforms: names of the enabled ones.
    """

    prob: float
    transforms: tuple[str, ...] = TRANSFORMS

    @classmethod
    def from_config(cls, config: ConfigDict) -> "NonLeakyAugmentation | None":
        """Returns the augmentation of a config's section `data.augment`; None: it is off.

        Raises:
          UserError: an invalid probability, an unknown transform, or none.
        """
        section = config.data.get("augment", {})
        prob = validate_number("data.augment.prob", section.get("prob", 0.0), low=0, high=1)
        if not prob:
            return None
        names = validate_names("data.augment.transforms", section.get("transforms", TRANSFORMS))
        for name in names:
            if name not in TRANSFORMS:
                raise unknown("transform of data.augment.transforms", name, TRANSFORMS)
        if not names:
            raise UserError("data.augment.transforms=(): must name at least one transform; or set data.augment.prob=0")
        return cls(prob, tuple(names))

    def __call__(self, keys: PRNGKeys, images: Images) -> tuple[Images, Float[Array, "B 9"]]:
        """Returns transformed images and the labels of their transforms. Consumes `keys`."""
        transforms = jax.vmap(lambda key: sample_transform(key, self.prob, self.transforms))(keys)
        return jax.vmap(transform_image)(images, transforms), jax.vmap(lambda transform: transform.label)(transforms)
