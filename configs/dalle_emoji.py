"""DALL-E on emoji of both styles: configs/dalle_shapes.py with the changes below.

    python launch.py train --config=configs/dalle_emoji.py --config.data.dir=DIR --workdir=runs/dalle_emoji
    python launch.py sample --workdir=runs/dalle_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

`python -m diffjax.data.prepare emoji` prepares the data (see --help).

Time: an hour and a half on two cores of an AMD EPYC: autoencoder 35 min, CLIP 22,
transformer 37.
Score: silhouettes and colours, no details: CLIP ranks the right caption of 100 first for 6 % of samples (10 % at
guidance 2; chance 1 %). docs/results has samples. All three models would gain from more steps.
Setting: Ramesh et al. 2021: 64 layers of 62 heads of 64, 32x32 tokens of 8192, captions of 256 of 16,384 tokens, batch
1024, 430,000 steps; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, dalle_shapes, vqvae


def get_config() -> ConfigDict:
    codec = vqvae.get_config("emoji")
    codec.data.image_size = 64  # the native size of Google's emoji
    codec.model.factor = 8  # 8x8 tokens
    codec.codebook.size = 1024  # larger than at f = 4, as each token covers more pixels
    codec.loss.likelihood = "l2(variance=0.05)"  # more weight of the reconstruction, relative to commitment
    codec.train.steps = 1500  # 15 epochs

    config = dalle_shapes.get_config()
    common.add_parts(config, codec=codec, clip="clip_emoji.py")
    config.data.update(name="emoji", image_size=64)
    config.text.update(vocabulary=2048, length=26)  # 3,500 names of emoji; the longest caption has 26 tokens
    config.model.update(width=192, heads=6, dropout=0.1)  # dropout, as 6,376 images are soon memorised
    config.train.update(steps=1200, learning_rate=6e-4)  # 12 epochs
    return config
