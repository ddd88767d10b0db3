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

VARIANTS = ("pipeline", "prior", "decoder", "upsampler", "last_step")


def get_config(variant: str = "pipeline") -> ConfigDict:
    variant = common.choose(variant, dict(zip(VARIANTS, VARIANTS, strict=True)))
    if variant == "pipeline":
        return _pipeline()
    config = _prior() if variant == "prior" else _decoder() if variant == "decoder" else _upsampler()
    if variant in ("prior", "decoder"):
        common.add_parts(config, clip=_clip())
    if variant == "upsampler":
        common.add(config, "last_step")
        config.last_step = "@last_step"
        common.add_parts(config, last_step=_upsampler())
    return config


def _pipeline() -> ConfigDict:
    config = common.new("unclip", "clip", "prior", "decoder", "upsampler", train=False)
    common.add(config, "sampler.prior", "sampler.candidates")
    config.sampler.candidates = 1
    _set_data(config)
    common.add_parts(config, clip=_clip(), prior=_prior(), decoder=_decoder(), upsampler=get_config("upsampler"))
    return config


def _clip() -> ConfigDict:
    config = clip.get_config("sd1_text")
    config.model.dimensions = 768
    config.text_encoder.padding = 0
    return config


def _prior() -> ConfigDict:
    config = common.new("unclip_prior", "clip", "diffusion", "diffusion_sampler", "conditions.clip_text")
    common.add(config, "model.width", "model.layers", "model.heads", "model.dropout")
    common.add(config, "diffusion.embedding_scale", "diffusion.standardize_embeddings")
    _set_data(config)
    config.model.update(width=2048, layers=20, heads=32)
    config.conditions.clip_text.update(embedding=True, unit_length=False, null="empty", dropout=0.2)
    config.diffusion.update(schedule="cosine", parameterization="x0", standardize_embeddings=True)
    config.train.update(steps=1_000_000, batch_size=2048, learning_rate=1e-4, weight_decay=0.06)
    config.train.update(sample_every=0, num_preview_samples=0, ema_decay=0.9999)  # it outputs no images
    config.sampler.update(name="ancestral", steps=25, grid="linspace", threshold="clip(limit=5)", guidance=4.0)
    return config


def _decoder() -> ConfigDict:
    config = common.new("ddpm", "clip", "conditions.clip_text", "conditions.image_embedding", *_GROUPS)
    common.add(config, "diffusion.downsample", "model.head_channels")
    _set_data(config)
    _set_network(config)
    config.conditions.clip_text.update(embedding=True, unit_length=False, width=1536, mask_padding=True, null="empty")
    config.conditions.clip_text.dropout = 0.3
    config.conditions.image_embedding.update(width=1536, unit_length=False)
    config.model.update(attention_resolutions=(32, 16, 8), head_channels=64, time_conditioning="scale_shift")
    config.model.dropout = 0.1
    config.diffusion.update(downsample=4, loss="hybrid", variance="learned_range")
    config.sampler.update(steps=25, guidance=8.0)
    return config


def _upsampler() -> ConfigDict:
    config = common.new("ddpm", "conditions.low_res_image", "model.middle_attention", *_GROUPS)
    _set_data(config)
    _set_network(config)
    config.conditions.low_res_image.update(factor=4, degradation="none", level=False, interpolation="bicubic")
    config.model.update(attention_resolutions=(), middle_attention=False, time_conditioning="add")
    config.sampler.steps = 7
    return config


_GROUPS = (
    *("unet", "diffusion", "diffusion_sampler", "model.resample", "model.norm_epsilon", "model.time_embedding"),
    *("model.downsample_padding", "model.initializer"),
)


def _set_data(config: ConfigDict) -> None:
    config.data.update(name="folder", image_size=256, channels=3, num_classes=0)


def _set_network(config: ConfigDict) -> None:
    """Sets what both U-Nets share: the network, the process, training and the sampler."""
    config.model.update(channels=320, multipliers=(1, 2, 3, 4), blocks=3, resample="residual", initializer="torch")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.update(schedule="cosine", parameterization="eps")
    config.train.update(steps=1_000_000, batch_size=2048, learning_rate=1.2e-4, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="ancestral", grid="linspace")
