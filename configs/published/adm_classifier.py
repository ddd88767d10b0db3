"""ADM's classifiers of noised images, for classifier guidance of adm.py.

    python launch.py import --source=64x64_classifier.pt --config=configs/published/adm_classifier.py:64 \
                            --workdir=runs/adm_classifier_64
    python launch.py sample --workdir=runs/adm_64 --classifier=runs/adm_classifier_64 --out=samples.png

Files of github.com/openai/guided-diffusion, by variant: `64`, `128`, `256`, `512` are 64x64_classifier.pt and so on.

Time: 300,000 steps of 256 images at 128x128; not trained by us.
Score: not measured.
Setting: flags of the repository's README, which has those of training for 128x128; Dhariwal & Nichol 2021, appendix I,
for the others.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "64": {
        "data": {"image_size": 64},
        "model": {"multipliers": (1, 2, 3, 4), "blocks": 4},
        "diffusion": {"schedule": "cosine"},
        "train": {"batch_size": 1024, "learning_rate": 6e-4, "weight_decay": 0.2},
    },
    "128": {"data": {"image_size": 128}, "model": {"multipliers": (1, 1, 2, 3, 4)}},
    "256": {"train": {"steps": 500_000}},
    "512": {"data": {"image_size": 512}, "model": {"multipliers": (0.5, 1, 1, 2, 2, 4, 4)}},
}


def get_config(variant: str = "256") -> ConfigDict:
    config = common.new("classifier", "unet", "model.head_channels", "model.pool", "noising", "published")
    common.add(config, "model.resample", "model.norm_epsilon", "model.time_embedding", "model.downsample_padding")
    common.add(config, "model.initializer")
    config.data.update(name="folder", image_size=256, channels=3, num_classes=1000)
    config.model.update(channels=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention_resolutions=(32, 16, 8))
    config.model.update(head_channels=64, pool="attention", resample="residual", initializer="torch")
    config.model.update(norm_epsilon=1e-5, norm_min_channels=0, time_embedding="adm", downsample_padding="symmetric")
    config.diffusion.schedule = "linear"
    config.train.update(steps=300_000, batch_size=256, learning_rate=3e-4, weight_decay=0.05, warmup_steps=0)
    config.train.update(clip_norm=0.0, beta2=0.999, sample_every=0, num_preview_samples=0, checkpoint_every=10_000)
    config.published.update(naming="openai", attention_order="by_head")
    return common.vary(config, variant, VARIANTS)
