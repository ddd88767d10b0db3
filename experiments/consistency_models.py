"""Consistency models (Song et al. 2023), table 1 and figure 3: distillation and training, in one step and two.

    python launch.py reproduce --experiment=experiments/consistency_models.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/consistency_models.py --workdir=runs/experiments --scale=small

The paper has LPIPS as the metric; here it is l2. Its consistency training averages the target's weights over more steps
as the number of intervals grows; here the decay is constant, 0.95. Progressive distillation has a teacher of its own,
with the cosine schedule, and a student for each number of steps.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
CD = {"config": f"{DISTILLED}:consistency"}
METHOD = {
    "CD": CD,  # N = 18, Heun
    "CD, uniform": {**CD, "diffusion.weighting": "x0"},  # the paper's weights
    "CD, N = 9": {**CD, "diffusion.next_times": "grid(steps=9, rho=7)"},
    "CD, Euler": {**CD, "diffusion.loss": "consistency"},
    "CT": {"config": f"{FEW}:original_consistency"},
    "PD": {},
}
STUDENTS = {"1": "progressive", "2": "progressive_2"}
STEPS = {
    count: {**{name: {"sampler.steps": int(count)} for name in METHOD}, "PD": {"config": f"{DISTILLED}:{student}"}}
    for count, student in STUDENTS.items()
}
PUBLISHED = {"CD": (3.55, 2.93), "CT": (8.70, 5.83), "PD": (8.34, 5.58)}

EXPERIMENT = Experiment(
    title="Consistency models, table 1 and figure 3",
    source="Song, Dhariwal, Chen & Sutskever 2023, table 1 (CIFAR-10) and figure 3",
    claim="Distillation to a consistency model is better than progressive distillation, and better than training one.",
    axes=[Axis("method", METHOD), Axis("steps", STEPS, by="method")],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper(
            "FID, CIFAR-10, with LPIPS (transcribed)",
            {(name, count): fid for name, row in PUBLISHED.items() for count, fid in zip(STEPS, row, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            claim="Consistency distillation is better than progressive distillation",
            order=[{"method": "CD"}, {"method": "PD"}],
        ),
        Ordering(
            claim="Consistency distillation is better than consistency training",
            order=[{"method": "CD"}, {"method": "CT"}],
        ),
        Ordering(
            claim="Consistency models are better in two steps than in one",
            order=[{"steps": "2"}, {"steps": "1"}],
            where={"method": ("CD", "CT")},
        ),
        Ordering(
            claim="In one step Heun's method is better than Euler's",
            order=[{"method": "CD"}, {"method": "CD, Euler"}],
            where={"steps": ("1",)},
        ),
        Ordering(
            claim="In one step 18 intervals are better than 9",
            order=[{"method": "CD"}, {"method": "CD, N = 9"}],
            where={"steps": ("1",)},
        ),
    ],
    scales=few_step_scales(f"{FEW}:consistency", {"method": ("CD", "CT")}),
)
