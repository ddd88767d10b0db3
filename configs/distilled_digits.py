"""Diffusion of scikit-learn's 8x8 digits, distilled for samples in 1 to 4 steps: one variant per method.

    python launch.py train  --config=configs/distilled_digits.py:progressive --workdir=runs/progressive
    python launch.py sample --workdir=runs/progressive --num=100

Variants: `consistency` (consistency distillation), `latent_consistency` (guidance distilled in), `continuous`
(sCM), `progressive` (progressive distillation in four rounds, to eight steps, four, two and one), `progressive_8`,
`progressive_4` and `progressive_2` (its students of more steps), `reflow` (a rectified flow of samples of a rectified
flow), `distribution_matching` (DMD2, one step). The teacher and all rounds are parts of the config, which are trained
first. Methods without a teacher: configs/few_step_digits.py.

Time: two to four minutes per part with 16 channels and batches of 32, on one core of an Intel Xeon.
Score: docs/reports/few_steps_small, so and with three seeds: fd_pixels in one step 0.090 (`consistency`) and 0.23
(`distribution_matching`). Other variants are not measured.
Setting: the network of configs/digits.py; the choices of each paper. The teacher of consistency models and of DMD2 is
EDM's. `consistency` has EDM's weights; the paper's, weighting="x0", double fd_pixels. DMD2 has the weights of losses
and the time scales of its code for ImageNet, with larger learning rates.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.few_step_digits import CONSISTENCY, CONTINUOUS, COSINE, EDM, LOGIT_FLOW, TRIG, make

# Steps of the students of progressive distillation, each from the one before.
ROUNDS = {"progressive_8": 8, "progressive_4": 4, "progressive_2": 2, "progressive": 1}
VARIANTS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {  # teacher and student
    "consistency": (
        EDM,
        {
            **CONSISTENCY,
            "loss": "consistency(heun=True)",
            "weighting": "edm",
            "next_times": "grid(steps=18, rho=7)",
            "time_sampling": "uniform",  # of the steps of the grid
        },
    ),
    "latent_consistency": (
        EDM,
        {
            **CONSISTENCY,
            "loss": "consistency(average_target=True)",
            "next_times": "skip(share=0.02)",
            "metric": "elementwise_pseudo_huber",
            "time_sampling": "uniform",
        },
    ),
    "continuous": (
        TRIG,
        {**TRIG, "loss": CONTINUOUS, "weighting": "learned", "time_sampling": "log_normal(mean=-0.8, std=1.6)"},
    ),
    **dict.fromkeys(ROUNDS, (COSINE, {**COSINE, "loss": "progressive"})),
    "reflow": (LOGIT_FLOW, {**LOGIT_FLOW, "coupling": "reflow(steps=20)"}),
    "distribution_matching": (EDM, {**EDM, "loss": "distribution_matching", "time_sampling": "uniform"}),
}
SAMPLERS = {"reflow": "ddim", "distribution_matching": "lcm"}  # of others than consistency models


def get_config(variant: str = "progressive") -> ConfigDict:
    teacher, student = common.choose(variant, VARIANTS)
    parts = {"teacher": make(teacher)}
    if variant in ROUNDS:
        for steps in (count for count in ROUNDS.values() if count >= ROUNDS[variant]):
            config = _student({**student, "next_times": f"grid(steps={steps})"}, [*parts][-1], "ddim", steps)
            parts[f"steps_{steps}"] = config
        config = parts.pop(f"steps_{ROUNDS[variant]}")
    else:
        config = _student(student, "teacher", SAMPLERS.get(variant, "consistency"), 1)
    if variant == "distribution_matching":
        common.add(config, "train.model", "train.fake_score")
        config.train.update(learning_rate=1e-4, learning_rate_schedule="constant", clip_norm=10.0)
        config.train.fake_score.learning_rate = 1e-4
    if variant == "latent_consistency":
        common.add(config, "conditions.guidance_scale")
        config.train.ema_decay = 0.95
        config.sampler.guidance = 1.5
    common.add_parts(config, **parts)
    return config


def _student(diffusion: Mapping[str, Any], teacher: str, sampler: str, steps: int) -> ConfigDict:
    config = make(diffusion)
    common.add(config, "teacher")
    config.teacher = f"@{teacher}"
    config.sampler.update(name=sampler, steps=steps)
    return config
