"""Upsampler to twice the resolution: configs/glide_base.py with the changes below.

    python launch.py train --config=configs/upsampler.py --workdir=runs/upsampler

Scenes of shapes to 32x32, or the variant `:emoji` to 64x64. It has no caption and no attention, is trained on crops,
and is conditioned on a degraded image, as unCLIP's upsamplers are.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 64x64 to 256x256 to 1024x1024, 320 and 192 channels, blur and BSR degradation, crops of a
quarter of the image, batch 1024 and 512, 1M steps, 27 and 15 DDIM steps; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, glide_base

VARIANTS = {
    "shapes": {"model": {"channels": 32}, "train": {"steps": 2500}},
    "emoji": {"model": {"channels": 64}, "train": {"steps": 20_000}},
}


def get_config(variant: str = "shapes") -> ConfigDict:
    config = glide_base.get_config(variant)
    common.remove(config, "text", "conditions")
    common.add(config, "conditions.low_res_image", "model.middle_attention")
    config.model.update(multipliers=(1, 2), attention_resolutions=(), middle_attention=False)
    config.diffusion.update(downsample=1, time_sampling="uniform")  # the conditioning image shows all positions
    config.diffusion.crop = config.data.image_size // 2
    config.train.update(sample_every=0, num_preview_samples=32)
    config.sampler.update(steps=15, guidance=1.0)  # no condition is dropped, so there is no guidance
    config.update(VARIANTS[variant])
    return config
