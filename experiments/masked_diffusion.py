"""Masked diffusion of tokens: steps and samplers, against a causal transformer over the same codes.

    python launch.py reproduce --experiment=experiments/masked_diffusion.py --workdir=runs/experiments --scale=small

The causal transformer samples one token per step, 16 on the digits and 64 on the shapes, whatever the label of the
steps. The papers train on ImageNet and on text. MaskGIT's abstract claims better samples than those of autoregressive
transformers, up to 64 times faster; 8 steps are the choice of this file.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

COUNTS = ("1", "2", "4", "8", "16", "32")
MASKED = {"confidence": {"sampler.name": "confidence"}, "ancestral": {"sampler.name": "ancestral_unmasking"}}


def steps(count: str) -> dict[str, dict]:
    return {name: {"sampler.steps": int(count)} for name in MASKED} | {"causal": {}}


EXPERIMENT = Experiment(
    title="Masked diffusion: steps and samplers",
    source="Chang et al. 2022 (MaskGIT, abstract); Yoo et al. 2026 (infinite mask diffusion, abstract)",
    claim="Tokens that are unmasked by confidence in a few steps are better than those of an autoregressive model.",
    axes=[
        Axis("sampler", {**MASKED, "causal": {"config": "configs/masked_{data}.py:causal"}}),
        Axis("steps", {count: steps(count) for count in COUNTS}, by="sampler"),
    ],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("classifier_accuracy"), Measure("seconds_per_image")],
    orderings=[
        Ordering(
            claim="Confidence in 8 steps is better than autoregressive sampling",
            order=[{"sampler": "confidence"}, {"sampler": "causal"}],
            where={"steps": ("8",)},
        ),
        *(
            Ordering(
                claim=f"Ancestral unmasking is better in {more} steps than in {fewer}",
                order=[{"steps": more}, {"steps": fewer}],
                where={"sampler": ("ancestral",)},
            )
            for more, fewer in (("16", "4"), ("4", "2"), ("2", "1"))
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/masked_digits.py",
            duration="not measured; planned for five minutes on two CPU cores",
            train_steps=200,
            fields=SMALL_NETWORKS,
            axes={"steps": ("2", "8")},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/masked_digits.py",
            duration="not measured; planned for an hour on two CPU cores, training included",
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/masked_shapes.py",
            duration="not measured; captions of shapes in the place of ImageNet",
            seeds=(0, 1, 2),
            num=1000,
            measures=[Measure("caption_accuracy"), Measure("fd_effnet_lite0"), Measure("seconds_per_image")],
        ),
    },
)
