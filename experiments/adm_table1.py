"""ADM (Dhariwal & Nichol 2021), table 1: changes to DDPM's network, one by one and together.

    python launch.py reproduce --experiment=experiments/adm_table1.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's values are its base's FID and the differences it prints, added up. We have no ImageNet: `paper` is
CIFAR-10 with the same changes.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale

RESCALED = 0.7071067811865476  # 1 / sqrt(2)
CHANGE = {
    "base": {},
    "depth: 4 blocks": {"model.blocks": 4},
    "4 heads": {"model.heads": 4},
    "attention at several resolutions": {"model.attention_resolutions": (14, 7)},
    "BigGAN up and down": {"model.resample": "residual"},
    "rescaled residuals": {"model.residual_scale": RESCALED},
    "all but rescaling": {
        "model.blocks": 4,
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
            "FID, ImageNet 128x128",
            {(name,): round(BASE + d, 2) for name, d in zip(CHANGE, DIFFERENCES, strict=True)},
        )
    ],
    orderings=[
        Ordering("BigGAN's resampling is better than the base", [{"change": "BigGAN up and down"}, {"change": "base"}]),
        Ordering("Several resolutions attend", [{"change": "attention at several resolutions"}, {"change": "base"}]),
        Ordering("Rescaled residuals are worse", [{"change": "base"}, {"change": "rescaled residuals"}]),
        Ordering("All together are best", [{"change": "all but rescaling"}, {"change": "base"}]),
    ],
    scales={
        "smoke": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "three minutes on two CPU cores",
            fields={
                "data.name": "digits",
                "data.image_size": 14,
                "model.channels": 16,
                "train.steps": 10,
                "sampler.steps": 5,
            },
            axes={"change": ("base", "BigGAN up and down", "all but rescaling")},
            num=50,
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "two hours on two CPU cores",
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "seven trainings of 700,000 steps",
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
