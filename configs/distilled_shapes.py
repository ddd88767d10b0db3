"""Latent diffusion of configs/latent_shapes.py, distilled for samples of a caption in 1 to 4 steps.

    python launch.py train  --config=configs/distilled_shapes.py --workdir=runs/distilled_shapes
    python launch.py sample --workdir=runs/distilled_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --steps=4 --guidance=2 --out=samples.png

A latent consistency model: guidance of the teacher is distilled in, with its scale as an input. The autoencoder and
the teacher are parts of the config, which are trained first.

Time: 15 min for the distillation on one core of an Intel Xeon; the teacher: configs/latent_shapes.py.
Score: captions shown in 1, 2 and 4 steps 16.2 +- 1.6, 37.0 +- 2.2 and 40.4 +- 2.2 %, of a teacher that shows 0.6, 14.8
and 61.6 % by DDIM; docs/results/text_to_image.md.
Setting: Luo et al. 2023: Stable Diffusion 2.1, k = 20 of T = 1000, guidance scales 2 to 14, 100,000 steps at batch 72
for 512x512 pixels (section 5.1).
"""

from ml_collections import ConfigDict

from configs import common, latent_shapes


def get_config() -> ConfigDict:
    teacher = latent_shapes.get_config()
    codec = teacher.parts.codec
    common.remove(teacher, "parts")

    config = teacher.copy_and_resolve_references()
    common.add(config, "flow_map", "teacher", "conditions.guidance_scale")
    config.teacher = "@teacher"
    config.diffusion.update(loss="consistency(average_target=True)", next_times="skip(share=0.02)")
    config.diffusion.update(metric="elementwise_pseudo_huber", weighting="x0", time_sampling="uniform")
    config.conditions.guidance_scale.update(low=1.0, high=4.0)
    config.train.update(steps=1000, learning_rate=1e-3, ema_decay=0.95)
    config.sampler.update(name="lcm", steps=4)
    common.add_parts(config, codec=codec, teacher=teacher)
    return config
