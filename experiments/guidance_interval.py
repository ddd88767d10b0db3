"""Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024).

    python launch.py reproduce --experiment=experiments/guidance_interval.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/guidance_interval.py --workdir=runs/experiments --scale=small

The interval is of sigma / alpha, the noise level of the paper. One trained run has all cells.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

INTERVALS = {
    "none": {"sampler.guidance": 1.0},
    "all": {},
    "high": {"sampler.guidance_low": 3.0},
    "middle": {"sampler.guidance_low": 0.3, "sampler.guidance_high": 3.0},
    "low": {"sampler.guidance_high": 0.3},
}

EXPERIMENT = Experiment(
    title="Guidance in a limited interval",
    source="Kynkäänniemi et al. 2024, abstract (ImageNet 512x512)",
    claim="Guidance is harmful at high noise levels, unnecessary at low ones, and beneficial in the middle.",
    axes=[
        Axis("scale", {s: {"sampler.guidance": float(s)} for s in ("2", "4")}),
        Axis("interval", INTERVALS),  # after the scale, which "none" replaces
    ],
    column_axis="interval",
    measures=[
        Measure("fd_pixels"),
        Measure("kd_pixels"),
        Measure("classifier_accuracy"),
        Measure("precision_recall_pixels", "recall_pixels"),
    ],
    papers=[
        Paper(
            setting="FID, ImageNet 512x512, records with guidance everywhere and in an interval, at other scales",
            values={("2", "all"): 1.81, ("2", "middle"): 1.40},
        )
    ],
    orderings=[
        Ordering(
            claim="Guidance in the middle is better than everywhere",
            order=[{"interval": "middle"}, {"interval": "all"}],
        ),
        Ordering(
            claim="Guidance at high noise levels is worse than in the middle",
            order=[{"interval": "middle"}, {"interval": "high"}],
        ),
        Ordering(
            claim="Guidance at high noise levels lowers recall",
            order=[{"interval": "none"}, {"interval": "high"}],
            measure="recall_pixels",
        ),
        Ordering(
            claim="Guidance in the middle is better than none",
            order=[{"interval": "middle"}, {"interval": "none"}],
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"sampler.steps": 10},
            axes={"scale": ("2",)},
            measures=[Measure("fd_pixels"), Measure("precision_recall_pixels", "recall_pixels")],
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="not measured; one training of three minutes per seed on two CPU cores",
            seeds=(0, 1, 2),
            num=1437,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="not measured; CIFAR-10 in place of ImageNet",
            fields={"diffusion.class_conditional": True, "diffusion.label_dropout": 0.1},
            num=50_000,
            measures=[Measure("fid"), Measure("is"), Measure("precision_recall_pixels", "recall_pixels")],
        ),
    },
)
