"""Tables of the variables of a CLIP (`models.clip.ClipModel`): image encoder, text encoder, scale of the logits.

One table serves all CLIPs of a naming, also those with one encoder, because it names modules of paths that exist.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from diffjax.published.table import Block, Constant, Module, Shape, Table, Tensor, fused

_BATCH_NORM = {"scale": ".weight", "bias": ".bias", "mean": ".running_mean", "var": ".running_var"}
_GLIDE_SUFFIXES = {"kernel": ".w", "bias": ".b", "scale": ".g"}
_GLIDE_LOG_SCALE = math.log(100)  # not in the files: a constant of the published code

TRANSFORMERS_PROJECTIONS = ("text_projection.weight", "visual_projection.weight")  # linear maps to embeddings

# Regular expressions of names of tensors that are not parameters of a CLIP.
TRANSFORMERS_IGNORED = (r".*\.position_ids",)  # 0, 1, 2, ... in files of older versions
OPENAI_IGNORED = ("input_resolution", "context_length", "vocab_size", r".*\.num_batches_tracked", "attn_mask")


@dataclasses.dataclass(frozen=True)
class _QueriesKeysValues(Module):
    """Queries, keys and values of which the keys have no bias.

    A bias of keys does not change attention: it adds the same number to all logits of a query. It is read as zero.
    """

    def tensors(self, leaf: str) -> tuple[str, ...] | None:
        """Returns the names of the tensors of a leaf."""
        names = super().tensors(leaf)
        return (names[0], names[2]) if names and leaf == "bias" else names

    def read(self, leaf: str, tensors: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Returns a leaf from its tensors."""
        if leaf == "bias":
            tensors = [tensors[0], np.zeros_like(tensors[0]), tensors[1]]
        return super().read(leaf, tensors, shape)

    def write(self, leaf: str, value: np.ndarray) -> list[np.ndarray]:
        """Returns the tensors of a leaf."""
        tensors = super().write(leaf, value)
        return [tensors[0], tensors[2]] if leaf == "bias" else tensors


def transformers(names: Iterable[str] = ()) -> Table:
    """Returns the table of transformers' CLIPModel, and of its classes with one encoder.

    Args:
      names: names of the file's tensors: those of classes with one encoder may not begin with its module, text_model or
        vision_model, as in files of transformers 5. (): they do, which every version reads.
    """
    names = list(names)
    without = any(name.startswith("encoder.") for name in names)
    text, image = ("", "") if without else ("text_model", "vision_model")
    block = {
        "norm_attention": "layer_norm1",
        "qkv": fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": "self_attn.out_proj",
        "norm_mlp": "layer_norm2",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    }
    blocks = {r"block_(\d+)": Block("encoder.layers.{0}", block)}
    text_encoder = {
        "token": "embeddings.token_embedding",
        "place": Tensor("embeddings.position_embedding.weight"),
        "transformer": Block("", {**blocks, "norm_out": "final_layer_norm"}),
    }
    image_encoder = {
        "patch": "embeddings.patch_embedding",
        "class": Tensor("embeddings.class_embedding"),
        "place": Tensor("embeddings.position_embedding.weight"),
        "norm_in": "pre_layrnorm",  # spelled so in the files
        "transformer": Block("", {**blocks, "norm_out": "post_layernorm"}),
    }
    return {
        "params/model/text/out": "text_projection",
        "params/model/text": Block(text, text_encoder),
        "params/model/image/out": "visual_projection",
        "params/model/image": Block(image, image_encoder),
        "params/model/log_scale": Tensor("logit_scale"),
    }


def openai_ignored(text_layers: int | None = None) -> tuple[str, ...]:
    """Returns regular expressions of names of OpenAI's and open_clip's tensors that are not parameters of ours.

    Args:
      text_layers: number of blocks of a text encoder without image encoder and linear map. That of Stable Diffusion 2
        is the one of a whole CLIP without its last block. None: all tensors are of our CLIP.
    """
    if text_layers is None:
        return OPENAI_IGNORED
    return (
        *OPENAI_IGNORED,
        rf"transformer\.resblocks\.{text_layers}\..*",
        *("text_projection", "logit_scale", r"visual\..*"),
    )


