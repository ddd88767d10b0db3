"""The measurement that samples are conditioned on, and the method of the inverse problem, among sampling settings."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
from jax import numpy as jnp

from diffjax.diffusion import inverse_problems, measurements
from diffjax.diffusion.denoiser import Denoiser
from diffjax.diffusion.measurements import Operator
from diffjax.errors import UserError, validate_number
from diffjax.models.sampling_settings import SamplingSettings, Scalars
from diffjax.registry import choices, lookup, options

DEFAULTS = {  # of overrides; configs do not have these settings
    "measure": "",  # operator of the measurement; "": no measurement
    "measure_noise": 0.0,  # standard deviation of its noise, of pixels in [-1, 1]
    "inverse": "pigdm",
}
_INJECTED = ("array",)


def read_choices(
    settings: Mapping[str, Any], shape: tuple[int, ...], pixels: bool
) -> tuple[dict[str, Any], Scalars, Scalars]:
    """Reads the settings of DEFAULTS.

    Args:
      settings: values by name.
      shape: shape of the model's data.
      pixels: whether these are pixels.

    Returns:
      The choices, the scalars, and the options of the method.

    Raises:
      UserError: an unknown choice, or one that the model does not support.
    """
    text = settings["measure"]
    if not text:
        return {"measure": ""}, {}, {}
    if not pixels:
        raise UserError(
            f"--measure={text}: is only supported for models of pixels, as other data are not linear in the image; "
            "sample a model of pixels"
        )
    measure = lookup("--measure", measurements, text, injected=_INJECTED)
    for name, value in measure.options.items():
        validate_number(f"--measure={measure.name}, {name}", value, low=0, exclusive="low")
    if not needs_array(text):
        try:
            jax.eval_shape(bind_operator(text), jax.ShapeDtypeStruct(shape, jnp.float32))
        except ValueError as error:
            raise UserError(f"--measure={text}: {error}") from error
    inverse = lookup("--inverse", inverse_problems, settings["inverse"])
    method_options = inverse.all_options
    for name, value in method_options.items():
        exclusive = "low" if name == "data_std" else ""
        validate_number(f"--inverse={inverse.name}, {name}", value, low=0, exclusive=exclusive)
    noise = jnp.asarray(validate_number("--measure_noise", settings["measure_noise"], low=0), jnp.float32)
    method = {name: jnp.asarray(value, jnp.float32) for name, value in method_options.items()}
    return {"measure": text, "inverse": inverse.name}, {"measure_noise": noise}, method


def needs_array(text: str) -> bool:
    """Returns whether an operator is defined by an array: a mask or a matrix."""
    return "array" in options(lookup("--measure", measurements, text, injected=_INJECTED).function)


def bind_operator(text: str, array: Array | None = None) -> Operator:
    """Returns the operator of a measurement.

    Args:
      text: choice of measurements.py.
      array: data of an operator that `needs_array`.
    """
    return lookup("--measure", measurements, text, injected=_INJECTED).bind(array=array)()


def bind_method(settings: SamplingSettings) -> Callable[[Denoiser, Array], Denoiser]:
    """Returns the function from a denoiser and measurements [B, ...] to the denoiser of the inverse problem."""
    operator = bind_operator(settings["measure"], settings.arrays.get("operator"))
    method, chosen = choices(inverse_problems)[settings["inverse"]], settings.guidance_options["inverse"]
    return lambda denoiser, y: method(denoiser, operator, y, settings["measure_noise"], **chosen)
