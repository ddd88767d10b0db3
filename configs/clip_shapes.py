"""CLIP on scenes of shapes: matches captions and images.

    python launch.py train --config=configs/clip_shapes.py --workdir=runs/clip_shapes

Time: 22 min on two cores of an AMD EPYC.
Score: recall@1 among 1,000 test images with 428 captions, which are not in the training set: 95.7 % from image to
caption, 96.5 % from caption to image; chance is 1.7 % (`launch.py evaluate --metrics=retrieval --num=1000`).
Setting: Radford et al. 2021: ViT or ResNet, batch 32,768, AdamW with weight decay 0.2, 32 epochs of 400M pairs; here
smaller.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("clip", "text", "model.dimensions", "image_encoder", "text_encoder", data="shapes")
    config.train.steps = 2000
    config.train.batch_size = 512  # a smaller batch has few images that differ in one shape only
    config.train.update(learning_rate=1e-3, warmup_steps=200, weight_decay=0.1, beta2=0.98, ema_decay=0.999)
    config.train.update(sample_every=0, num_preview_samples=0)
    return config
