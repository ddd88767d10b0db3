"""Sampling of DALL-E's codes: temperature and top-k.

    python launch.py reproduce --experiment=experiments/dalle_sampling.py --workdir=runs/experiments --scale=small

A top-k of 0 samples from all codes.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

T = ("0.5", "0.75", "1", "1.25")

EXPERIMENT = Experiment(
    title="DALL-E: temperature and top-k",
    source="Ramesh et al. 2021, section 2.6 (temperature 1 except in figure 2; no table); Fan et al. 2018 (top-k)",
    claim="Likelier codes raise caption accuracy and lower diversity.",
    axes=[
        Axis("top-k", {k: {"sampler.top_k": int(k)} for k in ("0", "32", "8")}),
        Axis("temperature", {t: {"sampler.temperature": float(t)} for t in T}),
    ],
    column_axis="temperature",
    measures=[
        Measure("caption_accuracy"),
        Measure("fd_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(
            claim="Caption accuracy rises as the temperature falls",
            order=[{"temperature": t} for t in ("0.5", "1", "1.25")],
            where={"top-k": ("0",)},
        ),
        Ordering(
            claim="Recall falls with the temperature",
            order=[{"temperature": "1"}, {"temperature": "0.5"}],
            where={"top-k": ("0",)},
            measure="recall_effnet_lite0",
        ),
        Ordering(
            claim="Top-k sampling helps at a high temperature",
            order=[{"top-k": "8"}, {"top-k": "0"}],
            where={"temperature": ("1.25",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/dalle_shapes.py",
            duration="two minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"top-k": ("0",), "temperature": ("0.5", "1")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/dalle_shapes.py",
            duration="an hour on two CPU cores, training included",
            fields={"sampler.guidance": 1.0},
            num=500,
        ),
        "paper": Scale(config="configs/dalle_emoji.py", duration="a day on one GPU; our data set", num=1000),
    },
)
