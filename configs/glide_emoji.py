"""GLIDE on emoji of both styles: configs/glide_shapes.py with the changes below; 32x32 to 64x64.

    python launch.py train --config=configs/glide_emoji.py --config.data.dir=DIR --workdir=runs/glide_emoji
    python launch.py sample --workdir=runs/glide_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

`python -m diffjax.data.prepare emoji` prepares the data (see --help).

Time: sized for one GPU and not trained to its end; docs/results has the result of four minutes of an H100.
Score: not measured.
Setting: as configs/glide_shapes.py.
"""

from ml_collections import ConfigDict

from configs import common, glide_shapes


def get_config() -> ConfigDict:
    config = glide_shapes.get_config()
    config.data.update(name="emoji", image_size=64)  # the native size of Google's emoji
    common.add_parts(
        config, base="glide_base.py:emoji", upsampler="upsampler.py:emoji", noised_clip="noised_clip.py:emoji"
    )
    return config
