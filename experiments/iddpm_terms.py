"""Improved DDPM (Nichol & Dhariwal 2021), figure 2: bits/dim by noise level.

    python launch.py reproduce --experiment=experiments/iddpm_terms.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

`launch.py evaluate --metrics=nll` plots the terms against t for any of the runs.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

BOUND = {"terms": 60, "ode_steps": 0, "num": 200, "decoder": "ddpm"}


def parts(**settings) -> list[Measure]:
    return [
        Measure("nll", figure, heading=f"bits/dim, {words}", settings={**BOUND, **settings})
        for figure, words in (
            ("bound", "all"),
            ("prior", "L_T"),
            ("kl", "L_1 to L_T-1"),
            ("decoder", "L_0, the last step to the image"),
        )
    ]


EXPERIMENT = Experiment(
    title="Improved DDPM, figure 2: the terms of the bound",
    source="Nichol & Dhariwal 2021, figure 2 and section 3.1",
    claim="Most of the bound is in the first few noise levels; more levels divide it more finely.",
    axes=[
        Axis("schedule", {name: {"diffusion.schedule": name} for name in ("linear", "cosine")}),
        Axis("T", {str(t): {"diffusion.timesteps": t, "diffusion.rescale_timesteps": True} for t in (1000, 4000)}),
    ],
    column_axis="T",
    measures=parts(),
    orderings=[
        Ordering(claim="The bound falls with more levels", order=[{"T": "4000"}, {"T": "1000"}]),
        Ordering(
            claim="The decoder's term falls with more levels",
            order=[{"T": "4000"}, {"T": "1000"}],
            measure="nll.decoder",
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="three minutes on two CPU cores",
            train_steps=40,
            fields={"diffusion.parameterization": "eps"},
            axes={"T": ("1000",)},
            num=10,
            measures=parts(num=20, terms=20),
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="12 trainings of 1500 steps, estimated at 20 minutes on one core of an Intel Xeon",
            fields={
                **SMALL_TRAINING,
                "data.image_size": 8,
                "model.attention_resolutions": (4,),
                "diffusion.parameterization": "eps",
                "train.steps": 1500,
            },
            seeds=(0, 1, 2),
            num=10,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="four trainings of 500,000 steps",
            fields={"train.steps": 500_000, "train.learning_rate": 1e-4},
            num=10,
            measures=parts(terms=0, num=10_000),
        ),
    },
)
