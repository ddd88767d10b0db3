"""Latent diffusion on emoji of both styles: configs/latent_shapes.py, but for what is below; 16x16 latents.

    python launch.py train --config=configs/latent_emoji.py --config.data.dir=DIR --workdir=runs/latent_emoji
    python launch.py sample --workdir=runs/latent_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

The data are prepared by `python -m diffjax.data.prepare emoji` (see --help).

Time: not trained to its end, which is for one GPU; docs/results has what forty minutes of two cores give.
Score: not measured.
Setting: as configs/latent_shapes.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    config = load_file(f"{HERE}/latent_shapes.py")
    for one in (config, config.parts.codec):
        one.data.name = "emoji"  # both styles, and all skin tones
        one.data.image_size = 64  # as Google's are drawn
    config.text.vocabulary = 2048  # of 3,500 names of emoji
    config.text.length = 26  # the longest names, with start and end
    config.parts.codec.model.channels = 64  # at the first level
    config.parts.codec.train.steps = 30_000  # updates of the weights
    config.parts.codec.adversarial.start = 10_000  # step at which it is let in
    config.model.channels = 128  # at the first level: 16x16
    config.model.multipliers = (1, 2, 2)  # of the channels at each level
    config.model.attention_resolutions = (16, 8)  # heights of the feature maps that attend
    config.model.dropout = 0.1  # 6,376 pictures are soon learnt by heart
    config.diffusion.times = "uniform"  # its captions say of no two things where they are
    config.train.steps = 60_000  # updates of the weights
    config.train.learning_rate = 2e-4  # of Adam, once warm
    return config
