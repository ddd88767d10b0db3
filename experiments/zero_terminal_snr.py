"""Schedules without signal at their end (Lin et al. 2024), and time grids that start there.

    python launch.py reproduce --experiment=experiments/zero_terminal_snr.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/zero_terminal_snr.py --workdir=runs/experiments --scale=small

The schedule is that of Stable Diffusion. Its last level keeps some signal, and so the mean brightness of an image.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

SCHEDULE = {"some signal": {}, "zero signal": {"diffusion.zero_terminal_snr": True}}
FIXED = {"schedule": "zero signal", "grid": "trailing"}
FLAWED = {"schedule": "some signal", "grid": "leading"}
FIELDS = {"diffusion.schedule": "scaled_linear", "diffusion.parameterization": "v", "sampler.guidance": 1.0}

EXPERIMENT = Experiment(
    title="Zero terminal SNR",
    source="Lin et al. 2024, abstract (Stable Diffusion)",
    claim="Unless training and sampling have levels of pure noise, samples lack very bright and very dark images.",
    axes=[
        Axis("schedule", SCHEDULE),
        Axis("grid", {grid: {"sampler.grid": grid} for grid in ("leading", "trailing")}),
    ],
    column_axis="grid",
    measures=[Measure("fd_pixels"), Measure("kd_pixels"), Measure("precision_recall_pixels", "recall_pixels")],
    orderings=[
        Ordering(claim="Both changes together are better than neither", order=[FIXED, FLAWED]),
        Ordering(
            claim="From the last level on, zero signal is better than some",
            order=[{"schedule": "zero signal"}, {"schedule": "some signal"}],
            where={"grid": ("trailing",)},
        ),
        Ordering(
            claim="With zero signal, it is better to start from the last level",
            order=[{"grid": "trailing"}, {"grid": "leading"}],
            where={"schedule": ("zero signal",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={**FIELDS, "sampler.steps": 10},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="six trainings of 2000 steps, estimated at ten minutes on one core of an Intel Xeon",
            fields={
                **FIELDS,
                "sampler.steps": 25,
                **SMALL_TRAINING,
                "train.steps": 2000,
            },
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="two trainings of 800,000 steps; CIFAR-10 in the place of LAION",
            fields={**FIELDS, "sampler.steps": 25},
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
