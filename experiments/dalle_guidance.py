"""Classifier-free guidance on the logits of an autoregressive model of codes: pictures against its scale.

    python launch.py reproduce --experiment=experiments/dalle_guidance.py --workdir=runs/experiments --scale=small

A scale of 1 is none.
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
S = ("0", "1", "1.5", "2", "3", "5")

EXPERIMENT = Experiment(
    title="DALL-E: guidance on logits",
    source="Gafni et al. 2022 (Make-A-Scene), section 3.5 (pictures, no table)",
    claim="Logits led away from those of an empty caption give pictures that show their caption more often.",
    axes=[Axis("scale", {s: {"sampler.guidance": float(s)} for s in S})],
    across="scale",
    measures=[
        Measure("captions", "captions"),
        Measure("captions", "caption_relation"),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering("Guided pictures show their caption more often", [{"scale": s} for s in ("2", "1", "0")]),
        Ordering("and are less varied", [{"scale": "1"}, {"scale": "5"}], measure="recall_effnet_lite0"),
    ],
    scales={
        "smoke": Scale(
            "configs/dalle_shapes.py",
            "two minutes on two CPU cores",
            fields=TINY,
            axes={"scale": ("1", "2")},
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale("configs/dalle_shapes.py", "an hour on two CPU cores, where nothing is trained yet", num=500),
        "paper": Scale("configs/dalle_emoji.py", "a day on one GPU; on data of ours", num=1000),
    },
)
