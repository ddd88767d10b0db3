"""EDM2 (Karras et al. 2024): the length of the average of the weights, chosen after training.

    python launch.py reproduce --experiment=experiments/ema_lengths.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/ema_lengths.py --workdir=runs/experiments --scale=small

A length is the standard deviation of the averaging profile, relative to the training. One trained run per seed has all
cells: each length is reconstructed from stored averages. In the paper the best length depends on the network, the
training time and the guidance, and is shorter with guidance (figures 5 and 6); the lengths compared are of this file.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

LENGTHS = ("0.02", "0.05", "0.075", "0.1", "0.15", "0.2", "0.25")
GUIDANCE = ("1", "2")
AXIS = "EMA length"

EXPERIMENT = Experiment(
    title="EDM2: lengths of the average of the weights",
    source="Karras et al. 2024 (EDM2), section 3 and figures 5 and 6 (ImageNet 512x512)",
    claim="The best length of the average of the weights depends on the guidance, and can be tuned after training.",
    axes=[
        Axis("guidance", {scale: {"sampler.guidance": float(scale)} for scale in GUIDANCE}),
        Axis(AXIS, {length: {"ema_length": float(length)} for length in LENGTHS}),
    ],
    column_axis=AXIS,
    measures=[Measure("fd_pixels"), Measure("kd_pixels"), Measure("classifier_accuracy")],
    orderings=[
        Ordering(
            claim="Without guidance, a length of 0.1 is better than a short one",
            order=[{AXIS: "0.1"}, {AXIS: "0.02"}],
            where={"guidance": ("1",)},
        ),
        Ordering(
            claim="With guidance, a short length is better than 0.1",
            order=[{AXIS: "0.02"}, {AXIS: "0.1"}],
            where={"guidance": ("2",)},
        ),
        Ordering(claim="A length of 0.1 is better than 0.25", order=[{AXIS: "0.1"}, {AXIS: "0.25"}]),
    ],
    scales={
        "smoke": smoke(
            config="configs/edm2_digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"model.channels": 16, "sampler.steps": 5, "train.ema_every": 10},
            axes={"guidance": ("1",), AXIS: ("0.05", "0.1")},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/edm2_digits.py",
            duration="three trainings of 2000 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={
                **SMALL_TRAINING,
                "train.steps": 2000,
                "train.ema_every": 25,
            },
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/edm2_digits.py",
            duration="not measured; Fashion-MNIST in the place of ImageNet, with a smaller network",
            fields={
                "data.name": "fashion_mnist",
                "data.image_size": 28,
                "model.channels": 64,
                "model.attention_resolutions": (14,),
                "train.steps": 50_000,
                "train.ema_every": 1000,
            },
            num=50_000,
            measures=[Measure("fd_effnet_lite0"), Measure("kd_effnet_lite0"), Measure("classifier_accuracy")],
        ),
    },
)
