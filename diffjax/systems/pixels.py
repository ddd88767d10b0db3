"""What systems on pictures share: the UNet of a config, and the range of pixels."""

import dataclasses
from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike

from diffjax.errors import UserError, unknown
from diffjax.nn.unet import UNet
from diffjax.typing import Images, Images8, ImageSpec

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_unet(config, spec: ImageSpec, **given) -> UNet:
    """The UNet of `config.model`, whose other fields are `given`. Raises UserError for what does not fit `spec`."""
    given_here = {"parent", "name", "dtype", *given}
    fields = {field.name for field in dataclasses.fields(UNet)} - given_here
    for name in config.model:
        if name not in fields:
            raise unknown("field of config.model", name, fields)
    halvings = len(config.model.multipliers) - 1
    if spec.size % 2**halvings:
        raise UserError(
            f"data.image_size={spec.size} cannot be halved {halvings} times, as model.multipliers asks: "
            f"use a multiple of {2**halvings}, or fewer multipliers"
        )
    return UNet(dtype=dtype_of(config), **given, **config.model)


def dtype_of(config) -> DTypeLike:
    """What `config.dtype` names. Raises UserError for what is none."""
    if config.dtype not in _DTYPES:
        raise unknown("dtype", config.dtype, _DTYPES)
    return _DTYPES[config.dtype]


def check_buildable(init: Callable) -> None:
    """Raises UserError for a network that cannot be built."""
    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error


def to_unit_range(images: Images8) -> Images:
    """Grey levels 0 to 255 to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_grey_levels(images: Images) -> Images8:
    """[-1, 1] to the nearest of the grey levels 0 to 255."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
