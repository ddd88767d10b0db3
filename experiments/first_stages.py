"""Latent diffusion (Rombach et al. 2022), table 8: reconstructions of its first stages, by downsampling factor.

    python launch.py reproduce --experiment=experiments/first_stages.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper trains on OpenImages at 256x256, with a perceptual loss and 8192 or 16384 codes. `paper` uses CIFAR-10, where
f 32 leaves a single latent, with the paper's widths and latent channels, the config's 512 codes, no perceptual loss,
and attention in the middle block only.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

FACTORS = ("4", "8", "16", "32")
MULTIPLIERS = {
    "VQ": ((1, 2, 4), (1, 2, 2, 4), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)),
    "KL": ((1, 2, 4), (1, 2, 4, 4), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)),
}
CHANNELS = {"VQ": (3, 4, 8, 16), "KL": (3, 4, 16, 64)}  # of the latent
RFID = {"VQ": (0.58, 1.14, 5.15, 31.83), "KL": (0.27, 0.90, 0.87, 2.04)}
SSIM = {"VQ": (0.82, 0.65, 0.54, 0.41), "KL": (0.82, 0.69, 0.68, 0.61)}
FILES = {"VQ": "vqgan", "KL": "kl"}


def networks(i: int) -> dict[str, dict]:
    """Returns the fields of factor i by latent."""
    return {
        latent: {
            "model.multipliers": MULTIPLIERS[latent][i],
            "model.latent_channels": CHANNELS[latent][i],
            "model.z_channels": CHANNELS[latent][i],
        }
        for latent in FILES
    }


def table(rows: dict[str, tuple[float, ...]]) -> dict[tuple[str, str], float]:
    return {(latent, f): value for latent, row in rows.items() for f, value in zip(FACTORS, row, strict=True)}


def measures(distance: str, num: int) -> list[Measure]:
    return [
        Measure(distance),
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings={"num": num}),
        Measure("reconstruction", "ssim", "SSIM of reconstructions", "higher", settings={"num": num}),
    ]


EXPERIMENT = Experiment(
    title="Latent diffusion: first stages",
    source="Rombach et al. 2022, table 8",
    claim="Reconstructions improve with smaller f, and are better from Gaussian latents than from codes.",
    axes=[
        Axis("latent", {latent: {"config": f"configs/{file}.py:{{data}}"} for latent, file in FILES.items()}),
        Axis("f", {f: networks(i) for i, f in enumerate(FACTORS)}, by="latent"),
    ],
    column_axis="f",
    measures=measures("recon_fd_effnet_lite0", 1000),
    papers=[
        Paper(setting="reconstruction FID, ImageNet 256x256", values=table(RFID)),
        Paper(setting="SSIM, ImageNet 256x256", values=table(SSIM), metrics=("reconstruction.ssim",)),
    ],
    orderings=[
        *(
            Ordering(
                claim=f"{words}: f {smaller} is better than {larger}",
                order=[{"f": smaller}, {"f": larger}],
                where={"latent": (latent,)},
            )
            for words, latent, smaller, larger in (
                ("Codes", "VQ", "4", "8"),
                ("Codes", "VQ", "8", "16"),
                ("Gaussian", "KL", "4", "8"),
            )
        ),
        Ordering(claim="Gaussian latents are better than codes", order=[{"latent": "KL"}, {"latent": "VQ"}]),
    ],
    scales={
        "smoke": smoke(
            config="configs/kl.py",
            duration="three minutes on two CPU cores",
            train_steps=60,
            fields={"model.channels": 8, "adversarial.start_step": 20, "train.warmup_steps": 10},
            axes={"f": ("4", "8")},
            measures=measures("recon_fd_pixels", 100),
        ),
        "small": Scale(
            config="configs/kl.py:fashion_mnist",
            duration="18 trainings of 1000 steps, estimated at an hour and a half on one core of an Intel Xeon",
            fields={
                "data.image_size": 32,
                "model.channels": 8,
                "adversarial.start_step": 500,
                "train.steps": 1000,
                "train.batch_size": 32,
                "train.num_preview_samples": 0,
            },
            axes={"f": ("4", "8", "16")},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/kl.py:cifar10",
            duration="eight trainings of 200,000 steps",
            fields={
                "model.channels": 128,
                "model.blocks": 2,
                "model.norm_groups": 32,
                "adversarial.start_step": 50_000,
                "adversarial.channels": 64,
                "train.steps": 200_000,
                "train.learning_rate": 1e-4,
                "train.discriminator.learning_rate": 1e-4,
                "train.num_preview_samples": 0,
            },
            num=10_000,
            measures=measures("recon_fid", 10_000),
        ),
    },
)
