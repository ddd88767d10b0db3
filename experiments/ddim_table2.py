"""DDIM (Song et al. 2021), table 2: how well an image is found again after encoding and decoding in few steps.

    python launch.py reproduce --experiment=experiments/ddim_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Experiment, Measure, Ordering, Paper, Scale, steps

CIFAR10 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}

EXPERIMENT = Experiment(
    title="DDIM, table 2: reconstruction from latents",
    source="Song, Meng & Ermon 2021, table 2",
    claim="Without noise the sampler is an ODE: images come back from their latents, the better the more steps.",
    axes=[steps(*CIFAR10)],
    across="steps",
    measures=[Measure("reconstruction", "mse", heading="MSE", settings={"num": 200})],
    papers=[Paper("MSE, values in [0, 1], CIFAR-10 test", {(str(n),): value for n, value in CIFAR10.items()})],
    orderings=[
        Ordering("The error falls with every row", [{"steps": str(n)} for n in (200, 100, 50, 20, 10)]),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "a minute or two on two CPU cores",
            fields={"train.steps": 100, "train.sample_count": 0, "sampler.name": "ddim", "sampler.guidance": 1.0},
            axes={"steps": ("10", "20", "50")},
            num=10,
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "half an hour on two CPU cores, less where table 1 was made in the same folder",
            axes={"steps": ("10", "20", "50", "100", "200")},
            seeds=(0, 1, 2),
            num=10,
        ),
        "paper": Scale(
            "configs/ddpm_cifar10.py",
            "a training of 800,000 steps",
            fields={"sampler.name": "ddim"},
            num=10,
            measures=[Measure("reconstruction", "mse", heading="MSE", settings={"num": 10_000})],
        ),
    },
)
