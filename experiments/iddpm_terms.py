"""Improved DDPM (Nichol & Dhariwal 2021), figure 2: where on the way from noise to image the bits/dim are.

    python launch.py reproduce --experiment=experiments/iddpm_terms.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Term by term, against t: `launch.py evaluate --metrics=nll` on any of the runs.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale

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
    claim="Most of the bound lies in the first few levels of noise, and more levels split it finer.",
    axes=[
        Axis("schedule", {name: {"diffusion.schedule": name} for name in ("linear", "cosine")}),
        Axis("T", {str(t): {"diffusion.timesteps": t, "diffusion.rescale_timesteps": True} for t in (1000, 4000)}),
    ],
    across="T",
    measures=parts(),
    orderings=[
        Ordering("The bound is lower with more levels", [{"T": "4000"}, {"T": "1000"}]),
        Ordering(
            "The decoder's term is smaller with more levels", [{"T": "4000"}, {"T": "1000"}], measure="nll.decoder"
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "three minutes on two CPU cores",
            fields={"diffusion.parameterization": "eps", "train.steps": 40, "train.sample_count": 0},
            axes={"T": ("1000",)},
            num=10,
            measures=parts(num=20, terms=20),
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "an hour on two CPU cores, less where table 2 was made in the same folder",
            fields={
                "data.image_size": 8,
                "model.attention_resolutions": (4,),
                "diffusion.parameterization": "eps",
                "train.steps": 1500,
            },
            seeds=(0, 1, 2),
            num=10,
        ),
        "paper": Scale(
            "configs/ddpm_cifar10.py",
            "four trainings of 500,000 steps",
            fields={"train.steps": 500_000, "train.learning_rate": 1e-4},
            num=10,
            measures=parts(terms=0, num=10_000),
        ),
    },
)
