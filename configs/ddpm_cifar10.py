"""DDPM on CIFAR-10 as published: unconditional, L_simple, the paper's network of 35.7M parameters.

    pip install tensorflow && tfds build cifar10 --file_format=array_record --data_dir=DIR
    python launch.py train --config=configs/ddpm_cifar10.py --workdir=runs/cifar10 --config.data.dir=DIR

Time: 800,000 steps of 128 images; not trained to the end by us. `launch.py benchmark --config=configs/ddpm_cifar10.py`
measures a step on your machine: multiply.
Score: the paper's, FID 3.17 and Inception score 9.46 with all 1000 ancestral steps (Ho et al. 2020, table 1).
Setting: Ho et al. 2020, app. B, and the authors' code. One choice is ours: the average of the weights warms up.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "ddpm"  # the module of diffjax/models
    config.dtype = "bfloat16"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "cifar10"  # digits | fashion_mnist | cifar10 | emoji | shapes
    config.data.dir = ""  # where tensorflow-datasets prepared it
    config.data.split = "train"  # 50,000 images
    config.data.image_size = 32  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = True  # mirror half of the images; as the paper's
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.model = ConfigDict()  # fields of diffjax.nn.unet.UNet
    config.model.channels = 128  # at the first level
    config.model.multipliers = (1, 2, 2, 2)  # of the channels at each level: 32x32, 16x16, 8x8, 4x4
    config.model.blocks = 2  # residual blocks a level, one more on the way up
    config.model.attention_resolutions = (16,)  # heights of the feature maps that attend
    config.model.heads = 1  # of the attention
    config.model.dropout = 0.1  # in the residual blocks
    config.model.time_conditioning = "add"  # "add" | "scale_shift" (adaptive group norm)
    config.model.resample = "conv"  # "conv" | "pool" | "residual" (BigGAN)
    config.model.norm_groups = 32  # groups of group norm
    config.model.norm_min_channels = 0  # least channels of a group; 0: exactly norm_groups

    config.diffusion = ConfigDict()  # docs/diffusion.md lists every choice; options stand in brackets: min_snr(gamma=3)
    config.diffusion.schedule = "linear"  # linear | scaled_linear | cosine | sigmoid | edm | rectified_flow | ...
    config.diffusion.zero_terminal_snr = False  # shift the schedule so that no signal is left at its end
    config.diffusion.timesteps = 1000  # T
    config.diffusion.continuous = False  # train on every real time instead of T levels
    config.diffusion.rescale_timesteps = False  # give the network (t - 1) * 1000 / T instead of t - 1
    config.diffusion.parameterization = "eps"  # what the network predicts: eps | x0 | v | flow | edm | mu
    config.diffusion.loss = "mse"  # mse | vlb | hybrid
    config.diffusion.weighting = "simple"  # of mse: simple | snr | truncated_snr | min_snr | p2 | edm
    config.diffusion.times = "uniform"  # how training draws them: uniform | log_normal | logit_normal | importance
    config.diffusion.variance = "fixed_large"  # of ancestral and the bound: fixed_small | fixed_large | learned_range
    config.diffusion.class_conditional = False  # give the network the label
    config.diffusion.label_dropout = 0.0  # share of labels withheld, for classifier-free guidance

    config.train = ConfigDict()
    config.train.steps = 800_000  # updates of the weights
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 2e-4  # of Adam, once warm
    config.train.schedule = "constant"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 5000  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.0  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.999  # of Adam: its mean of squares
    config.train.ema_decay = 0.9999  # of the averaged weights that samples are drawn with
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 100  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 10_000  # steps between sample grids, 0: only at the end
    config.train.sample_count = 64  # images in such a grid, 0: no grids
    config.train.checkpoint_every = 5000  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 3  # checkpoints kept, 0: all
    config.train.keep_every = 100_000  # and every checkpoint divisible by this; 0: no others

    config.sampler = ConfigDict()  # what sample and sweep do unless told otherwise
    config.sampler.name = "ancestral"  # ancestral | ddim(eta=0.5) | heun | dpmpp_2m | unipc | ...
    config.sampler.steps = 1000  # 1 to T
    config.sampler.grid = "leading"  # leading | trailing | linspace | quadratic | karras | ...
    config.sampler.guidance = 1.0  # scale s = 1 + w of classifier-free guidance; 1: none
    config.sampler.guidance_rescale = 0.0  # share of the unguided contrast that is given back
    config.sampler.guidance_low = 0.0  # guided where sigma / alpha is above this ...
    config.sampler.guidance_high = float("inf")  # ... and not above this
    config.sampler.threshold = "clip"  # how each estimate of the image is kept in range: none | clip | dynamic

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"
    return config
