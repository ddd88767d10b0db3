"""Table of `nn.unet.UNet` with the names of EDM's code (DhariwalUNet), and the check that a file is such a network."""

import re
from collections.abc import Iterable

import numpy as np

from diffjax.errors import UserError
from diffjax.published.table import Block, Fixed, Module, Table, Tensor, by_head, convolution

_RESNET = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "time": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "skip": convolution("skip"),
}
_ATTENTION = {
    "norm": "norm2",
    "qkv": Module(("qkv",), order=by_head(3, head_channels=1), dims=4),  # channel by channel: q, k, v
    "out": convolution("proj"),
}


def dhariwal_unet(*, side: int, levels: int) -> Table:
    """Returns the table of EDM's DhariwalUNet, the network of ADM with other names.

    Args:
      side: height and width of the images.
      levels: number of resolutions.
    """

    def at(level: int) -> str:
        return f"{side >> level}x{side >> level}"

    changed = [f"enc.{at(i)}_down" for i in range(1, levels)] + [f"dec.{at(i)}_up" for i in range(levels - 1)]
    filters = [f"{name}.{layer}.resample_filter" for name in changed for layer in ("conv0", "skip")]
    middle = f"dec.{at(levels - 1)}"
    return {
        "time_0": "map_layer0",
        "time_1": "map_layer1",
        "augment": "map_augment",
        "label/embedding": Tensor("map_label.weight", np.transpose, np.transpose),
        "conv_in": f"enc.{at(0)}_conv",
        r"down_(\d+)_block_(\d+)": Block(lambda level, i: f"enc.{at(level)}_block{i}", _RESNET),
        r"down_(\d+)_attention_(\d+)": Block(lambda level, i: f"enc.{at(level)}_block{i}", _ATTENTION),
        r"down_(\d+)_resample": Block(lambda level: f"enc.{at(level + 1)}_down", _RESNET),
        r"middle_block_(\d+)": Block(f"{middle}_in{{0}}", _RESNET),
        "middle_attention": Block(f"{middle}_in0", _ATTENTION),
        r"up_(\d+)_block_(\d+)": Block(lambda level, i: f"dec.{at(level)}_block{i}", _RESNET),
        r"up_(\d+)_attention_(\d+)": Block(lambda level, i: f"dec.{at(level)}_block{i}", _ATTENTION),
        r"up_(\d+)_resample": Block(lambda level: f"dec.{at(level - 1)}_up", _RESNET),
        "norm_out": "out_norm",
        "conv_out": "out_conv",
        **{name: Fixed(name, np.full((1, 1, 2, 2), 0.25, np.float32)) for name in filters},
    }


def check_dhariwal_unet(names: Iterable[str], *, network: str) -> None:
    """Checks that a file of EDM's code has a DhariwalUNet.

    Args:
      names: tensors of the file.
      network: the file, for the error message.

    Raises:
      UserError: the file has a SongUNet, or is not of EDM's code.
    """
    names = list(names)
    if any(re.search(r"dec\.\d+x\d+_aux_conv\.", name) for name in names):
        raise UserError(
            f"{network}: is a SongUNet (DDPM++ or NCSN++), which is not supported; only DhariwalUNet (ADM) is"
        )
    if not any(re.search(r"dec\.\d+x\d+_in0\.", name) for name in names):
        raise UserError(f"{network}: has no tensor of a DhariwalUNet, such as model.dec.8x8_in0.conv0.weight")
