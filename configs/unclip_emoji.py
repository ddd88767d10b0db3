"""DALL-E 2 (unCLIP) on emoji of both styles: configs/unclip_shapes.py with the changes below.

    python launch.py train --config=configs/unclip_emoji.py --config.data.dir=DIR --workdir=runs/unclip_emoji
    python launch.py sample --workdir=runs/unclip_emoji --prompt="red heart, fluent 3d style" --num=16 --out=samples.png

`python -m diffjax.data.prepare emoji` prepares the data (see --help).

Time: sized for one GPU and not trained to its end; docs/results has the result of an hour of two cores.
Score: not measured.
Setting: as configs/unclip_shapes.py.
"""

from ml_collections import ConfigDict

from configs import common, unclip_shapes


def get_config() -> ConfigDict:
    config = unclip_shapes.get_config()
    config.data.update(name="emoji", image_size=64)  # the native size of Google's emoji
    common.add_parts(config, clip="clip_emoji.py", pca="pca.py:emoji", upsampler="upsampler.py:emoji")
    common.add_parts(config, **{name: f"unclip_{name}.py:emoji" for name in ("prior", "ar_prior", "decoder")})
    return config
