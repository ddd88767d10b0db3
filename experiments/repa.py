"""REPA (Yu et al. 2024): alignment with an image encoder, at three lengths of training.

    python launch.py reproduce --experiment=experiments/repa.py --workdir=runs/experiments --scale=small

Both networks are a DiT conditioned on captions of shapes. The encoder is the image encoder of a CLIP of the same data,
which no other part of the model sees; at the scale `small` it is that of the released shapes_glide. Each length has a
learning rate that decays to 0 at its end.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Multiply, Ordering, Scale, smoke

CONFIG = "configs/repa_shapes.py"
ALIGNMENT = {"none": {"config": f"{CONFIG}:plain"}, "CLIP": {"config": CONFIG}}
NONE, CLIP = ({"alignment": name} for name in ALIGNMENT)
TRAINING = {"a quarter": 0.25, "half": 0.5, "all": 1.0}  # of the config's steps

EXPERIMENT = Experiment(
    title="REPA: alignment with an image encoder",
    source="Yu et al. 2024, abstract (SiT, ImageNet 256x256)",
    claim="Aligned with the features of an image encoder, a diffusion transformer needs far fewer training steps.",
    axes=[
        Axis("alignment", ALIGNMENT),
        Axis("training", {name: {"train.steps": Multiply(factor)} for name, factor in TRAINING.items()}),
    ],
    column_axis="training",
    measures=[
        Measure("caption_accuracy"),
        *(Measure("caption_accuracy", f"caption_{part}") for part in ("colour", "shape", "relation")),
        Measure("fd_effnet_lite0"),
    ],
    orderings=[
        Ordering(claim="Aligned tokens raise caption accuracy after the same training", order=[CLIP, NONE]),
        Ordering(
            claim="Aligned tokens bring samples closer to real images after the same training",
            order=[CLIP, NONE],
            measure="fd_effnet_lite0",
        ),
        Ordering(
            claim="Aligned for half of the training, caption accuracy is higher than after all of it without",
            order=[{**CLIP, "training": "half"}, {**NONE, "training": "all"}],
        ),
    ],
    scales={
        "smoke": smoke(
            config=CONFIG,
            duration="minutes on two CPU cores; not measured",
            train_steps=20,
            fields={**SMALL_NETWORKS, "*train.batch_size": 16, "*alignment.block": 1, "*alignment.dimensions": 32},
            axes={"training": ("a quarter", "all")},
            num=20,
            measures=[Measure("caption_accuracy"), Measure("fd_pixels")],
        ),
        "small": Scale(
            config=CONFIG,
            duration="18 trainings of 500 to 2000 steps, estimated at 100 minutes on one core of an Intel Xeon",
            fields={
                "model.width": 64,
                "model.layers": 4,
                "*alignment.clip": "pretrained:shapes_glide/clip",
                "train.steps": 2000,
                "train.batch_size": 32,
                "train.num_preview_samples": 0,
                "train.eval_every": 0,
                "train.keep_last": 1,
            },
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config=CONFIG,
            duration="not measured; on shapes with a CLIP, where the paper has ImageNet with DINOv2-B",
            fields={"train.steps": 100_000, "model.width": 384, "model.layers": 12, "model.heads": 6},
            seeds=(0, 1, 2),
            num=5000,
        ),
    },
)
