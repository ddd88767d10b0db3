"""LPIPS 0.1 (Zhang et al. 2018): perceptual distance in the features of AlexNet or VGG16.

The channel weights were fitted to human judgements. AlexNet is common in evaluations, VGG16 as a training loss.
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
from diffjax.published.tensors import Weights
from diffjax.typing import Images

# Sources of the files: the backbone, by torchvision, and the channel weights.
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
    """Layers between two feature maps: a max pool of stride 2, then convolutions with ReLU."""

    convs: tuple[int, ...]  # indices of the convolutions in torchvision's `features`
    width: int  # output channels
    kernel: int = 3  # side of the kernels
    stride: int = 1
    padding: int = 1
    pool: int = 0  # side of the pool; 0: no pool


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
# ImageNet's mean and standard deviation per channel in [-1, 1], rounded as in LPIPS.
_MEAN = np.array([-0.030, -0.088, -0.188], np.float32)
_DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)


def load(backbone_path: str | Path, linear_path: str | Path) -> Params:
    """Loads the parameters, NumPy float32, of AlexNet or VGG16, depending on the first tensor of the backbone.

    Args:
      backbone_path: file of the backbone, by torchvision.
      linear_path: file of the channel weights, from the package lpips.

    Raises:
      UserError: a file cannot be read, or its tensors are not those of the network; the message has the file's source.
    """
    sources = " or ".join(backbone for backbone, _ in WEIGHTS.values())
    weights = Weights(backbone_path, sources, source=f"LPIPS requires {sources}")
    first = "features.0.weight"
    shapes = {name: (stages[0].width, 3, stages[0].kernel, stages[0].kernel) for name, stages in _NETWORKS.items()}
    name = next((name for name, shape in shapes.items() if weights.shape(first) == shape), None)
    if name is None:
        raise UserError(f"{backbone_path} is neither torchvision's AlexNet nor its VGG16: {first} has another shape")
    weights.network, stages = WEIGHTS[name][0], _NETWORKS[name]
    convs, inputs = [], 3
    for stage in stages:
        for i in stage.convs:
            kernel = weights.pop(f"features.{i}.weight", stage.width, inputs, stage.kernel, stage.kernel)
            bias = weights.pop(f"features.{i}.bias", stage.width)
            convs.append({"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias})
            inputs = stage.width
    weights.assert_empty(ignored=["classifier."])

    linear = WEIGHTS[name][1]
    weights = Weights(linear_path, linear, source=f"LPIPS requires {linear}")
    rows = [weights.pop(f"lin{i}.model.1.weight", 1, stage.width, 1, 1) for i, stage in enumerate(stages)]
    weights.assert_empty()
    params = {name: convs, "weights": [row.transpose(0, 2, 3, 1) for row in rows]}
    return jax.tree.map(lambda tensor: tensor.astype(np.float32), params)


def distance(params: Params, a: Images, b: Images) -> Float[Array, " B"]:
    """Computes LPIPS per example, at the images' own size.

    Args:
      params: parameters from `load`.
      a: images [B, H, W, C] in [-1, 1] with 1 (grey), 3 (RGB) or 4 (RGBA, composited onto white) channels.
      b: images of the shape of `a`.

    Returns:
      Distances, float32 [B], at least 0.

    Raises:
      ValueError: images of different shapes, another number of channels, or a side below 31 (AlexNet) or 16 (VGG16).

    Reference: Zhang et al. 2018, eq. 1.
    """
    (name,) = params.keys() & _NETWORKS.keys()
    features = partial(_features, _NETWORKS[name], params[name])
    return perceptual.distance(features, a, b, weights=params["weights"], min_side=1)


def _min_side(stages: tuple[_Stage, ...]) -> int:
    """Returns the side of images whose last map has one position."""
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
    """Returns the last feature map of each stage."""
    min_side = _min_side(stages)
    if min(x.shape[1:3]) < min_side:
        raise ValueError(f"LPIPS requires sides of at least {min_side}, not {x.shape[1]}x{x.shape[2]}")
    x = (x - _MEAN[None, None, None, :]) / _DEVIATION[None, None, None, :]
    maps, remaining, layout = [], iter(convs), ("NHWC", "HWIO", "NHWC")
    for stage in stages:
        if stage.pool:
            x = nn.max_pool(x, (stage.pool, stage.pool), (2, 2))
        padding = [(stage.padding, stage.padding)] * 2
        for _ in stage.convs:
            conv, strides = next(remaining), (stage.stride, stage.stride)
            # float32 on every device, as in published results
            x = lax.conv_general_dilated(
                x, conv["kernel"], strides, padding, dimension_numbers=layout, precision=lax.Precision.HIGHEST
            )
            x = jax.nn.relu(x + conv["bias"][None, None, None, :])
        maps.append(x)
    return tuple(maps)
