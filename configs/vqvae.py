"""VQ-VAE: a discrete latent with a codebook of running means.

    python launch.py train --config=configs/vqvae.py --workdir=runs/vqvae
    python launch.py train --config=configs/vqvae.py:fashion_mnist --config.data.dir=DIR --workdir=runs/vqvae_fashion

Time: 15 s on two cores of an AMD EPYC that other jobs shared.
Score: MSE 0.0097 on the 360 test digits, perplexity 54 of 64 codes
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: van den Oord et al. 2017: 256 channels, 512 codes, batch 128, learning rate 2e-4, 250,000 steps; here smaller.
"""

from ml_collections import ConfigDict

from diffjax.errors import unknown

DATA = {  # what differs from the digits
    "digits": {},
    "fashion_mnist": {
        "data.name": "fashion_mnist",
        "data.image_size": 28,
        "model.channels": 64,
        "model.residual_channels": 32,
        "model.factor": 4,
        "model.latent_channels": 32,
        "codes.size": 256,
        "train.steps": 1500,
        "train.batch_size": 64,
    },
    "cifar10": {
        "data.name": "cifar10",
        "data.image_size": 32,
        "data.flip": True,
        "model.channels": 64,
        "model.residual_channels": 32,
        "model.factor": 4,
        "model.latent_channels": 32,
        "codes.size": 512,
        "train.steps": 20000,
    },
    "shapes": {
        "data.name": "shapes",
        "data.image_size": 32,
        "model.channels": 64,
        "model.residual_channels": 32,
        "model.factor": 4,
        "model.latent_channels": 32,
        "codes.size": 512,
        "loss.likelihood": "l2(variance=0.05)",
        "train.steps": 4000,
        "train.batch_size": 64,
    },
    "emoji": {
        "data.name": "emoji",
        "data.image_size": 32,
        "model.channels": 64,
        "model.residual_channels": 32,
        "model.factor": 4,
        "model.latent_channels": 32,
        "codes.size": 256,
        "train.steps": 4000,
        "train.batch_size": 64,
    },
}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise unknown("data set of configs/vqvae.py", data, DATA)
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "vqvae"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "digits"  # digits | fashion_mnist | cifar10 | emoji | shapes
    config.data.dir = ""  # where prepared data sets lie; digits need none
    config.data.split = "train"  # or a part of a prepared set, such as train[:1000]
    config.data.image_size = 8  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.model = ConfigDict()  # of the encoder and the decoder
    config.model.architecture = "vqvae"  # "vqvae" | "ldm" | "dalle": diffjax/nn/autoencoders
    config.model.channels = 32  # of the features
    config.model.residual_channels = 16  # within the residual blocks
    config.model.blocks = 2  # residual blocks
    config.model.factor = 2  # f, by which the sides of an image are divided
    config.model.latent_channels = 16  # of the latent

    config.codes = ConfigDict()
    config.codes.kind = "vq"  # "vq" | "residual" | "product" | "fsq"
    config.codes.size = 64  # codes, of each codebook
    config.codes.depth = 1  # codebooks, of "residual" and "product"
    config.codes.shared = False  # one codebook for all depths of kind=residual, as RQ-VAE
    config.codes.levels = ()  # of "fsq": that of each latent channel, such as (8, 5, 5, 5)
    config.codes.learned = "ema"  # "ema" (running means) | "gradient" (the codebook loss)
    config.codes.decay = 0.99  # of the running means
    config.codes.commitment = 0.25  # weight of |z - sg(e)|^2
    config.codes.cosine = False  # compare directions only
    config.codes.restart_below = 0.03  # restart codes used less than this share of the mean; 0: never
    config.codes.initial = "data"  # "normal" | "data" | "kmeans": of latents of the first batch

    config.loss = ConfigDict()
    config.loss.likelihood = "l2(variance=0.2)"  # l1 | l2(variance=0.1) | logistic | logit_laplace
    config.loss.perceptual_file = ""  # EfficientNet-Lite0's weights; "": no perceptual loss
    config.loss.perceptual_weight = 1.0  # of the perceptual loss

    config.train = ConfigDict()
    config.train.steps = 600  # updates of the weights
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 1e-3  # of Adam, once warm
    config.train.schedule = "cosine"  # after the warm-up, "constant" | "cosine" (to zero at the last step)
    config.train.warmup_steps = 100  # linear from zero
    config.train.clip_norm = 1.0  # of the whole gradient; 0: not clipped
    config.train.weight_decay = 0.0  # decoupled, as AdamW
    config.train.beta1 = 0.9  # of Adam: its mean of gradients
    config.train.beta2 = 0.99  # of Adam: its mean of squares
    config.train.ema_decay = 0.995  # of the averaged weights that are kept for use
    config.train.skip_limit = 10  # steps in a row that are skipped as their gradient is not finite; more stop the run
    config.train.log_every = 10  # steps between lines of metrics.jsonl, 0: only the last
    config.train.sample_every = 500  # steps between sheets, 0: only at the end
    config.train.sample_count = 100  # images in a sheet, 0: no sheets
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    config.update_from_flattened_dict(DATA[data])
    return config
