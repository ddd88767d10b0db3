"""Latent diffusion (Rombach et al. 2022), figures 6 and 7: downsampling factor of the first stage, at equal steps.

    python launch.py reproduce --experiment=experiments/latent_f.py --workdir=runs/experiments --scale=small

f 1 is diffusion of pixels. The paper has curves for images of 256x256, where f 4 to 16 are best. Ours have 32x32
pixels, emoji 64x64, where f 8 leaves 4x4 and 8x8 latents. Networks are those of the configs, of different sizes.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Fields, Measure, Ordering, Scale, smoke

MULTIPLIERS = {"2": (1, 2), "4": (1, 2, 4), "8": (1, 2, 2, 4)}  # of the autoencoder for emoji


def downsampled(f: str) -> Callable[[ConfigDict], Fields]:
    """Returns the function that makes the fields of a factor f, from the config of the scale."""

    def fields(config: ConfigDict) -> Fields:
        if f == "1":
            return {
                "config": "configs/glide_base.py:{data}",
                "diffusion.downsample": 1,
                "model.multipliers": (1, 2, 2, 2),
            }
        if config.data.name == "shapes":
            return {"config": f"configs/latent_shapes.py:f{f}"}
        sides = tuple(side for side in config.model.attention_resolutions if side * int(f) <= config.data.image_size)
        return {"parts.codec.model.multipliers": MULTIPLIERS[f], "model.attention_resolutions": sides}

    return fields


EXPERIMENT = Experiment(
    title="Latent diffusion: f",
    source="Rombach et al. 2022, section 4.1, figures 6 and 7 (curves, no table)",
    claim="Models of latents with f 4 to 16 learn faster than models of pixels; f 32 loses too much information.",
    axes=[Axis("f", {f: downsampled(f) for f in ("1", *MULTIPLIERS)})],
    column_axis="f",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("caption_accuracy"),
        Measure("caption_accuracy", "caption_relation"),
        Measure("precision_recall_effnet_lite0", "precision_effnet_lite0"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    orderings=[
        Ordering(claim="Latents with f 4 give better images than with f 2", order=[{"f": "4"}, {"f": "2"}]),
        Ordering(claim="Latents with f 4 give better images than pixels", order=[{"f": "4"}, {"f": "1"}]),
        Ordering(
            claim="Latents with f 4 have a higher caption accuracy than pixels",
            order=[{"f": "4"}, {"f": "1"}],
            measure="caption_accuracy",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/latent_shapes.py",
            duration="ten minutes on two CPU cores",
            train_steps=20,
            fields={**SMALL_NETWORKS, "model.channels": 32},
            axes={"f": ("1", "4")},
            num=20,
            measures=[Measure("fd_pixels"), Measure("caption_accuracy")],
        ),
        "small": Scale(
            config="configs/latent_shapes.py",
            duration="two hours on two CPU cores",
            fields={"train.steps": 1000},
            num=200,
        ),
        "paper": Scale(
            config="configs/latent_emoji.py",
            duration="four days on one GPU, with unchanged configs; our data set",
            num=1000,
            measures=[Measure("fid"), Measure("precision_recall_inception", "recall_inception")],
        ),
    },
)
