"""ADM's upsamplers of ImageNet, from 64x64 to 256x256 and from 128x128 to 512x512: adm.py with the changes below.

    python launch.py import --source=64_256_upsampler.pt --config=configs/published/adm_upsampler.py:64_256 \
                            --workdir=runs/adm_upsampler

Files of github.com/openai/guided-diffusion, by variant: `64_256` is 64_256_upsampler.pt, `128_512` is
128_512_upsampler.pt.

Time: not trained by us.
Score: the paper's FID of the pipeline with classifier guidance: 3.94 at 256x256 and 3.85 at 512x512.
Setting: Dhariwal & Nichol 2021, appendix I; flags of the repository's README.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import adm

VARIANTS = {
    "64_256": {"model": {"heads": 4}},
    "128_512": {"data": {"image_size": 512}, "model": {"attention_resolutions": (32, 16)}},
}


def get_config(variant: str = "64_256") -> ConfigDict:
    config = adm.get_config("256")
    common.add(config, "conditions.low_res_image")
    config.conditions.low_res_image.update(factor=4, degradation="none", level=False)
    config.model.channels = 192
    if variant == "64_256":
        common.remove(config, "model.head_channels")
        common.add(config, "model.heads")
    return common.vary(config, variant, VARIANTS)
