"""CLIP on emoji of both styles: configs/clip_shapes.py with the changes below.

    python launch.py train --config=configs/clip_emoji.py --config.data.dir=DIR --workdir=runs/clip_emoji

`python -m diffjax.data.prepare emoji` prepares the data (see --help).

Time: 22 min on two cores of an AMD EPYC.
Score: recall@1 among the 765 test images, each with a caption that is not in the training set: 37.8 % from image to
caption, 36.6 % from caption to image; chance is 0.1 % (`launch.py evaluate --metrics=retrieval --num=765`).
Setting: Radford et al. 2021: ViT or ResNet, batch 32,768, AdamW with weight decay 0.2, 32 epochs of 400M pairs; here
smaller.
"""

from ml_collections import ConfigDict

from configs import clip_shapes


def get_config() -> ConfigDict:
    config = clip_shapes.get_config()
    config.data.update(name="emoji", image_size=64)  # the native size of Google's emoji
    config.text.update(vocabulary=2048, length=26)  # 3,500 names of emoji; the longest caption has 26 tokens
    config.train.update(steps=1200, batch_size=128, learning_rate=5e-4)  # 24 epochs
    return config
