"""EDM on ImageNet 64x64, class-conditional: ADM's network with EDM's preconditioning, loss and training settings.

    python launch.py import --source=edm-imagenet-64x64-cond-adm.safetensors \
                            --config=configs/published/edm_imagenet64.py --workdir=runs/edm_imagenet64
    python launch.py train --config=configs/published/edm_imagenet64.py --config.data.dir=DIR --workdir=runs/edm

NVIDIA's edm-imagenet-64x64-cond-adm.pkl, after a conversion in the environment of its code (github.com/NVlabs/edm), as
the pickle contains source code: `safetensors.torch.save_file(pickle.load(file)["ema"].state_dict(), NAME)`. Networks of
other data sets are SongUNets (DDPM++, NCSN++), which are not supported.

Time: 2.5 billion images, 13 days on 32 A100 GPUs; not trained by us.
Score: the paper's FID is 1.36, with 511 evaluations of the network and noise in the sampler.
Setting: the repository's README: duration 2500, batch 4096, learning rate 1e-4, EMA half-life 50 million images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.new("ddpm", "unet", "model.head_channels", "diffusion", "labels", "diffusion_sampler", "published")
    common.add(config, "model.norm_epsilon", "model.time_embedding", "model.downsample_padding", "model.initializer")
    config.data.update(name="folder", image_size=64, channels=3, num_classes=1000, flip=False)
    config.model.update(channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention_resolutions=(32, 16, 8))
    config.model.update(head_channels=64, dropout=0.1, time_conditioning="scale_shift", resample="residual")
    config.model.update(norm_epsilon=1e-5, time_embedding="adm", downsample_padding="symmetric", initializer="torch")
    config.diffusion.update(schedule="edm", continuous=True, parameterization="edm", label_dropout=0.0)
    config.diffusion.time_sampling = "log_normal(mean=-1.2, std=1.2)"  # distribution of ln(sigma)
    config.train.update(steps=610_352, batch_size=4096, learning_rate=1e-4, learning_rate_schedule="constant")
    config.train.update(warmup_steps=2441, clip_norm=0.0, beta2=0.999)  # warm-up over 10 million images
    config.train.ema_decay = 0.99994322  # half-life of 50 million images
    config.train.update(sample_every=10_000, num_preview_samples=16, checkpoint_every=5000)
    config.sampler.update(name="heun", steps=40, grid="karras(rho=7)", threshold="none")  # 79 network evaluations
    config.published.naming = "edm"
    return config
