"""Configs of diffusers' AutoencoderTiny (TAESD), and ours: system=vae with model.architecture=taesd."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax.conversion.components import Json, check_expressed, with_defaults
from diffjax.published.table import Table
from diffjax.published.tables import taesd
from diffjax.runs.config_files import load_file

_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
_IGNORED = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels", "scaling_factor")


def read(path: Path, config: Json) -> ConfigDict:
    """Returns our config of an AutoencoderTiny.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.

    Raises:
      UserError: a field that our network does not have.
    """
    c = with_defaults(path, config, _DEFAULTS)
    widths, blocks = c["encoder_block_out_channels"], c["num_encoder_blocks"]
    result = ConfigDict(load_file("configs/published/taesd.py").to_dict())
    result.data.channels = c["in_channels"]
    result.model.update(
        channels=widths[0], blocks=blocks[-1], factor=2 ** (len(blocks) - 1), latent_channels=c["latent_channels"]
    )
    check_expressed(path, c, write(result), ignored=_IGNORED)
    return result


def write(config: ConfigDict, *, scaling_factor: float = 1.0) -> dict[str, Any]:
    """Returns diffusers' config of an autoencoder of ours.

    Args:
      config: config of a run with model.architecture=taesd.
      scaling_factor: factor that gives latents unit variance.
    """
    model, levels = config.model, config.model.factor.bit_length()
    coarser = [model.blocks] * (levels - 1)
    return {
        **_DEFAULTS,
        "_class_name": "AutoencoderTiny",
        "in_channels": config.data.channels,
        "out_channels": config.data.channels,
        "encoder_block_out_channels": [model.channels] * levels,
        "decoder_block_out_channels": [model.channels] * levels,
        "num_encoder_blocks": [1, *coarser],
        "num_decoder_blocks": [*coarser, 1],
        "latent_channels": model.latent_channels,
        "scaling_factor": scaling_factor,
    }


def table(config: ConfigDict, scaling_factor: float) -> Table:
    """Returns the table of the autoencoder's variables with diffusers' names."""
    return taesd.diffusers(factor=config.model.factor, blocks=config.model.blocks, scaling_factor=scaling_factor)
