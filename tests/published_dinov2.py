"""Files of a tiny published DINOv2, in the format of Hugging Face's library."""

import json

import numpy as np
import safetensors.numpy

CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 4,
    "image_size": 112,
    "patch_size": 56,
}


def tensors(swiglu=False):
    """Returns random tensors, with the names of Hugging Face's library."""
    linear, vectors = {}, {}
    mlp = {"weights_in": (96, 16), "weights_out": (16, 48)} if swiglu else {"fc1": (64, 16), "fc2": (16, 64)}
    for name in (f"encoder.layer.{i}" for i in range(2)):
        linear |= {f"{name}.attention.attention.{part}": (16, 16) for part in ("query", "key", "value")}
        linear |= {f"{name}.attention.output.dense": (16, 16)}
        linear |= {f"{name}.mlp.{part}": shape for part, shape in mlp.items()}
        linear |= {f"{name}.norm1": (16,), f"{name}.norm2": (16,)}
        vectors |= {f"{name}.layer_scale{i}.lambda1": (16,) for i in (1, 2)}
    linear |= {"layernorm": (16,), "embeddings.patch_embeddings.projection": (16, 3, 56, 56)}
    shapes = vectors | {
        "embeddings.cls_token": (1, 1, 16),
        "embeddings.mask_token": (1, 16),
        "embeddings.position_embeddings": (1, 5, 16),
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: np.array(rng.normal(size=shape) / 4, np.float32) for name, shape in shapes.items()}


def write(folder, config=CONFIG, weights=None):
    """Writes a DINOv2 to a folder, and returns the folder."""
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    return folder
