"""GLIDE on scenes of shapes in three small stages, with the CLIP that ranks its samples.

    python launch.py train --config=configs/glide_small.py --workdir=runs/glide_small
    python launch.py sample --workdir=runs/glide_small --prompt="a small red circle above a large blue square" \
                            --num=16 --best_of=64 --out=samples.png

The first stage learns counts, colours and places at 8x8, where a step takes little time. The captioned upsampler to
16x16 adds shapes, and the last one, without captions, edges at 32x32. The released
model `pretrained:shapes_glide` is this pipeline (docs/pretrained.md).

Time: not measured.
Score: that of `pretrained:shapes_glide`, whose upsampler was trained in two parts: see its card.
Setting: Nichol et al. 2021: see configs/glide_base.py; the cascade of three stages is that of Ho et al. 2022 (cascaded
diffusion), with its Gaussian conditioning augmentation.
"""

from ml_collections import ConfigDict

from configs import clip_shapes, common, glide_base, upsampler


def get_config() -> ConfigDict:
    base = glide_base.get_config()
    base.model.multipliers = (1, 2)
    base.diffusion.update(downsample=4, time_sampling="logit_normal(mean=1.5,std=1.5)")
    base.train.update(steps=3000, batch_size=64)

    captioned = glide_base.get_config()
    common.add(captioned, "conditions.low_res_image")
    captioned.model.update(multipliers=(1, 2), attention_resolutions=(8,))
    captioned.diffusion.time_sampling = "uniform"  # the conditioning image shows all positions
    # Samples of the first stage have wrong shapes; with noise on them, the upsampler takes shapes from the caption.
    captioned.conditions.low_res_image.degradation = "noise(max_std=0.5)"
    captioned.train.update(steps=4000, batch_size=32)

    last = upsampler.get_config()
    last.train.update(steps=600, batch_size=32)

    clip = clip_shapes.get_config()
    clip.text_encoder.layers = 2
    clip.train.update(steps=1200, batch_size=128)

    for stage in (base, captioned):
        stage.model.channels = 32
        stage.conditions.caption.update(width=64, layers=2)
    for stage in (base, captioned, last):
        stage.train.update(sample_every=0, num_preview_samples=0)

    config = common.new(
        "glide", "base", "upsampler", "upsampler_2", "noised_clip", "rerank", data="shapes", train=False
    )
    common.add_parts(config, base=base, upsampler=captioned, upsampler_2=last, clip=clip)
    config.update(upsampler_2="@upsampler_2", noised_clip="")
    stages = {"base": {"steps": 50, "guidance": 3.0}, "upsampler": {"steps": 25, "guidance": 3.0}}
    common.add_stages(config, **stages, upsampler_2={"steps": 15})
    return config
