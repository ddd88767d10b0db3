"""Tables of `nn.autoencoders.ldm`, with the 1x1 convolutions around the latent and a codebook.

Paths are those of an autoencoder's parameters: encoder, decoder, to_latent, from_latent.
"""

from diffjax.published.table import Block, Table, convolution, fused

_RESNET = {"norm_0": "norm1", "conv_0": "conv1", "norm_1": "norm2", "conv_1": "conv2"}
_DIFFUSERS_RESNET = {**_RESNET, "skip": convolution("conv_shortcut")}
_COMPVIS_RESNET = {**_RESNET, "skip": convolution("nin_shortcut")}
_DIFFUSERS_ATTENTION = {"norm": "group_norm", "qkv": fused("to_q", "to_k", "to_v"), "out": "to_out.0"}
_COMPVIS_ATTENTION = {"norm": "norm", "qkv": fused("q", "k", "v", dims=4), "out": convolution("proj_out")}
_LATENT = {"to_latent": convolution("quant_conv"), "from_latent": convolution("post_quant_conv")}


def diffusers(*, levels: int) -> Table:
    """Returns the table of diffusers' AutoencoderKL and VQModel, of `levels` resolutions."""
    conv: Table = {"conv": "conv"}
    network: Table = {
        "conv_in": "conv_in",
        r"down_(\d+)_block_(\d+)": Block("down_blocks.{0}.resnets.{1}", _DIFFUSERS_RESNET),
        r"down_(\d+)_attention_(\d+)": Block("down_blocks.{0}.attentions.{1}", _DIFFUSERS_ATTENTION),
        r"down_(\d+)_resample": Block("down_blocks.{0}.downsamplers.0", conv),
        r"middle_block_(\d+)": Block("mid_block.resnets.{0}", _DIFFUSERS_RESNET),
        "middle_attention": Block("mid_block.attentions.0", _DIFFUSERS_ATTENTION),
        r"up_(\d+)_block_(\d+)": Block(
            lambda level, i: f"up_blocks.{levels - 1 - level}.resnets.{i}", _DIFFUSERS_RESNET
        ),
        r"up_(\d+)_attention_(\d+)": Block(
            lambda level, i: f"up_blocks.{levels - 1 - level}.attentions.{i}", _DIFFUSERS_ATTENTION
        ),
        r"up_(\d+)_resample": Block(lambda level: f"up_blocks.{levels - 1 - level}.upsamplers.0", conv),
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    return {"(encoder|decoder)": Block("{0}", network), **_LATENT}


def compvis() -> Table:
    """Returns the table of the first stages of CompVis's latent diffusion, of VQGAN and of Stable Diffusion's files."""
    conv: Table = {"conv": "conv"}
    network: Table = {
        "conv_in": "conv_in",
        r"(down|up)_(\d+)_block_(\d+)": Block("{0}.{1}.block.{2}", _COMPVIS_RESNET),
        r"(down|up)_(\d+)_attention_(\d+)": Block("{0}.{1}.attn.{2}", _COMPVIS_ATTENTION),
        r"down_(\d+)_resample": Block("down.{0}.downsample", conv),
        r"up_(\d+)_resample": Block("up.{0}.upsample", conv),
        r"middle_block_(\d+)": Block(lambda i: f"mid.block_{i + 1}", _COMPVIS_RESNET),
        "middle_attention": Block("mid.attn_1", _COMPVIS_ATTENTION),
        "norm_out": "norm_out",
        "conv_out": "conv_out",
    }
    return {"(encoder|decoder)": Block("{0}", network), **_LATENT}
