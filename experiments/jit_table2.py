"""JiT (Li & He 2025), table 2: what the network predicts, the space of the loss, and the size of patches.

    python launch.py reproduce --experiment=experiments/jit_table2.py --workdir=runs/experiments --scale=small \
                               --data_dir=DIR

Patches of 2, 7 and 14 pixels have 4, 49 and 196 values; the network has 64 channels. The schedule keeps a little
signal, so that predicted noise determines the image at every level. The weights of the losses of eps and flow are those
of sigma = 0.05 below it, as in the paper's code.
"""

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, smoke

CONFIG = "configs/jit_fashion_mnist.py"
PREDICTION = {name: {"diffusion.parameterization": name} for name in ("x0", "eps", "flow")}
LOSS = {  # at sigma = 0.05 the SNR is 0.95^2 / 0.05^2 = 361
    "x0": {"diffusion.weighting": "x0"},
    "eps": {"diffusion.weighting": "min_snr(gamma=361)"},
    "flow": {"diffusion.weighting": "flow(min_sigma=0.05)"},
}
PATCH = {str(side): {"model.patch": side} for side in (2, 7, 14)}
SCHEDULE = {"diffusion.schedule": "rectified_flow(end=0.98)"}
TRAINING = {"train.num_preview_samples": 0, "train.eval_every": 0, "train.keep_last": 1}
SMALL = Scale(
    config=CONFIG,
    duration="hours on two CPU cores; not measured",
    fields={
        **SCHEDULE,
        **TRAINING,
        "train.steps": 500,
        "train.batch_size": 32,
        "train.learning_rate": 4e-3,  # at 1e-3 the losses are far from converged after these steps
        "sampler.name": "ddim",
    },
    seeds=(0, 1, 2),
    num=500,
)
LARGE_PATCHES = {"patch": ("14",)}

EXPERIMENT = Experiment(
    title="JiT, table 2: prediction, loss and patches",
    source="Li & He 2025, table 2 (ImageNet 256x256 and 64x64)",
    claim="In large patches of pixels a network can predict clean images, but not noise or velocities.",
    axes=[Axis("prediction", PREDICTION), Axis("loss", LOSS), Axis("patch", PATCH)],
    column_axis="patch",
    measures=[Measure("fd_pixels"), Measure("kd_pixels"), Measure("classifier_accuracy")],
    orderings=[
        *(
            Ordering(
                claim=f"In patches of 14 pixels predicting x_0 is better than predicting {name}, in every loss",
                order=[{"prediction": "x0"}, {"prediction": name}],
                where=LARGE_PATCHES,
            )
            for name in ("eps", "flow")
        ),
        *(
            Ordering(
                claim=f"Predicting {name} is better in patches of 2 pixels than in patches of 14",
                order=[{"prediction": name, "patch": "2"}, {"prediction": name, "patch": "14"}],
            )
            for name in PREDICTION  # x0 is the control: fewer patches are also less computation
        ),
        Ordering(
            claim="In patches of 2 pixels predicting x_0 is better than predicting flow (in the paper about equal)",
            order=[{"prediction": "x0"}, {"prediction": "flow"}],
            where={"patch": ("2",)},
        ),
    ],
    scales={
        "smoke": smoke(
            CONFIG,
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={**SCHEDULE, "data.name": "digits", "train.batch_size": 32, "sampler.name": "ddim"},
            axes={"prediction": ("x0", "eps"), "loss": ("flow",), "patch": ("7", "14")},
            measures=[Measure("fd_pixels")],
        ),
        "small": SMALL,
        "paper": Scale(
            config=CONFIG,
            duration="not measured; on Fashion-MNIST, where the paper has ImageNet",
            fields={**SCHEDULE, **TRAINING, "train.steps": 100_000, "train.batch_size": 256, "sampler.steps": 50},
            num=5000,
        ),
    },
)
