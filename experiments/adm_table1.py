"""ADM (Dhariwal & Nichol 2021), table 1: changes to DDPM's network, one by one and together.

    python launch.py reproduce --experiment=experiments/adm_table1.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's values are the FID of its base plus the differences that it prints. Its network of depth 4 has 128
channels, the others 160; ours have one width. `paper` uses CIFAR-10, not ImageNet.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

RESCALED = 0.7071067811865476  # 1 / sqrt(2)
CHANGE = {
    "base": {},
    "depth: 4 blocks": {"model.blocks": 4},
    "4 heads": {"model.heads": 4},
    "attention at several resolutions": {"model.attention_resolutions": (14, 7)},
    "BigGAN up and down": {"model.resample": "residual"},
    "rescaled residuals": {"model.residual_scale": RESCALED},
    "all but depth and rescaling": {
        "model.heads": 4,
        "model.attention_resolutions": (14, 7),
        "model.resample": "residual",
    },
}
DIFFERENCES = (0.0, -0.21, -0.54, -0.72, -1.20, 0.16, -3.14)
BASE = 15.33

EXPERIMENT = Experiment(
    title="ADM, table 1: the network",
    source="Dhariwal & Nichol 2021, table 1 (ImageNet 128x128, 700,000 steps)",
    claim="More heads, attention at more resolutions and residual resampling make better samples; rescaling does not.",
    axes=[Axis("change", CHANGE)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels")],
    papers=[
        Paper(
            setting="FID, ImageNet 128x128",
            values={(name,): round(BASE + d, 2) for name, d in zip(CHANGE, DIFFERENCES, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            claim="BigGAN's resampling is better than the base",
            order=[{"change": "BigGAN up and down"}, {"change": "base"}],
        ),
        Ordering(
            claim="Attention at several resolutions is better than the base",
            order=[{"change": "attention at several resolutions"}, {"change": "base"}],
        ),
        Ordering(
            claim="Rescaled residuals are worse than the base",
            order=[{"change": "base"}, {"change": "rescaled residuals"}],
        ),
        Ordering(
            claim="All changes but depth and rescaling are better than the base",
            order=[{"change": "all but depth and rescaling"}, {"change": "base"}],
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="three minutes on two CPU cores",
            train_steps=10,
            fields={"data.name": "digits", "data.image_size": 14, "model.channels": 16, "sampler.steps": 5},
            axes={"change": ("base", "BigGAN up and down", "all but depth and rescaling")},
            num=50,
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="21 trainings of 1500 steps, estimated at an hour and a half on one core of an Intel Xeon",
            fields={**SMALL_TRAINING, "train.steps": 1500},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="seven trainings of 700,000 steps",
            fields={
                "data.name": "cifar10",
                "data.image_size": 28,
                "data.flip": True,
                "model.channels": 128,
                "model.multipliers": (1, 2, 2),
                "model.blocks": 2,
                "train.steps": 700_000,
                "train.batch_size": 256,
                "train.learning_rate": 1e-4,
                "train.ema_decay": 0.9999,
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 250,
            },
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
