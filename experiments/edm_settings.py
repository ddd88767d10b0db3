"""EDM (Karras et al. 2022), table 2: from DDPM++ (A) to EDM's training (F), each setting in addition to those before.

    python launch.py reproduce --experiment=experiments/edm_settings.py --workdir=runs/experiments --scale=small

All are sampled by Heun's method without noise, in 18 steps, 35 evaluations. A to D are sampled from sigma / alpha 152
to 0.0105, the ends of the VP process; the paper samples all of them from 80 to 0.002.
"""

from ml_collections import ConfigDict

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Fields, Measure, Ordering, Paper, Scale, smoke


def tuned(config: ConfigDict) -> Fields:
    """Returns the paper's tuning as ratios: batch size x 4 for the same number of images, rate x 5, dropout x 1.3."""
    train, steps = config.train, config.train.steps // 4
    return {
        "train.batch_size": 4 * train.batch_size,
        "train.steps": steps,
        "train.learning_rate": 5 * train.learning_rate,
        "train.warmup_steps": steps // 20,
        "train.ema_decay": train.ema_decay**7.1,  # half-life 0.89M to 0.5M images
        "train.clip_norm": 0.0,
        "model.dropout": 1.3 * config.model.dropout,
    }


def redistributed(config: ConfigDict) -> Fields:
    """Removes the coarsest level and doubles the channels of the finest one."""
    return {**tuned(config), "model.multipliers": (2, *config.model.multipliers[1:-1])}


def preconditioned(config: ConfigDict) -> Fields:
    """Adds EDM's preconditioning."""
    return {**redistributed(config), "diffusion.parameterization": "edm", "diffusion.weighting": "snr"}


def with_edm_loss(config: ConfigDict) -> Fields:
    """Adds EDM's noise schedule, noise levels and loss."""
    return {
        **preconditioned(config),
        "diffusion.schedule": "edm",
        "diffusion.time_sampling": "log_normal(mean=-1.2, std=1.2)",
        "diffusion.weighting": "simple",
    }


def augmented(config: ConfigDict) -> Fields:
    """Adds non-leaky augmentation, in the place of flips that the network is not conditioned on."""
    return {**with_edm_loss(config), "data.flip": False, "data.augment.prob": 0.12}


SETTING = {
    "A: VP": {},
    "B: tuned": tuned,
    "C: capacity redistributed": redistributed,
    "D: preconditioned": preconditioned,
    "E: EDM loss": with_edm_loss,
    "F: augmentation": augmented,
}
FID = (2.48, 2.18, 2.08, 2.09, 1.88, 1.79)
A, B, C, D, E, F = ({"setting": name} for name in SETTING)
VP = {  # DDPM++, and the sampler of all settings
    "diffusion.schedule": "linear",
    "diffusion.continuous": True,
    "diffusion.parameterization": "eps",
    "diffusion.label_dropout": 0.0,
    "train.learning_rate_schedule": "constant",
    "train.learning_rate": 2e-4,
    "sampler.name": "heun",
    "sampler.steps": 18,
    "sampler.grid": "karras(rho=7)",
    "sampler.threshold": "none",
}
DIGITS = {
    "data.name": "digits",
    "data.image_size": 8,
    "data.flip": False,
    "model.multipliers": (1, 2, 2),
    "model.attention_resolutions": (4,),
}

EXPERIMENT = Experiment(
    title="EDM, table 2: training",
    source="Karras, Aittala, Aila & Laine 2022, table 2 (CIFAR-10, conditional, VP)",
    claim="Tuning, capacity, the loss and augmentation each improve samples; preconditioning makes the loss possible.",
    axes=[Axis("setting", SETTING)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels")],
    papers=[
        Paper(
            setting="FID, CIFAR-10, the least of three times 50,000 samples",
            values={(name,): value for name, value in zip(SETTING, FID, strict=True)},
        )
    ],
    orderings=[
        Ordering(claim="Tuning is better than the baseline", order=[B, A]),
        Ordering(claim="Redistributed capacity is better than tuning alone", order=[C, B]),
        Ordering(claim="With preconditioning, EDM's loss is better than VP's", order=[E, D]),
        Ordering(claim="Augmentation improves EDM's training", order=[F, E]),
        Ordering(claim="All changes together are better than the baseline", order=[F, A]),
    ],
    scales={
        "smoke": smoke(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="two minutes on two CPU cores",
            train_steps=160,
            fields={
                **VP,
                **DIGITS,
                "model.channels": 16,
                "train.learning_rate": 1e-3,
                "train.warmup_steps": 10,
            },
            axes={"setting": ("A: VP", "C: capacity redistributed", "F: augmentation")},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="18 trainings of 4000 steps, estimated at an hour on one core of an Intel Xeon",
            fields={
                **VP,
                **SMALL_TRAINING,
                **DIGITS,
                "train.steps": 4000,
            },
            seeds=(0, 1, 2),
            num=1000,
            measures=[Measure("fd_pixels"), Measure("kd_pixels")],
        ),
        "paper": Scale(
            config="configs/edm_cifar10.py:vp",
            duration="six trainings of 200 million images",
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
