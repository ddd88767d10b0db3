"""DALL-E 2 (Ramesh et al. 2022), appendix C: number of steps of each stage.

    python launch.py reproduce --experiment=experiments/chain_steps.py --workdir=runs/experiments --scale=small

The paper uses 64 steps for the diffusion prior, 250 for the decoder, and 27 and 15 for the upsamplers; it has no
comparison. All cells sample one trained pipeline.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

COUNTS = {"prior": (4, 16, 64), "decoder": (5, 15, 50, 250), "upsampler": (2, 5, 15, 27)}


def counts(stage: str, *labels: int) -> list[dict[str, str]]:
    return [{stage: str(label)} for label in labels]


EXPERIMENT = Experiment(
    title="DALL-E 2: steps of each stage",
    source="Ramesh et al. 2022, appendix C (settings, no comparison)",
    claim="The decoder needs the most steps, the prior fewer, and the upsamplers the fewest.",
    axes=[
        Axis(stage, {str(count): {f"sampler.stages.{stage}.steps": count} for count in stage_counts})
        for stage, stage_counts in COUNTS.items()
    ],
    column_axis="decoder",
    measures=[Measure("fd_effnet_lite0"), Measure("caption_accuracy"), Measure("fd_pixels")],
    orderings=[
        Ordering(claim="Images improve with the decoder's steps", order=counts("decoder", 50, 15, 5)),
        Ordering(
            claim="Images improve with the prior's steps", order=counts("prior", 64, 16, 4), where={"decoder": ("50",)}
        ),
        Ordering(
            claim="Images improve with the upsampler's steps",
            order=counts("upsampler", 15, 5, 2),
            where={"decoder": ("50",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores",
            train_steps=20,
            fields=SMALL_NETWORKS,
            axes={"prior": ("4", "16"), "decoder": ("5", "15"), "upsampler": ("2",)},
            num=20,
            measures=[Measure("fd_pixels"), Measure("caption_accuracy")],
        ),
        "small": Scale(
            config="configs/unclip_shapes.py",
            duration="ten minutes on two CPU cores, once the pipeline is trained",
            axes={"decoder": ("5", "15", "50"), "upsampler": ("2", "5", "15")},
            num=200,
        ),
        "paper": Scale(
            config="configs/unclip_emoji.py",
            duration="a day on one GPU; our data set",
            num=1000,
            measures=[Measure("fid"), Measure("clip_score")],
        ),
    },
)
