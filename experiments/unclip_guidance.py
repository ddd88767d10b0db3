"""DALL-E 2 (Ramesh et al. 2022), figures 9 to 11: guidance of the decoder, compared with GLIDE.

    python launch.py reproduce --experiment=experiments/unclip_guidance.py --workdir=runs/experiments --scale=small

A scale of 1 is no guidance. The paper's figures are images and curves; table 2 has FID at a scale of 1.25. In its user
study, unCLIP's images are more diverse than GLIDE's in 62.6 (autoregressive prior) and 70.5 % of comparisons (diffusion
prior), and closer to the caption in 41.1 and 45.3 % (table 1).
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

MODEL = {
    "GLIDE": {"config": "configs/glide_{data}.py", "noised_clip": ""},
    "unCLIP, autoregressive prior": {"sampler.prior": "ar"},
    "unCLIP, diffusion prior": {"sampler.prior": "diffusion"},
}
GLIDE, AR, DIFFUSION = ({"model": name} for name in MODEL)
S = ("1", "1.25", "1.5", "2", "3", "4", "8")
STAGE = {name: "base" if name == "GLIDE" else "decoder" for name in MODEL}  # stage with guidance


EXPERIMENT = Experiment(
    title="DALL-E 2: guidance of the decoder",
    source="Ramesh et al. 2022, section 5.3, figures 9 to 11, tables 1 and 2",
    claim="Guidance lowers the diversity of GLIDE, but little that of unCLIP, where the embedding is fixed.",
    axes=[
        Axis("model", MODEL),
        Axis(
            "scale",
            {s: {m: {f"sampler.stages.{stage}.guidance": float(s)} for m, stage in STAGE.items()} for s in S},
            by="model",
        ),
    ],
    column_axis="scale",
    measures=[
        Measure("caption_accuracy"),
        Measure("caption_accuracy", "caption_relation"),
        Measure("fd_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            setting="FID, MS-COCO 256x256 zero-shot",
            values={("unCLIP, autoregressive prior", "1.25"): 10.63, ("unCLIP, diffusion prior", "1.25"): 10.39},
            metrics=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering(claim="Caption accuracy rises with the scale", order=[{"scale": s} for s in ("3", "1.5", "1")]),
        Ordering(
            claim="Strong guidance takes GLIDE away from real images",
            order=[{"scale": "1.5"}, {"scale": "4"}],
            where={"model": ("GLIDE",)},
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="At the same scale, unCLIP is closer to real images than GLIDE",
            order=[DIFFUSION, GLIDE],
            where={"scale": ("3", "4", "8")},
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="Recall is highest with the diffusion prior, then with the autoregressive prior, then GLIDE",
            order=[DIFFUSION, AR, GLIDE],
            where={"scale": ("3", "4", "8")},
            measure="recall_effnet_lite0",
        ),
        Ordering(
            claim="GLIDE has a higher caption accuracy than unCLIP",
            order=[GLIDE, DIFFUSION],
            where={"scale": ("2", "3", "4")},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"scale": ("1", "2")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores, once both pipelines are trained",
            axes={"scale": ("1", "1.5", "3", "4")},
            num=200,
        ),
        "paper": Scale(
            config="configs/unclip_emoji.py",
            duration="two days on one GPU; the paper's steps, our data set",
            fields={
                "*stages.decoder.steps": 250,
                "*stages.base.steps": 250,
                "*stages.upsampler.steps": 27,
            },
            num=1000,
            measures=[Measure("fid"), Measure("precision_recall_inception", "recall_inception")],
        ),
    },
)
