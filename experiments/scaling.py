"""Held-out loss by the width of the network and the number of training steps: four widths of a UNet.

    python launch.py reproduce --experiment=experiments/scaling.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/scaling.py --workdir=runs/experiments --scale=small

Compute is about width^2 times steps, so a diagonal of the table has equal compute: twice the width, a quarter of the
steps. Each cell is a training of its own, whose learning rate decays to 0 at its end. Improved DDPM has curves of FID
and of the bound against compute; that equal compute favours the wider network is not a claim of the paper.
"""

import itertools

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

WIDTHS, PAPER_WIDTHS = ("8", "16", "32", "64"), ("64", "96", "128", "192")
STEPS, PAPER_STEPS = ("125", "500", "2000"), ("100000", "500000")


EXPERIMENT = Experiment(
    title="Scaling: loss by width and steps",
    source="Nichol & Dhariwal 2021, abstract and section 6 (ImageNet 64x64, curves)",
    claim="Sample quality and likelihood scale smoothly with model capacity and training compute.",
    axes=[
        Axis("width", {width: {"model.channels": int(width)} for width in (*WIDTHS, *PAPER_WIDTHS)}),
        Axis("steps", {steps: {"train.steps": int(steps)} for steps in (*STEPS, *PAPER_STEPS)}),
    ],
    column_axis="steps",
    measures=[Measure("training", "eval/loss", heading="held-out loss", better="lower"), Measure("fd_pixels")],
    orderings=[
        *(
            Ordering(
                claim=f"Width {wide} is better than {narrow}, at each number of steps",
                order=[{"width": wide}, {"width": narrow}],
            )
            for narrow, wide in itertools.pairwise(WIDTHS)
        ),
        *(
            Ordering(
                claim=f"{more} steps are better than {fewer}, at each width", order=[{"steps": more}, {"steps": fewer}]
            )
            for fewer, more in itertools.pairwise(STEPS)
        ),
        *(
            Ordering(
                claim=f"At equal compute width {wide} at {fewer} steps is better than {narrow} at {more}",
                order=[{"width": wide, "steps": fewer}, {"width": narrow, "steps": more}],
            )
            for fewer, more in itertools.pairwise(STEPS)
            for narrow, wide in itertools.pairwise(WIDTHS)
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"train.eval_every": 125, "train.warmup_steps": 5, "sampler.steps": 5},
            axes={"width": ("8", "16"), "steps": ("125",)},
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="36 trainings, estimated at an hour and a half on one core of an Intel Xeon",
            fields={
                "sampler.guidance": 1.0,
                "sampler.steps": 20,
                "train.batch_size": 32,
                "train.eval_every": 125,
                "train.num_preview_samples": 0,
            },
            axes={"width": WIDTHS, "steps": STEPS},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="eight trainings; CIFAR-10 in the place of ImageNet 64x64",
            axes={"width": PAPER_WIDTHS, "steps": PAPER_STEPS},
            num=50_000,
            measures=[Measure("training", "eval/loss", better="lower"), Measure("fid")],
        ),
    },
)
