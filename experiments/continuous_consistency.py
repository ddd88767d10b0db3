"""sCM (Lu & Song 2025), table 1 and figure 5: consistency models in continuous time.

    python launch.py reproduce --experiment=experiments/continuous_consistency.py --workdir=runs/experiments \
                               --scale=smoke
    python launch.py reproduce --experiment=experiments/continuous_consistency.py --workdir=runs/experiments \
                               --scale=small

All have TrigFlow. Those in discrete time go down by T / N.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales, steps

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
SCD = {"config": f"{DISTILLED}:continuous"}
DISCRETE = {**SCD, "diffusion.loss": "consistency"}
METHOD = {
    "sCT": {"config": f"{FEW}:continuous_consistency"},
    "sCD": SCD,
    "raw tangents": {**SCD, "diffusion.loss": "continuous_consistency(sigma_data=0.75, warmup=500, bound=0)"},
    "equal weights": {**SCD, "diffusion.weighting": "simple"},
    "N = 16": {**DISCRETE, "diffusion.next_times": f"skip(share={1 / 16})"},
    "N = 64": {**DISCRETE, "diffusion.next_times": f"skip(share={1 / 64})"},
}
PUBLISHED = {"sCT": (2.85, 2.06), "sCD": (3.66, 2.52)}

EXPERIMENT = Experiment(
    title="sCM: consistency models in continuous time",
    source="Lu & Song 2025, table 1 (CIFAR-10) and figure 5 (ImageNet 512x512)",
    claim="Stabilised by normalised tangents and learned weights, continuous time is better than discrete time.",
    axes=[Axis("method", METHOD), steps(1, 2)],
    column_axis="steps",
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper(
            "FID, CIFAR-10",
            {(name, count): fid for name, row in PUBLISHED.items() for count, fid in zip("12", row, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            claim="Normalised tangents are better than raw ones",
            order=[{"method": "sCD"}, {"method": "raw tangents"}],
        ),
        Ordering(
            claim="Learned weights are better than equal ones",
            order=[{"method": "sCD"}, {"method": "equal weights"}],
        ),
        Ordering(
            claim="In one step continuous time is better than 64 intervals",
            order=[{"method": "sCD"}, {"method": "N = 64"}],
            where={"steps": ("1",)},
        ),
        Ordering(
            claim="In one step 64 intervals are better than 16",
            order=[{"method": "N = 64"}, {"method": "N = 16"}],
            where={"steps": ("1",)},
        ),
        Ordering(
            claim="At small scale training from data is better than distillation",
            order=[{"method": "sCT"}, {"method": "sCD"}],
        ),
        Ordering(
            claim="Two steps are better than one",
            order=[{"steps": "2"}, {"steps": "1"}],
            where={"method": ("sCT", "sCD")},
        ),
    ],
    scales=few_step_scales(f"{FEW}:continuous_consistency", {"method": ("sCT", "sCD", "N = 16")}),
)
