"""Principal components of CLIP's embeddings of pictures, for the codes of unCLIP's autoregressive prior.

    python launch.py train --config=configs/pca.py --workdir=runs/pca --config.clip=runs/clip

Training only counts; configs/unclip_shapes.py does it with the rest.

Time: half a minute on two cores of an AMD EPYC.
Score: the loss, the share of variance that the components left out have, is in metrics.jsonl.
Setting: Ramesh et al. 2022, section 2.2: 319 of 1,024 components, 1,024 codes of each; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/clip_{data}.py")
    with config.unlocked():
        del config.image_encoder, config.text_encoder  # the CLIP's
        config.clip = "@clip"  # whose embeddings: a part beside this one, or a workdir
        config.model = ConfigDict()
        config.model.components = 40  # that have codes, the largest
        config.model.bins = 128  # codes of each
    config.system = "pca"  # the module of diffjax/models
    config.train.steps = 64  # batches that are counted
    config.train.checkpoint_every = 0  # steps between checkpoints, 0: only at the end
    return config
