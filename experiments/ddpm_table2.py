"""DDPM (Ho et al. 2020), table 2: parameterization, loss and variance.

    python launch.py reproduce --experiment=experiments/ddpm_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's learned variance is a free diagonal; ours is Improved DDPM's, between the two fixed ones.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

OBJECTIVE = {
    "mean, L, learned variance": {
        "diffusion.parameterization": "mu",
        "diffusion.loss": "vlb",
        "diffusion.variance": "learned_range",
    },
    "mean, L, fixed variance": {"diffusion.parameterization": "mu", "diffusion.loss": "vlb"},
    "eps, L, fixed variance": {"diffusion.parameterization": "eps", "diffusion.loss": "vlb"},
    "eps, L_simple": {"diffusion.parameterization": "eps", "diffusion.loss": "mse"},
}
FID = (23.69, 13.22, 13.51, 3.17)
SCORE = (7.28, 8.06, 7.67, 9.46)

EXPERIMENT = Experiment(
    title="DDPM, table 2: objective and variance",
    source="Ho, Jain & Abbeel 2020, table 2",
    claim="Samples are best if the network predicts the noise and all times have the same weight.",
    axes=[Axis("objective", OBJECTIVE)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels"), Measure("classifier_accuracy")],
    papers=[
        Paper(
            setting="FID, CIFAR-10, 50,000 samples",
            values={(name,): value for name, value in zip(OBJECTIVE, FID, strict=True)},
            metrics=("fid", "fd_effnet_lite0"),
        ),
        Paper(
            setting="Inception score, CIFAR-10",
            values={(name,): value for name, value in zip(OBJECTIVE, SCORE, strict=True)},
            metrics=("is",),
        ),
    ],
    orderings=[
        Ordering(
            claim="eps with L_simple is better than with the bound",
            order=[{"objective": "eps, L_simple"}, {"objective": "eps, L, fixed variance"}],
        ),
        Ordering(
            claim="eps with L_simple is better than predicting the mean with the bound",
            order=[{"objective": "eps, L_simple"}, {"objective": "mean, L, fixed variance"}],
        ),
        Ordering(
            claim="With the bound, a learned variance makes samples worse",
            order=[{"objective": "mean, L, fixed variance"}, {"objective": "mean, L, learned variance"}],
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="three minutes on two CPU cores",
            train_steps=60,
            fields={
                "diffusion.schedule": "linear",
                "sampler.name": "ancestral",
                "sampler.steps": 20,
                "sampler.guidance": 1.0,
            },
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="an hour on two CPU cores",
            fields={
                "data.image_size": 8,
                "model.attention_resolutions": (4,),
                "diffusion.schedule": "linear",
                "train.steps": 1500,
                "sampler.name": "ancestral",
                "sampler.steps": 100,
            },
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="four trainings of 800,000 steps",
            num=50_000,
            measures=[Measure("fid"), Measure("is")],
        ),
    },
)
