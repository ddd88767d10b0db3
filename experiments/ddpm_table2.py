"""DDPM (Ho et al. 2020), table 2: what the network predicts, by which loss, with which variance.

    python launch.py reproduce --experiment=experiments/ddpm_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's learned variance is a diagonal of its own; ours is Improved DDPM's, between both fixed ones.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale

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
    claim="Samples are best where the network predicts the noise and every time weighs the same.",
    axes=[Axis("objective", OBJECTIVE)],
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels"), Measure("recognised")],
    papers=[
        Paper(
            "FID, CIFAR-10, 50,000 samples",
            {(name,): value for name, value in zip(OBJECTIVE, FID, strict=True)},
            beside=("fid", "fd_effnet_lite0"),
        ),
        Paper(
            "Inception score, CIFAR-10",
            {(name,): value for name, value in zip(OBJECTIVE, SCORE, strict=True)},
            beside=("is",),
        ),
    ],
    orderings=[
        Ordering(
            "eps with L_simple is better than with the bound",
            [{"objective": "eps, L_simple"}, {"objective": "eps, L, fixed variance"}],
        ),
        Ordering(
            "and better than predicting the mean with the bound",
            [{"objective": "eps, L_simple"}, {"objective": "mean, L, fixed variance"}],
        ),
        Ordering(
            "With the bound, learning the variance makes samples worse",
            [{"objective": "mean, L, fixed variance"}, {"objective": "mean, L, learned variance"}],
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "three minutes on two CPU cores",
            fields={
                "diffusion.schedule": "linear",
                "train.steps": 60,
                "train.sample_count": 0,
                "sampler.name": "ancestral",
                "sampler.steps": 20,
                "sampler.guidance": 1.0,
            },
            num=100,
            measures=[Measure("fd_pixels"), Measure("recognised")],
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "an hour on two CPU cores",
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
            "configs/ddpm_cifar10.py",
            "four trainings of 800,000 steps",
            num=50_000,
            measures=[Measure("fid"), Measure("is")],
        ),
    },
)
