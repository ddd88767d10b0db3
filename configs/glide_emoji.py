"""GLIDE on emoji of both styles: configs/glide_shapes.py, but for what is below; 32x32 to 64x64.

    python launch.py train --config=configs/glide_emoji.py --config.data.dir=DIR --workdir=runs/glide_emoji
    python launch.py sample --workdir=runs/glide_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

The data are prepared by `python -m diffjax.data.prepare emoji` (see --help).

Time: not trained to its end, which is for one GPU; docs/results has what four minutes of an H100 give.
Score: not measured.
Setting: as configs/glide_shapes.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    config = load_file(f"{HERE}/glide_shapes.py")
    config.data.name = "emoji"  # both styles, and all skin tones
    config.data.image_size = 64  # as Google's are drawn
    for name, file in (("base", "glide_base"), ("upsampler", "upsampler"), ("noised_clip", "noised_clip")):
        config.parts[name] = load_file(f"{HERE}/{file}.py:emoji")
    return config
