"""Progressive distillation (Salimans & Ho 2022), table 2 and figure 4: samples in eight steps to one.

    python launch.py reproduce --experiment=experiments/progressive_distillation.py --workdir=runs/experiments \
                               --scale=smoke
    python launch.py reproduce --experiment=experiments/progressive_distillation.py --workdir=runs/experiments \
                               --scale=small

Each number of steps has a student, whose teacher is the one of twice as many; the first teacher takes 16 (8192 in the
paper). DDIM samples the model that is distilled.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
STUDENTS = {"1": "progressive", "2": "progressive_2", "4": "progressive_4", "8": "progressive_8"}
STEPS = {
    count: {"DDIM": {"sampler.steps": int(count)}, "distilled": {"config": f"{DISTILLED}:{student}"}}
    for count, student in STUDENTS.items()
}

EXPERIMENT = Experiment(
    title="Progressive distillation, table 2",
    source="Salimans & Ho 2022, table 2 and figure 4 (CIFAR-10)",
    claim="A model whose steps are distilled in pairs samples well in four steps, where DDIM does not.",
    axes=[Axis("method", {"DDIM": {}, "distilled": {}}), Axis("steps", STEPS, by="method")],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper(
            "FID, CIFAR-10",
            {("distilled", steps): fid for steps, fid in zip(STUDENTS, (9.12, 4.51, 3.00, 2.57), strict=True)},
        )
    ],
    orderings=[
        Ordering(
            claim="Distilled models are better than DDIM in as many steps",
            order=[{"method": "distilled"}, {"method": "DDIM"}],
        ),
        *(
            Ordering(
                claim=f"Distilled models are better in {more} steps than in {fewer}",
                order=[{"steps": more}, {"steps": fewer}],
                where={"method": ("distilled",)},
            )
            for more, fewer in (("8", "4"), ("4", "2"), ("2", "1"))
        ),
    ],
    scales=few_step_scales(f"{FEW}:diffusion", {"steps": ("2", "4")}),
)
