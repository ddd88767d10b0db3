"""DALL-E 2 (Ramesh et al. 2022), section 5.1: conditions of the decoder, besides the caption.

    python launch.py reproduce --experiment=experiments/unclip_conditions.py --workdir=runs/experiments --scale=small

"caption": no other condition, as in GLIDE. "text embedding": CLIP's embedding of the caption, with a decoder trained on
it. "text embedding, zero-shot": the same, with a decoder trained on image embeddings. "image embedding": a sample of
the diffusion prior. The paper's values are the best over guidance scales; ours use the configs' scale of 2.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

CONDITION = {
    "caption": {"config": "configs/glide_{data}.py", "noised_clip": ""},
    "text embedding": {"config": "configs/unclip_text_decoder.py:{data}"},
    "text embedding, zero-shot": {"sampler.prior": "none"},
    "image embedding": {"sampler.prior": "diffusion"},
}
CAPTION, TEXT, ZERO_SHOT, IMAGE = ({"condition": name} for name in CONDITION)

EXPERIMENT = Experiment(
    title="DALL-E 2: conditions of the decoder",
    source="Ramesh et al. 2022, section 5.1 (small models) and table 1",
    claim="Conditioning on sampled image embeddings gives better images than conditioning on text embeddings.",
    axes=[Axis("condition", CONDITION)],
    measures=[
        Measure("caption_accuracy"),
        *(Measure("caption_accuracy", f"caption_{part}") for part in ("count", "colour", "shape", "relation")),
        Measure("fd_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            setting="FID of small models on the authors' test set",
            values={("text embedding",): 9.16, ("text embedding, zero-shot",): 16.55, ("image embedding",): 7.99},
            metrics=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering(
            claim="Image embeddings give images closer to real ones than text embeddings",
            order=[IMAGE, TEXT],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="Text embeddings give images closer to real ones if the decoder was trained on them",
            order=[TEXT, ZERO_SHOT],
            measure="fd_effnet_lite0",
        ),
        Ordering(claim="Image embeddings have a higher caption accuracy than text embeddings", order=[IMAGE, TEXT]),
        Ordering(claim="Image embeddings have a lower caption accuracy than the caption alone", order=[CAPTION, IMAGE]),
        Ordering(
            claim="Image embeddings have a higher recall than the caption alone",
            order=[IMAGE, CAPTION],
            measure="recall_effnet_lite0",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/unclip_shapes.py",
            duration="fifteen minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores, once all models are trained",
            num=500,
        ),
        "paper": Scale(
            config="configs/unclip_emoji.py",
            duration="a day on one GPU; our data set",
            num=1000,
            measures=[Measure("fid"), Measure("precision_recall_inception", "recall_inception")],
        ),
    },
)
