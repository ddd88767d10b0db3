"""InceptionV3 (Szegedy et al. 2015) of the Fréchet inception distance (Heusel et al. 2017), a frozen feature network.

It is TensorFlow's graph `inception-2015-12-05` with 1008 outputs, converted to PyTorch by pytorch-fid. It differs from
torchvision's InceptionV3 in its weights, in average pools that exclude padding, and in the last block's pool, a max
pool instead of an average pool. Batch norm is folded into the convolutions, because the network is not trained. The
computation is float32 at full precision, so that a distance does not depend on the device.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jaxtyping import Float, UInt8

from diffjax.published.tensors import Weights

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)

Params = Mapping[str, Mapping[str, np.ndarray]]  # kernel and bias per convolution, by its name in the file; and "fc"


class Features(NamedTuple):
    """Features of images for FID, sFID and inception score."""

    pooled: Float[Array, "B 2048"]  # non-negative; op "pool_3"
    # For sFID (Nash et al. 2021), as in the evaluator of Dhariwal & Nichol 2021: 17 rows, 17 columns, first 7 channels
    # of op "mixed_6/conv:0", the 1x1 branch of the third 17x17 block after its ReLU (Mixed_6d.branch1x1).
    spatial: Float[Array, "B 2023"]
    # Without the bias of the last layer, as in the inception score of Salimans et al. 2016 and the evaluator.
    logits: Float[Array, "B 1008"]


class _Conv(NamedTuple):
    """Convolution, batch norm and ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _shrink(name: str, width: int) -> _Conv:
    return _Conv(name, width, (3, 3), 2, "VALID")


# A branch is a sequence of convolutions, pools by name, and pairs of parallel convolutions. The outputs of a block's
# branches are concatenated. The name of a convolution in the file is the block's name and its own.
_Branch = tuple[_Conv | str | tuple[_Conv, _Conv], ...]


def _a(pool_width: int) -> tuple[_Branch, ...]:
    return (
        (_Conv("branch1x1", 64),),
        (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
        (_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, (3, 3)), _Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", _Conv("branch_pool", pool_width)),
    )


def _c(inside: int) -> tuple[_Branch, ...]:
    return (
        (_Conv("branch1x1", 192),),
        (_Conv("branch7x7_1", inside), _Conv("branch7x7_2", inside, (1, 7)), _Conv("branch7x7_3", 192, (7, 1))),
        (
            _Conv("branch7x7dbl_1", inside),
            _Conv("branch7x7dbl_2", inside, (7, 1)),
            _Conv("branch7x7dbl_3", inside, (1, 7)),
            _Conv("branch7x7dbl_4", inside, (7, 1)),
            _Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        ("average", _Conv("branch_pool", 192)),
    )


def _e(pool: str) -> tuple[_Branch, ...]:
    def pair(name: str) -> tuple[_Conv, _Conv]:
        return _Conv(f"{name}a", 384, (1, 3)), _Conv(f"{name}b", 384, (3, 1))

    return (
        (_Conv("branch1x1", 320),),
        (_Conv("branch3x3_1", 384), pair("branch3x3_2")),
        (_Conv("branch3x3dbl_1", 448), _Conv("branch3x3dbl_2", 384, (3, 3)), pair("branch3x3dbl_3")),
        (pool, _Conv("branch_pool", 192)),
    )


_BLOCKS: Mapping[str, tuple[_Branch, ...]] = {
    "": (
        (
            _shrink("Conv2d_1a_3x3", 32),
            _Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
            _Conv("Conv2d_2b_3x3", 64, (3, 3)),
            "shrink",
            _Conv("Conv2d_3b_1x1", 80),
            _Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
            "shrink",
        ),
    ),
    "Mixed_5b.": _a(32),
    "Mixed_5c.": _a(64),
    "Mixed_5d.": _a(64),
    "Mixed_6a.": (
        (_shrink("branch3x3", 384),),
        (_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, (3, 3)), _shrink("branch3x3dbl_3", 96)),
        ("shrink",),
    ),
    "Mixed_6b.": _c(128),
    "Mixed_6c.": _c(160),
    "Mixed_6d.": _c(160),
    "Mixed_6e.": _c(192),
    "Mixed_7a.": (
        (_Conv("branch3x3_1", 192), _shrink("branch3x3_2", 320)),
        (
            _Conv("branch7x7x3_1", 192),
            _Conv("branch7x7x3_2", 192, (1, 7)),
            _Conv("branch7x7x3_3", 192, (7, 1)),
            _shrink("branch7x7x3_4", 192),
        ),
        ("shrink",),
    ),
    "Mixed_7b.": _e("average"),
    "Mixed_7c.": _e("max"),
}
_POOLS = {
    "shrink": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
    "max": lambda x: nn.max_pool(x, (3, 3), padding="SAME"),
    "average": lambda x: nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False),
}
_SIDE, _CLASSES, _SPATIAL = 299, 1008, 7
_EPSILON = 1e-3


