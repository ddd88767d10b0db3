"""VQ-VAE (van den Oord et al. 2017), section 4.1: bits/dim from codes and from a Gaussian latent.

    python launch.py reproduce --experiment=experiments/vqvae_bits.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Both are upper bounds; that of a VQ-VAE assumes equally likely codes, log2(size) bits each. The paper has 8x8x10 codes
per image, as in the last label; the others have 8x8. It varied the sizes of both latents, and does not give the sizes
of its results. Its VIMCO result, 5.14, is omitted.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

VQVAE = {"config": "configs/vqvae.py:{data}"}
TEN = {"codebook.kind": "product", "codebook.depth": 10, "model.latent_channels": 80}
LATENT = {
    "VAE": {},
    "VQ-VAE, 32 codes": {**VQVAE, "codebook.size": 32},
    "VQ-VAE, 128 codes": {**VQVAE, "codebook.size": 128},
    "VQ-VAE, 512 codes": {**VQVAE, "codebook.size": 512},
    "VQ-VAE, 512 codes, 10 per position": {**VQVAE, **TEN, "codebook.size": 512},
}
LOGISTIC = {"loss.likelihood": "logistic", "train.num_preview_samples": 0}


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
    claim="Codes come close to the likelihood of a Gaussian latent.",
    axes=[Axis("latent", LATENT)],
    measures=measures("recon_fd_effnet_lite0", 1000, 16),
    papers=[
        Paper(
            setting="bits/dim, CIFAR-10",
            values={("VAE",): 4.51, ("VQ-VAE, 512 codes, 10 per position",): 4.67},
        )
    ],
    orderings=[
        Ordering(
            claim="The Gaussian latent needs fewer bits",
            order=[{"latent": "VAE"}, {"latent": "VQ-VAE, 512 codes, 10 per position"}],
        )
    ],
    scales={
        "smoke": smoke(
            config="configs/vae.py",
            duration="a minute on two CPU cores",
            train_steps=300,
            fields={**LOGISTIC, "train.warmup_steps": 30},
            axes={"latent": ("VAE", "VQ-VAE, 32 codes", "VQ-VAE, 512 codes")},
            measures=measures("recon_fd_pixels", 100, 4),
        ),
        "small": Scale(
            config="configs/vae.py:fashion_mnist",
            duration="15 trainings of 1000 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={**LOGISTIC, "train.steps": 1000, "train.batch_size": 64},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/vae.py:cifar10",
            duration="five trainings of 250,000 steps",
            fields={
                **LOGISTIC,
                "data.flip": False,
                "model.channels": 256,
                "model.residual_channels": 256,
                "train.steps": 250_000,
                "train.batch_size": 128,
                "train.learning_rate": 2e-4,
                "train.learning_rate_schedule": "constant",
            },
            num=10_000,
            measures=measures("recon_fid", 10_000, 16),
        ),
    },
)
