"""Tables of `nn.unet.UNet`: the names of diffusers, and those of OpenAI's code, which latent diffusion shares."""

from collections.abc import Callable, Sequence

import numpy as np

from diffjax.published.table import Block, Module, Order, Sum, Table, Tensor, convolution, fused
from diffjax.published.tables import transformer as transformers

_DIFFUSERS_RESNET = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "time": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "skip": convolution("conv_shortcut"),
}
_OPENAI_RESNET = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "time": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "skip": convolution("skip_connection"),
}
_DIFFUSERS_ATTENTION = {
    "norm": "group_norm",
    "qkv": fused("to_q", "to_k", "to_v"),
    "context_kv": fused("add_k_proj", "add_v_proj"),
    "out": "to_out.0",
}


def _cross_attention(name: str) -> Block:
    return Block(name, {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"})


def _spatial_transformer(dims: int) -> Table:
    """Returns the table of a spatial transformer; `dims` are those of the weights of its projections."""
    layer = {
        "norm_self": "norm1",
        "self": _cross_attention("attn1"),
        "norm_cross": "norm2",
        "cross": _cross_attention("attn2"),
        "norm_mlp": "norm3",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    }
    return {
        "norm": "norm",
        "in": Module(("proj_in",), dims=dims),
        r"block_(\d+)": Block("transformer_blocks.{0}", layer),
        "out": Module(("proj_out",), dims=dims),
    }


def diffusers(
    *,
    levels: int,
    residual: bool = False,
    transformer: bool = False,
    linear: bool = False,
    input_order: Order | None = None,
) -> Table:
    """Returns the table of diffusers' UNet2DModel and UNet2DConditionModel.

    Args:
      levels: number of resolutions.
      residual: whether resolutions change in residual blocks (model.resample=residual).
      transformer: whether attention is in spatial transformers.
      linear: whether these have linear projections, as in Stable Diffusion 2.
      input_order: order of the input channels in the file.
    """
    attention = _spatial_transformer(2 if linear else 4) if transformer else _DIFFUSERS_ATTENTION
    change = _DIFFUSERS_RESNET if residual else {"conv": "conv"}

    def up(kind: str) -> Callable[..., str]:
        return lambda level, i=0: f"up_blocks.{levels - 1 - level}.{kind}.{i}"

    return {
        "time_0": "time_embedding.linear_1",
        "time_1": "time_embedding.linear_2",
        "augment": "time_embedding.cond_proj",  # scale of guidance, of latent consistency models
        "label": "class_embedding",
        "embedding": "class_embedding",
        "conv_in": Module(("conv_in",), input_order=input_order),
        r"down_(\d+)_block_(\d+)": Block("down_blocks.{0}.resnets.{1}", _DIFFUSERS_RESNET),
        r"down_(\d+)_attention_(\d+)": Block("down_blocks.{0}.attentions.{1}", attention),
        r"down_(\d+)_resample": Block("down_blocks.{0}.downsamplers.0", change),
        r"middle_block_(\d+)": Block("mid_block.resnets.{0}", _DIFFUSERS_RESNET),
        "middle_attention": Block("mid_block.attentions.0", attention),
        r"up_(\d+)_block_(\d+)": Block(up("resnets"), _DIFFUSERS_RESNET),
        r"up_(\d+)_attention_(\d+)": Block(up("attentions"), attention),
        r"up_(\d+)_resample": Block(up("upsamplers"), change),
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }


def unclip_decoder(unet: Table, *, tokens: int) -> Table:
    """Returns the table of unCLIP's decoder: `unet`, and below "text_proj" diffusers' UnCLIPTextProjModel.

    Args:
      unet: table of its U-Net.
      tokens: tokens of context that the image embedding is projected to, whose values alternate in the file.
    """
    projections = ("embedding_proj", "clip_image_embeddings_project_to_time_embeddings")  # of caption and image

    def order(outputs: int) -> np.ndarray:
        return np.arange(outputs).reshape(-1, tokens).T.ravel()

    text = {"linear": "encoder_hidden_states_proj", "norm": "text_encoder_hidden_states_norm"}
    image: Table = {
        "null": Tensor("learned_classifier_free_guidance_embeddings"),
        "tokens": Module(("clip_extra_context_tokens_proj",), order=order),
    }
    return {
        **unet,
        "embedding": Sum(tuple(f"text_proj.{name}" for name in projections)),
        "conditions/clip_text": Block("text_proj", text),
        "conditions/image_embedding": Block("text_proj", image),
    }


def openai(
    *,
    blocks: int | Sequence[int],
    levels: int,
    attention_levels: Sequence[int] = (),
    residual: bool = False,
    transformer: bool = False,
    linear: bool = False,
    qkv_order: Order | None = None,
    kv_order: Order | None = None,
    input_order: Order | None = None,
    attention_dims: int = 3,
) -> Table:
    """Returns the table of the U-Net of OpenAI's code: Improved DDPM, ADM, GLIDE, consistency models, latent diffusion.

    Also of ADM's classifier, whose encoder is the U-Net's.

    Args:
      blocks: residual blocks of each level, or of all.
      levels: number of resolutions.
      attention_levels: levels with attention; 0 is the finest.
      residual, transformer, linear, input_order: see `diffusers`.
      qkv_order: order of queries, keys and values (`by_head`); None: q, k, v.
      kv_order: order of keys and values of a context.
      attention_dims: dimensions of the weights of attention: 3 (Conv1d), or 4 (Conv2d) in consistency models.
    """
    counts = (blocks,) * levels if isinstance(blocks, int) else tuple(blocks)
    starts = [1 + sum(count + 1 for count in counts[:level]) for level in range(levels)]  # first input block of a level
    ends = [sum(count + 1 for count in counts[level + 1 :]) for level in range(levels)]  # first output block
    attention: Table = {
        "norm": "norm",
        "qkv": Module(("qkv",), order=qkv_order, dims=attention_dims),
        "context_kv": Module(("encoder_kv",), order=kv_order, dims=3),
        "out": Module(("proj_out",), dims=attention_dims),
    }
    if transformer:
        attention = _spatial_transformer(2 if linear else 4)
    pool: Table = {
        "q": Module(("qkv_proj",), part=(0, 3), dims=3),
        "k": Module(("qkv_proj",), part=(1, 3), dims=3),
        "v": Module(("qkv_proj",), part=(2, 3), dims=3),
        "out": Module(("c_proj",), dims=3),
        "place": Tensor("positional_embedding", np.transpose, np.transpose),
    }
    return {
        "time_0": "time_embed.0",
        "time_1": "time_embed.2",
        "label": "label_emb",
        "conv_in": Module(("input_blocks.0.0",), input_order=input_order),
        r"down_(\d+)_block_(\d+)": Block(lambda level, i: f"input_blocks.{starts[level] + i}.0", _OPENAI_RESNET),
        r"down_(\d+)_attention_(\d+)": Block(lambda level, i: f"input_blocks.{starts[level] + i}.1", attention),
        r"down_(\d+)_resample": Block(
            lambda level: f"input_blocks.{starts[level] + counts[level]}.0",
            _OPENAI_RESNET if residual else {"conv": "op"},
        ),
        r"middle_block_(\d+)": Block(lambda i: f"middle_block.{2 * i}", _OPENAI_RESNET),
        "middle_attention": Block("middle_block.1", attention),
        r"up_(\d+)_block_(\d+)": Block(lambda level, i: f"output_blocks.{ends[level] + i}.0", _OPENAI_RESNET),
        r"up_(\d+)_attention_(\d+)": Block(lambda level, i: f"output_blocks.{ends[level] + i}.1", attention),
        r"up_(\d+)_resample": Block(
            lambda level: f"output_blocks.{ends[level] + counts[level]}.{2 if level in attention_levels else 1}",
            _OPENAI_RESNET if residual else {"conv": "conv"},
        ),
        "norm_out": "out.0",
        "conv_out": "out.2",
        "pool": Block("out.2", pool),
    }


def glide_caption(*, heads: int) -> Table:
    """Returns the table of `nn.caption_encoder.CaptionEncoder` with the names of GLIDE's text transformer.

    Args:
      heads: attention heads.
    """
    return {
        "token": "token_embedding",
        "place": Tensor("positional_embedding"),
        "padding": Tensor("padding_embedding"),
        **transformers.openai(heads=heads),
    }
