"""Classifier-free guidance (Ho & Salimans 2022), tables 1 and 2: guidance scale and number of steps.

    python launch.py reproduce --experiment=experiments/cfg_scale.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

w is the paper's scale: 0 is no guidance. The scale s of other papers is 1 + w.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke, steps

W = ("0", "0.1", "0.3", "1", "2", "4")
FID = {"0": (8.11, 7.27, 7.22), "0.3": (3.04, 2.43, 2.43)}
COUNTS = (128, 256, 1024)

EXPERIMENT = Experiment(
    title="Classifier-free guidance: scale and steps",
    source="Ho & Salimans 2022, tables 1 and 2",
    claim="Weak guidance improves fidelity at little cost in diversity; strong guidance trades one for the other.",
    axes=[steps(25, 50, *COUNTS), Axis("w", {w: {"sampler.guidance": 1 + float(w)} for w in W})],
    column_axis="w",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("classifier_accuracy"),
        Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            setting="FID, ImageNet 128x128",
            values={(str(n), w): value for w, row in FID.items() for n, value in zip(COUNTS, row, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            claim="Classifier accuracy rises with w",
            order=[{"w": w} for w in ("4", "1", "0")],
            measure="classifier_accuracy",
        ),
        Ordering(
            claim="Recall falls with w",
            order=[{"w": w} for w in ("0", "1", "4")],
            measure="recall_effnet_lite0",
        ),
        Ordering(
            claim="Strong guidance is worse than weak guidance: w 0.3 is better than w 4",
            order=[{"w": "0.3"}, {"w": "4"}],
        ),
        Ordering(claim="Weak guidance is better than none", order=[{"w": "0.3"}, {"w": "0"}]),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="two minutes on two CPU cores",
            train_steps=100,
            fields={"sampler.name": "ancestral"},
            axes={"steps": ("25",), "w": ("0", "1", "4")},
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="an hour on two CPU cores, less after ddim_table1 in the same workdir",
            fields={"sampler.name": "ancestral"},
            axes={"steps": ("25", "50"), "w": ("0", "0.3", "1", "4")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="one training of 800,000 steps; CIFAR-10 in place of ImageNet",
            fields={"diffusion.class_conditional": True, "diffusion.label_dropout": 0.1},
            axes={"steps": ("128", "256")},
            num=50_000,
            measures=[Measure("fid"), Measure("is")],
        ),
    },
)
