"""DDPM (Ho et al. 2020), section 4.4 and figure 9: interpolation between images that are noised to timestep t.

    python launch.py reproduce --experiment=experiments/ddpm_interpolation.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/ddpm_interpolation.py --workdir=runs/experiments --scale=small

Two held-out images are noised independently, mixed with weights 1 - lambda and lambda, and sampled from t down. The
reconstructions are those of lambda 0 and 1, and the diversity is that of four seeds at lambda 1/2. One trained model
has all t. `launch.py evaluate --metrics=interpolation` has them in one table and figure.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

STRENGTHS = ("0.125", "0.25", "0.5", "0.75", "1")
HALF = STRENGTHS[:3]
FIELDS = {
    "diffusion.schedule": "linear",
    "diffusion.parameterization": "eps",
    "diffusion.class_conditional": False,
    "diffusion.label_dropout": 0.0,
    "sampler.name": "ancestral",
    "sampler.guidance": 1.0,
}


def measures(num: int) -> list[Measure]:
    headings = {
        "reconstruction": ("reconstruction MSE", "lower"),
        "diversity": ("diversity: MSE between seeds", "higher"),
        "fd_pixels": ("FD-pixels of interpolations", "lower"),
    }
    return [Measure("interpolation", name, *words, settings={"num": num}) for name, words in headings.items()]


EXPERIMENT = Experiment(
    title="DDPM: interpolation",
    source="Ho, Jain & Abbeel 2020, section 4.4 and figure 9 (CelebA-HQ)",
    claim="Larger t gives coarser and more varied interpolations, and novel samples at t = T.",
    axes=[Axis("t / T", {strength: {"sampler.strength": float(strength)} for strength in STRENGTHS})],
    column_axis="t / T",
    measures=measures(360),
    orderings=[
        Ordering(
            claim="The reconstruction error grows with t",
            order=[{"t / T": strength} for strength in STRENGTHS],
            measure="interpolation.reconstruction",
        ),
        Ordering(
            claim="The reconstruction error grows with t up to T / 2",
            order=[{"t / T": strength} for strength in HALF],
            measure="interpolation.reconstruction",
        ),
        Ordering(
            claim="The diversity grows with t up to T / 2",
            order=[{"t / T": strength} for strength in reversed(HALF)],
            measure="interpolation.diversity",
        ),
        Ordering(
            claim="The diversity grows with t",
            order=[{"t / T": strength} for strength in reversed(STRENGTHS)],
            measure="interpolation.diversity",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={**FIELDS, "sampler.steps": 8},
            measures=measures(20),
            num=20,
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="ten CPU minutes on two cores of an Intel Xeon; it varies",
            fields={**FIELDS, **SMALL_TRAINING, "*train.batch_size": 128, "train.steps": 1000, "sampler.steps": 40},
            seeds=(0, 1, 2),
            num=360,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="a training of 800,000 steps; CIFAR-10 in the place of CelebA-HQ",
            measures=measures(10_000),
            num=10_000,
        ),
    },
)
