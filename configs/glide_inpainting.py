"""GLIDE's inpainting model: configs/glide_base.py, also conditioned on a masked image.

    python launch.py train --config=configs/glide_inpainting.py --workdir=runs/glide_inpainting
    python launch.py sample --workdir=runs/glide_inpainting --image=FILE --mask=left --prompt="a small red circle" \
                            --num=16 --out=samples.png

Scenes of shapes, or the variant `:emoji`. In a pipeline it is the `base`. Without --image everything is masked.

Time: as configs/glide_base.py; not trained to its end.
Score: not measured.
Setting: Nichol et al. 2021, section 4.3: the trained model is fine-tuned with four more channels; here trained from
scratch.
"""

from ml_collections import ConfigDict

from configs import common, glide_base

VARIANTS = ("shapes", "emoji")


def get_config(variant: str = "shapes") -> ConfigDict:
    config = glide_base.get_config(variant)
    common.add(config, "conditions.masked_image")
    return config
