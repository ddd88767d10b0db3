"""A GAN and a diffusion model: proportion of failed runs, over seeds and learning rates.

    python launch.py reproduce --experiment=experiments/gan_stability.py --workdir=runs/experiments --scale=small

No paper has this table. Both models are class-conditional and have the same seeds. Learning rates are multiples of the
config's, for the discriminator too. A run fails if it stops with an error, or if its FD-pixels is above 2: copies of
the mean image have 4.7 on digits, 3.6 on Fashion-MNIST and 9.7 on CIFAR-10.
"""

from ml_collections import ConfigDict

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Fields, Measure, Multiply, Ordering, Scale, smoke

RATE, FACTORS = "learning rate / default", (0.25, 1, 4, 16)


def gan(config: ConfigDict) -> Fields:
    """Returns the config file of the GAN: small, or the one for CIFAR-10."""
    return {"config": "configs/gan.py:cifar10" if config.data.name == "cifar10" else "configs/gan.py"}


SYSTEM = {"diffusion": {"diffusion.class_conditional": True, "sampler.guidance": 1.0}, "GAN": gan}

EXPERIMENT = Experiment(
    title="GAN and diffusion: failed runs",
    source="Dhariwal & Nichol 2021, section 1 (in words)",
    claim="GANs collapse without careful settings; diffusion models have a stationary objective.",
    axes=[
        Axis("system", SYSTEM),
        Axis(RATE, {f"{factor:g}": {"train.*learning_rate": Multiply(factor)} for factor in FACTORS}),
    ],
    column_axis=RATE,
    measures=[Measure("fd_pixels"), Measure("classifier_accuracy"), Measure("fd_effnet_lite0")],
    orderings=[
        Ordering(
            claim=f"At {factor:g} times the default learning rate diffusion is better than the GAN",
            order=[{"system": "diffusion"}, {"system": "GAN"}],
            where={RATE: (f"{factor:g}",)},
        )
        for factor in FACTORS
    ],
    failure_threshold=2.0,
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="three minutes on two CPU cores",
            train_steps=250,
            fields={"train.batch_size": 64},
            axes={RATE: ("1", "16")},
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy")],
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="24 trainings of 2000 steps, estimated at an hour on one core of an Intel Xeon",
            fields={**SMALL_TRAINING, "train.steps": 2000},
            seeds=(0, 1, 2),
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy")],
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="twelve trainings of 800,000 steps and twelve of 100,000, with unchanged configs",
            fields={"data.name": "cifar10"},
            seeds=(0, 1, 2),
            num=10_000,
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy"), Measure("fid")],
        ),
    },
)
