"""GLIDE's first stage: caption to low-resolution image, with its own caption transformer.

    python launch.py train --config=configs/glide_base.py --workdir=runs/glide_base

16x16 scenes of shapes; the variant `glide_base.py:emoji`: 32x32 emoji. configs/glide_shapes.py and
configs/glide_emoji.py train it with its upsampler. On shapes half of the training is at times at which noise hides the
positions of objects: only there a caption's "left of" is informative, and at uniform times it is not learned. With even
less training at low noise, shapes are not learned (docs/results).

Time: configs/glide_shapes.py.
Score: configs/glide_shapes.py.
Setting: Nichol et al. 2021: 64x64 images, ADM's UNet at 512 channels, a text transformer of 24 layers of 2048, batch
2048, 2.5M steps, then 20 % of the captions empty; here smaller.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "shapes": {},
    "emoji": {
        "data": {"image_size": 64},
        "text": {"vocabulary": 2048, "length": 26},
        "diffusion": {"time_sampling": "uniform"},  # captions of emoji state no relations
        "model": {"channels": 128, "multipliers": (1, 2, 2, 2), "attention_resolutions": (16, 8), "dropout": 0.1},
        "train": {"steps": 60_000, "learning_rate": 2e-4, "ema_decay": 0.9995},
    },
}


def get_config(variant: str = "shapes") -> ConfigDict:
    config = common.new("ddpm", "text", "conditions.caption", "unet", "diffusion", "diffusion_sampler", data="shapes")
    common.add(config, "model.architecture", "model.head_channels", "model.residual_scale")
    common.add(config, "diffusion.downsample", "diffusion.crop")
    config.model.update(channels=48, multipliers=(1, 2, 2), attention_resolutions=(8, 4))
    config.diffusion.update(downsample=2, time_sampling="logit_normal(mean=1,std=2)")
    config.train.update(steps=6000, batch_size=48, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999)
    config.train.update(log_every=20, sample_every=2000, num_preview_samples=64)
    config.sampler.guidance = 2.0
    return common.vary(config, variant, VARIANTS)
