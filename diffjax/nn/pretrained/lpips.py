"""LPIPS 0.1 (Zhang et al. 2018): a distance between images in the features of AlexNet or VGG16, their channels weighted
by what people judged. Papers report the one of AlexNet; that of VGG16 is the common loss.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float

from diffjax.errors import UserError
from diffjax.nn import perceptual
from diffjax.nn.pretrained.checkpoint_reader import Weights
from diffjax.typing import Images

# Where the files are: torchvision's of the network, and that of the channels' weights.
WEIGHTS = {
    "alex": (
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "lpips/weights/v0.1/alex.pth of the package lpips (pip install --no-deps lpips)",
    ),
    "vgg": (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "lpips/weights/v0.1/vgg.pth of the package lpips (pip install --no-deps lpips)",
    ),
}

Params = Mapping[str, Any]  # {"alex" or "vgg": [{"kernel", "bias"}], "weights": [[1, 1, 1, c]]}


class _Stage(NamedTuple):
    """What leads from one map to the next: a max pool of stride 2, convolutions with a ReLU after each."""

    convs: tuple[int, ...]  # their places in torchvision's `features`
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0  # its side; 0: none


_NETWORKS = {
    "alex": (
        _Stage((0,), 64, kernel=11, stride=4, padding=2),
        _Stage((3,), 192, kernel=5, padding=2, pool=3),
        _Stage((6,), 384, pool=3),
        _Stage((8,), 256),
        _Stage((10,), 256),
    ),
    "vgg": (
        _Stage((0, 2), 64),
        _Stage((5, 7), 128, pool=2),
        _Stage((10, 12, 14), 256, pool=2),
        _Stage((17, 19, 21), 512, pool=2),
        _Stage((24, 26, 28), 512, pool=2),
    ),
}
# Of ImageNet's channels in [-1, 1], as LPIPS rounds them.
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)


def load(backbone_path: str | Path, linear_path: str | Path) -> Params:
    """The parameters, NumPy float32, from the two files of a network; which it is, the first one's tensors tell.

    Raises:
      UserError: a file cannot be read, or its tensors are not those of such a network; it says where to get the file.
    """
    sources = " or ".join(backbone for backbone, _ in WEIGHTS.values())
    weights = Weights(backbone_path, sources, source=f"LPIPS needs {sources}")
    first = "features.0.weight"
    shapes = {name: (stages[0].width, 3, stages[0].kernel, stages[0].kernel) for name, stages in _NETWORKS.items()}
    name = next((name for name, shape in shapes.items() if weights.shape(first) == shape), None)
    if name is None:
        raise UserError(f"{backbone_path} is neither torchvision's AlexNet nor its VGG16: it has another {first}")
    weights.network, stages = WEIGHTS[name][0], _NETWORKS[name]
    convs, inputs = [], 3
    for stage in stages:
        for i in stage.convs:
            kernel = weights.take(f"features.{i}.weight", stage.width, inputs, stage.kernel, stage.kernel)
            bias = weights.take(f"features.{i}.bias", stage.width)
            convs.append({"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias})
            inputs = stage.width
    weights.done(but=["classifier."])

    linear = WEIGHTS[name][1]
    weights = Weights(linear_path, linear, source=f"LPIPS needs {linear}")
    rows = [weights.take(f"lin{i}.model.1.weight", 1, stage.width, 1, 1) for i, stage in enumerate(stages)]
    weights.done()
    params = {name: convs, "weights": [row.transpose(0, 2, 3, 1) for row in rows]}
    return jax.tree.map(lambda tensor: tensor.astype(np.float32), params)


def distance(params: Params, a: Images, b: Images) -> Float[Array, "B"]:
    """Zhang et al. 2018, eq. 1, of images in [-1, 1] and of 1 channel (grey), 3, or 4 (RGBA, put on white).

    They are compared at the size they have, which the distance depends on.

    Raises ValueError for images of different shapes, for other numbers of channels, and where a side is too small for
    the network: below 31 (AlexNet) or 16 (VGG16).
    """
    (name,) = params.keys() & _NETWORKS.keys()
    features = partial(_features, _NETWORKS[name], params[name])
    return perceptual.distance(features, a, b, weights=params["weights"], smallest=1)


def _least_side(stages: tuple[_Stage, ...]) -> int:
    """Of images whose last map has one position."""
    side = 1
    for stage in reversed(stages):
        for _ in stage.convs:
            side = (side - 1) * stage.stride + stage.kernel - 2 * stage.padding
        if stage.pool:
            side = (side - 1) * 2 + stage.pool
    return side


def _features(
    stages: tuple[_Stage, ...], convs: list[Mapping[str, Array]], x: Float[Array, "B H W 3"]
) -> tuple[Float[Array, "B h w c"], ...]:
    """The last map of each stage."""
    least = _least_side(stages)
    if min(x.shape[1:3]) < least:
        raise ValueError(f"LPIPS needs sides of at least {least}, not {x.shape[1]}x{x.shape[2]}")
    x = (x - _MEAN[None, None, None, :]) / _DEVIATION[None, None, None, :]
    maps, remaining, layout = [], iter(convs), ("NHWC", "HWIO", "NHWC")
    for stage in stages:
        if stage.pool:
            x = nn.max_pool(x, (stage.pool, stage.pool), (2, 2))
        padding = [(stage.padding, stage.padding)] * 2
        for _ in stage.convs:
            conv, strides = next(remaining), (stage.stride, stage.stride)
            # In float32 on any device, as a published number is.
            x = lax.conv_general_dilated(
                x, conv["kernel"], strides, padding, dimension_numbers=layout, precision=lax.Precision.HIGHEST
            )
            x = jax.nn.relu(x + conv["bias"][None, None, None, :])
        maps.append(x)
    return tuple(maps)
