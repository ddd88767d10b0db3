"""unCLIP's autoregressive prior: caption to tokens of the CLIP image embedding.

    python launch.py train --config=configs/unclip_ar_prior.py --workdir=runs/ar_prior --config.clip=runs/clip \
                           --config.codec=runs/pca

Scenes of shapes, or the variant `:emoji`; configs/unclip_shapes.py includes it.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 24 layers of 2048, 319 tokens, batch 4096, 1M steps, learning rate 1.6e-4; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, dalle_emoji, dalle_shapes

VARIANTS = {"shapes": dalle_shapes, "emoji": dalle_emoji}


def get_config(variant: str = "shapes") -> ConfigDict:
    config = common.choose(variant, VARIANTS).get_config()
    common.remove(config, "text", "parts", "loss", "rerank")  # CLIP encodes the caption; only tokens are predicted
    config.codec = "@pca"
    config.clip = "@clip"
    config.model.condition = "clip_caption"  # caption tokens, caption embedding, and its similarity to the image
    config.model.update(layers=4, masks=(), last_mask="")
    config.train.update(steps=2500, sample_every=0, num_preview_samples=0)  # it outputs no images
    return config
