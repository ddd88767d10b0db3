"""Shortcut models (Frans et al. 2024), table 1: samples in 128 steps, in 4 and in one.

    python launch.py reproduce --experiment=experiments/shortcut.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/shortcut.py --workdir=runs/experiments --scale=small

Progressive distillation is its student of one step, as in the paper. Consistency training is iCT.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
METHOD = {
    "shortcut": {"config": f"{FEW}:shortcut"},
    "flow matching": {"config": f"{FEW}:flow"},
    "consistency training": {"config": f"{FEW}:consistency"},
    "consistency distillation": {"config": f"{DISTILLED}:consistency"},
    "progressive distillation": {"config": f"{DISTILLED}:progressive"},
    "reflow": {"config": f"{DISTILLED}:reflow"},
}
CELEBA_HQ = {  # in 1 step, 4 and 128
    "shortcut": (20.5, 13.8, 6.9),
    "flow matching": (280.5, 63.3, 7.3),
    "consistency training": (33.2, 19.0, 53.7),
    "consistency distillation": (38.2, 39.6, 59.5),
    "progressive distillation": (14.8, 251.3, 302.9),
    "reflow": (23.2, 18.4, 16.1),
}
COUNTS = (1, 4, 128)

EXPERIMENT = Experiment(
    title="Shortcut models, table 1",
    source="Frans, Hafner, Levine & Abbeel 2024, table 1 (CelebA-HQ 256x256)",
    claim="One model, trained once, is good in any number of steps; only progressive distillation is better in one.",
    axes=[Axis("method", METHOD), steps(*COUNTS)],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper(
            "FID, CelebA-HQ 256x256 (transcribed)",
            {(m, str(n)): value for m, row in CELEBA_HQ.items() for n, value in zip(COUNTS, row, strict=True)},
        )
    ],
    orderings=[
        *(
            Ordering(
                claim=f"In one and four steps shortcut models are better than {name}",
                order=[{"method": "shortcut"}, {"method": name}],
                where={"steps": ("1", "4")},
            )
            for name in ("flow matching", "consistency training", "consistency distillation", "reflow")
        ),
        Ordering(
            claim="In one step progressive distillation is better than shortcut models",
            order=[{"method": "progressive distillation"}, {"method": "shortcut"}],
            where={"steps": ("1",)},
        ),
        Ordering(
            claim="In 128 steps shortcut models are better than consistency training",
            order=[{"method": "shortcut"}, {"method": "consistency training"}],
            where={"steps": ("128",)},
        ),
        *(
            Ordering(
                claim=f"Shortcut models are better in {more} steps than in {fewer}",
                order=[{"steps": more}, {"steps": fewer}],
                where={"method": ("shortcut",)},
            )
            for more, fewer in (("128", "4"), ("4", "1"))
        ),
    ],
    scales=few_step_scales(
        f"{FEW}:shortcut", {"method": ("shortcut", "flow matching", "consistency training"), "steps": ("1", "4")}
    ),
)
