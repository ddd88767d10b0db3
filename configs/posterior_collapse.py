"""Does a latent survive a strong autoregressive decoder? Gaussian (":vae") or discrete (":vqvae"), the rest alike.

    python launch.py reproduce --experiment=experiments/posterior_collapse.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

trains both on Fashion-MNIST at 14x14, three seeds of each; one of them, on the digits:

    python launch.py train --config=configs/posterior_collapse.py:vae --workdir=runs/collapse_vae

Time: both on Fashion-MNIST take about 25 min a seed on two cores of an AMD EPYC that other jobs shared.
Score: after 800 steps of 64 images the VAE's KL is 1.4 bits an image; of VQ-VAE's codes all are in use, perplexity 20
of 64, and its decoder needs 3.58 bits/dim where the VAE's needs 3.92 (docs/results).
Setting: the claim of van den Oord et al. 2017, sec. 1: discrete latents are not ignored where the decoder is powerful,
here a gated PixelCNN whose outputs see 12 pixels up and to the left.
"""

from ml_collections import ConfigDict

from diffjax.errors import unknown

LATENTS = ("vae", "vqvae")


def get_config(latent: str = "vae") -> ConfigDict:
    if latent not in LATENTS:
        raise unknown("latent of configs/posterior_collapse.py", latent, LATENTS)
    config = ConfigDict()
    config.seed = 0  # of the weights, the order of the data and all noise
    config.system = latent  # the module of diffjax/models
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

    config.pixelcnn = ConfigDict()  # the autoregressive decoder, which sees the pixels so far and the decoded latent
    config.pixelcnn.features = 32  # of each layer
    config.pixelcnn.layers = 6  # gated layers
    config.pixelcnn.kernel = 5  # side of the windows they see
    config.pixelcnn.dropout = 0.0  # in each layer

    config.loss = ConfigDict()
    config.loss.likelihood = "logistic"  # l1 | l2(variance=0.1) | logistic | logit_laplace
    config.loss.perceptual_file = ""  # EfficientNet-Lite0's weights; "": no perceptual loss
    config.loss.perceptual_weight = 1.0  # of the perceptual loss
    if latent == "vae":
        config.loss.beta = 1.0  # of the KL; 1: the ELBO
        config.loss.free_bits = 0.0  # of a channel, below which its KL is not counted
    else:
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
        config.codes.restart_below = 0.0  # no code is restarted: what is in use is in use by itself
        config.codes.initial = "data"  # "normal" | "data" | "kmeans": of latents of the first batch

    config.train = ConfigDict()
    config.train.steps = 600  # updates of the weights
    config.train.batch_size = 64  # over all devices
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
    config.train.sample_every = 0  # steps between sheets, 0: only at the end
    config.train.sample_count = 100  # images in a sheet, 0: no sheets
    config.train.checkpoint_every = 500  # steps between checkpoints, 0: only at the end
    config.train.keep_last = 2  # checkpoints kept, 0: all
    config.train.keep_every = 0  # and every checkpoint divisible by this; 0: no others

    if latent == "vae":
        config.sampler = ConfigDict()  # what sample does unless told otherwise
        config.sampler.temperature = 1.0  # of the latents that are drawn

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # "jit" (global arrays) | "pmap" (one SPMD program per device)
    config.parallel.count = 0  # devices of all processes together, 0: every one
    config.parallel.fsdp = 1  # devices that share one copy of the weights; only with "jit"
    return config
