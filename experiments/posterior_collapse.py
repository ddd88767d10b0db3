"""VQ-VAE (van den Oord et al. 2017), section 1: a strong decoder ignores a VAE's latent, but not codes.

    python launch.py reproduce --experiment=experiments/posterior_collapse.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Data, encoder and PixelCNN are the same. The KL term measures the use of a VAE's latent. A VQ-VAE always spends
log2(size) bits per code: its perplexity measures their use. The paper has no numbers. `paper` uses CIFAR-10 with the
encoder of its section 4.1, our PixelCNN, and 64 codes instead of 512.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

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
        Measure("training", "codes_used", heading="proportion of codes in use, last epoch", better="neither"),
    ]


EXPERIMENT = Experiment(
    title="Posterior collapse",
    source="van den Oord, Vinyals & Kavukcuoglu 2017, section 1 (no table)",
    claim="An autoregressive decoder ignores a VAE's latent, but not a VQ-VAE's codes.",
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
        Ordering(
            claim="The decoder needs fewer bits given codes than given the Gaussian latent",
            order=[{"latent": "VQ-VAE"}, {"latent": "VAE"}],
        )
    ],
    scales={
        "smoke": smoke(
            config="configs/posterior_collapse.py",
            duration="a minute on two CPU cores",
            train_steps=60,
            fields={"train.warmup_steps": 10},
            num=8,
            measures=measures(100, 2),
        ),
        "small": Scale(
            config="configs/posterior_collapse.py",
            duration="six trainings of 800 steps, estimated at 35 minutes on one core of an Intel Xeon",
            fields={
                "data.name": "fashion_mnist",
                "data.image_size": 14,
                "train.steps": 800,
                "train.num_preview_samples": 0,
            },
            seeds=(0, 1, 2),
            num=8,
        ),
        "paper": Scale(
            config="configs/posterior_collapse.py",
            duration="two trainings of 250,000 steps",
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
                "train.learning_rate_schedule": "constant",
                "train.num_preview_samples": 0,
            },
            num=8,
            measures=measures(10_000, 4),
        ),
    },
)
