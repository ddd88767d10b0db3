"""Improved DDPM (Nichol & Dhariwal 2021), figure 8: samples against steps, with fixed and learned variance.

    python launch.py reproduce --experiment=experiments/iddpm_steps.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper has a figure and no numbers. At the scale "paper" the models are those of iddpm_table2.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke, steps

# Time grids of the authors' code: every 4000 / N-th time for DDIM, Improved DDPM's spacing for the others.
HYBRID = {"diffusion.schedule": "cosine", "diffusion.loss": "hybrid", "diffusion.variance": "learned_range"}
MODEL = {
    "learned variance (L_hybrid)": {"sampler.name": "ancestral", "sampler.grid": "sections", **HYBRID},
    "DDIM (L_hybrid)": {"sampler.name": "ddim(eta=0)", "sampler.grid": "leading", **HYBRID},
    "smaller fixed variance (L_simple)": {
        "sampler.name": "ddim(eta=1)",
        "sampler.grid": "sections",
        "diffusion.schedule": "cosine",
    },
    "larger fixed variance (L_simple)": {
        "sampler.name": "ddim(eta=1, sigma_hat=True)",
        "sampler.grid": "sections",
        "diffusion.schedule": "cosine",
    },
}
LEARNED, DDIM, SMALLER, LARGER = ([{"model": name}] for name in MODEL)

EXPERIMENT = Experiment(
    title="Improved DDPM, figure 8: a sweep of the steps",
    source="Nichol & Dhariwal 2021, figure 8 (a figure, no table)",
    claim="With a learned variance 100 of 4000 steps are nearly as good as all; a fixed variance needs many more.",
    axes=[Axis("model", MODEL), steps(10, 25, 50, 100, 200, 400, 1000, 4000)],
    column_axis="steps",
    measures=[Measure("fd_effnet_lite0"), Measure("fd_pixels")],
    orderings=[
        Ordering(
            claim="In 25 to 100 steps the learned variance is better than the larger fixed variance",
            order=[*LEARNED, *LARGER],
            where={"steps": ("25", "50", "100")},
        ),
        Ordering(
            claim="In 25 to 100 steps the learned variance is better than the smaller fixed variance",
            order=[*LEARNED, *SMALLER],
            where={"steps": ("25", "50", "100")},
        ),
        Ordering(
            claim="DDIM is better than the learned variance in 10 steps",
            order=[*DDIM, *LEARNED],
            where={"steps": ("10",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="three minutes on two CPU cores",
            train_steps=40,
            fields={
                "diffusion.timesteps": 4000,
                "diffusion.rescale_timesteps": True,
                "diffusion.parameterization": "eps",
                "sampler.guidance": 1.0,
            },
            axes={"steps": ("10", "25")},
            measures=[Measure("fd_pixels")],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="12 trainings of 1500 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={
                **SMALL_TRAINING,
                "data.image_size": 8,
                "model.attention_resolutions": (4,),
                "diffusion.timesteps": 4000,
                "diffusion.rescale_timesteps": True,
                "diffusion.parameterization": "eps",
                "train.steps": 1500,
            },
            axes={"steps": ("10", "25", "50", "100")},
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="two trainings of 500,000 steps",
            fields={
                "diffusion.timesteps": 4000,
                "diffusion.rescale_timesteps": True,
                "train.steps": 500_000,
                "train.learning_rate": 1e-4,
            },
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
