"""Karlo (Kakao Brain 2022): unCLIP, trained on 115M captioned images.

    python launch.py import --source=hub:kakaobrain/karlo-v1-alpha --workdir=runs/karlo
    python launch.py sample --workdir=runs/karlo --prompt="a red frog on a leaf" --num=4 --out=samples.png
    python launch.py train --config=configs/published/karlo.py:decoder --config.train.start=runs/karlo/decoder \
                           --config.clip=runs/clip_l14 --config.data.dir=IMAGES --workdir=runs/fine_tuned

A folder of diffusers' UnCLIPPipeline needs no --config. Variants: `pipeline`, and its stages `prior` (caption to CLIP
image embedding), `decoder` (to 64x64), `upsampler` (to 256x256) and `last_step`, the upsampler's network of the last
step, which the release fine-tuned with perceptual and adversarial losses. Training requires the CLIP's image encoder
too: runs/clip_l14 is the import of configs/published/clip.py:vit_l14.

Time: not trained by us.
Score: the release's FID on MS-COCO, 30,000 captions: 15.24 in these steps, and 14.43 with 50 steps of the decoder.
Setting: the release's configs and README: OpenAI's CLIP ViT-L/14; 1M steps each, the last step 234,000 more.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import clip


def get_config(variant: str = "pipeline") -> ConfigDict:
    return common.choose(variant, VARIANTS)()


def _pipeline() -> ConfigDict:
    stages = ("clip", "prior", "decoder", "upsampler")
    config = common.new("unclip", *stages, "sampler.prior", "sampler.candidates", train=False)
    config.data.update(_DATA)
    config.sampler.candidates = 1
    prior, decoder = _prior(), _decoder()
    common.add_parts(config, clip=prior.parts.clip, prior=prior, decoder=decoder, upsampler=_upsampler())
    for stage in (prior, decoder):
        common.remove(stage, "parts")
    return config


def _prior() -> ConfigDict:
    config = common.new("unclip_prior", "clip", "diffusion", "diffusion_sampler", "conditions.clip_text")
    common.add(config, "model.width", "model.layers", "model.heads", "model.dropout")
    common.add(config, "diffusion.embedding_scale", "diffusion.standardize_embeddings")
    encoder = clip.get_config("sd1_text")
    encoder.model.dimensions, encoder.text_encoder.padding = 768, 0
    common.add_parts(config, clip=encoder)
    config.data.update(_DATA)
    config.model.update(width=2048, layers=20, heads=32)
    config.conditions.clip_text.update(_CLIP_TEXT, dropout=0.2)
    config.diffusion.update(schedule="cosine", parameterization="x0", standardize_embeddings=True)
    config.train.update(steps=1_000_000, batch_size=2048, learning_rate=1e-4, weight_decay=0.06)
    config.train.update(sample_every=0, num_preview_samples=0, ema_decay=0.9999)  # it outputs no images
    config.sampler.update(name="ancestral", steps=25, grid="linspace", threshold="clip(limit=5)", guidance=4.0)
    return config


def _decoder() -> ConfigDict:
    config = _unet("clip", "conditions.clip_text", "conditions.image_embedding")
    common.add(config, "diffusion.downsample", "model.head_channels")
    common.add_parts(config, clip=_prior().parts.clip)
    config.conditions.clip_text.update(_CLIP_TEXT, width=1536, mask_padding=True, dropout=0.3)
    config.conditions.image_embedding.update(width=1536, unit_length=False)
    config.model.update(attention_resolutions=(32, 16, 8), head_channels=64, dropout=0.1)
    config.diffusion.update(downsample=4, loss="hybrid", variance="learned_range")
    config.sampler.update(steps=25, guidance=8.0)
    return config


def _upsampler(last_step: str = "@last_step") -> ConfigDict:
    config = _unet("conditions.low_res_image", "model.middle_attention")
    config.conditions.low_res_image.update(factor=4, degradation="none", level=False, interpolation="bicubic")
    config.model.update(attention_resolutions=(), middle_attention=False, time_conditioning="add")
    config.sampler.steps = 7
    if last_step:
        common.add(config, "last_step")
        config.last_step = last_step
        common.add_parts(config, last_step=_upsampler(""))
    return config


def _unet(*groups: str) -> ConfigDict:
    details = (f"model.{name}" for name in ("norm_epsilon", "time_embedding", "downsample_padding", "initializer"))
    config = common.new("ddpm", "unet", "diffusion", "diffusion_sampler", "model.resample", *details, *groups)
    config.data.update(_DATA)
    config.model.update(channels=320, multipliers=(1, 2, 3, 4), blocks=3, resample="residual", initializer="torch")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.update(schedule="cosine", parameterization="eps")
    config.train.update(steps=1_000_000, batch_size=2048, learning_rate=1.2e-4, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="ancestral", grid="linspace")
    return config


_DATA = {"name": "folder", "image_size": 256, "channels": 3, "num_classes": 0}
_CLIP_TEXT = {"embedding": True, "unit_length": False, "null": "empty"}
VARIANTS = {"pipeline": _pipeline, "prior": _prior, "decoder": _decoder, "upsampler": _upsampler}
VARIANTS["last_step"] = lambda: _upsampler("")
