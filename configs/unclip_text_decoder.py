"""unCLIP without a prior: its decoder, trained on CLIP embeddings of captions instead of images.

    python launch.py train --config=configs/unclip_text_decoder.py --workdir=runs/unclip_text_decoder
    python launch.py sample --workdir=runs/unclip_text_decoder --prompt="a small red circle above a large blue square" \
                            --num=16 --out=samples.png

configs/glide_shapes.py with the changes below, or the variant `:emoji`; experiments/unclip_conditions.py compares it
with unCLIP.

Time: 82 min on two cores of an AMD EPYC: CLIP 22; decoder 52 and upsampler 8.
Score: captions shown 20.8 +- 1.8 % (experiments/unclip_conditions.py).
Setting: Ramesh et al. 2022, section 5.1: a small decoder without details; here the decoder of unCLIP.
"""

from ml_collections import ConfigDict

from configs import common, glide_emoji, glide_shapes, unclip_decoder

VARIANTS = {"shapes": glide_shapes, "emoji": glide_emoji}


def get_config(variant: str = "shapes") -> ConfigDict:
    base = unclip_decoder.get_config(variant)
    common.remove(base, "conditions.image_embedding")
    common.add(base, "conditions.clip_text")
    base.conditions.clip_text.update(states=False, embedding=True)

    config = VARIANTS[variant].get_config()
    common.add_parts(config, base=base, clip=f"clip_{variant}.py")
    config.noised_clip = ""  # no CLIP guidance
    return config
