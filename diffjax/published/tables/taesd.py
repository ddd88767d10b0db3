"""Tables of TAESD, an autoencoder of system=vae with model.architecture=taesd, which has no variances.

Our encoder outputs means and log variances. The means are the file's latents; the log variances are constant, at the
lower bound of `latents.gaussian`, and are left out when a file is written.
"""

from collections.abc import Callable

import numpy as np

from diffjax.published.table import Block, Constant, Table, Tensor

_LOG_VARIANCE = -30.0


def diffusers(*, factor: int = 8, blocks: int = 3, scaling_factor: float = 1.0) -> Table:
    """Returns the table of all variables with the names of diffusers' AutoencoderTiny.

    Args:
      factor: model.factor.
      blocks: model.blocks.
      scaling_factor: factor that gives latents unit variance.
    """
    return {
        **_table(factor, blocks, "{}.layers.{}".format, 0),
        "latents/square": Constant(1.0 / scaling_factor**2),
    }


def original(*, factor: int = 8, blocks: int = 3) -> Table:
    """Returns the table of all variables with the names of taesd_encoder.pth and taesd_decoder.pth.

    The names have the prefixes "encoder." and "decoder." of their files.

    Args:
      factor: model.factor.
      blocks: model.blocks.
    """
    return _table(factor, blocks, "{}.{}".format, 1)


def _table(factor: int, blocks: int, layer: Callable[[str, int], str], skipped: int) -> Table:
    """Returns a table for files in which layers are numbered.

    Args:
      layer: name of a layer of "encoder" or "decoder".
      skipped: layers of the decoder before its first convolution.
    """
    halvings = factor.bit_length() - 1

    def down(level: int, i: int = -1) -> int:
        return 3 + (level - 1) * (blocks + 1) + i if level else 1

    def up(level: int, i: int) -> int:
        return skipped + 2 + (halvings - level) * (blocks + 2) + i

    inside = {f"conv_{i}": f"conv.{2 * i}" for i in range(3)}
    last = layer("encoder", down(halvings + 1) if halvings else 2)
    return {
        "params/model/encoder/conv_in": layer("encoder", 0),
        r"params/model/encoder/level_(\d+)_block_(\d+)": Block(lambda *at: layer("encoder", down(*at)), inside),
        **{f"params/model/encoder/down_{n}": layer("encoder", down(n)) for n in range(1, halvings + 1)},
        "params/model/encoder/conv_out/kernel": Tensor(f"{last}.weight", _with_variance_kernel, _mean_weight),
        "params/model/encoder/conv_out/bias": Tensor(f"{last}.bias", _with_log_variance, _mean),
        "params/model/decoder/conv_in": layer("decoder", skipped),
        r"params/model/decoder/level_(\d+)_block_(\d+)": Block(lambda *at: layer("decoder", up(*at)), inside),
        **{f"params/model/decoder/up_{n}": layer("decoder", up(n, blocks + 1)) for n in range(1, halvings + 1)},
        "params/model/decoder/conv_out": layer("decoder", up(0, 1)),
        "latents/mean": Constant(0.0),
        "latents/square": Constant(1.0),
    }


def _with_variance_kernel(weight: np.ndarray) -> np.ndarray:
    kernel = np.moveaxis(weight, (0, 1), (-1, -2))
    return np.concatenate([kernel, np.zeros_like(kernel)], axis=-1)


def _mean_weight(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(_mean(kernel), (-1, -2), (0, 1))


def _with_log_variance(bias: np.ndarray) -> np.ndarray:
    return np.concatenate([bias, np.full_like(bias, _LOG_VARIANCE)])


def _mean(values: np.ndarray) -> np.ndarray:
    return np.split(values, 2, axis=-1)[0]
