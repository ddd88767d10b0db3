"""GLIDE on scenes of shapes: caption to 16x16 image to 32x32 image.

    python launch.py train --config=configs/glide_shapes.py --workdir=runs/glide_shapes
    python launch.py sample --workdir=runs/glide_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --guidance=3 --steps=base:50,upsampler:15 --out=samples.png

Trains every part into a folder of the workdir: the first stage, which is conditioned on the caption, the upsampler, and
a CLIP of noised images for CLIP guidance instead of classifier-free guidance (--guidance=1 --clip_scale=5).

Time: 50 min on two cores of an AMD EPYC: noised CLIP 5; first stage 37 and upsampler 8.
Score: captions shown 70.4 +- 2.0 % (`launch.py evaluate --metrics=caption_accuracy --num=500`), relations at most 90 %;
docs/results has more metrics, and the effect of time sampling.
Setting: Nichol et al. 2021: see the configs of the parts.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("glide", "base", "upsampler", "upsampler_2", "noised_clip", data="shapes", train=False)
    common.add_parts(config, base="glide_base.py", upsampler="upsampler.py", noised_clip="noised_clip.py")
    common.add_stages(config, base={"steps": 50, "guidance": 2.0}, upsampler={"steps": 15})
    return config
