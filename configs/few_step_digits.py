"""Flow maps of scikit-learn's 8x8 digits, for samples in 1 to 8 steps, trained from data: one variant per method.

    python launch.py train  --config=configs/few_step_digits.py:mean_flow --workdir=runs/mean_flow
    python launch.py sample --workdir=runs/mean_flow --steps=1 --num=100

Variants: `original_consistency` (CT) and `consistency` (iCT); `easy_consistency` (ECT) and `continuous_consistency`
(sCM), which start from a part, a diffusion model; `shortcut`, `mean_flow`, `improved_mean_flow`, `imm`; and with
guidance learned in training, so that samples need one evaluation per step, `guided_mean_flow` (scale 2) and
`guided_improved_mean_flow` (any scale from 1 to 4). Four have no map, to compare with and to distil: `flow`; `ot_flow`,
whose noise and data are coupled by optimal transport in each batch; `edm`; and `diffusion`, with the cosine schedule
and v. configs/distilled_digits.py has distillation.

Time: two to four minutes per variant with 16 channels and batches of 32, on one core of an Intel Xeon.
Score: docs/reports/few_steps_small, so and with three seeds: fd_pixels in one step 0.132 (iCT), 0.097 (ECT), 0.107
(sCM), 0.242 (shortcut), 0.216 (MeanFlow), 0.203 (improved MeanFlow), 0.141 (IMM), and in four steps 0.071 (IMM);
50 steps of the flow 0.064, one step 1.15.
Setting: the network of configs/digits.py, trained for more steps; the choices of each paper, with shorter curricula.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common, digits

STEPS = 2000
SIGMA = 0.75  # standard deviation of these images
FLOW = {"schedule": "rectified_flow", "parameterization": "flow(time_scale=0.001)"}
LOGIT_FLOW = {**FLOW, "time_sampling": "logit_normal"}
CONSISTENCY = {
    "schedule": "edm",
    "parameterization": f"consistency(sigma_data={SIGMA})",
    "weighting": "x0",
    "time_sampling": "log_normal(mean=-1.1, std=2)",
}
IMPROVED = {**CONSISTENCY, "loss": "consistency(by_interval=True)", "metric": "pseudo_huber"}
EDM = {"schedule": "edm", "parameterization": f"edm(sigma_data={SIGMA})", "time_sampling": "log_normal"}
COSINE = {"schedule": "cosine", "parameterization": "v", "weighting": "truncated_snr"}
TRIG = {
    "schedule": f"trig_flow(sigma_data={SIGMA})",
    "parameterization": f"trig_flow(sigma_data={SIGMA})",
    "time_sampling": "log_normal(mean=-1, std=1.4)",
}
MEAN_FLOW = {**FLOW, "time_sampling": "logit_normal(mean=-0.4)", "metric": "adaptive(p=1)"}
IMPROVED_MEAN_FLOW = {**MEAN_FLOW, "loss": "improved_mean_flow", "next_times": "second_sample(share=0.5)"}
CONTINUOUS = f"continuous_consistency(sigma_data={SIGMA}, warmup={STEPS // 4})"
WITHOUT_MAP = {"flow": LOGIT_FLOW, "ot_flow": {**LOGIT_FLOW, "coupling": "minibatch"}, "edm": EDM, "diffusion": COSINE}
VARIANTS: dict[str, Mapping[str, Any]] = {
    **WITHOUT_MAP,
    "original_consistency": {
        **CONSISTENCY,
        "loss": "consistency(average_target=True)",
        "next_times": f"square_root(start=2, end=150, steps={STEPS})",
        "time_sampling": "uniform",
    },
    "consistency": {**IMPROVED, "next_times": f"doubling(start=10, end=160, steps={STEPS})"},
    "easy_consistency": {
        **IMPROVED,
        "next_times": f"shrinking(q=2, every={STEPS // 8})",
        "metric": "pseudo_huber(c=0)",
    },
    "continuous_consistency": {**TRIG, "loss": CONTINUOUS, "weighting": "learned"},
    "shortcut": {**FLOW, "loss": "shortcut", "next_times": "dyadic(share=0.25)"},
    "mean_flow": {**MEAN_FLOW, "loss": "mean_flow", "next_times": "second_sample(share=0.25)"},
    "imm": {**FLOW, "loss": "inductive_moment_matching(group=4)", "next_times": "uniform_below"},
    "improved_mean_flow": IMPROVED_MEAN_FLOW,
    "guided_mean_flow": {**MEAN_FLOW, "loss": "mean_flow(guidance=2, mix=0.5)", "next_times": "second_sample"},
    "guided_improved_mean_flow": IMPROVED_MEAN_FLOW,  # and a condition, below
}
BASES = {"easy_consistency": EDM, "continuous_consistency": TRIG}  # diffusion models that these start from


def get_config(variant: str = "mean_flow") -> ConfigDict:
    config = make(common.choose(variant, VARIANTS))
    if variant in BASES:
        common.add_parts(config, base=make(BASES[variant]))
        fresh = ("weighting",) if config.diffusion.weighting == "learned" else ()
        config.train.update(start="@base", start_fresh=fresh)
    has_map = variant not in WITHOUT_MAP
    sampler = "consistency" if "consistency" in variant else "flow_map" if has_map else "ddim"
    config.sampler.update(name=sampler, steps=1 if has_map else 50)
    if variant == "original_consistency":
        config.train.ema_decay = 0.95  # the target is averaged too, and must follow
    if variant == "guided_improved_mean_flow":
        common.add(config, "conditions.guidance_scale")
        config.sampler.guidance = 2.0
    return config


def make(diffusion: Mapping[str, Any]) -> ConfigDict:
    config = digits.get_config()
    common.add(config, "flow_map")
    config.diffusion.update(continuous=True, **diffusion)
    config.train.update(steps=STEPS, ema_decay=0.999)
    config.sampler.guidance = 1.0
    return config
