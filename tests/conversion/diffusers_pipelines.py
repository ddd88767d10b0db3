"""Small pipelines of diffusers with random weights."""

import pathlib
import tempfile

import diffusers
import torch
import transformers

from tests import clip_folder
from tests.parity import randomise

DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CODEC = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
}

DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 16,
    "out_channels": 8,
    "num_embeds_ada_norm": 5,
    "norm_eps": 1e-6,
}


def ddim(**options):
    return diffusers.DDIMScheduler(**options)


def unet(**options):
    return randomise(diffusers.UNet2DModel(**{**UNET, **options}))


def vq():
    return randomise(diffusers.VQModel(**CODEC, num_vq_embeddings=20, latent_channels=3, scaling_factor=0.5))


def dit():
    """Blocks of published files have the same embeddings of time and label."""
    model = randomise(diffusers.DiTTransformer2DModel(**DIT))
    first, *others = (block.norm1.emb for block in model.transformer_blocks)
    for other in others:
        other.load_state_dict(first.state_dict())
    return model


def kl():
    """Latents have nearly no variance, since the pipeline for inpainting samples them."""
    model = randomise(diffusers.AutoencoderKL(**CODEC))
    with torch.no_grad():
        model.quant_conv.weight[4:] = 0.0
        model.quant_conv.bias[4:] = -30.0
    return model


def stable_diffusion(linear, inpaints=False, consistency=False):
    """Stable Diffusion 1 (convolutions as projections, padded with the end token) or 2 (v, padded with a token).

    `consistency`: a latent consistency model of version 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = clip_folder.write_vocabulary(pathlib.Path(folder))
        pad = {"pad_token": "!"} if linear else {}
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12, **pad)
    text = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, hidden_act="gelu" if linear else "quick_gelu", pad_token_id=tokenizer.pad_token_id,
        bos_token_id=size - 2, eos_token_id=size - 1,
    )  # fmt: skip
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    network = diffusers.UNet2DConditionModel(
        **{**UNET, "down_block_types": down, "up_block_types": up},
        in_channels=9 if inpaints else 4,
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if linear else 2,
        use_linear_projection=linear,
        time_cond_proj_dim=256 if consistency else None,
    )
    options = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012, "clip_sample": False}
    prediction = "v_prediction" if linear else "epsilon"
    kind = diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    scheduler = ddim(**options, steps_offset=1, set_alpha_to_one=False, prediction_type=prediction)
    if consistency:
        kind, scheduler = diffusers.LatentConsistencyModelPipeline, diffusers.LCMScheduler(**options)
    return kind(
        vae=kl(),
        text_encoder=randomise(transformers.CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=randomise(network),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PIPELINES = {
    "inpaint": lambda: stable_diffusion(False, inpaints=True),
    "lcm": lambda: stable_diffusion(False, consistency=True),
    "sd1": lambda: stable_diffusion(False),
    "sd2": lambda: stable_diffusion(True),
    "ddpm": lambda: diffusers.DDIMPipeline(unet=unet(**DDPM, attention_head_dim=None), scheduler=ddim()),
    "adm": lambda: diffusers.DDIMPipeline(
        unet=unet(
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=32,
            attention_head_dim=16,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
        ),
        scheduler=ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    ),
    "dit": lambda: diffusers.DiTPipeline(transformer=dit(), vae=kl(), scheduler=ddim(clip_sample=False)),
    "ldm": lambda: diffusers.LDMPipeline(
        vqvae=vq(),
        unet=unet(),
        scheduler=ddim(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False),
    ),
}
