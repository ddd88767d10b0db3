"""Flax modules from the sections of a config."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
from flax import linen as nn
from jax import numpy as jnp
from jax.typing import DTypeLike

from diffjax.errors import UserError, checked_number, checked_whole, unknown
from diffjax.nn.dit import DiT
from diffjax.nn.layers import level_widths, num_groups
from diffjax.nn.unet import UNet
from diffjax.typing import ImageSpec, TextSpec

_MOST_TOKENS, _MOST_WORDS = 100_000, 10_000_000
_MOST = 1e6  # of a ratio
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make(module: type[nn.Module], section: Mapping, name: str, but: tuple[str, ...] = (), **given) -> nn.Module:
    """The module with the fields of a config's section.

    Raises UserError for fields that it has not, and for numbers that size nothing: see `_check_size`.
    """
    fields = {field.name: field for field in dataclasses.fields(module)}
    fields = {field: about for field, about in fields.items() if field not in ("parent", "name", *given)}
    for field in section:
        if field not in fields and field not in but:
            raise unknown(f"field of config.{name}", field, {*fields, *but})
    chosen = {field: value for field, value in section.items() if field in fields}
    for field, value in chosen.items():
        _check_size(f"{name}.{field}", value, fields[field].default, whole=int in typing.get_args(fields[field].type))
    return module(**given, **chosen)


def _check_size(name: str, value, default, *, whole: bool) -> None:
    """Raises UserError for a number that is not positive, or 0 where that is the default, and stands for none.

    Those of a sequence are all positive, and `whole` where the field says so.
    """
    if isinstance(value, list | tuple):
        if not value and name.endswith("multipliers"):
            raise UserError(f"{name}=(): one number for each level, at least one")
        for one in value:
            _check_size(name, checked_whole(name, one) if whole else one, 1, whole=whole)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return
    elif isinstance(value, int):
        checked_whole(name, value, low=0 if default == 0 else 1)
    elif default == 0:
        checked_number(name, value, low=0, high=_MOST)
    else:
        checked_number(name, value, low=0, high=_MOST, open_at="low")


def make_unet(config, spec: ImageSpec, side: int | None = None, **given) -> UNet:
    """The UNet of `config.model`, whose other fields are `given`, for pictures of a `side` (None: the data's).

    Raises UserError for what does not fit.
    """
    unet = make(UNet, config.model, "model", but=("architecture",), dtype=dtype_of(config), **given)
    halvings = len(unet.multipliers) - 1
    check_norms("model", config.model, unet.channels, unet.multipliers)
    if (side or spec.size) % 2**halvings:
        diffused = f", diffused as {side}x{side}," if side not in (None, spec.size) else ""
        raise UserError(
            f"data.image_size={spec.size}{diffused} cannot be halved {halvings} times, as model.multipliers asks: "
            f"use a multiple of {2**halvings}, or fewer multipliers"
        )
    return unet


def make_denoiser(config, spec: ImageSpec, shape: tuple[int, int, int], *, label_rows: int, learns_variance: bool):
    """The network that `config.model.architecture` names ("unet" | "dit") for examples of `shape`.

    Raises UserError for what does not exist or does not fit.
    """
    architecture = config.model.get("architecture", "unet")
    if architecture not in ("unet", "dit"):
        raise unknown("model.architecture", architecture, ("unet", "dit"))
    given = {"out_channels": shape[-1] * (2 if learns_variance else 1), "label_rows": label_rows}
    if architecture == "dit":
        dit = make(DiT, config.model, "model", but=("architecture",), dtype=dtype_of(config), **given)
        if shape[0] % dit.patch:
            raise UserError(
                f"data.image_size={spec.size}, diffused as {shape[0]}x{shape[0]}, cannot be cut into patches of "
                f"model.patch={dit.patch}: use a multiple of it"
            )
        return dit
    return make_unet(config, spec, shape[0], pool=None, **given)


def check_norms(name: str, section: Mapping, channels: int, multipliers: Sequence[float], *, unit: str = "level"):
    """Checks the group norms of a network of the section `name` of a config.

    `channels` x `multipliers` are the widths of its levels, or of another `unit`. Both fields of the norms are
    required: how many groups a narrow level has decides what the weights of a run compute.

    Raises UserError where a width is not a whole number, a field is missing, or the groups do not divide a width.
    """
    groups, least = (f"{name}.{field}" for field in ("norm_groups", "norm_min_channels"))
    try:
        widths = level_widths(channels, multipliers)
    except ValueError as error:
        raise UserError(f"{name}.{error}") from error
    if "norm_groups" not in section:
        raise UserError(f"{groups}: is missing; set the number of groups of group norm, 32 in most papers")
    if "norm_min_channels" not in section:
        raise UserError(
            f"{least}: is missing; set it to 0 for exactly {groups} groups, or to 4 for the fewer groups at narrow "
            "levels that runs without this field were trained with"
        )
    asked = section["norm_groups"]
    for i, width in enumerate(widths):
        try:
            num_groups(width, asked, section["norm_min_channels"])
        except ValueError as error:
            raise UserError(
                f"{groups}={asked}: must divide the {width} channels of {unit} {i}; use {math.gcd(asked, *widths)}, or "
                f"{least}=4 for fewer groups where a group would have fewer channels"
            ) from error


def dtype_of(config) -> DTypeLike:
    """What `config.dtype` names. Raises UserError for what is none."""
    if config.dtype not in _DTYPES:
        raise unknown("dtype", config.dtype, _DTYPES)
    return _DTYPES[config.dtype]


def classes_of(config, section: str, spec: ImageSpec) -> int:
    """The data set's classes where a config's `section` asks for them, else 0. Raises UserError where it has none."""
    if config[section].class_conditional and not spec.classes:
        raise UserError(f"{section}.class_conditional=True, but the data set has no labels: set it to False")
    return spec.classes if config[section].class_conditional else 0


def text_of(config) -> TextSpec:
    """What `config.text` asks of tokens. Raises UserError where there is no such section, or it asks for too little."""
    if "text" not in config:
        raise UserError("the config has no section text (tokenizer, vocabulary, length): see configs/clip_shapes.py")
    if not 3 <= config.text.length <= _MOST_TOKENS or not 258 <= config.text.vocabulary <= _MOST_WORDS:
        raise UserError(
            f"text.length={config.text.length}, text.vocabulary={config.text.vocabulary}: at least 3 tokens, of which "
            "two are the start and the end, and a vocabulary of at least those two and 256 bytes; at most "
            f"{_MOST_TOKENS:,} and {_MOST_WORDS:,}"
        )
    return TextSpec(config.text.length, config.text.vocabulary)


def checked_share(name: str, rate: float) -> float:
    """`rate`. Raises UserError where the field `name` has one that is no share of the examples, or all of them."""
    if not 0 <= rate < 1:
        raise UserError(f"{name}={rate}: a share from 0 up to, but not, 1")
    return rate


def check_buildable(init: Callable, where: str = "config.model") -> None:
    """Raises UserError for networks that cannot be built, which are described `where`."""
    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
