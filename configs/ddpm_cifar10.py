"""DDPM on CIFAR-10 as published: unconditional, L_simple, the paper's network of 35.7M parameters.

    pip install 'diffjax[tfds]' && tfds build cifar10 --file_format=array_record --data_dir=DIR
    python launch.py train --config=configs/ddpm_cifar10.py --workdir=runs/cifar10 --config.data.dir=DIR

Time: 800,000 steps of 128 images; not trained to its end by us.
`launch.py benchmark --config=configs/ddpm_cifar10.py` measures the time per step on your machine.
Score: the paper's, FID 3.17 and Inception score 9.46 with all 1000 ancestral steps (Ho et al. 2020, table 1).
Setting: Ho et al. 2020, app. B, and the authors' code. One choice is ours: warm-up of the averaged weights.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("ddpm", "unet", "model.heads", "diffusion", "labels", "diffusion_sampler", data="cifar10")
    config.dtype = "bfloat16"
    config.model.update(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,))
    config.model.update(dropout=0.1, time_conditioning="add", norm_min_channels=0)
    config.diffusion.update(schedule="linear", parameterization="eps", variance="fixed_large")
    config.diffusion.update(class_conditional=False, label_dropout=0.0)
    config.train.update(steps=800_000, batch_size=128, learning_rate=2e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=5000, beta2=0.999, ema_decay=0.9999)
    config.train.update(log_every=100, sample_every=10_000, num_preview_samples=64)
    config.train.update(checkpoint_every=5000, keep_last=3, keep_every=100_000)
    config.sampler.update(name="ancestral", steps=1000, grid="leading")
    return config
