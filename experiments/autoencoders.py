"""All autoencoders on the same images: errors of reconstruction and use of the codebook.

    python launch.py reproduce --experiment=experiments/autoencoders.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

No paper compares all of them. Rombach et al. (2022, table 8) compare a KL autoencoder, a VQGAN and DALL-E's dVAE, whose
sizes differ too. Networks and latents are those of the configs and differ in size, so the table shows what each
autoencoder does, not which is best.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

FILES = {
    "VAE": "vae",
    "VQ-VAE": "vqvae",
    "VQ-VAE-2": "vqvae2",
    "dVAE": "dvae",
    "VQGAN": "vqgan",
    "KL autoencoder": "kl",
}


def measures(distance: str, num: int) -> list[Measure]:
    headings = {
        "mse": ("MSE", "lower"),
        "psnr": ("PSNR", "higher"),
        "ssim": ("SSIM", "higher"),
        "codes.-1.perplexity": ("perplexity of the finest codes", "higher"),
        "codes.-1.used": ("proportion of the finest codes in use", "higher"),
    }
    return [
        *(Measure("reconstruction", name, *words, settings={"num": num}) for name, words in headings.items()),
        Measure(distance),
    ]


EXPERIMENT = Experiment(
    title="Autoencoders side by side",
    source="Kingma & Welling 2014 to Rombach et al. 2022; claims of table 8 of the latter",
    claim="Images can be reconstructed from Gaussian latents, codes, relaxed codes, and two levels of codes.",
    axes=[Axis("autoencoder", {name: {"config": f"configs/{file}.py:{{data}}"} for name, file in FILES.items()})],
    measures=measures("recon_fd_effnet_lite0", 1000),
    orderings=[
        Ordering(
            claim=f"Reconstructions are closer to real images with the {better} than with the {worse}",
            order=[{"autoencoder": better}, {"autoencoder": worse}],
            measure="recon_fd_effnet_lite0",
        )
        for better, worse in (("KL autoencoder", "VQGAN"), ("VQGAN", "dVAE"))
    ],
    scales={
        "smoke": smoke(
            config="configs/vae.py",
            duration="three minutes on two CPU cores",
            train_steps=100,
            fields={"train.warmup_steps": 10},
            measures=measures("recon_fd_pixels", 100),
        ),
        "small": Scale(
            config="configs/vae.py:fashion_mnist",
            duration="18 trainings of 500 steps, estimated at 60 minutes on one core of an Intel Xeon",
            fields={
                "train.steps": 500,
                "*adversarial.start_step": 250,
                "train.batch_size": 64,
                "train.num_preview_samples": 0,
            },
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/vae.py:cifar10",
            duration="six trainings of 20,000 steps, with unchanged configs",
            seeds=(0, 1, 2),
            num=10_000,
            measures=measures("recon_fid", 10_000),
        ),
    },
)
