"""EDM2 on scikit-learn's 8x8 digits: magnitude-preserving layers, a learned weight per noise level, post-hoc averages.

    python launch.py train --config=configs/edm2_digits.py --workdir=runs/edm2_digits
    python launch.py ema   --workdir=runs/edm2_digits --length=0.075

Time: not measured.
Score: not measured.
Setting: Karras et al. 2024, configuration G: 192 channels, multipliers 1, 2, 3, 4, three blocks per level, batches of
2,048, learning rate 0.01 that decays with the inverse square root of the step; P_mean -0.4, P_std 1.0 for latents of
512x512 images.
"""

from ml_collections import ConfigDict

from configs import common

SIGMA = 0.75  # standard deviation of these images


def get_config() -> ConfigDict:
    config = common.new("ddpm", "edm2", "diffusion", "labels", "diffusion_sampler", "train.ema_lengths")
    config.data.update(name="digits", image_size=8)
    config.model.update(architecture="edm2", channels=32, multipliers=(1, 2), attention_resolutions=(4,))
    config.diffusion.update(schedule="edm", continuous=True, parameterization=f"edm(sigma_data={SIGMA})")
    config.diffusion.update(weighting="learned", time_sampling="log_normal(mean=-0.4,std=1)")
    config.train.update(steps=1000, batch_size=128, learning_rate=1e-2, learning_rate_schedule="constant")
    config.train.update(clip_norm=0.0, ema_decay=0.995, ema_lengths=(0.05, 0.1))
    config.sampler.update(name="heun", steps=18, grid="karras", threshold="none")
    return config
