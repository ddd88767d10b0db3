"""REPA on scenes of shapes: a DiT conditioned on captions, whose tokens are aligned with those of a CLIP.

    python launch.py train --config=configs/repa_shapes.py --workdir=runs/repa_shapes
    python launch.py sample --workdir=runs/repa_shapes --prompt="a small red circle above a large blue square" --num=16

Trains the CLIP into runs/repa_shapes/clip first; --config.alignment.clip=pretrained:shapes_glide/clip is a released
one. The variant `:plain` has no alignment. experiments/repa.py compares both.

Time: not measured.
Score: not measured.
Setting: Yu et al. 2024: SiT-XL/2 on ImageNet 256x256, block 8 of 28, weight 0.5, a projection of width 2048 to the
tokens of DINOv2-B; here smaller, and with a CLIP.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {"clip": {}, "plain": {}}


def get_config(variant: str = "clip") -> ConfigDict:
    config = common.new("ddpm", "text", "conditions.caption", "diffusion", "diffusion_sampler", data="shapes")
    common.add(config, *(f"model.{name}" for name in ("architecture", "patch", "width", "layers", "heads")))
    common.add(config, "diffusion.downsample")
    if variant != "plain":
        common.add(config, "alignment")
        common.add_parts(config, clip="clip_shapes.py")
    config.model.update(architecture="dit", patch=2, width=128, layers=6, heads=4)
    # As in configs/glide_base.py, half of the times have noise that hides the positions of objects.
    config.diffusion.update(downsample=2, time_sampling="logit_normal(mean=1,std=2)")
    config.train.update(steps=4000, batch_size=48, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999)
    config.train.update(log_every=20, sample_every=2000, num_preview_samples=64)
    config.sampler.guidance = 2.0
    return common.vary(config, variant, VARIANTS)
