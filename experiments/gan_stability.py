"""A GAN and a diffusion model: which share of runs fails, over seeds and learning rates.

    python launch.py reproduce --experiment=experiments/gan_stability.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

No paper has this table. Both have labels and as many seeds; learning rates are multiples of each config's own, of the
discriminator's too. A run fails that stops with an error, or whose FD-pixels is above 2: the mean picture, again and
again, would come to 4.7 of digits, 3.6 of Fashion-MNIST and 9.7 of CIFAR-10.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Scale

RATE = "learning rate / its own"


def diffusion(config):
    return {"diffusion.class_conditional": True, "sampler.guidance": 1.0}


def gan(config):
    return {"config": "configs/gan.py:cifar10" if config.data.name == "cifar10" else "configs/gan.py"}


def rate(factor: float):
    def fields(config):
        own = {"train.learning_rate": config.train.learning_rate}
        if "discriminator" in config.train:
            own["train.discriminator.learning_rate"] = config.train.discriminator.learning_rate
        return {name: factor * value for name, value in own.items()}

    return fields


EXPERIMENT = Experiment(
    title="GAN and diffusion: runs that fail",
    source="Dhariwal & Nichol 2021, section 1 (in words)",
    claim="GANs collapse where their settings are not chosen with care; diffusion models have a stationary objective.",
    axes=[
        Axis("system", {"diffusion": diffusion, "GAN": gan}),
        Axis(RATE, {f"{factor:g}": rate(factor) for factor in (0.25, 1, 4, 16)}),
    ],
    across=RATE,
    measures=[Measure("fd_pixels"), Measure("recognised"), Measure("fd_effnet_lite0")],
    fails_above=2.0,
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "three minutes on two CPU cores",
            fields={"train.steps": 250, "train.batch_size": 64, "train.sample_count": 0},
            axes={RATE: ("1", "16")},
            num=100,
            measures=[Measure("fd_pixels"), Measure("recognised")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "a night on two CPU cores, less where DDIM's table 1 was made in the same folder",
            fields={"data.name": "fashion_mnist", "data.image_size": 14, "train.sample_count": 0},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            "configs/ddpm_cifar10.py",
            "twelve trainings of 800,000 steps and twelve of 100,000; the configs as they stand",
            fields={"data.name": "cifar10"},
            seeds=(0, 1, 2),
            num=10_000,
            measures=[Measure("fd_pixels"), Measure("recognised"), Measure("fid")],
        ),
    },
)
