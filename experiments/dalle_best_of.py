"""DALL-E (Ramesh et al. 2021), section 2.6 and figure 6: the best of k pictures by CLIP.

    python launch.py reproduce --experiment=experiments/dalle_best_of.py --workdir=runs/experiments --scale=small

Whether a picture shows its caption is read from the picture, not asked of the CLIP that chose it.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale

TINY = {
    "parts.codec.train.steps": 30,
    "parts.codec.train.sample_count": 0,
    "parts.codec.model.channels": 8,
    "parts.clip.train.steps": 20,
    "parts.clip.image_encoder.width": 32,
    "parts.clip.text_encoder.width": 32,
    "model.width": 48,
    "model.layers": 2,
    "train.steps": 20,
    "train.sample_count": 0,
}
K = ("1", "4", "16", "64")

EXPERIMENT = Experiment(
    title="DALL-E: the best of k pictures by CLIP",
    source="Ramesh et al. 2021, section 2.6 and figure 6 (pictures, no table)",
    claim="Of more candidates CLIP finds a picture that shows the caption better, with falling returns.",
    axes=[Axis("k", {k: {"rerank.best_of": int(k)} for k in K})],
    across="k",
    measures=[
        Measure("captions", "captions"),
        Measure("captions", "caption_relation"),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
    ],
    orderings=[
        Ordering("The more candidates, the more pictures show their caption", [{"k": k} for k in reversed(K)]),
        Ordering(
            "and the higher is the score of the CLIP that chooses",
            [{"k": k} for k in reversed(K)],
            measure="clip_score",
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/dalle_shapes.py",
            "two minutes on two CPU cores",
            fields=TINY,
            axes={"k": ("1", "4")},
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale(
            "configs/dalle_shapes.py", "an hour and a half on two CPU cores, where nothing is trained yet", num=200
        ),
        "paper": Scale(
            "configs/dalle_emoji.py", "a day on one GPU; the paper's best of 512, on data of ours", num=1000
        ),
    },
)
