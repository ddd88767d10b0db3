"""GLIDE's model for in-painting: configs/glide_base.py, told the picture with a part erased too.

    python launch.py train --config=configs/glide_inpainting.py --workdir=runs/glide_inpainting
    python launch.py sample --workdir=runs/glide_inpainting --image=FILE --mask=left --prompt="a small red circle" \
                            --num=16 --out=samples.png

Of scenes of shapes, or `:emoji`; in a chain it is the `base`. Where no --image is given all is painted.

Time: as configs/glide_base.py; not trained to its end.
Score: not measured.
Setting: Nichol et al. 2021, section 4.3: the trained model goes on with four more channels; here from the start.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/glide_base.py:{data}")
    with config.unlocked():
        config.conditions.erased_image = ConfigDict()
        config.conditions.erased_image.everything = 0.25  # share of examples of which all is erased
    return config
