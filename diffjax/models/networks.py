"""Builds Flax modules from sections of a config, and checks the sections."""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import linen as nn
from jax import numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.models.base import Model
from diffjax.nn.dit import DiT
from diffjax.nn.edm2 import EDM2UNet
from diffjax.nn.layers import level_widths, num_groups
from diffjax.nn.mmdit import MMDiT
from diffjax.nn.unet import UNet
from diffjax.nn.uvit import UViT
from diffjax.typing import ImageSpec, PRNGKey, TextSpec

_MAX_TOKENS, _MAX_VOCABULARY = 100_000, 10_000_000
_MAX_RATIO = 1e6
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_PERTURBATION_FIELDS = ("identity_attention", "skipped_blocks")  # of guidance, not of configs
Module = TypeVar("Module", bound=nn.Module)


def apply(module: nn.Module, params: Any, *inputs: Any, **options: Any) -> Any:
    """Applies a module without mutable collections; returns its output alone, unlike the type of `Module.apply`.

    Equal modules with inputs of equal shapes are traced once. Options that are no arrays, such as flags, are static.
    """
    static = {name: value for name, value in options.items() if isinstance(value, bool | int | str)}
    arrays = {name: value for name, value in options.items() if name not in static}
    return _apply(module, tuple(static.items()), params, inputs, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _apply(module: nn.Module, static: Any, params: Any, inputs: Any, arrays: Any) -> Any:
    return module.apply({"params": params}, *inputs, **dict(static), **arrays)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def init(module: nn.Module, key: PRNGKey, *inputs: Any, **options: Any) -> Any:
    """Returns fresh parameters of a module. Equal modules with inputs of equal shapes are traced once."""
    return module.init(key, *inputs, **options)["params"]


def make(
    module: type[Module], section: Mapping[str, Any], name: str, but: tuple[str, ...] = (), **shared: Any
) -> Module:
    """Builds a module with the fields of a config's section.

    Args:
      name: name of the section, for messages.
      but: fields of the section that are not the module's.
      shared: fields of the module that the section cannot set.

    Raises:
      UserError: an unknown field, or a size that is not positive.
    """
    fields = {field.name: field for field in dataclasses.fields(module)}
    others = ("parent", "name", *_PERTURBATION_FIELDS, *shared)
    fields = {field: value for field, value in fields.items() if field not in others}
    for field in section:
        if field not in fields and field not in but:
            raise unknown(f"field of config.{name}", field, {*fields, *but})
    chosen = {field: value for field, value in section.items() if field in fields}
    for field, value in chosen.items():
        _check_size(f"{name}.{field}", value, fields[field].default, whole=int in typing.get_args(fields[field].type))
    return module(**shared, **chosen)


def _check_size(name: str, value: Any, default: Any, *, whole: bool) -> None:
    """Raises UserError for a number that is not positive; 0 is allowed if it is the default.

    Numbers of a sequence must be positive, and integers if `whole`.
    """
    if isinstance(value, list | tuple):
        if not value and name.endswith("multipliers"):
            raise UserError(f"{name}=(): must have a number per level, at least one")
        for one in value:
            _check_size(name, validate_integer(name, one) if whole else one, 1, whole=whole)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return
    elif isinstance(value, int):
        validate_integer(name, value, low=0 if default == 0 else 1)
    elif default == 0:
        validate_number(name, value, low=0, high=_MAX_RATIO)
    else:
        validate_number(name, value, low=0, high=_MAX_RATIO, exclusive="low")


def make_unet(config: ConfigDict, spec: ImageSpec, side: int | None = None, **shared: Any) -> UNet:
    """Builds the UNet of `config.model`.

    Args:
      side: height and width of its inputs; None: that of the images.
      shared: fields that the config cannot set.

    Raises:
      UserError: invalid fields, or sides that cannot be halved as often as the network does.
    """
    unet = make(UNet, config.model, "model", but=("architecture",), dtype=dtype_of(config), **shared)
    halvings = len(unet.multipliers) - 1
    check_norms("model", config.model, unet.channels, unet.multipliers)
    if (side or spec.size) % 2**halvings:
        diffused = f", diffused as {side}x{side}" if side not in (None, spec.size) else ""
        raise UserError(
            f"data.image_size={spec.size}{diffused}: must be a multiple of {2**halvings}, as model.multipliers halves "
            f"it {halvings} times; change it, or use fewer multipliers"
        )
    return unet


def make_denoiser(
    config: ConfigDict, spec: ImageSpec, shape: tuple[int, ...], *, num_label_embeddings: int, learns_variance: bool
) -> UNet | DiT | UViT | EDM2UNet:
    """Builds the network that `config.model.architecture` names, "unet", "dit", "mmdit", "uvit" or "edm2".

    Args:
      shape: height, width and channels of x_t.
      num_label_embeddings: rows of the table of labels; 0: no labels.
      learns_variance: whether the output has twice the channels.

    Raises:
      UserError: an unknown architecture, or fields that do not fit.
    """
    architecture = config.model.get("architecture", "unet")
    others = {"dit": DiT, "mmdit": MMDiT, "uvit": UViT, "edm2": EDM2UNet}
    if architecture not in ("unet", *others):
        raise unknown("model.architecture", architecture, ("unet", *others))
    shared = {"out_channels": shape[-1] * (2 if learns_variance else 1), "num_label_embeddings": num_label_embeddings}
    if architecture == "unet":
        return make_unet(config, spec, shape[0], pool=None, **shared)
    network = make(others[architecture], config.model, "model", but=("architecture",), dtype=dtype_of(config), **shared)
    if isinstance(network, DiT | UViT) and shape[0] % network.patch:
        raise UserError(
            f"model.patch={network.patch}: must divide the {shape[0]}x{shape[0]} of x_t "
            f"(data.image_size={spec.size}); use a divisor"
        )
    return network


def check_norms(
    name: str, section: Mapping[str, Any], channels: int, multipliers: Sequence[float], *, unit: str = "level"
) -> None:
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
    num = section["norm_groups"]
    for i, width in enumerate(widths):
        try:
            num_groups(width, num, section["norm_min_channels"])
        except ValueError as error:
            raise UserError(
                f"{groups}={num}: must divide the {width} channels of {unit} {i}; use {math.gcd(num, *widths)}, or "
                f"{least}=4 for fewer groups where a group would have fewer channels"
            ) from error


def dtype_of(config: ConfigDict) -> DTypeLike:
    """Returns the type that `config.dtype` names. Raises UserError for an unknown one."""
    if config.dtype not in _DTYPES:
        raise unknown("dtype", config.dtype, _DTYPES)
    return _DTYPES[config.dtype]


def classes_of(config: ConfigDict, section: str, spec: ImageSpec) -> int:
    """Returns the number of classes if the section is `class_conditional`, else 0. Raises UserError without labels."""
    if config[section].class_conditional and not spec.classes:
        raise UserError(f"{section}.class_conditional=True: the data set does not have labels; set it to False")
    return spec.classes if config[section].class_conditional else 0


def text_of(config: ConfigDict) -> TextSpec:
    """Returns length and vocabulary of captions. Raises UserError if `config.text` is missing or out of range."""
    if "text" not in config:
        raise UserError("text: the section (tokenizer, vocabulary, length) is missing; see configs/clip_shapes.py")
    if not 3 <= config.text.length <= _MAX_TOKENS or not 258 <= config.text.vocabulary <= _MAX_VOCABULARY:
        raise UserError(
            f"text.length={config.text.length}, text.vocabulary={config.text.vocabulary}: length must be from 3 to "
            f"{_MAX_TOKENS:,} tokens, with start and end, and vocabulary from 258, with 256 bytes, to "
            f"{_MAX_VOCABULARY:,}"
        )
    return TextSpec(config.text.length, config.text.vocabulary)


def validate_probability(name: str, rate: float) -> float:
    """Returns `rate` of the field `name`. Raises UserError if it is not in [0, 1)."""
    if not 0 <= rate < 1:
        raise UserError(f"{name}={rate}: must be a fraction from 0 to below 1")
    return rate


def check_buildable(model: Model, where: str = "config.model") -> None:
    """Raises UserError if the shapes of networks do not fit; `where` names their section."""
    try:
        _ = model.variable_shapes
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
