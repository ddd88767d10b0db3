"""EDM on CIFAR-10, class-conditional: DDPM++ with EDM's preconditioning, loss and training settings.

    pip install 'diffjax[tfds]' && tfds build cifar10 --file_format=array_record --data_dir=DIR
    python launch.py train --config=configs/edm_cifar10.py --workdir=runs/edm_cifar10 --config.data.dir=DIR

After the file name, `:vp` selects the paper's baseline, configuration A of its table 2, and `:augment` configuration F,
with non-leaky augmentation. F flips images in the augmentation, whose flips the network is conditioned on.

Time: 200 million images; not trained to the end by us. `launch.py benchmark --config=configs/edm_cifar10.py`
measures the time per step on your machine.
Score: the paper's FID is 1.88, 1.79 with augmentation, and 2.48 for the baseline (Karras et al. 2022, table 2).
Setting: Karras et al. 2022, appendix F, configuration E.
Gradient clipping for the baseline is our choice.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "edm": {},
    "augment": {"data": {"flip": False, "augment": {"prob": 0.12}}},
    "vp": {
        "model": {"multipliers": (1, 2, 2, 2), "dropout": 0.1},
        "diffusion": {"schedule": "linear", "parameterization": "eps", "time_sampling": "uniform"},
        "train": {"steps": 1_562_500, "batch_size": 128, "learning_rate": 2e-4, "ema_decay": 0.9999},
    },
}


def get_config(variant: str = "edm") -> ConfigDict:
    config = common.new("ddpm", "unet", "model.heads", "model.residual_scale", "diffusion", "labels", data="cifar10")
    common.add(config, "diffusion_sampler")
    config.model.update(channels=128, multipliers=(2, 2, 2), blocks=4, attention_resolutions=(16,), dropout=0.13)
    config.model.update(time_conditioning="add", resample="residual", residual_scale=0.7071067811865476)
    config.diffusion.update(schedule="edm", continuous=True, parameterization="edm", label_dropout=0.0)
    config.diffusion.time_sampling = "log_normal(mean=-1.2, std=1.2)"  # distribution of ln(sigma)
    config.train.update(steps=390_625, batch_size=512, learning_rate=1e-3, learning_rate_schedule="constant")
    config.train.update(warmup_steps=19_531, clip_norm=0.0, beta2=0.999)  # warm-up over 10 million images
    config.train.ema_decay = 0.9999**7.1  # half-life of 500,000 images
    config.train.update(log_every=20, sample_every=0, num_preview_samples=0, checkpoint_every=5000, keep_last=1)
    config.sampler.update(name="heun", steps=18, grid="karras(rho=7)", threshold="none")  # 35 network evaluations
    if variant == "vp":
        config.train.update(warmup_steps=5000, clip_norm=1.0)
    return common.vary(config, variant, VARIANTS)
