"""Latent diffusion on emoji of both styles: configs/latent_shapes.py with the changes below; 16x16 latents.

    python launch.py train --config=configs/latent_emoji.py --config.data.dir=DIR --workdir=runs/latent_emoji
    python launch.py sample --workdir=runs/latent_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

`python -m diffjax.data.prepare emoji` prepares the data (see --help).

Time: sized for one GPU and not trained to its end; docs/results has the result of forty minutes of two cores.
Score: not measured.
Setting: as configs/latent_shapes.py.
"""

from ml_collections import ConfigDict

from configs import latent_shapes


def get_config() -> ConfigDict:
    config = latent_shapes.get_config()
    codec = config.parts.codec
    codec.data.update(name="emoji", image_size=64)  # the native size of Google's emoji
    codec.model.channels = 64
    codec.train.steps = 30_000
    codec.adversarial.start_step = 10_000

    config.data.update(name="emoji", image_size=64)
    config.text.update(vocabulary=2048, length=26)  # 3,500 names of emoji; the longest caption has 26 tokens
    config.model.update(channels=128, multipliers=(1, 2, 2), attention_resolutions=(16, 8))
    config.model.dropout = 0.1  # 6,376 images are soon memorised
    config.diffusion.time_sampling = "uniform"  # captions of emoji state no relations
    config.train.update(steps=60_000, learning_rate=2e-4)
    return config
