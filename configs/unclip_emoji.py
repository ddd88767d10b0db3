"""DALL-E 2 (unCLIP) on emoji of both styles: configs/unclip_shapes.py, but for what is below.

    python launch.py train --config=configs/unclip_emoji.py --config.data.dir=DIR --workdir=runs/unclip_emoji
    python launch.py sample --workdir=runs/unclip_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

The data are prepared by `python -m diffjax.data.prepare emoji` (see --help).

Time: not trained to its end, which is for one GPU; docs/results has what an hour of two cores gives.
Score: not measured.
Setting: as configs/unclip_shapes.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    config = load_file(f"{HERE}/unclip_shapes.py")
    config.data.name = "emoji"  # both styles, and all skin tones
    config.data.image_size = 64  # as Google's are drawn
    config.parts.clip = load_file(f"{HERE}/clip_emoji.py")  # that embeds pictures and captions
    for name in ("pca", "upsampler"):
        config.parts[name] = load_file(f"{HERE}/{name}.py:emoji")
    for name in ("prior", "ar_prior", "decoder"):
        config.parts[name] = load_file(f"{HERE}/unclip_{name}.py:emoji")
    return config
