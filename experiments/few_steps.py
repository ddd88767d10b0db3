"""Samples in 1 to 8 steps: flow maps and distillation and samplers that need no training.

    python launch.py reproduce --experiment=experiments/few_steps.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/few_steps.py --workdir=runs/experiments --scale=small

All methods have the same network, optimiser and number of training steps; the cost of a training step differs.
Distillation and ECT start from "EDM, DDIM", and sCM from a diffusion model with TrigFlow, which are trained besides.
The generator of DMD2 is trained for one step only. A classifier's accuracy is not measured: one step of a flow gives
means of classes, which a classifier recognises.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, few_step_scales, steps

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
METHOD = {
    "DDIM": {"config": f"{FEW}:flow", "sampler.name": "ddim"},
    "DPM-Solver++": {"config": f"{FEW}:flow", "sampler.name": "dpmpp_2m"},
    "UniPC": {"config": f"{FEW}:flow", "sampler.name": "unipc"},
    "EDM, DDIM": {"config": f"{FEW}:edm", "sampler.name": "ddim"},
    "iCT": {"config": f"{FEW}:consistency"},
    "ECT": {"config": f"{FEW}:easy_consistency"},
    "sCM": {"config": f"{FEW}:continuous_consistency"},
    "shortcut": {"config": f"{FEW}:shortcut"},
    "MeanFlow": {"config": f"{FEW}:mean_flow"},
    "improved MeanFlow": {"config": f"{FEW}:improved_mean_flow"},
    "IMM": {"config": f"{FEW}:imm"},
    "consistency distillation": {"config": f"{DISTILLED}:consistency"},
    "DMD2": {"config": f"{DISTILLED}:distribution_matching"},
}
MAPS = list(METHOD)[4:]  # the others are samplers of a flow and of EDM
COUNTS = (1, 2, 4, 8, 50)

EXPERIMENT = Experiment(
    title="Few steps: flow maps, distillation and samplers",
    source="Song & Dhariwal 2024, Geng et al. 2024, Lu & Song 2025, Frans et al. 2024, Geng et al. 2025, "
    "Zhou et al. 2025, Yin et al. 2024 (no one table)",
    claim="Models trained for few steps make better samples in 1 to 4 steps than samplers of a flow.",
    axes=[Axis("method", METHOD), steps(*COUNTS)],
    column_axis="steps",
    measures=[
        Measure("fd_pixels"),
        Measure("kd_pixels"),
        Measure("precision_recall_pixels", "precision_pixels"),
        Measure("precision_recall_pixels", "recall_pixels"),
        Measure("seconds_per_image"),
    ],
    orderings=[
        *(
            Ordering(
                claim=f"In one and two steps {name} is better than DDIM",
                order=[{"method": name}, {"method": "DDIM"}],
                where={"steps": ("1", "2")},
            )
            for name in MAPS
        ),
        *(
            Ordering(
                claim=f"In four steps {name} is better than UniPC",
                order=[{"method": name}, {"method": "UniPC"}],
                where={"steps": ("4",)},
            )
            for name in MAPS[:-1]  # without DMD2
        ),
        Ordering(
            claim="In one and two steps MeanFlow is better than shortcut models",
            order=[{"method": "MeanFlow"}, {"method": "shortcut"}],
            where={"steps": ("1", "2")},
        ),
        Ordering(
            claim="Improved MeanFlow is better than MeanFlow in one step",
            order=[{"method": "improved MeanFlow"}, {"method": "MeanFlow"}],
            where={"steps": ("1",)},
        ),
        *(
            Ordering(
                claim=f"In four steps {name} is better than {other}",
                order=[{"method": name}, {"method": other}],
                where={"steps": ("4",)},
            )
            for name, other in (("DPM-Solver++", "DDIM"), ("UniPC", "DPM-Solver++"))
        ),
    ],
    scales=few_step_scales(f"{FEW}:flow", {"method": ("DDIM", "UniPC", "ECT", "MeanFlow"), "steps": ("1", "4")}),
)
