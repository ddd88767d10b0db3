"""Flow maps of scikit-learn's 8x8 digits, for samples in 1 to 8 steps: one variant per method.

    python launch.py train  --config=configs/few_step_digits.py:mean_flow --workdir=runs/mean_flow
    python launch.py sample --workdir=runs/mean_flow --steps=1 --num=100

Trained from data: `consistency` (iCT), `easy_consistency` (ECT), `continuous_consistency` (sCM), `shortcut`,
`mean_flow`, `improved_mean_flow`; `flow` is the model without a flow map, to compare with. Distilled from a teacher,
which is trained first: `consistency_distillation`, `latent_consistency` (with guidance distilled in),
`continuous_distillation`, `progressive` (three rounds: four steps, two, one).

Setting: the network and the optimiser of configs/digits.py for more steps; the choices of each paper, with curricula
shortened to them. sigma_data 0.75 is the standard deviation of these images.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common, digits

STEPS = 4000
SIGMA = 0.75
FLOW = {"schedule": "rectified_flow", "parameterization": "flow(time_scale=0.001)"}
EDM = {"schedule": "edm", "weighting": f"edm(sigma_data={SIGMA})"}
CONSISTENCY = {**EDM, "parameterization": f"consistency(sigma_data={SIGMA})"}
TRIG = {"schedule": f"trig_flow(sigma_data={SIGMA})", "parameterization": f"trig_flow(sigma_data={SIGMA})"}
LOG_NORMAL = "log_normal(mean=-1.1, std=2)"
LOGIT_NORMAL = "logit_normal(mean=-0.4)"
TEACHERS = {  # of the schedule of a method; they are denoisers
    "edm": {
        **EDM,
        "parameterization": f"edm(sigma_data={SIGMA})",
        "weighting": "simple",
        "time_sampling": "log_normal",
    },
    "trig_flow": {**TRIG, "time_sampling": "log_normal(mean=-1, std=1.4)"},
    "cosine": {"schedule": "cosine", "parameterization": "v", "weighting": "truncated_snr"},
}
METHODS: dict[str, Mapping[str, Any]] = {
    "flow": {**FLOW, "time_sampling": "logit_normal"},
    "consistency": {
        **CONSISTENCY,
        "loss": "consistency(by_interval=True)",
        "weighting": "x0",
        "time_sampling": LOG_NORMAL,
        "next_times": f"doubling(start=10, end=160, steps={STEPS})",
        "metric": "pseudo_huber(c=0.00054)",
    },
    "easy_consistency": {
        **CONSISTENCY,
        "loss": "consistency",
        "time_sampling": LOG_NORMAL,
        "next_times": f"shrinking(q=2, every={STEPS // 8})",
        "metric": "pseudo_huber(c=0)",
    },
    "continuous_consistency": {
        **TRIG,
        "loss": f"continuous_consistency(sigma_data={SIGMA}, warmup={STEPS // 4})",
        "time_sampling": "log_normal(mean=-1, std=1.4)",
    },
    "shortcut": {**FLOW, "loss": "shortcut(base_steps=128)", "next_times": "dyadic(steps=128, share=0.25)"},
    "mean_flow": {
        **FLOW,
        "loss": "mean_flow",
        "time_sampling": LOGIT_NORMAL,
        "next_times": "second_draw(share=0.25)",
        "metric": "adaptive(p=1)",
    },
    "improved_mean_flow": {
        **FLOW,
        "loss": "improved_mean_flow",
        "time_sampling": LOGIT_NORMAL,
        "next_times": "second_draw(share=0.5)",
        "metric": "adaptive(p=1)",
    },
    "consistency_distillation": {
        **CONSISTENCY,
        "loss": "consistency(heun=True, average_target=True)",
        "next_times": "grid(steps=18, rho=7)",
    },
    "latent_consistency": {
        **CONSISTENCY,
        "loss": "consistency(average_target=True)",
        "next_times": "skip(share=0.02)",
        "metric": "pseudo_huber(c=0.001)",
    },
    "continuous_distillation": {
        **TRIG,
        "loss": f"continuous_consistency(sigma_data={SIGMA}, warmup={STEPS // 4})",
        "time_sampling": "log_normal(mean=-0.8, std=1.6)",
    },
    "progressive": {**TEACHERS["cosine"], "loss": "progressive"},
}
DISTILLED = {  # the teacher of each method
    "consistency_distillation": "edm",
    "latent_consistency": "edm",
    "continuous_distillation": "trig_flow",
    "progressive": "cosine",
}
ROUNDS = (4, 2, 1)  # steps of the students of progressive distillation


def get_config(method: str = "mean_flow") -> ConfigDict:
    config = _config(common.choose(method, METHODS))
    consistent = "consistency" in method or method == "continuous_distillation"
    is_map = method in ("shortcut", "mean_flow", "improved_mean_flow")
    name = "consistency" if consistent else "flow_map" if is_map else "ddim"
    config.sampler.update(name=name, steps=50 if method == "flow" else 1, guidance=1.0)
    if method not in DISTILLED:
        return config
    common.add(config, "teacher")
    config.teacher, parts = "@teacher", {"teacher": _config(TEACHERS[DISTILLED[method]])}
    parts["teacher"].sampler.guidance = 1.0
    if method == "latent_consistency":
        common.add(config, "diffusion.teacher_guidance")
        config.diffusion.teacher_guidance = 1.5
    if method == "progressive":
        teacher = "teacher"
        for steps in ROUNDS:
            student = config if steps == ROUNDS[-1] else _config(METHODS[method])
            common.add(student, "teacher")
            student.teacher, student.sampler.steps = f"@{teacher}", steps
            student.diffusion.next_times = f"grid(steps={steps})"
            student.sampler.update(name="ddim", guidance=1.0)
            if student is not config:
                teacher = f"steps_{steps}"
                parts[teacher] = student
    common.add_parts(config, **parts)
    return config


def _config(diffusion: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of digits with these choices on real timesteps."""
    config = digits.get_config()
    common.add(config, "flow_map")
    config.diffusion.update(continuous=True, **diffusion)
    config.train.update(steps=STEPS, ema_decay=0.999)
    return config
