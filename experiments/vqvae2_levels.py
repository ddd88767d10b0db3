"""VQ-VAE-2 (Razavi et al. 2019), figure 3: one, two and three levels of codes.

    python launch.py reproduce --experiment=experiments/vqvae2_levels.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper decodes the top level of one model, then adds the finer levels, and shows images. Here each number of levels
is a separate model: all have the same coarsest grid, and each further level is twice as fine. `paper` has the paper's
widths on CIFAR-10, and fewer steps.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Multiply, Ordering, Scale, smoke

LEVELS = {  # a scale's `model.factor` is the downsampling factor of the finest of three levels
    str(n): {"model.factor": Multiply(2 ** (3 - n)), "model.coarser_factors": (2,) * (n - 1)} for n in (1, 2, 3)
}


def measures(distance: str, num: int) -> list[Measure]:
    settings = {"num": num}
    levels = {0: "coarsest", 1: "next finer", 2: "finest of three"}
    return [
        Measure("reconstruction", "mse", heading="MSE of reconstructions", settings=settings),
        Measure("reconstruction", "ssim", "SSIM of reconstructions", "higher", settings=settings),
        Measure(distance),
        *(
            Measure("reconstruction", f"codes.{i}.perplexity", f"perplexity, {name} codes", "higher", settings=settings)
            for i, name in levels.items()
        ),
    ]


EXPERIMENT = Experiment(
    title="VQ-VAE-2: levels",
    source="Razavi, van den Oord & Vinyals 2019, figure 3 (images, no table)",
    claim="Each level of codes adds detail to the reconstruction.",
    axes=[Axis("levels", LEVELS)],
    measures=measures("recon_fd_effnet_lite0", 1000),
    orderings=[
        Ordering(claim="Two levels have a lower error than one", order=[{"levels": "2"}, {"levels": "1"}]),
        Ordering(claim="Three levels have a lower error than two", order=[{"levels": "3"}, {"levels": "2"}]),
    ],
    scales={
        "smoke": smoke(
            config="configs/vqvae2.py",
            duration="a minute on two CPU cores",
            train_steps=120,
            fields={"model.factor": 1, "train.warmup_steps": 20},
            measures=measures("recon_fd_pixels", 100),
        ),
        "small": Scale(
            config="configs/vqvae2.py:fashion_mnist",
            duration="nine trainings of 1000 steps, estimated at half an hour on one core of an Intel Xeon",
            fields={"model.factor": 1, "train.steps": 1000, "train.batch_size": 32, "train.num_preview_samples": 0},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/vqvae2.py:cifar10",
            duration="three trainings of 250,000 steps; CIFAR-10 in place of ImageNet",
            fields={
                "model.factor": 2,
                "model.channels": 128,
                "model.residual_channels": 64,
                "model.latent_channels": 64,
                "model.z_channels": 128,
                "train.steps": 250_000,
                "train.learning_rate": 3e-4,
                "train.learning_rate_schedule": "constant",
                "train.num_preview_samples": 0,
            },
            num=10_000,
            measures=measures("recon_fid", 10_000),
        ),
    },
)
