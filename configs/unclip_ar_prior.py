"""unCLIP's autoregressive prior: from a caption to codes of the CLIP embedding of its picture.

    python launch.py train --config=configs/unclip_ar_prior.py --workdir=runs/ar_prior --config.clip=runs/clip \
                           --config.codec=runs/pca

Of scenes of shapes, or `:emoji`; configs/unclip_shapes.py trains it with the rest.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 24 layers of 2048, 319 codes, batch 4096, 1M steps, learning rate 1.6e-4; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/dalle_{data}.py")
    with config.unlocked():
        del config.text, config.parts, config.loss, config.rerank  # as the CLIP reads it; nothing else is predicted
    config.codec = "@pca"  # whose codes: a part beside this one, or a workdir
    config.clip = "@clip"  # that reads the caption: a part beside this one, or a workdir
    config.model.condition = "clip_caption"  # its tokens, its embedding, and how well the picture agrees with it
    config.model.masks = ()  # all see all before
    config.model.last_mask = ""  # as the others
    config.model.layers = 4  # of attention and perceptron
    config.train.steps = 2500  # updates of the weights
    config.train.sample_every = 0  # it draws no pictures
    config.train.sample_count = 0  # it draws no pictures
    return config
