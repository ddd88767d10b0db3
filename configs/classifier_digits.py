"""A classifier of noised digits, to guide configs/digits.py by: ADM's classifier guidance, minutes on a CPU.

    python launch.py train --config=configs/classifier_digits.py --workdir=runs/classifier_digits
    python launch.py sweep --workdir=runs/digits --classifier=runs/classifier_digits --classifier_scale=0,1,3

Time: 5 min on two cores of an AMD EPYC that other jobs shared.
Score: of the 360 test images 99% are told right without noise, 94% at t = 376, 81% half way (t = 500), by chance at the
end: `launch.py evaluate --workdir=runs/classifier_digits --metrics=accuracy --num=360` measures it.
Setting: half of configs/digits.py's UNet with attention pooling, as in Dhariwal & Nichol 2021, sec. 4 and app. H.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "classifier"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "digits"  # digits | fashion_mnist | cifar10 | emoji | shapes
    config.data.dir = ""  # where prepared data sets lie; digits need none
    config.data.split = "train"  # 1,437 images; the other 360 are the split test
    config.data.image_size = 8  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images; a mirrored digit is no digit
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.model = ConfigDict()  # fields of diffjax.nn.unet.UNet
    config.model.channels = 32  # at the first level
    config.model.multipliers = (1, 2)  # of the channels at each level: 8x8, 4x4
    config.model.blocks = 1  # residual blocks a level, one more on the way up
    config.model.attention_resolutions = (4,)  # heights of the feature maps that attend
    config.model.heads = 1  # of the attention
    config.model.pool = "attention"  # what turns the features into logits: "attention" | "mean"
    config.model.dropout = 0.0  # in the residual blocks
    config.model.time_conditioning = "scale_shift"  # "add" | "scale_shift" (adaptive group norm)
    config.model.resample = "conv"  # "conv" | "pool" | "residual" (BigGAN)
    config.model.norm_groups = 32  # groups of group norm
    config.model.norm_min_channels = 4  # least channels of a group; 0: exactly norm_groups

    config.diffusion = ConfigDict()  # what noises the images: as in the diffusion model that is to be guided
    config.diffusion.schedule = "cosine"  # see docs/diffusion.md
    config.diffusion.zero_terminal_snr = False  # shift the schedule so that no signal is left at its end
    config.diffusion.timesteps = 1000  # T
    config.diffusion.continuous = False  # train on every real time instead of T levels
    config.diffusion.rescale_timesteps = False  # give the network (t - 1) * 1000 / T instead of t - 1
    config.diffusion.times = "uniform"  # how training draws them: uniform | log_normal | logit_normal | importance

    config.train = ConfigDict()
    config.train.steps = 1000  # updates of the weights
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 1e-3  # of Adam, once warm
    config.train.schedule = "cosine"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 100  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.0  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.99  # of Adam: its mean of squares
    config.train.ema_decay = 0.995  # of the averaged weights that samples are drawn with
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 10  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 0  # a classifier draws no samples
    config.train.sample_count = 0  # nor a grid of them
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"
    return config
