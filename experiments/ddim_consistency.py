"""DDIM (Song et al. 2021), figure 5: one latent, decoded in different numbers of steps.

    python launch.py reproduce --experiment=experiments/ddim_consistency.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, steps

EXPERIMENT = Experiment(
    title="DDIM, figure 5: the same picture in any number of steps",
    source="Song, Meng & Ermon 2021, section 5.2 and figure 5",
    claim="Without noise a latent says what is in the picture, in however many steps it is decoded.",
    axes=[
        Axis("eta", {"0": {"sampler.name": "ddim(eta=0)"}, "1": {"sampler.name": "ddim(eta=1)"}}),
        steps(5, 10, 20, 50, 100),
    ],
    across="steps",
    measures=[Measure("to_most_steps", heading="difference from the most steps, grey levels")],
    orderings=[
        Ordering(
            "Without noise the pictures are nearer to those of the most steps",
            [{"eta": "0"}, {"eta": "1"}],
            where={"steps": ("5", "10", "20", "50")},
        ),
        Ordering(
            "and nearer with every step",
            [{"steps": n} for n in ("50", "20", "10", "5")],
            where={"eta": ("0",)},
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "a minute or two on two CPU cores",
            fields={"train.steps": 100, "train.sample_count": 0, "sampler.guidance": 1.0},
            axes={"steps": ("5", "10", "20")},
            num=20,
        ),
        "small": Scale("configs/ddpm_fashion_mnist.py:14", "half an hour on two CPU cores", seeds=(0, 1, 2), num=100),
        "paper": Scale("configs/ddpm_cifar10.py", "a training of 800,000 steps", num=100),
    },
)
