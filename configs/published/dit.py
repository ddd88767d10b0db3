"""DiT (Peebles & Xie 2023): class-conditional transformers on the latents of Stable Diffusion's autoencoder.

    python launch.py import --source=DiT-XL-2-256x256.pt --config=configs/published/dit.py:xl2_256 \
                            --workdir=runs/dit --config.codec=runs/autoencoder
    python launch.py train --config=configs/published/dit.py:s2_256 --config.data.dir=DIR --workdir=runs/dit_s2

Meta's DiT-XL-2-256x256.pt (`:xl2_256`) and DiT-XL-2-512x512.pt (`:xl2_512`), on the latents of sd-vae-ft-ema; its
train.py also writes such files. Folders of diffusers (facebook/DiT-XL-2-256) need no --config. The variants `l2_256`,
`b2_256` and `s2_256` are the paper's other sizes, whose weights are not published.

Time: not trained by us; the paper's: 7M steps of 256 images for xl2_256, 3M for xl2_512, 400,000 for the others.
Score: the paper's: FID 2.27 at 256x256 and 3.04 at 512x512 (250 steps, guidance 1.5); after 400,000 steps, without
guidance, 19.5 for xl2_256, 23.3 for l2_256, 43.5 for b2_256 and 68.4 for s2_256.
Setting: Peebles & Xie 2023, section 4 and table 1.
"""

from ml_collections import ConfigDict

from configs import common
from configs.published import autoencoder_kl

VARIANTS = {
    "xl2_256": {"train": {"steps": 7_000_000}},
    "xl2_512": {"data": {"image_size": 512}, "train": {"steps": 3_000_000}},
    "l2_256": {"model": {"width": 1024, "layers": 24, "heads": 16}},
    "b2_256": {"model": {"width": 768, "layers": 12, "heads": 12}},
    "s2_256": {"model": {"width": 384, "layers": 12, "heads": 6}},
}


def get_config(variant: str = "xl2_256") -> ConfigDict:
    config = common.new("latent", "codec", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, *(f"model.{name}" for name in ("architecture", "patch", "width", "layers", "heads")))
    common.add(config, "model.time_embedding", "model.remat")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=1000, flip=True)
    config.model.update(architecture="dit", patch=2, width=1152, layers=28, heads=16, time_embedding="adm")
    config.diffusion.update(schedule="linear", parameterization="eps", loss="hybrid", variance="learned_range")
    config.diffusion.update(class_conditional=True, label_dropout=0.1)
    config.train.update(steps=400_000, batch_size=256, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=0, beta2=0.999, clip_norm=0.0, ema_decay=0.9999)
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=5000)
    config.sampler.update(name="ancestral", steps=250, grid="linspace", threshold="none", guidance=4.0)
    config.published.naming = "dit"
    codec = autoencoder_kl.get_config()
    codec.data.image_size = VARIANTS[variant].get("data", {}).get("image_size", 256) if variant in VARIANTS else 256
    common.add_parts(config, codec=codec)
    return common.vary(config, variant, VARIANTS)
