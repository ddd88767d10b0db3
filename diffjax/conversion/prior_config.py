"""Configs of diffusers' PriorTransformer, unCLIP's diffusion prior, and the section `model` of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax.conversion.components import Json, check_expressed, check_transformer, with_defaults
from diffjax.published.folders import refused
from diffjax.published.table import Block, Table, Tensor
from diffjax.published.tables import prior

_DEFAULTS = {
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "num_layers": 20,
    "embedding_dim": 768,
    "num_embeddings": 77,
    "additional_embeddings": 4,
    "dropout": 0.0,
    "time_embed_act_fn": "silu",
    "norm_in_type": None,
    "embedding_proj_norm_type": None,
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
    "time_embed_dim": None,
    "embedding_proj_dim": None,
    "clip_embed_dim": None,
}
_MAX_SIZE = 2**16


def read(path: Path, config: Json, *, dimensions: int, length: int) -> dict[str, Any]:
    """Returns the section `model` of a PriorTransformer.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      dimensions: dimension of the CLIP's embeddings, and of the states of its text encoder.
      length: tokens of a caption.

    Raises:
      UserError: a field that our prior does not have, or that does not fit the CLIP.
    """
    c = with_defaults(path, config, _DEFAULTS)
    for name in ("num_attention_heads", "attention_head_dim", "num_layers"):
        if type(c[name]) is not int or not 0 < c[name] < _MAX_SIZE:
            raise refused(path, name, c[name], f"must be a whole number from 1 to {_MAX_SIZE - 1:,}")
    width = c["num_attention_heads"] * c["attention_head_dim"]
    if width % 2:
        raise refused(path, "attention_head_dim", c["attention_head_dim"], "times num_attention_heads must be even")
    model = {"width": width, "layers": c["num_layers"], "heads": c["num_attention_heads"], "dropout": c["dropout"]}
    for name in ("time_embed_dim", "embedding_proj_dim", "clip_embed_dim"):
        same = width if name == "time_embed_dim" else c["embedding_dim"]
        c[name] = None if c[name] == same else c[name]
    check_expressed(path, c, write(model, dimensions=dimensions, length=length))
    return model


def write(model: Mapping[str, Any], *, dimensions: int, length: int) -> dict[str, Any]:
    """Returns the config of a PriorTransformer: the inverse of `read`.

    Raises:
      UserError: an option that it does not have.
    """
    check_transformer("model", model)
    return {
        "_class_name": "PriorTransformer",
        **_DEFAULTS,
        "num_attention_heads": model["heads"],
        "attention_head_dim": model["width"] // model["heads"],
        "num_layers": model["layers"],
        "dropout": model.get("dropout", 0.0),
        "embedding_dim": dimensions,
        "num_embeddings": length,
    }


def table() -> Table:
    """Returns the table of the prior's variables: its network, and the statistics of embeddings."""
    statistics: Table = {
        ours: Tensor(theirs, lambda tensor: tensor[0], lambda value: value[None])
        for ours, theirs in (("mean", "clip_mean"), ("std", "clip_std"))
    }
    return {"params/model": Block("", prior.diffusers()), "embeddings": Block("", statistics)}
