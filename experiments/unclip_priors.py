"""DALL-E 2 (Ramesh et al. 2022): priors, and the best of several embeddings.

    python launch.py reproduce --experiment=experiments/unclip_priors.py --workdir=runs/experiments --scale=small

Without a prior, the decoder receives the text embedding of the caption, on which it was not trained. With a small
decoder the paper has FID 16.55 without and 7.99 with a prior (experiments/unclip_conditions.py). With several
candidates, the embedding closest to the caption's is used: the paper's diffusion prior samples two; for the
autoregressive prior the number is not given. The CLIP score uses the CLIP of the embeddings.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

PRIOR = {"none": "none", "autoregressive": "ar", "diffusion": "diffusion"}


def candidates(count: int) -> dict[str, dict[str, int]]:
    """Returns the fields by prior: without a prior there is one embedding only."""
    return {prior: {} if prior == "none" else {"sampler.candidates": count} for prior in PRIOR}


EXPERIMENT = Experiment(
    title="DALL-E 2: priors",
    source="Ramesh et al. 2022, sections 2.2 and 5.1, table 2",
    claim="Embeddings from a prior give better images than the caption's; the diffusion prior is slightly better.",
    axes=[
        Axis("prior", {name: {"sampler.prior": choice} for name, choice in PRIOR.items()}),
        Axis(
            "candidates",
            {str(n): candidates(n) for n in (1, 2, 8)},
            by="prior",
        ),
    ],
    column_axis="candidates",
    measures=[
        Measure("caption_accuracy"),
        *(Measure("caption_accuracy", f"caption_{part}") for part in ("count", "colour", "shape", "relation")),
        Measure("clip_score"),
        Measure("fd_effnet_lite0"),
    ],
    papers=[
        Paper(
            setting="FID, MS-COCO 256x256 zero-shot, decoder's guidance 1.25",
            values={("autoregressive", "2"): 10.63, ("diffusion", "2"): 10.39},
            metrics=("fd_effnet_lite0", "fid"),
        )
    ],
    orderings=[
        Ordering(
            claim="The diffusion prior gives images closer to real ones than no prior",
            order=[{"prior": "diffusion"}, {"prior": "none"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="The autoregressive prior gives images closer to real ones than no prior",
            order=[{"prior": "autoregressive"}, {"prior": "none"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="The diffusion prior gives images closer to real ones than the autoregressive prior",
            order=[{"prior": "diffusion"}, {"prior": "autoregressive"}],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="The best of two embeddings has a higher caption accuracy than one embedding",
            order=[{"candidates": "2"}, {"candidates": "1"}],
            where={"prior": ("autoregressive", "diffusion")},
            measure="caption_accuracy",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"candidates": ("1", "2")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("clip_score"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores, once the pipeline is trained",
            num=200,
        ),
        "paper": Scale(
            config="configs/unclip_emoji.py",
            duration="a day on one GPU; the paper's steps and guidance, our data set",
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
