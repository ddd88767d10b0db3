"""DALL-E's discrete autoencoder: codes relaxed by Gumbel-softmax.

    python launch.py train --config=configs/dvae.py --workdir=runs/dvae
    python launch.py train --config=configs/dvae.py:fashion_mnist --config.data.dir=DIR --workdir=runs/dvae_fashion

Time: under 2 min on two cores of an AMD EPYC that other jobs shared.
Score: MSE 0.023 on the 360 test digits, perplexity 30 of 64 codes
(`launch.py evaluate --metrics=reconstruction --num=360`). Fashion-MNIST: docs/results.
Setting: Ramesh et al. 2021, app. A: 8192 codes, 256 channels, temperature 1 to 1/16 over 150,000 of 3M steps, KL weight
0 to 6.6 over 5,000, learning rate 1e-4, batch 512; here smaller and shorter, with a smaller weight of the KL.
"""

from ml_collections import ConfigDict

from diffjax.errors import unknown

DATA = {  # what differs from the digits
    "digits": {},
    "fashion_mnist": {
        "data.name": "fashion_mnist",
        "data.image_size": 28,
        "model.channels": 32,
        "model.groups": 3,
        "model.latent_channels": 64,
        "codes.size": 256,
        "codes.temperature_steps": 1200,
        "loss.kl_steps": 500,
        "train.steps": 1500,
        "train.batch_size": 64,
    },
    "cifar10": {
        "data.name": "cifar10",
        "data.image_size": 32,
        "data.flip": True,
        "model.channels": 32,
        "model.groups": 3,
        "model.latent_channels": 64,
        "codes.size": 512,
        "codes.temperature_steps": 15000,
        "loss.kl_steps": 500,
        "train.steps": 20000,
    },
    "emoji": {
        "data.name": "emoji",
        "data.image_size": 32,
        "model.channels": 32,
        "model.groups": 3,
        "model.latent_channels": 64,
        "codes.size": 256,
        "codes.temperature_steps": 1200,
        "loss.kl_steps": 500,
        "train.steps": 4000,
        "train.batch_size": 64,
    },
}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise unknown("data set of configs/dvae.py", data, DATA)
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "dvae"  # the module of diffjax/models
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
    config.model.architecture = "dalle"  # "vqvae" | "ldm" | "dalle": diffjax/nn/autoencoders
    config.model.channels = 32  # at the finest level; they double with each halving
    config.model.groups = 2  # levels; f = 2 ** (groups - 1)
    config.model.blocks = 2  # residual bottlenecks a level
    config.model.latent_channels = 32  # of the latent

    config.codes = ConfigDict()
    config.codes.size = 64  # codes
    config.codes.temperature = 1.0  # of the relaxed codes, at first
    config.codes.temperature_end = 0.0625  # and in the end
    config.codes.temperature_steps = 500  # steps in between

    config.loss = ConfigDict()
    config.loss.likelihood = "logit_laplace(least_scale=0.1)"  # l1 | l2(variance=0.1) | logistic | logit_laplace
    config.loss.perceptual_file = ""  # EfficientNet-Lite0's weights; "": no perceptual loss
    config.loss.perceptual_weight = 1.0  # of the perceptual loss
    config.loss.kl_weight_start = 0.0  # of the KL to the uniform distribution, at first
    config.loss.kl_weight = 1.0  # and in the end
    config.loss.kl_steps = 500  # steps in between

    config.train = ConfigDict()
    config.train.steps = 1000  # updates of the weights
    config.train.batch_size = 128  # over all devices
    config.train.accumulate = 1  # parts the batch is worked through in, to save memory
    config.train.learning_rate = 3e-3  # of Adam, once warm
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
