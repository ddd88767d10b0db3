"""EDM (Karras et al. 2022), table 2: from DDPM++ (A) to their training (E), each setting on top of the one before.

    python launch.py reproduce --experiment=experiments/edm_settings.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

All are sampled by Heun's method without noise, in 18 steps, 35 evaluations. F, 1.79, adds non-leaky augmentation, which
we have not. A to D are sampled from sigma / alpha 152 to 0.0105, the ends of our VP process; the paper samples all of
them from 80 to 0.002.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale


def tuned(config):
    """The paper's, as ratios: batch 128 to 512 on as many images, rate 2e-4 to 1e-3, dropout 0.1 to 0.13."""
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


def redistributed(config):
    """The coarsest level goes, the finest is twice as wide."""
    return {**tuned(config), "model.multipliers": (2, *config.model.multipliers[1:-1])}


def preconditioned(config):
    return {**redistributed(config), "diffusion.parameterization": "edm", "diffusion.weighting": "snr"}


def with_their_loss(config):
    return {
        **preconditioned(config),
        "diffusion.schedule": "edm",
        "diffusion.times": "log_normal(mean=-1.2, std=1.2)",
        "diffusion.weighting": "simple",
    }


SETTING = {
    "A: VP": {},
    "B: tuned": tuned,
    "C: capacity redistributed": redistributed,
    "D: preconditioned": preconditioned,
    "E: their loss": with_their_loss,
}
FID = (2.48, 2.18, 2.08, 2.09, 1.88)
A, B, C, D, E = ({"setting": name} for name in SETTING)
VP = {  # and what all have in common
    "diffusion.schedule": "linear",
    "diffusion.continuous": True,
    "diffusion.parameterization": "eps",
    "diffusion.label_dropout": 0.0,
    "train.schedule": "constant",
    "train.learning_rate": 2e-4,
    "sampler.name": "heun",
    "sampler.steps": 18,
    "sampler.grid": "karras(rho=7)",
    "sampler.threshold": "none",
}

EXPERIMENT = Experiment(
    title="EDM, table 2: training",
    source="Karras, Aittala, Aila & Laine 2022, table 2 (CIFAR-10, conditional, VP)",
    claim="Tuning, capacity and the loss each make better samples; preconditioning makes room for the loss.",
    axes=[Axis("setting", SETTING)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels")],
    papers=[
        Paper(
            "FID, CIFAR-10, the least of three times 50,000 samples",
            {(name,): value for name, value in zip(SETTING, FID, strict=True)},
        )
    ],
    orderings=[
        Ordering("Tuned is better than the baseline", [B, A]),
        Ordering("Redistributed capacity is better still", [C, B]),
        Ordering("Preconditioned, their loss is better than VP's", [E, D]),
        Ordering("All together are better than the baseline", [E, A]),
    ],
    scales={
        "smoke": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "two minutes on two CPU cores",
            fields={
                **VP,
                "data.name": "digits",
                "data.image_size": 8,
                "model.channels": 16,
                "model.multipliers": (1, 2, 2),
                "model.attention_resolutions": (4,),
                "train.steps": 160,
                "train.learning_rate": 1e-3,
                "train.warmup_steps": 10,
            },
            axes={"setting": ("A: VP", "C: capacity redistributed", "E: their loss")},
            num=100,
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "a night on two CPU cores",
            fields={
                **VP,
                "data.name": "cifar10",
                "data.image_size": 16,
                "data.flip": True,
                "model.multipliers": (1, 2, 2),
                "model.attention_resolutions": (8,),
                "train.steps": 4000,
            },
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "five trainings of 200 million images",
            fields={
                **VP,
                "data.name": "cifar10",
                "data.image_size": 32,
                "data.flip": True,
                "model.channels": 128,
                "model.multipliers": (1, 2, 2, 2),
                "model.blocks": 4,
                "model.attention_resolutions": (16,),
                "model.heads": 1,
                "model.dropout": 0.1,
                "model.time_conditioning": "add",
                "model.resample": "residual",
                "model.residual_scale": 0.7071067811865476,  # 1 / sqrt(2)
                "train.steps": 1_562_500,
                "train.batch_size": 128,
                "train.warmup_steps": 5000,
                "train.beta2": 0.999,
                "train.ema_decay": 0.9999,
                "train.checkpoint_every": 5000,
            },
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
