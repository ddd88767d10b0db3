"""Masked diffusion of image tokens, conditioned on a caption: DALL-E on shapes without an order of tokens.

    python launch.py train --config=configs/masked_shapes.py --workdir=runs/masked_shapes
    python launch.py sample --workdir=runs/masked_shapes --prompt="a small red circle above a large blue square" \
                            --num=16 --steps=12 --out=samples.png

Trains the autoencoder and CLIP as parts, like configs/dalle_shapes.py (`:causal`), whose transformer is causal.

Time: not measured.
Score: not measured.
Setting: Chang et al. 2022 (MaskGIT): 24 layers of 768, 16x16 tokens of 1,024 values of ImageNet 256x256, conditioned on
the class; here smaller, and conditioned on captions.
"""

from ml_collections import ConfigDict

from configs import common, dalle_shapes

VARIANTS = {"masked": {}, "causal": {}}


def get_config(variant: str = "masked") -> ConfigDict:
    common.choose(variant, VARIANTS)
    causal = dalle_shapes.get_config()
    if variant == "causal":
        return causal
    groups = ("text", "codec", "clip", "masked_transformer", "masking", "masked_sampler", "rerank")
    config = common.new("masked_prior", *groups, data="shapes")
    common.add_parts(config, codec="vqvae.py:shapes", clip="clip_shapes.py")
    config.clip = ""  # the transformer is conditioned on caption tokens, not on CLIP embeddings
    config.model.update(width=128, layers=6, heads=4, condition="text", condition_dropout=0.1)
    config.sampler.update(name="confidence", steps=12)
    config.train.update(causal.train)
    return config
