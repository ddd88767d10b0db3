"""DALL-E 2 (Ramesh et al. 2022): priors, and the best of their embeddings.

    python launch.py reproduce --experiment=experiments/unclip_priors.py --workdir=runs/experiments --scale=small

Without a prior the caption's own embedding is decoded, which the decoder was not trained on; the paper has FID 16.55 of
that with a small decoder, beside 7.99 with a prior (experiments/unclip_conditions.py). Of the embeddings that a prior
draws the nearest to the caption's is taken: the paper's diffusion prior draws two, and how many the other one draws it
does not say. The CLIP score is of the CLIP whose embeddings are drawn.
"""

from diffjax.reproduce import TINY, Axis, Experiment, Measure, Ordering, Paper, Scale

PRIOR = {"none": "none", "autoregressive": "ar", "diffusion": "diffusion"}


def candidates(count: int):
    """Of a prior; the caption has one embedding."""
    return lambda config: {} if config.sampler.prior == "none" else {"sampler.candidates": count}


EXPERIMENT = Experiment(
    title="DALL-E 2: priors",
    source="Ramesh et al. 2022, sections 2.2 and 5.1, table 2",
    claim="A prior's embeddings make better pictures than the caption's own, a diffusion prior's a little better ones.",
    axes=[
        Axis("prior", {name: {"sampler.prior": choice} for name, choice in PRIOR.items()}),
        Axis("candidates", {str(count): candidates(count) for count in (1, 2, 8)}),
    ],
    across="candidates",
    measures=[
        Measure("captions", "captions"),
        *(Measure("captions", f"caption_{part}") for part in ("count", "colour", "shape", "relation")),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
    ],
    papers=[
        Paper(
            "FID, MS-COCO 256x256 zero-shot, decoder's guidance 1.25",
            {("autoregressive", "2"): 10.63, ("diffusion", "2"): 10.39},
            beside=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering(
            "Pictures of a diffusion prior's embeddings are nearer to real ones than those of captions' own",
            [{"prior": "diffusion"}, {"prior": "none"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "and so are an autoregressive prior's",
            [{"prior": "autoregressive"}, {"prior": "none"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "The diffusion prior is the better of the two",
            [{"prior": "diffusion"}, {"prior": "autoregressive"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            "The better of two embeddings shows the caption more often than any",
            [{"candidates": "2"}, {"candidates": "1"}],
            where={"prior": ("autoregressive", "diffusion")},
            measure="captions",
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/unclip_shapes.py",
            "ten minutes on two CPU cores",
            fields=TINY,
            axes={"candidates": ("1", "2")},
            num=20,
            measures=[Measure("captions"), Measure("clip_score"), Measure("fd_pixels")],
        ),
        "small": Scale("configs/unclip_shapes.py", "ten minutes on two CPU cores, where the chain is trained", num=200),
        "paper": Scale(
            "configs/unclip_emoji.py",
            "a day on one GPU; the paper's steps and guidance, on data of ours",
            fields={
                "sampler.stages.prior.steps": 64,
                "sampler.stages.decoder.steps": 250,
                "sampler.stages.decoder.guidance": 1.25,
                "sampler.stages.upsampler.steps": 27,
            },
            num=1000,
            measures=[Measure("fid"), Measure("clip_score")],
        ),
    },
)
