"""DDIM (Song et al. 2021), table 1: quality of samples in few steps, by the noise per step.

    python launch.py reproduce --experiment=experiments/ddim_table1.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/ddim_table1.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke, steps

NOISE = {
    "0": {"sampler.name": "ddim(eta=0)"},
    "0.2": {"sampler.name": "ddim(eta=0.2)"},
    "0.5": {"sampler.name": "ddim(eta=0.5)"},
    "1": {"sampler.name": "ddim(eta=1)"},
    "hat": {"sampler.name": "ddim(eta=1, sigma_hat=True)"},  # the larger variance, DDPM's
}
CIFAR10 = {
    "0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "hat": (367.43, 133.37, 32.72, 9.99, 3.17),
}
NOISE_CLAIMS = {
    "no noise is better than eta 1": ("0", "1"),
    "eta 1 is better than the larger variance": ("1", "hat"),
}
COUNTS = (10, 20, 50, 100, 1000)

EXPERIMENT = Experiment(
    title="DDIM, table 1: samples in few steps",
    source="Song, Meng & Ermon 2021, table 1",
    claim="A sampler without noise needs ten times fewer steps; DDPM's larger variance needs all steps.",
    axes=(Axis("eta", NOISE), steps(*COUNTS)),
    column_axis="steps",
    measures=(Measure("fd_effnet_lite0"), Measure("fd_pixels")),
    papers=[
        Paper(
            setting="FID, CIFAR-10, 50,000 samples",
            values={(eta, str(n)): value for eta, row in CIFAR10.items() for n, value in zip(COUNTS, row, strict=True)},
        )
    ],
    orderings=(
        *(
            Ordering(
                claim=f"In 10 to 50 steps {claim}{where}",
                order=[{"eta": eta} for eta in order],
                where={"steps": ("10", "20", "50")},
                measure=measure,
            )
            for measure, where in (("", ""), ("fd_pixels", ", in pixels"))
            for claim, order in NOISE_CLAIMS.items()
        ),
        Ordering(
            claim="The larger variance improves with steps: from 10 to 20 to 50 to 100",
            order=[{"steps": count} for count in ("100", "50", "20", "10")],
            where={"eta": ("hat",)},
        ),
    ),
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="a minute or two on two CPU cores",
            train_steps=100,
            fields={"sampler.guidance": 1.0},
            axes={"eta": ("0", "1", "hat"), "steps": ("10", "20")},
            num=200,
            measures=(Measure("fd_pixels"),),
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="an hour on two CPU cores",
            axes={"steps": ("10", "20", "50", "100")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="days on eight GPUs",
            fields={"sampler.grid": "quadratic"},
            num=50_000,
            measures=(Measure("fid"),),
        ),
    },
)
