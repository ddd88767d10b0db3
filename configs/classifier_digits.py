"""Classifier of noised digits, for classifier guidance of configs/digits.py, as in ADM.

    python launch.py train --config=configs/classifier_digits.py --workdir=runs/classifier_digits
    python launch.py sweep --workdir=runs/digits --classifier=runs/classifier_digits --classifier_scale=0,1,3

Time: 5 min on two cores of an AMD EPYC.
Score: accuracy on the 360 test images: 99 % without noise, 94 % at t = 376, 81 % at t = 500, chance at t = 1000
(`launch.py evaluate --workdir=runs/classifier_digits --metrics=accuracy --num=360`).
Setting: half of configs/digits.py's UNet with attention pooling, as in Dhariwal & Nichol 2021, sec. 4 and app. H.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("classifier", "unet", "model.heads", "model.pool", "noising")  # noised as configs/digits.py
    config.train.update(steps=1000, sample_every=0, num_preview_samples=0)  # a classifier outputs no images
    return config
