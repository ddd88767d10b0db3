"""unCLIP without a prior: its decoder, trained on CLIP embeddings of captions in the place of pictures'.

    python launch.py train --config=configs/unclip_text_decoder.py --workdir=runs/unclip_text_decoder
    python launch.py sample --workdir=runs/unclip_text_decoder --prompt="a small red circle above a large blue square" \
                            --num=16 --out=samples.png

configs/glide_shapes.py, but for what is below, of shapes or `:emoji`: what experiments/unclip_conditions.py sets beside
unCLIP.

Time: 82 min on two cores of an AMD EPYC: CLIP 22; decoder 52 and upsampler 8 beside other jobs.
Score: captions shown 20.8 +- 1.8 % (experiments/unclip_conditions.py).
Setting: Ramesh et al. 2022, section 5.1: a small decoder, of which no more is said; here that of unCLIP.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    base = load_file(f"{HERE}/unclip_decoder.py:{data}")
    with base.unlocked():
        del base.conditions.image_embedding
        base.conditions.clip_text = ConfigDict()
        base.conditions.clip_text.states = False  # of every token
        base.conditions.clip_text.embedding = True  # of the whole caption
        base.conditions.clip_text.dropout = 0.1  # share of embeddings withheld

    config = load_file(f"{HERE}/glide_{data}.py")
    with config.unlocked():
        config.noised_clip = ""  # none to guide by
        config.parts.base = base  # embedding to picture
        config.parts.clip = load_file(f"{HERE}/clip_{data}.py")  # that embeds captions
    return config
