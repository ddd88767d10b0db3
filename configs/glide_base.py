"""GLIDE's first stage: small pictures of a caption, which a transformer of its own reads.

    python launch.py train --config=configs/glide_base.py --workdir=runs/glide_base

Of scenes of shapes 16x16, `:emoji` behind the file's name 32x32 of emoji. configs/glide_shapes.py and
configs/glide_emoji.py train it with its upsampler. Of shapes half of the training is at times when noise hides where
the objects are: only there a caption's "left of" is of use, and at uniform times it is not learned; with still less at
little noise shapes are not (docs/results).

Time: configs/glide_shapes.py.
Score: configs/glide_shapes.py.
Setting: Nichol et al. 2021: 64x64 pictures, ADM's UNet at 512 channels, a text transformer of 24 layers of 2048, batch
2048, 2.5M steps, then 20 % of the captions empty; here smaller.
"""

from ml_collections import ConfigDict

from diffjax.errors import unknown

DATA = {  # what differs from shapes
    "shapes": {},
    "emoji": {
        "data.name": "emoji",
        "data.image_size": 64,
        "text.vocabulary": 2048,
        "text.length": 26,
        "diffusion.times": "uniform",  # its captions say of no two things where they are
        "model.channels": 128,
        "model.multipliers": (1, 2, 2, 2),
        "model.attention_resolutions": (16, 8),
        "model.dropout": 0.1,
        "train.steps": 60_000,
        "train.learning_rate": 2e-4,
        "train.ema_decay": 0.9995,
    },
}


def get_config(data: str = "shapes") -> ConfigDict:
    if data not in DATA:
        raise unknown("data set of configs/glide_base.py", data, DATA)
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "ddpm"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "shapes"  # shapes | emoji: what has captions
    config.data.dir = ""  # where prepared data sets lie; shapes need none
    config.data.split = "train"  # or a part of a prepared set, such as train[:1000]
    config.data.image_size = 32  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images: left would be right
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.text = ConfigDict()
    config.text.tokenizer = ""  # file of a vocabulary, such as CLIP's; "": one is trained on the captions
    config.text.vocabulary = 512  # tokens it may have: two, 256 bytes, and what is merged of them
    config.text.length = 16  # tokens of every text, with start and end; longer ones are cut

    config.conditions = ConfigDict()  # what the network is told: diffjax/models/diffusion/conditions.py
    config.conditions.caption = ConfigDict()  # fields of diffjax.nn.caption_encoder.CaptionEncoder
    config.conditions.caption.width = 128  # of the features
    config.conditions.caption.layers = 3  # of attention and perceptron
    config.conditions.caption.heads = 4  # of the attention
    config.conditions.caption.dropout = 0.1  # share of captions withheld, for classifier-free guidance

    config.model = ConfigDict()
    config.model.architecture = "unet"  # "unet" | "dit", whose fields are others: diffjax/nn/{unet,dit}.py
    config.model.channels = 48  # at the first level
    config.model.multipliers = (1, 2, 2)  # of the channels at each level: 16x16, 8x8, 4x4
    config.model.blocks = 1  # residual blocks a level, one more on the way up
    config.model.attention_resolutions = (8, 4)  # heights of the feature maps that attend
    config.model.head_channels = 32  # of each head of the attention
    config.model.dropout = 0.0  # in the residual blocks
    config.model.time_conditioning = "scale_shift"  # "add" | "scale_shift" (adaptive group norm)
    config.model.resample = "conv"  # "conv" | "pool" | "residual" (BigGAN)
    config.model.norm_groups = 32  # groups of group norm
    config.model.norm_min_channels = 4  # least channels of a group; 0: exactly norm_groups
    config.model.residual_scale = 1.0  # of the sum of each residual block: ADM tries 1/sqrt(2)

    config.diffusion = ConfigDict()  # docs/diffusion.md lists every choice; options stand in brackets: min_snr(gamma=3)
    config.diffusion.downsample = 2  # factor by which pictures are averaged down before they are diffused
    config.diffusion.crop = 0  # side of the squares that it is trained on; 0: whole pictures
    config.diffusion.schedule = "cosine"  # linear | scaled_linear | cosine | sigmoid | edm | rectified_flow | ...
    config.diffusion.zero_terminal_snr = False  # shift the schedule so that no signal is left at its end
    config.diffusion.timesteps = 1000  # T
    config.diffusion.continuous = False  # train on every real time instead of T levels
    config.diffusion.rescale_timesteps = False  # give the network (t - 1) * 1000 / T instead of t - 1
    config.diffusion.parameterization = "v"  # what the network predicts: eps | x0 | v | flow | edm | mu
    config.diffusion.loss = "mse"  # mse | vlb | hybrid
    config.diffusion.weighting = "simple"  # of mse: simple | snr | truncated_snr | min_snr | p2 | edm
    config.diffusion.times = "logit_normal(mean=1,std=2)"  # uniform | log_normal | logit_normal | importance
    config.diffusion.variance = "fixed_small"  # of ancestral and the bound: fixed_small | fixed_large | learned_range

    config.train = ConfigDict()
    config.train.steps = 6000  # updates of the weights
    config.train.batch_size = 48  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 1e-3  # of Adam, once warm
    config.train.schedule = "cosine"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 200  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.0  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.99  # of Adam: its mean of squares
    config.train.ema_decay = 0.999  # of the averaged weights that samples are drawn with
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 20  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 2000  # steps between sheets, 0: only at the end
    config.train.sample_count = 64  # images in a sheet, 0: no sheets
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    config.sampler = ConfigDict()  # what sample and sweep do unless told otherwise
    config.sampler.name = "ddim"  # ancestral | ddim(eta=0.5) | heun | dpmpp_2m | unipc | ...
    config.sampler.steps = 50  # 1 to T
    config.sampler.grid = "trailing"  # leading | trailing | linspace | quadratic | karras | ...
    config.sampler.guidance = 2.0  # scale s = 1 + w of classifier-free guidance; 1: none
    config.sampler.guidance_rescale = 0.0  # share of the unguided contrast that is given back
    config.sampler.guidance_low = 0.0  # guided where sigma / alpha is above this ...
    config.sampler.guidance_high = float("inf")  # ... and not above this
    config.sampler.threshold = "clip"  # how each estimate of the image is kept in range: none | clip | dynamic

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    config.update_from_flattened_dict(DATA[data])
    return config
