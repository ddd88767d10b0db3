"""GLIDE (Nichol et al. 2021), section 5: classifier-free guidance against guidance by a CLIP of noised images.

    python launch.py reproduce --experiment=experiments/glide_guidance.py --workdir=runs/experiments --scale=small

The two scales are not comparable, so each is swept, and columns name both: the scale of classifier-free guidance (1: no
guidance), and the factor of CLIP's gradient (0: no guidance), which includes CLIP's logit scale. The paper's results
are curves and votes.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

FREE, CLIP = ({"by": name} for name in ("classifier-free", "CLIP"))
STRENGTHS = ((1.0, 0.0), (1.5, 5.0), (2.0, 15.0), (3.0, 50.0), (5.0, 150.0))
NONE, *GUIDED = NAMES = [f"{free:g} / {clip:g}" for free, clip in STRENGTHS]


def strength(free: float, clip: float) -> dict[str, dict[str, float]]:
    """Returns the fields by kind of guidance."""
    return {
        "classifier-free": {"sampler.stages.base.guidance": free},
        "CLIP": {"sampler.stages.base.clip_scale": clip} if clip else {},
    }


EXPERIMENT = Experiment(
    title="GLIDE: classifier-free and CLIP guidance",
    source="Nichol et al. 2021, section 5, figure 6 and table 1",
    claim="Classifier-free guidance gives more realistic images, closer to the caption, than CLIP guidance.",
    axes=[
        Axis("by", {"classifier-free": {}, "CLIP": {"sampler.stages.base.guidance": 1.0}}),
        Axis("scale", {name: strength(*pair) for name, pair in zip(NAMES, STRENGTHS, strict=True)}, by="by"),
    ],
    column_axis="scale",
    measures=[
        Measure("caption_accuracy"),
        *(Measure("caption_accuracy", f"caption_{part}") for part in ("colour", "shape", "relation")),
        Measure("fd_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(
            claim="Classifier-free guidance has a higher caption accuracy than CLIP guidance",
            order=[FREE, CLIP],
            where={"scale": GUIDED},
        ),
        Ordering(
            claim="Classifier-free guidance is closer to real images than CLIP guidance",
            order=[FREE, CLIP],
            where={"scale": GUIDED},
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="Both guidances have a higher caption accuracy than none",
            order=[{"scale": GUIDED[1]}, {"scale": NONE}],
        ),
        Ordering(
            claim="Strong guidance lowers recall",
            order=[{"scale": NONE}, {"scale": GUIDED[-1]}],
            measure="recall_effnet_lite0",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/glide_shapes.py",
            duration="five minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"scale": (NONE, GUIDED[1])},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/glide_shapes.py",
            duration="ten minutes on two CPU cores, once the pipeline is trained",
            num=200,
        ),
        "paper": Scale(
            config="configs/glide_emoji.py",
            duration="a day on one GPU; our data set",
            num=1000,
            measures=[
                Measure("fid"),
                Measure("is"),
                Measure("precision_recall_inception", "precision_inception"),
                Measure("precision_recall_inception", "recall_inception"),
            ],
        ),
    },
)
