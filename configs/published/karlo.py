"""Karlo (Kakao Brain 2022): unCLIP, trained on 115M captioned images.

    python launch.py import --source=karlo-v1-alpha/prior --workdir=runs/karlo_prior
    python launch.py train --config=configs/published/karlo.py:prior --config.clip=runs/clip_l14 \
                           --config.train.start=runs/karlo_prior --workdir=runs/fine_tuned

`prior`: caption to CLIP image embedding; the folder prior/ of a repository of diffusers' UnCLIPPipeline, such as
kakaobrain/karlo-v1-alpha, next to its folders text_encoder/, tokenizer/ and prior_scheduler/. It needs no --config.
Training requires the image encoder too: runs/clip_l14 is the import of configs/published/clip.py:vit_l14.

Time: not trained by us.
Score: not measured.
Setting: Ramesh et al. 2022, with OpenAI's CLIP ViT-L/14; the release's description: 1.0B parameters, 25 sampling steps.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import clip

VARIANTS = {"prior": {}}


def get_config(variant: str = "prior") -> ConfigDict:
    config = common.new("unclip_prior", "clip", "diffusion", "diffusion_sampler", "conditions.clip_text")
    common.add(config, "model.width", "model.layers", "model.heads", "model.dropout")
    common.add(config, "diffusion.embedding_scale", "diffusion.standardize_embeddings")
    config.data.update(name="folder", image_size=224, channels=3, num_classes=0)
    config.model.update(width=2048, layers=20, heads=32)
    config.conditions.clip_text.update(embedding=True, unit_length=False, null="empty")
    config.diffusion.update(schedule="cosine", parameterization="x0", standardize_embeddings=True)
    config.train.update(steps=1_000_000, batch_size=2048, learning_rate=1e-4, weight_decay=0.06)
    config.train.update(sample_every=0, num_preview_samples=0, ema_decay=0.9999)  # it outputs no images
    config.sampler.update(name="ancestral", steps=25, grid="linspace", threshold="clip(limit=10)", guidance=4.0)
    encoder = clip.get_config("sd1_text")
    encoder.model.dimensions = 768
    encoder.text_encoder.padding = 0
    common.add_parts(config, clip=encoder)
    return common.vary(config, variant, VARIANTS)
