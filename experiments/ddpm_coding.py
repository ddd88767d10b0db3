"""DDPM (Ho et al. 2020), section 4.3: progressive coding, and the bound by objective.

    python launch.py reproduce --experiment=experiments/ddpm_coding.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/ddpm_coding.py --workdir=runs/experiments --scale=small

The rate is what is sent up to the last noise level, and the distortion the error of the image that is estimated then.
L_0 is what the rest of a lossless code has. `launch.py evaluate --metrics=progressive_coding` has all noise levels, and
a plot.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

OBJECTIVE = {"L": {"diffusion.loss": "vlb"}, "L_simple": {"diffusion.loss": "mse"}}
CODING = {"rate": 1.78, "decoder": 1.97, "rmse": 0.95}  # of the model with the best samples
DDPM = {
    "diffusion.schedule": "linear",
    "diffusion.parameterization": "eps",
    "sampler.name": "ancestral",
    "sampler.guidance": 1.0,
}


def measures(num: int, *distances: Measure, **settings) -> list[Measure]:
    coding = {"num": num, "decoder": "ddpm", **settings}
    headings = {
        "rate": ("bits/dim, rate", "neither"),
        "decoder": ("bits/dim, L_0", "neither"),
        "rmse": ("distortion, RMSE in grey levels", "lower"),
    }
    return [
        Measure("nll", "bound", heading="bits/dim, bound", settings={**coding, "ode_steps": 0}),
        *(Measure("progressive_coding", name, *words, settings=coding) for name, words in headings.items()),
        *distances,
    ]


EXPERIMENT = Experiment(
    title="DDPM: progressive coding",
    source="Ho, Jain & Abbeel 2020, sections 4.1 and 4.3 (CIFAR-10)",
    claim="More than half of the lossless code describes imperceptible distortions.",
    axes=[Axis("objective", OBJECTIVE)],
    measures=measures(200, Measure("fd_pixels")),
    papers=[
        Paper(f"{name}, CIFAR-10", {("L_simple",): value}, metrics=(f"progressive_coding.{name}",))
        for name, value in CODING.items()
    ],
    orderings=[
        Ordering(claim="L has a lower bound than L_simple", order=[{"objective": "L"}, {"objective": "L_simple"}]),
        Ordering(
            claim="L_simple has better samples than L",
            order=[{"objective": "L_simple"}, {"objective": "L"}],
            measure="fd_pixels",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={**DDPM, "sampler.steps": 20},
            measures=measures(10, Measure("fd_pixels"), steps=(20,)),
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="six trainings of 2000 steps, estimated at 20 minutes on one core of an Intel Xeon",
            fields={
                **DDPM,
                "sampler.steps": 100,
                **SMALL_TRAINING,
                "train.steps": 2000,
            },
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="two trainings of 800,000 steps",
            fields={"sampler.steps": 1000},
            num=50_000,
            measures=measures(10_000, Measure("fid")),
        ),
    },
)
