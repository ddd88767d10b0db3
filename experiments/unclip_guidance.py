"""DALL-E 2 (Ramesh et al. 2022), figures 9 to 11: guidance of the decoder, beside GLIDE's.

    python launch.py reproduce --experiment=experiments/unclip_guidance.py --workdir=runs/experiments --scale=small

A scale of 1 is none. The paper's figures are pictures and curves; table 2 has FID at the scale of 1.25. Beside GLIDE's,
people found unCLIP's pictures more diverse in 62.6 (autoregressive prior) and 70.5 % of comparisons (diffusion prior),
nearer to the caption in 41.1 and 45.3 % (table 1).
"""

from diffjax.reproduce import TINY, Axis, Experiment, Measure, Ordering, Paper, Scale

MODEL = {
    "GLIDE": lambda config: {"config": f"configs/glide_{config.data.name}.py", "noised_clip": ""},
    "unCLIP, autoregressive prior": {"sampler.prior": "ar"},
    "unCLIP, diffusion prior": {"sampler.prior": "diffusion"},
}
GLIDE, AR, DIFFUSION = ({"model": name} for name in MODEL)
S = ("1", "1.25", "1.5", "2", "3", "4", "8")


def guided(scale: float):
    """The stage that draws the first picture."""
    return lambda config: {f"sampler.stages.{'base' if config.system == 'glide' else 'decoder'}.guidance": scale}


EXPERIMENT = Experiment(
    title="DALL-E 2: guidance of the decoder",
    source="Ramesh et al. 2022, section 5.3, figures 9 to 11, tables 1 and 2",
    claim="Guidance costs GLIDE its variety, and unCLIP little of it, as the embedding is fixed before.",
    axes=[Axis("model", MODEL), Axis("scale", {s: guided(float(s)) for s in S})],
    across="scale",
    measures=[
        Measure("captions", "captions"),
        Measure("captions", "caption_relation"),
        Measure("fd_effnet_lite0"),
        Measure("manifold_effnet_lite0", "precision_effnet_lite0"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            "FID, MS-COCO 256x256 zero-shot",
            {("unCLIP, autoregressive prior", "1.25"): 10.63, ("unCLIP, diffusion prior", "1.25"): 10.39},
            beside=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering("Guided pictures show their caption more often", [{"scale": s} for s in ("3", "1.5", "1")]),
        Ordering(
            "Much guidance takes GLIDE away from real pictures",
            [{"scale": "1.5"}, {"scale": "4"}],
            where={"model": ("GLIDE",)},
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "Guided as much, unCLIP is nearer to them",
            [DIFFUSION, GLIDE],
            where={"scale": ("3", "4", "8")},
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "and is more varied with the diffusion prior than with the other, and with that than GLIDE",
            [DIFFUSION, AR, GLIDE],
            where={"scale": ("3", "4", "8")},
            measure="recall_effnet_lite0",
        ),
        Ordering("GLIDE shows the caption more often", [GLIDE, DIFFUSION], where={"scale": ("2", "3", "4")}),
    ],
    scales={
        "smoke": Scale(
            "configs/unclip_shapes.py",
            "ten minutes on two CPU cores",
            fields=TINY,
            axes={"scale": ("1", "2")},
            num=20,
            measures=[Measure("captions"), Measure("fd_pixels")],
        ),
        "small": Scale(
            "configs/unclip_shapes.py",
            "ten minutes on two CPU cores, where both chains are trained",
            axes={"scale": ("1", "1.5", "3", "4")},
            num=200,
        ),
        "paper": Scale(
            "configs/unclip_emoji.py",
            "two days on one GPU; the paper's steps, on data of ours",
            fields={
                "*stages.decoder.steps": 250,
                "*stages.base.steps": 250,
                "*stages.upsampler.steps": 27,
            },
            num=1000,
            measures=[Measure("fid"), Measure("manifold_inception", "recall_inception")],
        ),
    },
)
