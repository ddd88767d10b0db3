"""A gated PixelCNN over the codes of a VQ-VAE.

    python launch.py train --config=configs/prior_pixelcnn.py --config.codec=runs/vqvae --workdir=runs/prior_pixelcnn
    python launch.py train --config=configs/prior_pixelcnn.py:fashion_mnist --config.codec=runs/vqvae_fashion \
                           --config.data.dir=DIR --workdir=runs/prior_pixelcnn_fashion

Time: 62 s on two cores of an AMD EPYC that other jobs shared.
Score: 3.32 bits a code of configs/vqvae.py on the 360 test digits, 6 being uniform (`evaluate --metrics=nll`).
Setting: van den Oord et al. 2017 over 32x32 codes of ImageNet; here smaller.
"""

from ml_collections import ConfigDict

from diffjax.errors import unknown

DATA = {  # what differs from the digits
    "digits": {},
    "fashion_mnist": {
        "data.name": "fashion_mnist",
        "data.image_size": 28,
        "model.features": 64,
        "model.layers": 8,
        "train.steps": 2000,
        "train.batch_size": 64,
    },
    "cifar10": {
        "data.name": "cifar10",
        "data.image_size": 32,
        "data.flip": True,
        "model.features": 128,
        "model.layers": 12,
        "train.steps": 20000,
    },
    "emoji": {
        "data.name": "emoji",
        "data.image_size": 32,
        "model.features": 64,
        "model.layers": 8,
        "train.steps": 4000,
    },
}


def get_config(data: str = "digits") -> ConfigDict:
    if data not in DATA:
        raise unknown("data set of configs/prior_pixelcnn.py", data, DATA)
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = "prior"  # the module of diffjax/models
    config.dtype = "float32"  # of the computation, "float32" | "bfloat16"; weights and losses are float32

    config.data = ConfigDict()
    config.data.name = "digits"  # digits | fashion_mnist | cifar10 | emoji | shapes
    config.data.dir = ""  # where prepared data sets lie; digits need none
    config.data.split = "train"  # or a part of a prepared set, such as train[:1000]
    config.data.image_size = 8  # height and width; other sizes are resized
    config.data.background = "white"  # of emoji, "white" | "transparent"
    config.data.flip = False  # mirror half of the images
    config.data.corrupt = "raise"  # what an example that cannot be read does: "raise" | "skip"

    config.codec = "runs/vqvae"  # workdir of the trained autoencoder whose codes these are

    config.model = ConfigDict()
    config.model.architecture = "pixelcnn"  # "pixelcnn" (one level) | "transformer"
    config.model.features = 48  # of each layer
    config.model.layers = 6  # gated layers
    config.model.kernel = 3  # side of the windows they see
    config.model.dropout = 0.1  # in each layer
    config.model.condition = "label"  # "none" | "label" | "text" | "clip", what it is told of an image
    config.model.condition_dropout = 0.0  # share of them withheld, for classifier-free guidance

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

    config.sampler = ConfigDict()  # what sample does unless told otherwise
    config.sampler.temperature = 1.0  # of the codes that are drawn
    config.sampler.top_k = 0  # only the k most likely codes; 0: all
    config.sampler.top_p = 1.0  # only the most likely ones that together have this probability; 1: all
    config.sampler.guidance = 1.0  # scale of classifier-free guidance on logits; 1: none

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"

    config.update_from_flattened_dict(DATA[data])
    return config
