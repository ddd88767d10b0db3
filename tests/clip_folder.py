"""Files of a tiny published CLIP, in the format of Hugging Face's library."""

import json

import numpy as np
import safetensors.numpy
from tokenizers import pre_tokenizers

TEXT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 5,
}
VISION = {
    "hidden_size": 12,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "image_size": 8,
    "patch_size": 4,
    "hidden_act": "gelu",
}
CONFIG = {"model_type": "clip", "projection_dim": 6, "text_config": TEXT, "vision_config": VISION}


def tensors(vocabulary=20):
    """Returns random tensors, with the names of Hugging Face's library."""
    shapes = {
        "logit_scale": (),
        "text_projection.weight": (6, 8),
        "visual_projection.weight": (6, 12),
        "text_model.embeddings.token_embedding.weight": (vocabulary, 8),
        "text_model.embeddings.position_embedding.weight": (5, 8),
        "vision_model.embeddings.class_embedding": (12,),
        "vision_model.embeddings.patch_embedding.weight": (12, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (5, 12),
    }
    linear, norms = {}, {"text_model.final_layer_norm": 8}
    norms |= {"vision_model.pre_layrnorm": 12, "vision_model.post_layernorm": 12}
    for model, layers, width, inside in (("text_model", 2, 8, 20), ("vision_model", 1, 12, 48)):
        for name in (f"{model}.encoder.layers.{i}" for i in range(layers)):
            linear |= {f"{name}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            linear |= {f"{name}.mlp.fc1": (inside, width), f"{name}.mlp.fc2": (width, inside)}
            norms |= {f"{name}.layer_norm1": width, f"{name}.layer_norm2": width}
    for name, shape in (linear | {name: (width,) for name, width in norms.items()}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: np.array(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def write(folder, config=CONFIG, weights=None, **files):
    """Writes a CLIP and other JSON files to a folder."""
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_vocabulary(folder):
    """Writes the files of a tokenizer of 512 bytes, one merge, and the start and end tokens; returns its size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\n")
    return len(words)
