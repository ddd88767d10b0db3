"""Configs of diffusers' UnCLIPTextProjModel, and the conditions of unCLIP's decoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffjax.conversion import unet_config
from diffjax.conversion.components import Json, check_expressed, with_defaults
from diffjax.published.folders import refused
from diffjax.published.table import Block, Table
from diffjax.published.tables import unet

_DEFAULTS = {
    "clip_extra_context_tokens": 4,
    "clip_embeddings_dim": 768,
    "time_embed_dim": 1280,
    "cross_attention_dim": 1536,
}
_MAX_TOKENS = 2**12
PREFIX = "text_proj."  # of its tensors, among those of the decoder


def read(path: Path, config: Json, *, dimensions: int, channels: int, context: int) -> dict[str, dict[str, Any]]:
    """Returns fields of our conditions `clip_text` and `image_embedding`.

    Args:
      path: file of the config, for error messages.
      config: fields of the file.
      dimensions: dimension of the CLIP's embeddings.
      channels: channels of the decoder at full resolution.
      context: width of its context.

    Raises:
      UserError: a field that does not fit the CLIP or the decoder.
    """
    c = with_defaults(path, config, _DEFAULTS)
    tokens = c["clip_extra_context_tokens"]
    if type(tokens) is not int or not 0 < tokens < _MAX_TOKENS:
        raise refused(path, "clip_extra_context_tokens", tokens, f"must be a whole number from 1 to {_MAX_TOKENS - 1}")
    conditions = {"clip_text": {"width": context}, "image_embedding": {"width": context, "tokens": tokens}}
    check_expressed(path, c, write(conditions, dimensions=dimensions, channels=channels))
    return conditions


def write(conditions: Mapping[str, Mapping[str, Any]], *, dimensions: int, channels: int) -> dict[str, Any]:
    """Returns the config of an UnCLIPTextProjModel: the inverse of `read`."""
    return {
        "_class_name": "UnCLIPTextProjModel",
        "clip_extra_context_tokens": conditions["image_embedding"]["tokens"],
        "clip_embeddings_dim": dimensions,
        "time_embed_dim": 4 * channels,
        "cross_attention_dim": conditions["image_embedding"]["width"],
    }


def table(model: Mapping[str, Any], *, tokens: int) -> Table:
    """Returns the table of the decoder's variables, with the names of UnCLIPTextProjModel after `PREFIX`.

    Args:
      model: section `model` of the decoder.
      tokens: tokens of context of the image embedding.
    """
    network = unet_config.table(model, conditional=False)
    return {"params/model": Block("", unet.unclip_decoder(network, tokens=tokens))}
