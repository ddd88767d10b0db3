"""DALL-E (Ramesh et al. 2021), section 2.6 and figure 6: best of k images by CLIP.

    python launch.py reproduce --experiment=experiments/dalle_best_of.py --workdir=runs/experiments --scale=small

Caption accuracy is read from the image, independently of the CLIP that selects it.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

K = ("1", "4", "16", "64")

EXPERIMENT = Experiment(
    title="DALL-E: best of k images by CLIP",
    source="Ramesh et al. 2021, section 2.6 and figure 6 (images, no table)",
    claim="With more candidates, CLIP finds an image that fits the caption better, with diminishing returns.",
    axes=[Axis("k", {k: {"rerank.best_of": int(k)} for k in K})],
    column_axis="k",
    measures=[
        Measure("caption_accuracy"),
        Measure("caption_accuracy", "caption_relation"),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
    ],
    orderings=[
        Ordering(claim="Caption accuracy rises with the number of candidates", order=[{"k": k} for k in reversed(K)]),
        Ordering(
            claim="The score of the reranking CLIP rises with the number of candidates",
            order=[{"k": k} for k in reversed(K)],
            measure="clip_score",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/dalle_shapes.py",
            duration="two minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"k": ("1", "4")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/dalle_shapes.py",
            duration="an hour and a half on two CPU cores, training included",
            fields={"sampler.guidance": 1.0},
            num=200,
        ),
        "paper": Scale(
            config="configs/dalle_emoji.py",
            duration="a day on one GPU; the paper's best of 512; our data set",
            num=1000,
        ),
    },
)
