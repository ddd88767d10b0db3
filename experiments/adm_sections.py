"""ADM (Dhariwal & Nichol 2021), table 15: how to place a small number of steps.

    python launch.py reproduce --experiment=experiments/adm_sections.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

GRID = {
    "uniform": {"sampler.grid": "sections"},
    "90, 60, 60, 20, 20 of 250": {"sampler.grid": "sections(90, 60, 60, 20, 20)"},
    "the same shares of 50": {"sampler.grid": "sections(18, 12, 12, 4, 4)"},
    "reversed": {"sampler.grid": "sections(4, 4, 12, 12, 18)"},
}

EXPERIMENT = Experiment(
    title="ADM, table 15: steps by sections",
    source="Dhariwal & Nichol 2021, table 15 (LSUN bedroom, 250 steps)",
    claim="Steps near the image are worth more than steps near the noise.",
    axes=[Axis("steps", GRID)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels")],
    papers=[
        Paper(
            setting="FID, LSUN bedroom, 250 steps", values={("uniform",): 2.31, ("90, 60, 60, 20, 20 of 250",): 2.02}
        ),
    ],
    orderings=[
        Ordering(
            claim="More steps near the image are better than evenly spaced steps",
            order=[{"steps": "the same shares of 50"}, {"steps": "uniform"}],
        ),
        Ordering(
            claim="Evenly spaced steps are better than more steps near the noise",
            order=[{"steps": "uniform"}, {"steps": "reversed"}],
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="two minutes on two CPU cores",
            train_steps=100,
            fields={"sampler.name": "ancestral", "sampler.steps": 50, "sampler.guidance": 1.0},
            axes={"steps": ("uniform", "the same shares of 50", "reversed")},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="estimated at 21 minutes on one CPU core, less after ddim_table1 in the same workdir",
            fields={"sampler.name": "ancestral", "sampler.steps": 50},
            axes={"steps": ("uniform", "the same shares of 50", "reversed")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="one training of 800,000 steps; CIFAR-10 in place of LSUN",
            fields={"sampler.steps": 250},
            axes={"steps": ("uniform", "90, 60, 60, 20, 20 of 250")},
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
