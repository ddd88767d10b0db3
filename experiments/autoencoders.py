"""Every autoencoder of the line on the same images: what comes back of them, and what is used of the codes.

    python launch.py reproduce --experiment=experiments/autoencoders.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

No paper has them side by side. Networks and latents are those of the configs and differ from one to the next, so this
shows that each works and what it does, not which is best.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Scale

FILES = {
    "VAE": "vae",
    "VQ-VAE": "vqvae",
    "VQ-VAE-2": "vqvae2",
    "dVAE": "dvae",
    "VQGAN": "vqgan",
    "KL autoencoder": "kl",
}


def of(file: str):
    return lambda config: {"config": f"configs/{file}.py:{config.data.name}"}


def measures(distance: str, num: int) -> list[Measure]:
    figures = {
        "mse": ("MSE", "lower"),
        "psnr": ("PSNR", "higher"),
        "ssim": ("SSIM", "higher"),
        "codes.-1.perplexity": ("perplexity of the finest codes", "higher"),
        "codes.-1.used": ("share of the finest codes in use", "higher"),
    }
    return [
        *(Measure("reconstruction", name, *words, settings={"num": num}) for name, words in figures.items()),
        Measure(distance),
    ]


EXPERIMENT = Experiment(
    title="Autoencoders side by side",
    source="Kingma & Welling 2014 to Rombach et al. 2022; in no one table",
    claim="Images come back from a Gaussian latent, from codes, from relaxed codes, and from two levels of codes.",
    axes=[Axis("autoencoder", {name: of(file) for name, file in FILES.items()})],
    measures=measures("rfd_effnet_lite0", 1000),
    scales={
        "smoke": Scale(
            "configs/vae.py",
            "three minutes on two CPU cores",
            fields={"train.steps": 100, "train.warmup_steps": 10, "train.sample_count": 0},
            num=100,
            measures=measures("rfd_pixels", 100),
        ),
        "small": Scale(
            "configs/vae.py:fashion_mnist",
            "an hour on two CPU cores",
            fields={"train.steps": 1500, "train.batch_size": 64, "train.sample_count": 0},
            num=1000,
        ),
        "paper": Scale(
            "configs/vae.py:cifar10",
            "six trainings of 20,000 steps; the configs as they stand",
            seeds=(0, 1, 2),
            num=10_000,
            measures=measures("rfid", 10_000),
        ),
    },
)
