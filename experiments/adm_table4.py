"""ADM (Dhariwal & Nichol 2021), table 4: classifier guidance, by the scale of the gradient.

    python launch.py reproduce --experiment=experiments/adm_table4.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Paper, Scale, smoke

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
    claim="Classifier guidance improves samples: with a large scale if unconditional, with a small one otherwise.",
    axes=[Axis("model", MODEL), Axis("scale", {s: {"sampler.classifier_scale": float(s)} for s in SCALES})],
    column_axis="scale",
    measures=[
        Measure("fd_effnet_lite0"),
        Measure("classifier_accuracy"),
        Measure("precision_recall_effnet_lite0", "recall_effnet_lite0"),
    ],
    papers=[
        Paper(
            setting="FID, ImageNet 256x256",
            values={(model, s): value for model, row in FID.items() for s, value in zip(SCALES, row, strict=True)},
        )
    ],
    orderings=[
        *(
            Ordering(
                claim=f"Unconditional: scale {larger} has a higher classifier accuracy than {smaller}",
                order=[{"scale": larger}, {"scale": smaller}],
                where={"model": ("unconditional",)},
                measure="classifier_accuracy",
            )
            for larger, smaller in (("10", "1"), ("1", "0"))
        ),
        Ordering(
            claim="Unconditional: scale 10 is better than no guidance",
            order=[{"scale": "10"}, {"scale": "0"}],
            where={"model": ("unconditional",)},
        ),
        Ordering(
            claim="Conditional: scale 1 is better than no guidance",
            order=[{"scale": "1"}, {"scale": "0"}],
            where={"model": ("conditional",)},
        ),
        Ordering(
            claim="Conditional: scale 10 is worse than scale 1",
            order=[{"scale": "1"}, {"scale": "10"}],
            where={"model": ("conditional",)},
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="three minutes on two CPU cores",
            train_steps=60,
            fields={
                "sampler.name": "ancestral",
                "sampler.grid": "sections",
                "sampler.steps": 20,
                "sampler.guidance": 1.0,
            },
            measures=[Measure("fd_pixels"), Measure("classifier_accuracy")],
            classifier=("configs/classifier_digits.py", {"train.steps": 60}),
        ),
        "small": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="six trainings and three classifiers, estimated at half an hour on one core of an Intel Xeon",
            fields={**SMALL_TRAINING, "sampler.name": "ancestral", "sampler.grid": "sections", "sampler.steps": 50},
            seeds=(0, 1, 2),
            num=500,
            classifier=("configs/classifier_digits.py", {**TO_FASHION, "train.batch_size": 64}),
        ),
        "paper": Scale(
            config="configs/ddpm_fashion_mnist.py:14",
            duration="two trainings and a classifier; CIFAR-10 in place of ImageNet",
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
