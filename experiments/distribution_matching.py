"""DMD2 (Yin et al. 2024), table 3: two time scales and the adversarial loss of distribution matching distillation.

    python launch.py reproduce --experiment=experiments/distribution_matching.py --workdir=runs/experiments \
                               --scale=smoke
    python launch.py reproduce --experiment=experiments/distribution_matching.py --workdir=runs/experiments \
                               --scale=small

With two time scales the generator is updated in each fifth training step, so a fifth as often. The teacher is sampled
by Heun's method in 50 steps.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, few_step_scales

FEW, DISTILLED = "configs/few_step_digits.py", "configs/distilled_digits.py"
DMD2 = {"config": f"{DISTILLED}:distribution_matching"}
WITHOUT_GAN = {**DMD2, "diffusion.loss": "distribution_matching(gan_weight=0)"}
SETTING = {
    "DMD, one time scale": {**WITHOUT_GAN, "train.model.update_every": 1},
    "DMD, two time scales": WITHOUT_GAN,
    "DMD2": DMD2,
    "DMD2, four steps": {**DMD2, "diffusion.loss": "distribution_matching(generator_steps=4)", "sampler.steps": 4},
    "teacher": {"config": f"{FEW}:edm", "sampler.name": "heun"},
}
FID = {"DMD, one time scale": 3.48, "DMD, two time scales": 2.61, "DMD2": 1.51, "teacher": 2.32}


def settings(*labels: str) -> list[dict[str, str]]:
    return [{"setting": label} for label in labels]


EXPERIMENT = Experiment(
    title="DMD2, table 3: distribution matching distillation",
    source="Yin et al. 2024b, tables 1 and 3 (ImageNet 64x64); patch FID of table 2 for four steps",
    claim="With a faster fake score and real images, a generator of one step is better than its teacher.",
    axes=[Axis("setting", SETTING)],
    measures=[Measure("fd_pixels"), Measure("kd_pixels")],
    papers=[Paper("FID, ImageNet 64x64, DMD without regression", {(setting,): fid for setting, fid in FID.items()})],
    orderings=[
        Ordering(
            claim="Two time scales are better than one",
            order=settings("DMD, two time scales", "DMD, one time scale"),
        ),
        Ordering(claim="The adversarial loss improves samples", order=settings("DMD2", "DMD, two time scales")),
        Ordering(claim="One step of DMD2 is better than many steps of the teacher", order=settings("DMD2", "teacher")),
        Ordering(claim="Four steps of DMD2 are better than one", order=settings("DMD2, four steps", "DMD2")),
    ],
    scales=few_step_scales(
        f"{DISTILLED}:distribution_matching", {"setting": ("DMD, one time scale", "DMD2", "teacher")}
    ),
)
