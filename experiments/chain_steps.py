"""DALL-E 2 (Ramesh et al. 2022), appendix C: the steps of each stage.

    python launch.py reproduce --experiment=experiments/chain_steps.py --workdir=runs/experiments --scale=small

The paper's are 64 of the diffusion prior, 250 of the decoder, 27 and 15 of the upsamplers, without a table of others.
All cells are of one trained chain.
"""

from diffjax.reproduce import TINY, Axis, Experiment, Measure, Ordering, Scale

COUNTS = {"prior": (4, 16, 64), "decoder": (5, 15, 50, 250), "upsampler": (2, 5, 15, 27)}


def counts(stage: str, *labels: int) -> list[dict[str, str]]:
    return [{stage: str(label)} for label in labels]


EXPERIMENT = Experiment(
    title="DALL-E 2: steps of each stage",
    source="Ramesh et al. 2022, appendix C (settings, no comparison)",
    claim="The decoder takes most steps; the prior takes fewer, and upsamplers the fewest.",
    axes=[
        Axis(stage, {str(count): {f"sampler.stages.{stage}.steps": count} for count in found})
        for stage, found in COUNTS.items()
    ],
    across="decoder",
    measures=[Measure("fd_effnet_lite0"), Measure("captions", "captions"), Measure("fd_pixels")],
    orderings=[
        Ordering("Pictures are better the more steps the decoder takes", counts("decoder", 50, 15, 5)),
        Ordering("and better the more the prior takes", counts("prior", 64, 16, 4), where={"decoder": ("50",)}),
        Ordering("and better the more the upsampler takes", counts("upsampler", 15, 5, 2), where={"decoder": ("50",)}),
    ],
    scales={
        "smoke": Scale(
            "configs/unclip_shapes.py",
            "ten minutes on two CPU cores",
            fields=TINY,
            axes={"prior": ("4", "16"), "decoder": ("5", "15"), "upsampler": ("2",)},
            num=20,
            measures=[Measure("fd_pixels"), Measure("captions")],
        ),
        "small": Scale(
            "configs/unclip_shapes.py",
            "ten minutes on two CPU cores, where the chain is trained",
            axes={"decoder": ("5", "15", "50"), "upsampler": ("2", "5", "15")},
            num=200,
        ),
        "paper": Scale(
            "configs/unclip_emoji.py",
            "a day on one GPU; on data of ours",
            num=1000,
            measures=[Measure("fid"), Measure("clip_score")],
        ),
    },
)
