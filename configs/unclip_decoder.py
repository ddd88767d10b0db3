"""unCLIP's decoder: CLIP image embedding and caption to low-resolution image.

    python launch.py train --config=configs/unclip_decoder.py --workdir=runs/decoder --config.clip=runs/clip

configs/glide_base.py with the changes below, or its variant `:emoji`; configs/unclip_shapes.py includes it.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: GLIDE's network at 64x64, batch 2048, 800,000 steps, the embedding dropped for 10 % and
the caption for 50 %, 250 sampling steps; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, glide_base

VARIANTS = ("shapes", "emoji")


def get_config(variant: str = "shapes") -> ConfigDict:
    config = glide_base.get_config(variant)
    common.add(config, "clip", "conditions.image_embedding")
    config.conditions.caption.dropout = 0.5
    return config