def load(path: str | Path) -> Params:
    """Loads the parameters, NumPy float32, from the file at WEIGHTS_URL.

    Raises:
      UserError: the file cannot be read, or its tensors are not exactly those of the network.
    """
    weights = Weights(path, "FID's InceptionV3", source=f"download {WEIGHTS_URL}")

    def folded(name: str, conv: _Conv, inputs: int) -> dict[str, np.ndarray]:
        shape = conv.width, inputs, *conv.kernel
        return weights.conv(f"{name}.conv", f"{name}.bn", *shape, epsilon=_EPSILON)

    params, width = {}, 3
    for block, branches in _BLOCKS.items():
        widths = []
        for branch in branches:
            inside = width
            for step in branch:
                if not isinstance(step, str):
                    convs = _parallel(step)
                    params |= {block + conv.name: folded(block + conv.name, conv, inside) for conv in convs}
                    inside = sum(conv.width for conv in convs)
            widths.append(inside)
        width = sum(widths)
    params["fc"] = {"kernel": weights.pop("fc.weight", _CLASSES, width).T.astype(np.float32)}
    weights.pop("fc.bias", _CLASSES)  # not used
    weights.assert_empty(ignored=["num_batches_tracked"])
    return params


def resize(images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"]) -> Float[Array, "B 299 299 C"]:
    """Resizes images to 299x299 as TensorFlow 1's ResizeBilinear with align_corners=False: float32, not rounded.

    Pixel i is sampled at i * size / 299, without the usual half-pixel offset and without antialiasing. This is part of
    the original graph, and published distances depend on it.

    Reference: Parmar et al. 2022, section 3.
    """
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        source = np.arange(_SIDE, dtype=np.float32) * (np.float32(length) / np.float32(_SIDE))
        low = np.floor(source)
        part = np.expand_dims(source - low, [i for i in range(4) if i != axis])
        before = x.take(low.astype(np.int32), axis)
        after = x.take(np.minimum(low + 1, length - 1).astype(np.int32), axis)
        x = before + (after - before) * part
    return x


def features(params: Params, images: UInt8[Array, "B H W c"]) -> Features:
    """Computes features of images.

    Args:
      params: parameters from `load`.
      images: uint8 [B, H, W, c] of any size, RGB (c = 3) or grey (c = 1, repeated to three channels); resized here.

    Raises:
      ValueError: images are not uint8, or have another number of channels.
    """
    if images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: must be uint8 with 1 or 3 channels, not {images.dtype}{images.shape}")
    x = (resize(images) - 128) / 128
    x = x.repeat(3, axis=-1) if x.shape[-1] == 1 else x
    spatial = x
    for block, branches in _BLOCKS.items():
        x = jnp.concatenate([_branch(params, block, branch, x) for branch in branches], axis=-1)
        if block == "Mixed_6d.":
            spatial = x[..., :_SPATIAL].reshape(len(x), -1)  # the first branch is branch1x1
    pooled = x.mean((1, 2))
    return Features(pooled, spatial, jnp.matmul(pooled, params["fc"]["kernel"], precision=lax.Precision.HIGHEST))


def _parallel(step: _Conv | tuple[_Conv, _Conv]) -> tuple[_Conv, ...]:
    return (step,) if isinstance(step, _Conv) else step


def _branch(params: Params, block: str, branch: _Branch, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
    for step in branch:
        if isinstance(step, str):
            x = _POOLS[step](x)
        else:
            x = jnp.concatenate([_conv(params[block + conv.name], conv, x) for conv in _parallel(step)], axis=-1)
    return x


def _conv(params: Mapping[str, np.ndarray], conv: _Conv, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
    stride, layout = (conv.stride, conv.stride), ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(params["kernel"]),
        stride,
        conv.padding,
        dimension_numbers=layout,
        precision=lax.Precision.HIGHEST,
    )
    return jax.nn.relu(y + params["bias"][None, None, None, :])
