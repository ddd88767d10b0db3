"""unCLIP's diffusion prior: caption to CLIP image embedding.

    python launch.py train --config=configs/unclip_prior.py --workdir=runs/prior --config.clip=runs/clip

Scenes of shapes, or the variant `:emoji`; configs/unclip_shapes.py includes it.

Time: configs/unclip_shapes.py.
Score: configs/unclip_shapes.py.
Setting: Ramesh et al. 2022: 24 layers of 2048, cosine, x_0 prediction, embeddings scaled by 17.2, batch 4096, 600,000
steps, weight decay 0.06, 64 sampling steps, the better of two samples; here smaller.
"""

from ml_collections import ConfigDict

from configs import common, glide_base

VARIANTS = ("shapes", "emoji")


def get_config(variant: str = "shapes") -> ConfigDict:
    config = glide_base.get_config(variant)
    common.remove(config, "text", "conditions", "model", "diffusion.downsample", "diffusion.crop")
    common.add(config, "clip", "conditions.clip_text", "model.width", "model.layers", "model.heads")
    common.add(config, "diffusion.embedding_scale")
    config.system = "unclip_prior"
    config.conditions.clip_text.embedding = True
    config.model.update(width=128, layers=4, heads=4)
    config.diffusion.update(time_sampling="uniform", parameterization="x0")
    config.diffusion.embedding_scale = 11.3  # sqrt(128)
    config.train.update(steps=4000, weight_decay=0.06, sample_every=0, num_preview_samples=0)  # it outputs no images
    config.sampler.update(steps=64, guidance=1.0, threshold="none")
    return config
