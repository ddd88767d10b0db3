"""DINOv2 (Oquab et al. 2023): the features of FD-DINOv2, from a folder in the format of Hugging Face's libraries.

The folder has config.json and model.safetensors (older ones: pytorch_model.bin), such as that of facebook/dinov2-large.
Published distances use that network, ViT-L/14. Its layer scales become part of the linear layers before them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, UInt8

from diffjax import io
from diffjax.errors import UserError
from diffjax.nn.perceptual import as_rgb
from diffjax.nn.transformer import transformer_from_fields
from diffjax.published.folders import find_weights, read_json, shown
from diffjax.published.tensors import Weights
from diffjax.typing import Images

SIDE = 224  # sides of the images of published distances
_MEAN = (0.485, 0.456, 0.406)  # ImageNet's mean of pixels in [0, 1]
_STD = (0.229, 0.224, 0.225)
# Published distances use the network of torch.hub, which adds this to the sides of the interpolated positions. The
# network of transformers adds 0.
_POSITION_OFFSET = 0.1
_CUBIC = -0.75  # coefficient of PyTorch's bicubic interpolation

_DEFAULTS = {  # of fields that config.json may omit
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_SUPPORTED = {"hidden_act": ("gelu",), "num_channels": (3,), "qkv_bias": (True,), "use_swiglu_ffn": (False, True)}

Params = Mapping[str, Any]


class DINOv2(nn.Module):
    """Vision transformer with learned positions, which are interpolated for images of another size.

    Reference: Oquab et al. 2023, section 4; Dosovitskiy et al. 2021, section 3.1.
    """

    patch: int  # patch side in pixels
    grid: int  # learned positions per side
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4
    activation: str = "gelu"  # "gelu" | "swiglu"
    epsilon: float = 1e-6
    position_offset: float = 0.0  # added to the number of patches per side that scales the interpolated positions

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B T width"]:
        """Computes token states.

        Args:
          pixels: normalised images [B, H, W, 3]. Rows and columns after the last whole patch are ignored.

        Returns:
          Outputs of the final layer norm, float32 [B, 1 + (H // patch) (W // patch), width], the class token first.
        """
        batch, height, width, _ = pixels.shape
        normal, side = nn.initializers.normal(0.02), (self.patch, self.patch)
        x = nn.Conv(self.width, side, side, "VALID", name="patch")(pixels).reshape(batch, -1, self.width)
        token = self.param("class", normal, (self.width,), jnp.float32)
        place = self.param("place", normal, (1 + self.grid**2, self.width), jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        x = x + self._positions(place, height // self.patch, width // self.patch)[None]
        return transformer_from_fields(self)(x, "all")

    def _positions(self, place: Float[Array, "P width"], rows: int, columns: int) -> Float[Array, "T width"]:
        """Returns a position embedding for the class token and each patch."""
        if rows == columns == self.grid:
            return place
        learned = place[1:].reshape(self.grid, self.grid, self.width)
        down, across = (_bicubic(self.grid, count, self.position_offset) for count in (rows, columns))
        resized = jnp.einsum("ia,jb,abc->ijc", down, across, learned, precision=lax.Precision.HIGHEST)
        return jnp.concatenate([place[:1], resized.reshape(-1, self.width)])


class Published(NamedTuple):
    """A published DINOv2."""

    network: DINOv2
    params: Params  # NumPy float32


def fingerprint(path: str | Path) -> str:
    """Returns a short hash of the weights in a folder."""
    return "sha256:" + io.file_hash(find_weights(Path(path)))[:16]


def load(path: str | Path) -> Published:
    """Loads the DINOv2 of a folder.

    Raises:
      UserError: a file is missing or cannot be read, the folder is not of a DINOv2, or it has options that are not
        supported.
    """
    folder = Path(path)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "dinov2":
        raise UserError(f"{folder} is not a DINOv2: config.json has model_type {shown(config.get('model_type'))}")
    options = _options(folder, config)
    width, patch, gated = options["hidden_size"], options["patch_size"], options["use_swiglu_ffn"]
    inside = _mlp_width(options)
    network = DINOv2(
        patch=patch,
        grid=options["image_size"] // patch,
        width=width,
        layers=options["num_hidden_layers"],
        heads=options["num_attention_heads"],
        mlp_ratio=inside / width * (3 / 4 if gated else 1),  # inverse of `mlp_width`
        activation="swiglu" if gated else "gelu",
        epsilon=options["layer_norm_eps"],
        position_offset=_POSITION_OFFSET,
    )
    weights, place = Weights(find_weights(folder), "the DINOv2 of its config.json"), "embeddings.position_embeddings"
    kernel = _pop(weights, "embeddings.patch_embeddings.projection.weight", width, 3, patch, patch)
    params = {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0),
            "bias": _pop(weights, "embeddings.patch_embeddings.projection.bias", width),
        },
        "class": _pop(weights, "embeddings.cls_token", 1, 1, width)[0, 0],
        "place": _pop(weights, place, 1, 1 + network.grid**2, width)[0],
        "transformer": _blocks(weights, network.layers, width, inside, gated),
    }
    weights.assert_empty(ignored=["embeddings.mask_token"])  # of training
    return Published(network, params)


def features(network: DINOv2, params: Params, images: UInt8[Array, "B H W c"]) -> Float[Array, "B width"]:
    """Computes the features of FD-DINOv2: the class token after the final layer norm, float32.

    Args:
      network, params: from `load`.
      images: uint8 [B, H, W, c] of any size, RGB (c = 3) or grey (c = 1, repeated to three channels); resized here.

    Raises:
      ValueError: images are not uint8, or have another number of channels.

    Reference: Stein et al. 2023, section 4, and their code.
    """
    if images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images: must be uint8 with 1 or 3 channels, not {images.dtype}{images.shape}")
    pixels = resize(images) / 255
    pixels = _normalised(pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels)
    with jax.default_matmul_precision("highest"):  # float32 on every device, as in published results
        return jnp.asarray(network.apply({"params": params}, pixels))[:, 0]


def patch_tokens(network: DINOv2, params: Params, images: Images) -> Float[Array, "B h w width"]:
    """Computes the tokens of patches after the final layer norm, float32: the targets of REPA.

    Args:
      network, params: from `load`.
      images: [B, H, W, c] in [-1, 1] of any size, with 1, 3 or 4 channels; resized to 224x224 here.

    Reference: Yu et al. 2024, section 4.1, and their code.
    """
    pixels = _normalised((as_rgb(images, min_side=1) + 1) / 2)
    pixels = jax.image.resize(pixels, (len(images), SIDE, SIDE, 3), "cubic")
    states = jnp.asarray(network.apply({"params": params}, pixels))
    side = SIDE // network.patch
    return states[:, 1:].reshape(len(images), side, side, network.width)


def _normalised(pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Returns RGB pixels in [0, 1] normalised by the mean and standard deviation of ImageNet."""
    mean, std = (np.asarray(values, np.float32)[None, None, None, :] for values in (_MEAN, _STD))
    return (pixels - mean) / std


def resize(images: UInt8[Array, "B H W c"]) -> Float[Array, "B 224 224 c"]:
    """Resizes images to 224x224 as Pillow: antialiased bicubic, the width before the height, each rounded to 8 bits.

    Recent versions of Pillow resize the height of some images that are not square first.
    """
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        if x.shape[axis] != SIDE:
            shape = (*x.shape[:axis], SIDE, *x.shape[axis + 1 :])
            x = jnp.clip(jnp.round(jax.image.resize(x, shape, "cubic", antialias=True)), 0, 255)
    return x


def _bicubic(inputs: int, outputs: int, offset: float) -> Float[np.ndarray, "outputs inputs"]:
    """Returns the matrix of PyTorch's bicubic interpolation with scale factor (outputs + offset) / inputs."""
    centers = (np.arange(outputs) + 0.5) * inputs / (outputs + offset) - 0.5
    taps = np.floor(centers)[:, None] + np.arange(-1, 3)
    x = np.abs(centers[:, None] - taps)
    near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    matrix = np.zeros((outputs, inputs))
    columns = np.clip(taps, 0, inputs - 1).astype(int)  # the edge is repeated
    np.add.at(matrix, (np.arange(outputs)[:, None], columns), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def _options(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the network. Raises UserError for one that is not supported."""
    options = {name: config.get(name, default) for name, default in _DEFAULTS.items()}
    for name in ("image_size", "patch_size"):
        sides = options[name]
        if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
            options[name] = sides[0]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels"):
        _check_count(folder, name, options[name])
    for name in ("mlp_ratio", "layer_norm_eps"):
        if not _is_number(options[name], 0):
            raise UserError(f"{folder}/config.json: {name}={shown(options[name])}: must be a positive number")
    for name, supported in _SUPPORTED.items():
        if options[name] not in supported:
            names = " or ".join(map(shown, supported))
            raise UserError(f"{folder}/config.json: {name}={shown(options[name])}: must be {names}")
    for divisor, name in (("num_attention_heads", "hidden_size"), ("patch_size", "image_size")):
        if options[name] % options[divisor]:
            raise UserError(f"{folder}/config.json: {divisor}={options[divisor]}: must divide {name}={options[name]}")
    if options["patch_size"] > SIDE:
        raise UserError(f"{folder}/config.json: patch_size={options['patch_size']}: must be at most {SIDE}")
    return options


def _mlp_width(options: Mapping[str, Any]) -> int:
    """Returns the outputs of the MLP's first layer: with SwiGLU two thirds of them, rounded up to 8, twice."""
    inside = int(options["hidden_size"] * options["mlp_ratio"])
    return 2 * ((int(inside * 2 / 3) + 7) // 8 * 8) if options["use_swiglu_ffn"] else inside


def _blocks(weights: Weights, layers: int, width: int, inside: int, gated: bool) -> dict[str, Any]:
    into, out = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    params: dict[str, Any] = {"norm_out": _norm(weights, "layernorm", width)}
    for i in range(layers):
        name = f"encoder.layer.{i}"
        q, k, v = (
            _dense(weights, f"{name}.attention.attention.{part}", width, width) for part in ("query", "key", "value")
        )
        residuals = {
            "out": _dense(weights, f"{name}.attention.output.dense", width, width),
            "mlp_out": _dense(weights, f"{name}.mlp.{out}", inside // 2 if gated else inside, width),
        }
        for j, residual in enumerate(residuals.values(), start=1):
            scale = _pop(weights, f"{name}.layer_scale{j}.lambda1", width)
            residual |= {key: value * scale for key, value in residual.items()}
        params[f"block_{i}"] = residuals | {
            "norm_attention": _norm(weights, f"{name}.norm1", width),
            "qkv": {key: np.concatenate([q[key], k[key], v[key]], axis=-1) for key in q},
            "norm_mlp": _norm(weights, f"{name}.norm2", width),
            "mlp_in": _dense(weights, f"{name}.mlp.{into}", width, inside),
        }
    return params


def _check_count(folder: Path, name: str, value: Any) -> int:
    """Returns the value of a field of config.json. Raises UserError unless it is a positive integer."""
    if type(value) is not int or not 0 < value < 2**31:
        raise UserError(f"{folder}/config.json: {name}={shown(value)}: must be a positive integer")
    return value


def _is_number(value: Any, low: float) -> bool:
    """Returns whether a value of a JSON file is a finite number above `low`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < 1e30


def _norm(weights: Weights, name: str, width: int) -> dict[str, np.ndarray]:
    """Pops the parameters of a layer norm."""
    return {"scale": _pop(weights, f"{name}.weight", width), "bias": _pop(weights, f"{name}.bias", width)}


def _dense(weights: Weights, name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """Pops the parameters of a linear layer."""
    kernel = _pop(weights, f"{name}.weight", outputs, inputs).T
    return {"kernel": kernel, "bias": _pop(weights, f"{name}.bias", outputs)}


def _pop(weights: Weights, name: str, *shape: int) -> np.ndarray:
    """Pops a tensor as float32."""
    return weights.pop(name, *shape).astype(np.float32)
