"""DALL-E on emoji of both styles: configs/dalle_shapes.py, but for what is below.

    python launch.py train --config=configs/dalle_emoji.py --config.data.dir=DIR --workdir=runs/dalle_emoji
    python launch.py sample --workdir=runs/dalle_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

The data are prepared by `python -m diffjax.data.prepare emoji` (see --help).

Time: an hour and a half on two cores of an AMD EPYC that other jobs shared: 35 min the autoencoder, 22 CLIP, 37 the
transformer.
Score: silhouettes and colours, no details: among 100 captions CLIP finds that of a sample first in 6 % (10 % at
guidance 2; chance 1 %). docs/results shows some. More steps than two cores have time for would help all three.
Setting: Ramesh et al. 2021: 64 layers of 62 heads of 64, 32x32 codes of 8192, captions of 256 of 16,384 tokens, batch
1024, 430,000 steps; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    codec = load_file(f"{HERE}/vqvae.py:emoji")
    codec.data.image_size = 64  # as Google's are drawn
    codec.model.factor = 8  # 8x8 codes
    codec.codes.size = 1024  # a code says more than at f = 4
    codec.loss.likelihood = "l2(variance=0.05)"  # likeness counts for more than commitment
    codec.train.steps = 1500  # 15 epochs

    config = load_file(f"{HERE}/dalle_shapes.py")
    config.data.name = "emoji"  # both styles, and all skin tones
    config.data.image_size = 64  # as the codec's
    config.text.vocabulary = 2048  # of 3,500 names of emoji
    config.text.length = 26  # the longest names, with start and end
    config.parts = ConfigDict({"codec": codec, "clip": "clip_emoji.py"})  # trained first, as there
    config.model.width = 192  # of the features
    config.model.heads = 6  # of the attention
    config.model.dropout = 0.1  # 6,376 pictures are soon learnt by heart
    config.train.steps = 1200  # 12 epochs
    config.train.learning_rate = 6e-4  # of Adam, once warm
    return config
