"""An upsampler to twice the size: configs/glide_base.py, but for what is below.

    python launch.py train --config=configs/upsampler.py --workdir=runs/upsampler

Of scenes of shapes to 32x32, `:emoji` behind the file's name to 64x64 of emoji. It reads no caption and attends to
nothing, is trained on crops, and is told a degraded picture, as unCLIP's are.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 64x64 to 256x256 to 1024x1024, 320 and 192 channels, blurred and degraded by BSR, crops of
a quarter of the picture, batch 1024 and 512, 1M steps, 27 and 15 steps of DDIM; here smaller.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffjax.runs.config_files import load_file

HERE = Path(__file__).parent
DATA = ("shapes", "emoji")


def get_config(data: str = "shapes") -> ConfigDict:
    config = load_file(f"{HERE}/glide_base.py:{data}")
    with config.unlocked():
        del config.text  # it reads none
        config.conditions = ConfigDict()
        config.conditions.smaller_image = ConfigDict()
        config.conditions.smaller_image.factor = 2  # by which its sides are smaller
        config.conditions.smaller_image.degradation = (
            "blur"  # none | blur | noise | bsr: models/diffusion/augmentation.py
        )
        config.model.middle_attention = False  # nothing attends
    config.model.channels = 32 if data == "shapes" else 64  # at the first level
    config.model.multipliers = (1, 2)  # of the channels at each level
    config.model.attention_resolutions = ()  # nothing attends
    config.diffusion.downsample = 1  # it draws pictures of the data's size
    config.diffusion.times = "uniform"  # where everything is it is told
    config.diffusion.crop = config.data.image_size // 2  # a quarter of the picture
    config.train.steps = 2500 if data == "shapes" else 20_000  # updates of the weights
    config.train.sample_every = 0  # steps between sheets, 0: only at the end
    config.train.sample_count = 32  # images in a sheet
    config.sampler.steps = 15  # 1 to T
    config.sampler.guidance = 1.0  # nothing is withheld, so nothing guides
    return config
