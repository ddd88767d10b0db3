"""Classifier-free guidance (Ho & Salimans 2022), tables 1 and 2: its scale, and the number of steps.

    python launch.py reproduce --experiment=experiments/cfg_scale.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

w is the paper's: 0 is none, and the scale s of other papers is 1 + w.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, steps

W = ("0", "0.1", "0.3", "1", "2", "4")
FID = {"0": (8.11, 7.27, 7.22), "0.3": (3.04, 2.43, 2.43)}
COUNTS = (128, 256, 1024)

EXPERIMENT = Experiment(
    title="Classifier-free guidance: scale and steps",
    source="Ho & Salimans 2022, tables 1 and 2",
    claim="A little guidance improves fidelity at little cost in diversity; much of it trades one for the other.",
    axes=[steps(25, 50, *COUNTS), Axis("w", {w: {"sampler.guidance": 1 + float(w)} for w in W})],
    across="w",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("recognised"),
        Measure("manifold_effnet_lite0", "precision_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            "FID, ImageNet 128x128",
            {(str(n), w): value for w, row in FID.items() for n, value in zip(COUNTS, row, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            "Samples are recognised the more often the more they are guided",
            [{"w": w} for w in ("4", "1", "0")],
            measure="recognised",
        ),
        Ordering(
            "and cover less of what real images do",
            [{"w": w} for w in ("0", "1", "4")],
            measure="recall_effnet_lite0",
        ),
        Ordering(
            "Much guidance costs more than it gains: w 4 is farther from real images than w 0.3",
            [{"w": "0.3"}, {"w": "4"}],
        ),
        Ordering("A little of it is better than none", [{"w": "0.3"}, {"w": "0"}]),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "two minutes on two CPU cores",
            fields={"train.steps": 100, "train.sample_count": 0, "sampler.name": "ancestral"},
            axes={"steps": ("25",), "w": ("0", "1", "4")},
            num=100,
            measures=[Measure("fd_pixels"), Measure("recognised")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "an hour on two CPU cores, less where DDIM's table 1 was made in the same folder",
            fields={"sampler.name": "ancestral"},
            axes={"steps": ("25", "50"), "w": ("0", "0.3", "1", "4")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            "configs/ddpm_cifar10.py",
            "a training of 800,000 steps; ours of CIFAR-10, as we have no ImageNet",
            fields={"diffusion.class_conditional": True, "diffusion.label_dropout": 0.1},
            axes={"steps": ("128", "256")},
            num=50_000,
            measures=[Measure("fid"), Measure("is")],
        ),
    },
)
