"""ADM (Dhariwal & Nichol 2021), table 15: which of the steps to take, where there are few.

    python launch.py reproduce --experiment=experiments/adm_sections.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale

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
        Paper("FID, LSUN bedroom, 250 steps", {("uniform",): 2.31, ("90, 60, 60, 20, 20 of 250",): 2.02}),
    ],
    orderings=[
        Ordering(
            "More steps near the image are better than even ones",
            [{"steps": "the same shares of 50"}, {"steps": "uniform"}],
        ),
        Ordering("and those better than more near the noise", [{"steps": "uniform"}, {"steps": "reversed"}]),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "two minutes on two CPU cores",
            fields={
                "train.steps": 100,
                "train.sample_count": 0,
                "sampler.name": "ancestral",
                "sampler.steps": 50,
                "sampler.guidance": 1.0,
            },
            axes={"steps": ("uniform", "the same shares of 50", "reversed")},
            num=100,
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "half an hour on two CPU cores, less where DDIM's table 1 was made in the same folder",
            fields={"sampler.name": "ancestral", "sampler.steps": 50},
            axes={"steps": ("uniform", "the same shares of 50", "reversed")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            "configs/ddpm_cifar10.py",
            "a training of 800,000 steps; ours of CIFAR-10, as we have no LSUN",
            fields={"sampler.steps": 250},
            axes={"steps": ("uniform", "90, 60, 60, 20, 20 of 250")},
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
