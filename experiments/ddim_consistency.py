"""DDIM (Song et al. 2021), figure 5: one latent, decoded in different numbers of steps.

    python launch.py reproduce --experiment=experiments/ddim_consistency.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke, steps

EXPERIMENT = Experiment(
    title="DDIM, figure 5: the same image in any number of steps",
    source="Song, Meng & Ermon 2021, section 5.2 and figure 5",
    claim="Without noise, the latent determines the image, whatever the number of steps.",
    axes=[
        Axis("eta", {"0": {"sampler.name": "ddim(eta=0)"}, "1": {"sampler.name": "ddim(eta=1)"}}),
        steps(5, 10, 20, 50, 100),
    ],
    column_axis="steps",
    measures=[Measure("rms_to_finest_grid", heading="RMS to the most steps, grey levels")],
    orderings=[
        Ordering(
            claim="Images without noise are closer to those of the most steps",
            order=[{"eta": "0"}, {"eta": "1"}],
            where={"steps": ("5", "10", "20", "50")},
        ),
        Ordering(
            claim="Without noise, images get closer with more steps",
            order=[{"steps": n} for n in ("50", "20", "10", "5")],
            where={"eta": ("0",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="a minute or two on two CPU cores",
            train_steps=100,
            fields={"sampler.guidance": 1.0},
            axes={"steps": ("5", "10", "20")},
            num=20,
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="half an hour on two CPU cores",
            seeds=(0, 1, 2),
            num=100,
        ),
        "paper": Scale(config="configs/ddpm_cifar10.py", duration="one training of 800,000 steps", num=100),
    },
)
