"""GLIDE (Nichol et al. 2021), the released models of filtered data: caption to 64x64, to 256x256, and inpainting.

    python launch.py import --source=base.pt --config=configs/published/glide.py:base --workdir=runs/glide

Files of github.com/openai/glide-text2im, by variant: `base` is base.pt, `upsampler` upsample.pt, `inpainting`
base_inpaint.pt and `upsampler_inpainting` upsample_inpaint.pt.

Time: not trained by us.
Score: not measured.
Setting: networks of the repository's model_creation.py, samplers of its notebooks; the paper's models are larger.
Training of the released ones is not published: steps, batch and learning rate are ours.
"""

from ml_collections import ConfigDict

from configs import common

_UPSAMPLER = {
    "data": {"image_size": 256},
    "model": {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2},
    "diffusion": {"schedule": "linear"},
    "sampler": {"name": "ddim", "steps": 27, "grid": "sections(10,10,3,2,2)", "guidance": 1.0},
}
VARIANTS = {"base": {}, "inpainting": {}, "upsampler": _UPSAMPLER, "upsampler_inpainting": _UPSAMPLER}


def get_config(variant: str = "base") -> ConfigDict:
    config = common.new("ddpm", "text", "conditions.caption", "unet", "diffusion", "diffusion_sampler", "published")
    common.add(config, "model.resample", "model.norm_epsilon", "model.time_embedding", "model.downsample_padding")
    common.add(config, "model.initializer", "model.head_channels")
    config.data.update(name="folder", image_size=64, channels=3, num_classes=0)
    config.text.update(vocabulary=50_257, length=128)
    config.conditions.caption.update(width=512, layers=16, heads=8, dropout=0.2)
    config.model.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention_resolutions=(32, 16, 8))
    config.model.update(head_channels=64, resample="residual", initializer="torch", dropout=0.1)
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.update(schedule="cosine", parameterization="eps", loss="hybrid", variance="learned_range")
    config.train.update(steps=2_500_000, batch_size=2048, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=0, clip_norm=0.0, beta2=0.999, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=10_000)
    config.sampler.update(name="ancestral", steps=100, grid="sections", guidance=3.0)
    config.published.update(naming="openai", attention_order="by_head")
    if variant.startswith("upsampler"):
        common.add(config, "conditions.low_res_image")
        config.conditions.low_res_image.update(factor=4, degradation="none", level=False)
    if variant.endswith("inpainting"):
        common.add(config, "conditions.masked_image")
        config.conditions.masked_image.ones = "known"
    return common.vary(config, variant, VARIANTS)
