"""GLIDE (Nichol et al. 2021), section 5: classifier-free guidance against a CLIP of noised pictures.

    python launch.py reproduce --experiment=experiments/glide_guidance.py --workdir=runs/experiments --scale=small

The two scales have no common measure, so each is swept, and columns name both: that of classifier-free guidance, of
which 1 is none, and the factor of CLIP's gradient, of which 0 is none and which CLIP's own logit scale is a part of.
The paper's figures are curves and votes.
"""

from diffjax.reproduce import TINY, Axis, Experiment, Measure, Ordering, Scale

FREE, CLIP = ({"by": name} for name in ("classifier-free", "CLIP"))
STRENGTHS = ((1.0, 0.0), (1.5, 5.0), (2.0, 15.0), (3.0, 50.0), (5.0, 150.0))
NONE, *GUIDED = NAMES = [f"{free:g} / {clip:g}" for free, clip in STRENGTHS]


def strength(free: float, clip: float):
    """Of whichever guides."""

    def fields(config):
        if config.sampler.stages.base.guidance != 1:
            return {"sampler.stages.base.guidance": free}
        return {"sampler.stages.base.clip_scale": clip} if clip else {}

    return fields


EXPERIMENT = Experiment(
    title="GLIDE: classifier-free guidance and CLIP's",
    source="Nichol et al. 2021, section 5, figure 6 and table 1",
    claim="Classifier-free guidance makes pictures more real and nearer to the caption than CLIP's does.",
    axes=[
        Axis("by", {"classifier-free": {}, "CLIP": {"sampler.stages.base.guidance": 1.0}}),
        Axis("scale", {name: strength(*pair) for name, pair in zip(NAMES, STRENGTHS, strict=True)}),
    ],
    across="scale",
    measures=[
        Measure("captions", "captions"),
        *(Measure("captions", f"caption_{part}") for part in ("colour", "shape", "relation")),
        Measure("fd_effnet_lite0"),
        Measure("manifold_effnet_lite0", "precision_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(
            "Led without a classifier pictures show their caption more often than led by CLIP",
            [FREE, CLIP],
            where={"scale": GUIDED},
        ),
        Ordering("and are nearer to real ones", [FREE, CLIP], where={"scale": GUIDED}, measure="fd_effnet_lite0"),
        Ordering("Led by either they show it more often than by neither", [{"scale": GUIDED[1]}, {"scale": NONE}]),
        Ordering("and are less varied", [{"scale": NONE}, {"scale": GUIDED[-1]}], measure="recall_effnet_lite0"),
    ],
    scales={
        "smoke": Scale(
            "configs/glide_shapes.py",
            "five minutes on two CPU cores",
            fields=TINY,
            axes={"scale": (NONE, GUIDED[1])},
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale("configs/glide_shapes.py", "ten minutes on two CPU cores, where the chain is trained", num=200),
        "paper": Scale(
            "configs/glide_emoji.py",
            "a day on one GPU; on data of ours",
            num=1000,
            measures=[
                Measure("fid"),
                Measure("is"),
                Measure("manifold_inception", "precision_inception"),
                Measure("manifold_inception", "recall_inception"),
            ],
        ),
    },
)
