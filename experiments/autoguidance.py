"""Autoguidance (Karras et al. 2024): guidance by a weaker version of the model instead of an unconditional one.

    python launch.py reproduce --experiment=experiments/autoguidance.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/autoguidance.py --workdir=runs/experiments --scale=small

The weaker version has a narrower network and a fraction of the training steps, as in the paper.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Multiply, Ordering, Paper, Scale, smoke

SCALES = ("1.5", "2", "3")
GUIDANCE = {
    "none": {"sampler.guidance": 1.0},
    **{f"classifier-free {s}": {"sampler.guidance": float(s)} for s in SCALES},
    **{f"auto {s}": {"sampler.guidance": 1.0, "sampler.weak_scale": float(s)} for s in SCALES},
}
WEAK = {"model.channels": Multiply(0.5), "train.steps": Multiply(0.125)}

EXPERIMENT = Experiment(
    title="Autoguidance",
    source="Karras et al. 2024, abstract (ImageNet 512x512)",
    claim="Guidance by a weaker version of the model improves quality without the loss of variation of other guidance.",
    axes=[Axis("guidance", GUIDANCE)],
    measures=[
        Measure("fd_pixels"),
        Measure("kd_pixels"),
        Measure("classifier_accuracy"),
        Measure("precision_recall_pixels", "recall_pixels"),
    ],
    papers=[Paper(setting="FID, ImageNet 512x512, the record, at another scale", values={("auto 2",): 1.25})],
    orderings=[
        Ordering(claim="Autoguidance is better than none", order=[{"guidance": "auto 2"}, {"guidance": "none"}]),
        Ordering(
            claim="Autoguidance is better than classifier-free guidance of the same scale",
            order=[{"guidance": "auto 2"}, {"guidance": "classifier-free 2"}],
        ),
        Ordering(
            claim="Autoguidance has a higher recall than classifier-free guidance of the same scale",
            order=[{"guidance": "auto 3"}, {"guidance": "classifier-free 3"}],
            measure="recall_pixels",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"sampler.steps": 10},
            axes={"guidance": ("none", "classifier-free 3", "auto 2", "auto 3")},
            measures=[Measure("fd_pixels"), Measure("precision_recall_pixels", "recall_pixels")],
            weak=WEAK,
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="not measured; two trainings of at most three minutes per seed on two CPU cores",
            seeds=(0, 1, 2),
            num=1437,
            weak=WEAK,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="not measured; CIFAR-10 in place of ImageNet",
            fields={"diffusion.class_conditional": True, "diffusion.label_dropout": 0.1},
            num=50_000,
            measures=[Measure("fid"), Measure("is"), Measure("precision_recall_pixels", "recall_pixels")],
            weak=WEAK,
        ),
    },
)
