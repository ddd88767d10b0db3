"""Class-conditional DDPM on scikit-learn's 8x8 digits, real data that needs no download.

    python launch.py train --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.system = "ddpm"
    config.dtype = "float32"  # of the computation: "float32" | "bfloat16"

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.dir = ""  # where prepared data sets lie; digits need none
    config.data.split = "train"  # 1,437 images
    config.data.image_size = 8
    config.data.flip = False  # a mirrored digit is no digit

    config.model = ConfigDict()
    config.model.channels = 64
    config.model.multipliers = (1, 2)  # 8x8, 4x4
    config.model.blocks = 1
    config.model.attention_resolutions = (4,)
    config.model.heads = 1
    config.model.dropout = 0.0
    config.model.time_conditioning = "scale_shift"
    config.model.resample = "conv"

    config.diffusion = ConfigDict()
    config.diffusion.schedule = "cosine"
    config.diffusion.schedule_options = ConfigDict()
    config.diffusion.timesteps = 1000
    config.diffusion.continuous = False
    config.diffusion.parameterization = "v"
    config.diffusion.weighting = "simple"
    config.diffusion.times = "uniform"
    config.diffusion.variance = "fixed_small"
    config.diffusion.class_conditional = True
    config.diffusion.label_dropout = 0.1  # for classifier-free guidance

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch_size = 128
    config.train.accumulate = 1
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.clip_norm = 1.0
    config.train.weight_decay = 0.0
    config.train.beta2 = 0.99
    config.train.ema_decay = 0.995
    config.train.log_every = 10
    config.train.sample_every = 500
    config.train.sample_count = 100
    config.train.checkpoint_every = 500
    config.train.keep_last = 2
    config.train.keep_every = 0

    config.sampler = ConfigDict()
    config.sampler.name = "ddim"
    config.sampler.steps = 50
    config.sampler.grid = "trailing"
    config.sampler.eta = 0.0
    config.sampler.guidance = 1.5
    config.sampler.clip = True

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"
    config.parallel.count = 0
    config.parallel.fsdp = 1
    return config
