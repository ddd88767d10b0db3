"""ADM (Dhariwal & Nichol 2021), table 4: guided by a classifier, by the scale of its gradient.

    python launch.py reproduce --experiment=experiments/adm_table4.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale

MODEL = {
    "conditional": {"diffusion.class_conditional": True},
    "unconditional": {"diffusion.class_conditional": False, "diffusion.label_dropout": 0.0},
}
SCALES = ("0", "1", "10")
FID = {"unconditional": (26.21, 33.03, 12.00), "conditional": (10.94, 4.59, 9.11)}
TO_FASHION = {"data.name": "fashion_mnist", "data.image_size": 14, "model.attention_resolutions": (7,)}

EXPERIMENT = Experiment(
    title="ADM, table 4: classifier guidance",
    source="Dhariwal & Nichol 2021, table 4 (ImageNet 256x256)",
    claim="A classifier's gradient makes up for labels: much of it for a model without them, a little for one with.",
    axes=[Axis("model", MODEL), Axis("scale", {s: {"sampler.classifier_scale": float(s)} for s in SCALES})],
    across="scale",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("recognised"),
        Measure("manifold_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            "FID, ImageNet 256x256",
            {(model, s): value for model, row in FID.items() for s, value in zip(SCALES, row, strict=True)},
        )
    ],
    orderings=[
        Ordering(
            "A model without labels is recognised the more often the larger the scale",
            [{"scale": "10"}, {"scale": "1"}, {"scale": "0"}],
            where={"model": ("unconditional",)},
            measure="recognised",
        ),
        Ordering(
            "and its samples are nearer to real images at scale 10 than without guidance",
            [{"scale": "10"}, {"scale": "0"}],
            where={"model": ("unconditional",)},
        ),
        Ordering(
            "A model with labels is nearest at scale 1",
            [{"scale": "1"}, {"scale": "0"}],
            where={"model": ("conditional",)},
        ),
        Ordering(
            "and at scale 10 worse than at 1",
            [{"scale": "1"}, {"scale": "10"}],
            where={"model": ("conditional",)},
        ),
    ],
    scales={
        "smoke": Scale(
            "configs/digits.py",
            "three minutes on two CPU cores",
            fields={
                "train.steps": 60,
                "train.sample_count": 0,
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 20,
                "sampler.guidance": 1.0,
            },
            num=100,
            measures=[Measure("fd_pixels"), Measure("recognised")],
            classifier=("configs/classifier_digits.py", {"train.steps": 60}),
        ),
        "small": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "an hour on two CPU cores",
            fields={"sampler.name": "ancestral", "sampler.grid": "sections", "sampler.steps": 50},
            seeds=(0, 1, 2),
            num=500,
            classifier=("configs/classifier_digits.py", {**TO_FASHION, "train.batch_size": 64}),
        ),
        "paper": Scale(
            "configs/ddpm_fashion_mnist.py:14",
            "two trainings and a classifier; ours of CIFAR-10, as we have no ImageNet",
            fields={
                "data.name": "cifar10",
                "data.image_size": 32,
                "data.flip": True,
                "model.channels": 128,
                "model.multipliers": (1, 2, 2),
                "model.attention_resolutions": (16, 8),
                "model.resample": "residual",
                "train.steps": 500_000,
                "train.batch_size": 256,
                "train.learning_rate": 1e-4,
                "train.ema_decay": 0.9999,
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 250,
            },
            num=50_000,
            measures=[Measure("fid"), Measure("is")],
            classifier=(
                "configs/classifier_digits.py",
                {
                    "data.name": "cifar10",
                    "data.image_size": 32,
                    "data.flip": True,
                    "model.channels": 64,
                    "model.multipliers": (1, 2, 2),
                    "model.attention_resolutions": (8,),
                    "train.steps": 300_000,
                    "train.batch_size": 256,
                    "train.learning_rate": 3e-4,
                    "train.weight_decay": 0.05,
                },
            ),
        ),
    },
)
