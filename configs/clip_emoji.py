"""CLIP on emoji of both styles: configs/clip_shapes.py, but for what is below.

    python launch.py train --config=configs/clip_emoji.py --config.data.dir=DIR --workdir=runs/clip_emoji

The data are prepared by `python -m diffjax.data.prepare emoji` (see --help).

Time: 22 min on two cores of an AMD EPYC that other jobs shared.
Score: among the 765 test pictures, each of a caption of its own that training never says, recall@1 is 37.8 % from
picture to caption and 36.6 % back; chance is 0.1 % (`launch.py evaluate --metrics=retrieval --num=765`).
Setting: Radford et al. 2021: ViT or ResNet, batch 32,768, AdamW with weight decay 0.2, 32 epochs of 400M
pairs; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file


def get_config() -> ConfigDict:
    config = load_file(f"{Path(__file__).parent}/clip_shapes.py")
    config.data.name = "emoji"  # both styles, and all skin tones
    config.data.image_size = 64  # as Google's are drawn
    config.text.vocabulary = 2048  # of 3,500 names of emoji
    config.text.length = 26  # the longest names, with start and end
    config.train.steps = 1200  # 24 epochs
    config.train.batch_size = 128  # over all devices
    config.train.learning_rate = 5e-4  # of Adam, once warm
    return config
