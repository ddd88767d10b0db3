"""How DALL-E's codes are drawn: temperature and top-k.

    python launch.py reproduce --experiment=experiments/dalle_sampling.py --workdir=runs/experiments --scale=small

A top-k of 0 is all codes.
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
T = ("0.5", "0.75", "1", "1.25")

EXPERIMENT = Experiment(
    title="DALL-E: temperature and top-k",
    source="Ramesh et al. 2021, section 2.6 (temperature 1 but for figure 2; no table); Fan et al. 2018 (top-k)",
    claim="Likelier codes show the caption more often, and the pictures are less varied.",
    axes=[
        Axis("top-k", {k: {"sampler.top_k": int(k)} for k in ("0", "32", "8")}),
        Axis("temperature", {t: {"sampler.temperature": float(t)} for t in T}),
    ],
    across="temperature",
    measures=[
        Measure("captions", "captions"),
        Measure("fd_effnet_lite0"),
        Measure("manifold_effnet_lite0", "precision_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(
            "At lower temperatures more pictures show their caption",
            [{"temperature": t} for t in ("0.5", "1", "1.25")],
            where={"top-k": ("0",)},
        ),
        Ordering(
            "and they are less varied",
            [{"temperature": "1"}, {"temperature": "0.5"}],
            where={"top-k": ("0",)},
            measure="recall_effnet_lite0",
        ),
        Ordering(
            "Fewer codes to choose from help where the temperature is high",
            [{"top-k": "8"}, {"top-k": "0"}],
            where={"temperature": ("1.25",)},
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/dalle_shapes.py",
            "two minutes on two CPU cores",
            fields=TINY,
            axes={"top-k": ("0",), "temperature": ("0.5", "1")},
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale("configs/dalle_shapes.py", "an hour on two CPU cores, where nothing is trained yet", num=500),
        "paper": Scale("configs/dalle_emoji.py", "a day on one GPU; on data of ours", num=1000),
    },
)
