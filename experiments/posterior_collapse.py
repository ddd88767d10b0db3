"""VQ-VAE (van den Oord et al. 2017), section 1: under a strong decoder a VAE's latent is ignored, codes are not.

    python launch.py reproduce --experiment=experiments/posterior_collapse.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Same data, same encoder, same PixelCNN. A VAE's latent is used as far as its KL goes; a VQ-VAE's has no KL to fall, and
log2(size) bits a code whether they are used or not: its perplexity says that, and what the decoder needs given either.
The paper gives no figures. `paper` is CIFAR-10 with the encoder of its section 4.1, a PixelCNN of ours, and 64 codes
where it has 512.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale

BETTER = {"elbo": "lower", "nll": "lower", "kl": "neither"}


def measures(num: int, draws: int) -> list[Measure]:
    bits = {
        "nll": "bits/dim, decoder given the latent",
        "kl": "bits/dim, latent",
        "elbo": "bits/dim, ELBO",
    }
    return [
        *(Measure("nll", name, words, BETTER[name], {"num": num, "draws": draws}) for name, words in bits.items()),
        Measure("training", "perplexity", heading="perplexity of the codes, last batch", better="neither"),
        Measure("training", "codes_used", heading="share of the codes in use, last epoch", better="neither"),
    ]


EXPERIMENT = Experiment(
    title="Posterior collapse",
    source="van den Oord, Vinyals & Kavukcuoglu 2017, section 1 (no table)",
    claim="Under an autoregressive decoder a VAE's latent is ignored, and a VQ-VAE's codes are not.",
    axes=[
        Axis(
            "latent",
            {
                "VAE": {"config": "configs/posterior_collapse.py:vae"},
                "VQ-VAE": {"config": "configs/posterior_collapse.py:vqvae"},
            },
        )
    ],
    measures=measures(1000, 4),
    orderings=[
        Ordering("The codes tell the decoder more than the Gaussian latent", [{"latent": "VQ-VAE"}, {"latent": "VAE"}])
    ],
    scales={
        "smoke": Scale(
            "configs/posterior_collapse.py",
            "a minute on two CPU cores",
            fields={"train.steps": 60, "train.warmup_steps": 10, "train.sample_count": 0},
            num=8,
            measures=measures(100, 2),
        ),
        "small": Scale(
            "configs/posterior_collapse.py",
            "two hours on two CPU cores",
            fields={
                "data.name": "fashion_mnist",
                "data.image_size": 14,
                "train.steps": 800,
                "train.sample_count": 0,
            },
            seeds=(0, 1, 2),
            num=8,
        ),
        "paper": Scale(
            "configs/posterior_collapse.py",
            "two trainings of 250,000 steps",
            fields={
                "data.name": "cifar10",
                "data.image_size": 32,
                "model.channels": 256,
                "model.residual_channels": 256,
                "model.factor": 4,
                "pixelcnn.features": 128,
                "pixelcnn.layers": 12,
                "train.steps": 250_000,
                "train.batch_size": 128,
                "train.learning_rate": 2e-4,
                "train.schedule": "constant",
                "train.sample_count": 0,
            },
            num=8,
            measures=measures(10_000, 4),
        ),
    },
)
