"""Principal components of CLIP image embeddings, for the tokens of unCLIP's autoregressive prior.

    python launch.py train --config=configs/pca.py --workdir=runs/pca --config.clip=runs/clip

Training only accumulates covariances; configs/unclip_shapes.py includes it. The variant `:emoji` is for emoji.

Time: half a minute on two cores of an AMD EPYC.
Score: the loss, the share of variance outside the retained components, is in metrics.jsonl.
Setting: Ramesh et al. 2022, section 2.2: 319 of 1,024 components, 1,024 tokens of each; here smaller.
"""

from ml_collections import ConfigDict

from configs import clip_emoji, clip_shapes, common

VARIANTS = {"shapes": clip_shapes, "emoji": clip_emoji}


def get_config(variant: str = "shapes") -> ConfigDict:
    config = common.choose(variant, VARIANTS).get_config()
    common.remove(config, "image_encoder", "text_encoder", "model")
    common.add(config, "clip", "model.components", "model.bins")
    config.system = "pca"
    config.train.update(steps=64, checkpoint_every=0)  # batches of images that are counted
    return config
