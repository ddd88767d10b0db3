"""Classifier-free guidance on the logits of an autoregressive model of codes, by scale.

    python launch.py reproduce --experiment=experiments/dalle_guidance.py --workdir=runs/experiments --scale=small

A scale of 1 is no guidance.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

S = ("0", "1", "1.5", "2", "3", "5")

EXPERIMENT = Experiment(
    title="DALL-E: guidance on logits",
    source="Gafni et al. 2022 (Make-A-Scene), section 3.5 (images, no table)",
    claim="Guidance on logits, away from those of an empty caption, raises caption accuracy.",
    axes=[Axis("scale", {s: {"sampler.guidance": float(s)} for s in S})],
    column_axis="scale",
    measures=[
        Measure("caption_accuracy"),
        Measure("caption_accuracy", "caption_relation"),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(claim="Caption accuracy rises with the scale", order=[{"scale": s} for s in ("2", "1", "0")]),
        Ordering(
            claim="Strong guidance lowers recall", order=[{"scale": "1"}, {"scale": "5"}], measure="recall_effnet_lite0"
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/dalle_shapes.py",
            duration="two minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"scale": ("1", "2")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/dalle_shapes.py", duration="an hour on two CPU cores, training included", num=500
        ),
        "paper": Scale(config="configs/dalle_emoji.py", duration="a day on one GPU; our data set", num=1000),
    },
)
