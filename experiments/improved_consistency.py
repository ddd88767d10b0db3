"""iCT (Song & Dhariwal 2024): what improves consistency training; and ECT (Geng et al. 2024).

    python launch.py reproduce --experiment=experiments/improved_consistency.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/improved_consistency.py --workdir=runs/experiments --scale=small

Each row undoes one technique of iCT, and "CT" all: noise levels, metric, weights, target and number of intervals are
those of the first paper. ECT starts from the weights of EDM, iCT from random ones.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
ICT = {"config": f"{FEW}:consistency"}
METHOD = {
    "iCT": ICT,
    "equal weights": {**ICT, "diffusion.loss": "consistency"},
    "EMA target": {
        **ICT,
        "diffusion.loss": "consistency(by_interval=True, average_target=True)",
        "train.ema_decay": 0.95,
    },
    "l2": {**ICT, "diffusion.metric": "l2"},
    "constant N": {**ICT, "diffusion.next_times": "doubling(start=160, end=160)"},
    "uniform levels": {**ICT, "diffusion.time_sampling": "uniform"},
    "CT": {"config": f"{FEW}:original_consistency"},
    "ECT": {"config": f"{FEW}:easy_consistency"},
    "CD": {"config": f"{DISTILLED}:consistency"},
}
UNDONE = {
    "equal weights": "Weights 1 / interval are better than equal weights",
    "EMA target": "A target without a moving average is better than one of averaged weights",
    "l2": "The pseudo-Huber metric is better than l2",
    "constant N": "A growing number of intervals is better than a constant one",
    "uniform levels": "Log-normal noise levels are better than uniform ones",
}
PUBLISHED = {"iCT": (2.83, 2.46), "CT": (8.70, 5.83), "ECT": (3.60, 2.11), "CD": (3.55, 2.93)}

EXPERIMENT = Experiment(
    title="iCT and ECT: improved consistency training",
    source="Song & Dhariwal 2024, section 3 (figures) and results on CIFAR-10; Geng et al. 2024",
    claim="With better weights, target, metric and noise levels, training from data is better than distillation.",
    axes=[Axis("method", METHOD), steps(1, 2)],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper(
            "FID, CIFAR-10, CT and CD with LPIPS (transcribed)",
            {(name, count): fid for name, row in PUBLISHED.items() for count, fid in zip("12", row, strict=True)},
        )
    ],
    orderings=[
        *(
            Ordering(
                claim=f"{claim}, in one step",
                order=[{"method": "iCT"}, {"method": name}],
                where={"steps": ("1",)},
            )
            for name, claim in UNDONE.items()
        ),
        Ordering(claim="All of it is better than CT", order=[{"method": "iCT"}, {"method": "CT"}]),
        Ordering(claim="iCT is better than consistency distillation", order=[{"method": "iCT"}, {"method": "CD"}]),
        Ordering(
            claim="In two steps ECT is better than iCT",
            order=[{"method": "ECT"}, {"method": "iCT"}],
            where={"steps": ("2",)},
        ),
    ],
    scales=few_step_scales(f"{FEW}:consistency", {"method": ("iCT", "CT", "ECT")}),
)
