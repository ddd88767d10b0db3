"""VQ-VAE (van den Oord et al. 2017), section 4.1: bits/dim from codes and from a Gaussian latent.

    python launch.py reproduce --experiment=experiments/vqvae_bits.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Both are bounds; a VQ-VAE's takes every code to be equally likely, log2(size) bits each. The paper has 8x8x10 codes an
image, as the last label has, the others 8x8. It varied the sizes of both latents, and does not say which gave its
figures. It also has VIMCO, 5.14, which we have not.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale


def codes(size: int, **fields):
    return lambda config: {"config": f"configs/vqvae.py:{config.data.name}", "codes.size": size, **fields}


TEN = {"codes.kind": "product", "codes.depth": 10, "model.latent_channels": 80}
LATENT = {
    "VAE": {},
    "VQ-VAE, 32 codes": codes(32),
    "VQ-VAE, 128 codes": codes(128),
    "VQ-VAE, 512 codes": codes(512),
    "VQ-VAE, 512 codes, 10 a place": codes(512, **TEN),
}
LOGISTIC = {"loss.likelihood": "logistic", "train.sample_count": 0}


BETTER = {"elbo": "lower", "nll": "lower", "kl": "neither"}


def measures(distance: str, num: int, draws: int) -> list[Measure]:
    bits = {"elbo": "bits/dim, ELBO", "nll": "bits/dim, decoder", "kl": "bits/dim, latent"}
    settings = {"num": num, "draws": draws}
    return [
        *(Measure("nll", name, heading, BETTER[name], settings) for name, heading in bits.items()),
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings={"num": num}),
        Measure("reconstruction", "codes.0.perplexity", "perplexity of the codes", "higher", settings={"num": num}),
        Measure(distance),
    ]


EXPERIMENT = Experiment(
    title="VQ-VAE, section 4.1: bits/dim",
    source="van den Oord, Vinyals & Kavukcuoglu 2017, section 4.1",
    claim="Codes come near the likelihood of a Gaussian latent.",
    axes=[Axis("latent", LATENT)],
    measures=measures("rfd_effnet_lite0", 1000, 16),
    papers=[
        Paper(
            "bits/dim, CIFAR-10",
            {("VAE",): 4.51, ("VQ-VAE, 512 codes, 10 a place",): 4.67},
        )
    ],
    orderings=[
        Ordering(
            "The Gaussian latent needs fewer bits", [{"latent": "VAE"}, {"latent": "VQ-VAE, 512 codes, 10 a place"}]
        )
    ],
    scales={
        "smoke": Scale(
            "configs/vae.py",
            "a minute on two CPU cores",
            fields={**LOGISTIC, "train.steps": 300, "train.warmup_steps": 30},
            axes={"latent": ("VAE", "VQ-VAE, 32 codes", "VQ-VAE, 512 codes")},
            num=100,
            measures=measures("rfd_pixels", 100, 4),
        ),
        "small": Scale(
            "configs/vae.py:cifar10",
            "a night on two CPU cores",
            fields={**LOGISTIC, "train.steps": 5000},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            "configs/vae.py:cifar10",
            "five trainings of 250,000 steps",
            fields={
                **LOGISTIC,
                "data.flip": False,
                "model.channels": 256,
                "model.residual_channels": 256,
                "train.steps": 250_000,
                "train.batch_size": 128,
                "train.learning_rate": 2e-4,
                "train.schedule": "constant",
            },
            num=10_000,
            measures=measures("rfid", 10_000, 16),
        ),
    },
)
