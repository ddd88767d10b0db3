"""unCLIP's decoder: small pictures of a CLIP embedding and the caption.

    python launch.py train --config=configs/unclip_decoder.py --workdir=runs/decoder --config.clip=runs/clip

configs/glide_base.py, but for what is below, of shapes or `:emoji`; configs/unclip_shapes.py trains it with the rest.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: GLIDE's network at 64x64, batch 2048, 800,000 steps, the embedding withheld from 10 % and
the caption from 50 %, 250 steps; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/glide_base.py:{data}")
    with config.unlocked():
        config.clip = "@clip"  # whose embeddings of pictures it decodes: a part beside this one, or a workdir
        config.conditions.image_embedding = ConfigDict()
        config.conditions.image_embedding.tokens = 4  # that it is attended to as, beside the caption's
        config.conditions.image_embedding.width = 128  # of those tokens: that of the caption's
        config.conditions.image_embedding.dropout = 0.1  # share of embeddings withheld
        config.conditions.caption.dropout = 0.5  # share of captions withheld
    return config
