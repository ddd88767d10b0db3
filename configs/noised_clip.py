"""CLIP of noised scenes of shapes, for CLIP guidance: configs/clip_shapes.py with the changes below.

    python launch.py train --config=configs/noised_clip.py --workdir=runs/noised_clip

The variant `:emoji` changes configs/clip_emoji.py.

Time: 5 min on two cores of an AMD EPYC.
Score: recall@1 without noise among 1,000 test images with 428 captions, which are not in the training set: 58.0 % from
image to caption, 70.7 % from caption to image; chance is 1.7 % (`launch.py evaluate --metrics=retrieval --num=1000`).
With noise it is 50 and 60 % at t = 250, 24 and 43 % at t = 500, chance at t = 1000.
Setting: Nichol et al. 2021, sec. 3.4: ViT-L of 64x64 images, patches of 4, with the schedule of the guided model; here
smaller.
"""

from ml_collections import ConfigDict

from configs import clip_emoji, clip_shapes, common

VARIANTS = {"shapes": clip_shapes, "emoji": clip_emoji}


def get_config(variant: str = "shapes") -> ConfigDict:
    config = common.choose(variant, VARIANTS).get_config()
    common.add(config, "noising", "diffusion.downsample")  # noise of the guided model
    config.diffusion.downsample = 2  # 16x16, the resolution of the guided model
    config.image_encoder.patch = 4
    config.train.update(steps=1500, batch_size=128, learning_rate=5e-4)
    return config