def openai() -> Table:
    """Returns the table of OpenAI's files and of open_clip's, with vision transformers and ResNets.

    Also of the text encoder of Stable Diffusion 2, without the prefix cond_stage_model.model.
    """
    block: Table = {
        "norm_attention": "ln_1",
        "qkv": Module(("attn",), suffixes={"kernel": ".in_proj_weight", "bias": ".in_proj_bias"}),
        "out": "attn.out_proj",
        "norm_mlp": "ln_2",
        "mlp_in": "mlp.c_fc",
        "mlp_out": "mlp.c_proj",
    }
    blocks: Table = {r"block_(\d+)": Block("transformer.resblocks.{0}", block)}
    text_encoder: Table = {
        "token": "token_embedding",
        "place": Tensor("positional_embedding"),
        "transformer": Block("", {**blocks, "norm_out": "ln_final"}),
        "out/kernel": Tensor("text_projection"),
    }
    transformer: Table = {
        "patch": "conv1",
        "class": Tensor("class_embedding"),
        "place": Tensor("positional_embedding"),
        "norm_in": "ln_pre",
        "transformer": Block("", {**blocks, "norm_out": "ln_post"}),
        "out/kernel": Tensor("proj"),
    }
    layers: Table = {
        **{f"conv_{i}": f"conv{i + 1}" for i in range(3)},
        **{f"norm_{i}": Module((f"bn{i + 1}",), suffixes=_BATCH_NORM) for i in range(3)},
    }
    bottleneck: Table = {
        **layers,
        "conv_skip": "downsample.0",
        "norm_skip": Module(("downsample.1",), suffixes=_BATCH_NORM),
    }
    pool: Table = {
        "place": Tensor("positional_embedding"),
        "(q|k|v)": "{0}_proj",
        "out": "c_proj",
    }
    resnet: Table = {
        **layers,
        r"stage_(\d+)_block_(\d+)": Block(lambda stage, i: f"layer{stage + 1}.{i}", bottleneck),
        "pool": Block("attnpool", pool),
    }
    return {
        "params/model/text": Block("", text_encoder),
        "(?:params/model/image|batch_stats)": Block("visual", {**transformer, **resnet}),
        "params/model/log_scale": Tensor("logit_scale"),
    }


def glide() -> Table:
    """Returns the table of GLIDE's CLIP of noised images.

    It has two files with equal names: here those of clip_image_enc.pt begin with "image.", and those of
    clip_text_enc.pt with "text." (`tensors.open_parts`).
    """
    block: Table = {
        "norm_attention": _glide("f_attn.ln"),
        "qkv": _QueriesKeysValues(("f_attn.f_q", "f_attn.f_k", "f_attn.f_v"), suffixes=_GLIDE_SUFFIXES),
        "out": _glide("f_attn.f_c"),
        "norm_mlp": _glide("f_mlp.ln"),
        "mlp_in": _glide("f_mlp.f_1"),
        "mlp_out": _glide("f_mlp.f_2"),
    }
    encoder: Table = {
        "token/embedding": Tensor("input.w_voc"),
        "patch": Module(("input.patch_proj",), suffixes={"kernel": ""}),
        "time": Tensor("input.w_t"),
        "class": Tensor("input.pred_state"),
        "place": Tensor("input.w_pos"),
        "norm_in": _glide("input.ln"),
        r"transformer/block_(\d+)": Block("block_{0}", block),
        "transformer/norm_out": _glide("output.ln"),
        "out": _glide("output.f"),
    }
    return {
        "params/model/(image|text)": Block("{0}.blocks", encoder),
        "params/model/log_scale": Constant(_GLIDE_LOG_SCALE),
    }


def _glide(name: str) -> Module:
    return Module((name,), suffixes=_GLIDE_SUFFIXES)
