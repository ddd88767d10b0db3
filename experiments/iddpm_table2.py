"""Improved DDPM (Nichol & Dhariwal 2021), table 2: schedule, objective and T, by likelihood and samples.

    python launch.py reproduce --experiment=experiments/iddpm_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

The paper's values are from a secondary source: check them before you publish them. The report in docs/reports has
network times up to 3,999 at T = 4000, the grid `trailing` and the decoder `exact`.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

T4000 = {"diffusion.timesteps": 4000, "diffusion.rescale_timesteps": True}  # the network's time is below 1000
HYBRID = {"diffusion.loss": "hybrid", "diffusion.variance": "learned_range"}
VLB = {"diffusion.loss": "vlb", "diffusion.variance": "learned_range", "diffusion.time_sampling": "importance"}
SETTING = {  # changes to the scale's config
    "T 1000, linear, L_simple": {"diffusion.timesteps": 1000},
    "T 4000, linear, L_simple": {**T4000},
    "T 4000, linear, L_hybrid": {**T4000, **HYBRID},
    "T 4000, cosine, L_simple": {**T4000, "diffusion.schedule": "cosine"},
    "T 4000, cosine, L_hybrid": {**T4000, "diffusion.schedule": "cosine", **HYBRID},
    "T 4000, cosine, L_vlb": {**T4000, "diffusion.schedule": "cosine", **VLB},
}
NLL = (3.73, 3.37, 3.26, 3.26, 3.17, 2.94)
FID = (3.29, 2.90, 3.07, 3.05, 3.19, 11.47)
BOUND = {"terms": 60, "ode_steps": 0, "num": 200, "decoder": "ddpm"}


def settings(*labels: str) -> list[dict[str, str]]:
    return [{"setting": label} for label in labels]


EXPERIMENT = Experiment(
    title="Improved DDPM, table 2: schedule, objective and T",
    source="Nichol & Dhariwal 2021, table 2 (CIFAR-10)",
    claim="A cosine schedule and a learned variance make good likelihood models, at no cost in samples.",
    axes=[Axis("setting", SETTING)],
    measures=[
        Measure("nll", "bound", heading="bits/dim, bound", settings=BOUND),
        Measure("fd_effnet_lite0"),
        Measure("fd_pixels"),
    ],
    papers=[
        Paper(setting="bits/dim, CIFAR-10 (transcribed)", values=dict(zip(((s,) for s in SETTING), NLL, strict=True))),
        Paper(
            setting="FID, CIFAR-10 (transcribed)",
            values=dict(zip(((s,) for s in SETTING), FID, strict=True)),
            metrics=("fid", "fd_effnet_lite0"),
        ),
    ],
    orderings=[
        Ordering(
            claim="Four times the steps lower the bound",
            order=settings("T 4000, linear, L_simple", "T 1000, linear, L_simple"),
        ),
        Ordering(
            claim="A learned variance lowers the bound",
            order=settings("T 4000, linear, L_hybrid", "T 4000, linear, L_simple"),
        ),
        Ordering(
            claim="The cosine schedule lowers the bound",
            order=settings("T 4000, cosine, L_simple", "T 4000, linear, L_simple"),
        ),
        Ordering(
            claim="With the cosine schedule too a learned variance lowers the bound",
            order=settings("T 4000, cosine, L_hybrid", "T 4000, cosine, L_simple"),
        ),
        Ordering(
            claim="L_vlb has a lower bound than L_hybrid",
            order=settings("T 4000, cosine, L_vlb", "T 4000, cosine, L_hybrid"),
        ),
        *(
            Ordering(
                claim=f"L_vlb has worse samples than L_hybrid{where}",
                order=settings("T 4000, cosine, L_hybrid", "T 4000, cosine, L_vlb"),
                measure=measure,
            )
            for measure, where in (("fd_effnet_lite0", ""), ("fd_pixels", ", in pixels"))
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="four minutes on two CPU cores",
            train_steps=40,
            fields={
                "diffusion.schedule": "linear",
                "diffusion.parameterization": "eps",
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 20,
                "sampler.guidance": 1.0,
            },
            axes={"setting": ("T 1000, linear, L_simple", "T 4000, cosine, L_hybrid", "T 4000, cosine, L_vlb")},
            measures=[
                Measure("nll", "bound", heading="bits/dim, bound", settings={**BOUND, "num": 20, "terms": 20}),
                Measure("fd_pixels"),
            ],
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="an hour and a half on two CPU cores",
            fields={
                "data.image_size": 8,
                "model.attention_resolutions": (4,),
                "diffusion.schedule": "linear",
                "diffusion.parameterization": "eps",
                "train.steps": 1500,
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 100,
            },
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="six trainings of 500,000 steps",
            fields={
                "train.steps": 500_000,
                "train.learning_rate": 1e-4,
                "model.blocks": 3,
                "model.attention_resolutions": (16, 8),
                "model.heads": 4,
                "model.time_conditioning": "scale_shift",
                "model.dropout": 0.3,  # 0.1 for the linear schedule in the paper
                "sampler.grid": "sections",
                "sampler.steps": 1000,  # all 4000 in the paper
            },
            num=50_000,
            measures=[
                Measure("nll", "bound", heading="bits/dim, bound", settings={**BOUND, "num": 10_000, "terms": 0}),
                Measure("fid"),
            ],
        ),
    },
)
