"""Inductive moment matching (IMM, Zhou et al. 2025), figure 5 and table 3: particles, parameterization and weights.

    python launch.py reproduce --experiment=experiments/moment_matching.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/moment_matching.py --workdir=runs/experiments --scale=small

IMM has M = 4 particles, the parameterization `flow` and the exponent a = 1. With M = 1 it is a consistency model.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW = "configs/few_step_digits.py"
IMM = {"config": f"{FEW}:imm"}
SETTING = {
    "IMM": IMM,
    "M = 1": {**IMM, "diffusion.loss": "inductive_moment_matching(group=1)"},
    "M = 2": {**IMM, "diffusion.loss": "inductive_moment_matching(group=2)"},
    "M = 16": {**IMM, "diffusion.loss": "inductive_moment_matching(group=16)"},
    "x_0": {**IMM, "diffusion.parameterization": "x0"},
    "EDM": {**IMM, "diffusion.parameterization": "edm(sigma_data=0.75)"},
    "a = 2": {**IMM, "diffusion.loss": "inductive_moment_matching(group=4, a=2)"},
}

EXPERIMENT = Experiment(
    title="Inductive moment matching: particles, parameterization, weights",
    source="Zhou, Ermon & Song 2025, section 7: figure 5 (ImageNet 256x256) and table 3 (CIFAR-10)",
    claim="Comparing a few samples with each other makes the training of a model of few steps stable.",
    axes=[Axis("setting", SETTING), steps(1, 2, 8)],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[Paper("FID, CIFAR-10, table 3", {("IMM", "2"): 2.53, ("x_0", "2"): 3.45, ("EDM", "2"): 2.10})],
    orderings=[
        Ordering(
            claim="In two steps four particles are better than two",
            order=[{"setting": "IMM"}, {"setting": "M = 2"}],
            where={"steps": ("2",)},
        ),
        Ordering(
            claim="In two steps four particles are better than one",
            order=[{"setting": "IMM"}, {"setting": "M = 1"}],
            where={"steps": ("2",)},
        ),
        Ordering(
            claim="In two steps four particles are better than 16",
            order=[{"setting": "IMM"}, {"setting": "M = 16"}],
            where={"steps": ("2",)},
        ),
        Ordering(
            claim="In two steps EDM's parameterization is better than the flow's",
            order=[{"setting": "EDM"}, {"setting": "IMM"}],
            where={"steps": ("2",)},
        ),
        Ordering(
            claim="In two steps the flow's parameterization is better than predicting x_0",
            order=[{"setting": "IMM"}, {"setting": "x_0"}],
            where={"steps": ("2",)},
        ),
        Ordering(
            claim="In eight steps the weight with a = 2 is better than with a = 1",
            order=[{"setting": "a = 2"}, {"setting": "IMM"}],
            where={"steps": ("8",)},
        ),
        Ordering(
            claim="More steps are better",
            order=[{"steps": "8"}, {"steps": "2"}, {"steps": "1"}],
            where={"setting": ("IMM",)},
        ),
    ],
    scales=few_step_scales(f"{FEW}:imm", {"setting": ("IMM", "M = 1", "EDM"), "steps": ("1", "2")}),
)
