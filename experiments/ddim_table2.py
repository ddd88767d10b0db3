"""DDIM (Song et al. 2021), table 2: error of encoding and decoding an image in few steps.

    python launch.py reproduce --experiment=experiments/ddim_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Experiment, Measure, Ordering, Paper, Scale, smoke, steps

CIFAR10 = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}

EXPERIMENT = Experiment(
    title="DDIM, table 2: reconstruction from latents",
    source="Song, Meng & Ermon 2021, table 2",
    claim="Without noise the sampler is an ODE: latents reconstruct their images, better with more steps.",
    axes=[steps(*CIFAR10)],
    column_axis="steps",
    measures=[Measure("reconstruction", "mse", heading="MSE", settings={"num": 200})],
    papers=[
        Paper(setting="MSE, values in [0, 1], CIFAR-10 test", values={(str(n),): value for n, value in CIFAR10.items()})
    ],
    orderings=[
        Ordering(
            claim="The error falls with the number of steps", order=[{"steps": str(n)} for n in (200, 100, 50, 20, 10)]
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="a minute or two on two CPU cores",
            train_steps=100,
            fields={"sampler.name": "ddim", "sampler.guidance": 1.0},
            axes={"steps": ("10", "20", "50")},
            num=10,
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="half an hour on two CPU cores, less after ddim_table1 in the same workdir",
            axes={"steps": ("10", "20", "50", "100", "200")},
            seeds=(0, 1, 2),
            num=10,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="one training of 800,000 steps",
            fields={"sampler.name": "ddim"},
            num=10,
            measures=[Measure("reconstruction", "mse", heading="MSE", settings={"num": 10_000})],
        ),
    },
)
