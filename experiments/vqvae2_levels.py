"""VQ-VAE-2 (Razavi et al. 2019), figure 3: one, two and three levels of codes.

    python launch.py reproduce --experiment=experiments/vqvae2_levels.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper decodes one model's top level, then adds the levels below it, and shows pictures. Here each is a model of its
own: the coarsest grid is the same in all, and every further level is twice as fine. `paper` has the paper's widths
on CIFAR-10, and fewer steps.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale


def levels(count: int):
    """`model.factor` of a scale is that of the finest of three."""
    return lambda config: {
        "model.factor": config.model.factor * 2 ** (3 - count),
        "model.coarser_factors": (2,) * (count - 1),
    }


def measures(distance: str, num: int) -> list[Measure]:
    settings = {"num": num}
    named = {0: "coarsest", 1: "next finer", 2: "finest of three"}
    return [
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings=settings),
        Measure("reconstruction", "ssim", "SSIM of reconstructions", "higher", settings=settings),
        Measure(distance),
        *(
            Measure("reconstruction", f"codes.{i}.perplexity", f"perplexity, {name} codes", "higher", settings=settings)
            for i, name in named.items()
        ),
    ]


EXPERIMENT = Experiment(
    title="VQ-VAE-2: levels",
    source="Razavi, van den Oord & Vinyals 2019, figure 3 (pictures, no table)",
    claim="Each level of codes adds detail to the reconstruction.",
    axes=[Axis("levels", {str(count): levels(count) for count in (1, 2, 3)})],
    measures=measures("rfd_effnet_lite0", 1000),
    orderings=[Ordering("Three levels err less than two, and two less than one", [{"levels": n} for n in "321"])],
    scales={
        "smoke": Scale(
            "configs/vqvae2.py",
            "a minute on two CPU cores",
            fields={"model.factor": 1, "train.steps": 120, "train.warmup_steps": 20, "train.sample_count": 0},
            num=100,
            measures=measures("rfd_pixels", 100),
        ),
        "small": Scale(
            "configs/vqvae2.py:cifar10",
            "a night on two CPU cores",
            fields={"model.factor": 2, "train.steps": 5000, "train.sample_count": 0},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            "configs/vqvae2.py:cifar10",
            "three trainings of 250,000 steps; ours of CIFAR-10, as we have no ImageNet",
            fields={
                "model.factor": 2,
                "model.channels": 128,
                "model.residual_channels": 64,
                "model.latent_channels": 64,
                "model.z_channels": 128,
                "train.steps": 250_000,
                "train.learning_rate": 3e-4,
                "train.schedule": "constant",
                "train.sample_count": 0,
            },
            num=10_000,
            measures=measures("rfid", 10_000),
        ),
    },
)
