"""Latent diffusion (Rombach et al. 2022), table 8: what its first stages give back, by how much they shrink an image.

    python launch.py reproduce --experiment=experiments/first_stages.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's are trained on OpenImages at 256x256, with a perceptual loss and 8192 or 16384 codes. We have no such data:
`paper` is CIFAR-10, of whose 32x32 pixels f 32 leaves a single latent, with the paper's widths and channels of latents,
the config's 512 codes, no perceptual loss, and attention only in the middle.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale

FACTORS = ("4", "8", "16", "32")
MULTIPLIERS = {
    "VQ": ((1, 2, 4), (1, 2, 2, 4), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)),
    "KL": ((1, 2, 4), (1, 2, 4, 4), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)),
}
CHANNELS = {"VQ": (3, 4, 8, 16), "KL": (3, 4, 16, 64)}  # of the latent
RFID = {"VQ": (0.58, 1.14, 5.15, 31.83), "KL": (0.27, 0.90, 0.87, 2.04)}
SSIM = {"VQ": (0.82, 0.65, 0.54, 0.41), "KL": (0.82, 0.69, 0.68, 0.61)}
FILES = {"VQ": "vqgan", "KL": "kl"}


def of(latent: str):
    return lambda config: {"config": f"configs/{FILES[latent]}.py:{config.data.name}"}


def shrinking(i: int):
    def fields(config):
        latent = "VQ" if "codes" in config else "KL"
        channels = CHANNELS[latent][i]
        return {
            "model.multipliers": MULTIPLIERS[latent][i],
            "model.latent_channels": channels,
            "model.z_channels": channels,
        }

    return fields


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
    claim="The less an image is shrunk the better it comes back, and better from a Gaussian latent than from codes.",
    axes=[
        Axis("latent", {latent: of(latent) for latent in FILES}),
        Axis("f", {f: shrinking(i) for i, f in enumerate(FACTORS)}),
    ],
    across="f",
    measures=measures("rfd_effnet_lite0", 1000),
    papers=[
        Paper("reconstruction FID, ImageNet 256x256", table(RFID)),
        Paper("SSIM, ImageNet 256x256", table(SSIM), beside=("reconstruction.ssim",)),
    ],
    orderings=[
        Ordering(
            "Codes: f 4 is better than 8, and 8 than 16",
            [{"f": f} for f in ("4", "8", "16")],
            where={"latent": ("VQ",)},
        ),
        Ordering("Gaussian: f 4 is better than 8", [{"f": f} for f in ("4", "8")], where={"latent": ("KL",)}),
        Ordering("Gaussian latents are better than codes", [{"latent": "KL"}, {"latent": "VQ"}]),
    ],
    scales={
        "smoke": Scale(
            "configs/kl.py",
            "three minutes on two CPU cores",
            fields={
                "model.channels": 8,
                "adversarial.start": 20,
                "train.steps": 60,
                "train.warmup_steps": 10,
                "train.sample_count": 0,
            },
            axes={"f": ("4", "8")},
            num=100,
            measures=measures("rfd_pixels", 100),
        ),
        "small": Scale(
            "configs/kl.py:cifar10",
            "a night on two CPU cores",
            fields={
                "model.channels": 16,
                "adversarial.start": 1000,
                "train.steps": 2000,
                "train.batch_size": 64,
                "train.sample_count": 0,
            },
            axes={"f": ("4", "8", "16")},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            "configs/kl.py:cifar10",
            "eight trainings of 200,000 steps",
            fields={
                "model.channels": 128,
                "model.blocks": 2,
                "model.norm_groups": 32,
                "adversarial.start": 50_000,
                "adversarial.channels": 64,
                "train.steps": 200_000,
                "train.learning_rate": 1e-4,
                "train.discriminator.learning_rate": 1e-4,
                "train.sample_count": 0,
            },
            num=10_000,
            measures=measures("rfid", 10_000),
        ),
    },
)
