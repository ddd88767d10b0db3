"""The range of pixels, and fewer of them."""

from jax import numpy as jnp

from diffjax.typing import Images, Images8


def to_unit_range(images: Images8) -> Images:
    """Grey levels 0 to 255 to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_grey_levels(images: Images) -> Images8:
    """[-1, 1] to the nearest of the grey levels 0 to 255."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def smaller(images: Images, factor: int) -> Images:
    """[-1, 1] with sides divided by `factor`: the mean of each factor x factor square."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // factor, factor, width // factor, factor, channels).mean((2, 4))
