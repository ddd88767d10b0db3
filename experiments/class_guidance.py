"""Classifier-free guidance (Ho & Salimans 2022) and classifier guidance (Dhariwal & Nichol 2021) of class labels.

    python launch.py reproduce --experiment=experiments/class_guidance.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/class_guidance.py --workdir=runs/experiments --scale=small

One model has all cells. The two scales are not comparable: that of classifier-free guidance is 1 without guidance, and
that of the classifier's gradient is 0. cfg_scale.py and adm_table4.py are the tables of each paper.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

FREE, CLASSIFIER = ("1.5", "2", "4"), ("1", "3", "10")
NONE = {"sampler.guidance": 1.0, "sampler.classifier_scale": 0.0}
GUIDANCE = {
    "none": NONE,
    **{f"classifier-free {s}": {**NONE, "sampler.guidance": float(s)} for s in FREE},
    **{f"classifier {s}": {**NONE, "sampler.classifier_scale": float(s)} for s in CLASSIFIER},
}
STRONGEST = {"Classifier-free": "classifier-free 4", "Classifier": "classifier 10"}

EXPERIMENT = Experiment(
    title="Classifier-free and classifier guidance",
    source="Ho & Salimans 2022, abstract",
    claim="Without a classifier, guidance trades diversity for quality as classifier guidance does.",
    axes=[Axis("guidance", GUIDANCE)],
    measures=[
        Measure("classifier_accuracy"),
        Measure("precision_recall_pixels", "precision_pixels"),
        Measure("precision_recall_pixels", "recall_pixels"),
        Measure("fd_pixels"),
    ],
    orderings=[
        *(
            Ordering(
                claim=f"{name} guidance raises the classifier accuracy",
                order=[{"guidance": strongest}, {"guidance": "none"}],
            )
            for name, strongest in STRONGEST.items()
        ),
        *(
            Ordering(
                claim=f"{name} guidance lowers recall",
                order=[{"guidance": "none"}, {"guidance": strongest}],
                measure="recall_pixels",
            )
            for name, strongest in STRONGEST.items()
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"sampler.steps": 10},
            axes={"guidance": ("none", *STRONGEST.values())},
            measures=[Measure("classifier_accuracy"), Measure("precision_recall_pixels", "recall_pixels")],
            classifier=("configs/classifier_digits.py", {"train.steps": 40, "train.eval_every": 0}),
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="three trainings and three classifiers, estimated at 15 minutes on one core of an Intel Xeon",
            fields={**SMALL_TRAINING, "train.steps": 2000},
            seeds=(0, 1, 2),
            num=1000,
            classifier=("configs/classifier_digits.py", {"train.eval_every": 0}),
        ),
        "paper": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="not measured; Fashion-MNIST in the place of ImageNet",
            num=50_000,
            measures=[
                Measure("classifier_accuracy"),
                Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
                Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
                Measure("fd_effnet_lite0"),
            ],
            classifier=(
                "configs/classifier_digits.py",
                {"data.name": "fashion_mnist", "data.image_size": 14, "model.attention_resolutions": (7,)},
            ),
        ),
    },
)
