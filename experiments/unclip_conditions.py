"""DALL-E 2 (Ramesh et al. 2022), section 5.1: what the decoder is told beside the caption.

    python launch.py reproduce --experiment=experiments/unclip_conditions.py --workdir=runs/experiments --scale=small

"caption": nothing, as GLIDE is. "text embedding": CLIP's embedding of the caption, by a decoder trained on it.
"text embedding, zero-shot": the same, by a decoder trained on embeddings of pictures. "image embedding": one that the
diffusion prior draws. The paper's figures are the best over guidance scales; ours have the configs' scale of 2.
"""

from diffjax.reproduce import TINY, Axis, Experiment, Measure, Ordering, Paper, Scale

TOLD = {
    "caption": lambda config: {"config": f"configs/glide_{config.data.name}.py", "noised_clip": ""},
    "text embedding": lambda config: {"config": f"configs/unclip_text_decoder.py:{config.data.name}"},
    "text embedding, zero-shot": {"sampler.prior": "none"},
    "image embedding": {"sampler.prior": "diffusion"},
}
CAPTION, TEXT, ZERO_SHOT, IMAGE = ({"told": name} for name in TOLD)

EXPERIMENT = Experiment(
    title="DALL-E 2: what the decoder is told",
    source="Ramesh et al. 2022, section 5.1 (small models) and table 1",
    claim="A decoder of drawn image embeddings makes better pictures than one of the text's embeddings.",
    axes=[Axis("told", TOLD)],
    measures=[
        Measure("captions", "captions"),
        *(Measure("captions", f"caption_{part}") for part in ("count", "colour", "shape", "relation")),
        Measure("fd_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            "FID of small models on a test set of theirs",
            {("text embedding",): 9.16, ("text embedding, zero-shot",): 16.55, ("image embedding",): 7.99},
            beside=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering(
            "Told image embeddings it draws nearer to real pictures than told the text's",
            [IMAGE, TEXT],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "and told these, nearer where it was trained on them",
            [TEXT, ZERO_SHOT],
            measure="fd_effnet_lite0",
        ),
        Ordering("and shows the caption more often than told text embeddings", [IMAGE, TEXT]),
        Ordering("but less often than told the caption alone", [CAPTION, IMAGE]),
        Ordering("and is more varied then", [IMAGE, CAPTION], measure="recall_effnet_lite0"),
    ],
    scales={
        "smoke": Scale(
            "configs/unclip_shapes.py",
            "fifteen minutes on two CPU cores",
            fields=TINY,
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale("configs/unclip_shapes.py", "ten minutes on two CPU cores, where all is trained", num=500),
        "paper": Scale(
            "configs/unclip_emoji.py",
            "a day on one GPU; on data of ours",
            num=1000,
            measures=[Measure("fid"), Measure("manifold_inception", "recall_inception")],
        ),
    },
)
