"""MeanFlow (Geng et al. 2025), table 1: pairs of times, time sampling and metric; and improved MeanFlow.

    python launch.py reproduce --experiment=experiments/mean_flow.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/mean_flow.py --workdir=runs/experiments --scale=small

All are sampled in one step. MeanFlow has r != t in 25 % of pairs, logit-normal times and p = 1.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales

FEW = "configs/few_step_digits.py"
MEAN_FLOW = {"config": f"{FEW}:mean_flow"}
SETTING = {
    "MeanFlow": MEAN_FLOW,
    "r = t": {**MEAN_FLOW, "diffusion.next_times": "second_sample(share=0)"},
    "r != t": {**MEAN_FLOW, "diffusion.next_times": "second_sample(share=1)"},
    "uniform times": {**MEAN_FLOW, "diffusion.time_sampling": "uniform"},
    "p = 0.5": {**MEAN_FLOW, "diffusion.metric": "adaptive(p=0.5)"},
    "p = 0": {**MEAN_FLOW, "diffusion.metric": "adaptive(p=0)"},
    "improved MeanFlow": {"config": f"{FEW}:improved_mean_flow"},
}
FID = {"MeanFlow": 61.06, "r = t": 328.91, "r != t": 67.32, "p = 0.5": 63.98, "p = 0": 79.75}


def settings(*labels: str) -> list[dict[str, str]]:
    return [{"setting": label} for label in labels]


EXPERIMENT = Experiment(
    title="MeanFlow, table 1",
    source="Geng, Deng, Bai, Kolter & He 2025, table 1 (ImageNet 256x256); Geng et al. 2025b (improved MeanFlow)",
    claim="One step is enough for a model of average velocities, if some pairs of times are equal and others not.",
    axes=[Axis("setting", SETTING)],
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[
        Paper("FID, ImageNet 256x256, 80 epochs (transcribed)", {(setting,): fid for setting, fid in FID.items()}),
    ],
    orderings=[
        Ordering(claim="r != t in 25 % of pairs is better than in all pairs", order=settings("MeanFlow", "r != t")),
        Ordering(claim="r != t in all pairs is better than in none", order=settings("r != t", "r = t")),
        Ordering(claim="p = 1 is better than p = 0.5", order=settings("MeanFlow", "p = 0.5")),
        Ordering(claim="p = 0.5 is better than p = 0", order=settings("p = 0.5", "p = 0")),
        Ordering(claim="Logit-normal times are better than uniform ones", order=settings("MeanFlow", "uniform times")),
        Ordering(claim="Improved MeanFlow is better than MeanFlow", order=settings("improved MeanFlow", "MeanFlow")),
    ],
    scales=few_step_scales(f"{FEW}:mean_flow", {"setting": ("MeanFlow", "r = t", "improved MeanFlow")}),
)
