"""Improved DDPM (Nichol & Dhariwal 2021), section 3.3: timesteps by importance for the variational bound.

    python launch.py reproduce --experiment=experiments/iddpm_importance.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/iddpm_importance.py --workdir=runs/experiments --scale=small

The paper attributes the difficulty of optimising L_vlb to the noise of its gradients, and reduces that by importance
sampling. iddpm_table2.py has L_vlb with it, and L_hybrid with uniform timesteps.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

LEARNED = {"diffusion.variance": "learned_range"}
OBJECTIVE = {
    "L_vlb": {**LEARNED, "diffusion.loss": "vlb"},
    "L_hybrid": {**LEARNED, "diffusion.loss": "hybrid"},
}
TIMES = ("uniform", "importance")
IDDPM = {
    "diffusion.parameterization": "eps",
    "sampler.name": "ancestral",
    "sampler.grid": "sections",
    "sampler.guidance": 1.0,
}


def measures(num: int, terms: int, *others: Measure) -> list[Measure]:
    bound = {"terms": terms, "ode_steps": 0, "num": num, "decoder": "ddpm"}
    return [Measure("nll", "bound", heading="bits/dim, bound", settings=bound), *others]


EXPERIMENT = Experiment(
    title="Improved DDPM: timesteps by importance",
    source="Nichol & Dhariwal 2021, section 3.3 (ImageNet 64x64, in words and curves)",
    claim="With timesteps sampled by importance, optimising the bound itself gives the best likelihoods.",
    axes=[
        Axis("objective", OBJECTIVE),
        Axis("timesteps", {times: {"diffusion.time_sampling": times} for times in TIMES}),
    ],
    column_axis="timesteps",
    measures=measures(200, 60, Measure("fd_pixels")),
    orderings=[
        Ordering(
            claim="With uniform timesteps, L_hybrid has a lower bound than L_vlb",
            order=[{"objective": "L_hybrid"}, {"objective": "L_vlb"}],
            where={"timesteps": ("uniform",)},
        ),
        Ordering(
            claim="L_vlb has a lower bound with timesteps by importance",
            order=[{"timesteps": "importance"}, {"timesteps": "uniform"}],
            where={"objective": ("L_vlb",)},
        ),
        Ordering(
            claim="L_vlb with timesteps by importance has a lower bound than L_hybrid with uniform ones",
            order=[
                {"objective": "L_vlb", "timesteps": "importance"},
                {"objective": "L_hybrid", "timesteps": "uniform"},
            ],
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={**IDDPM, "sampler.steps": 20},
            axes={"objective": ("L_vlb",)},
            measures=measures(20, 20, Measure("fd_pixels")),
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="12 trainings of 2000 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={
                **IDDPM,
                "sampler.steps": 50,
                **SMALL_TRAINING,
                "train.steps": 2000,
            },
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="four trainings of 500,000 steps",
            fields={
                **IDDPM,
                "diffusion.schedule": "cosine",
                "diffusion.timesteps": 4000,
                "diffusion.rescale_timesteps": True,
                "sampler.steps": 1000,
                "train.steps": 500_000,
                "train.learning_rate": 1e-4,
            },
            num=50_000,
            measures=measures(10_000, 0, Measure("fid")),
        ),
    },
)
