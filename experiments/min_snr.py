"""Min-SNR (Hang et al. 2023): weights of the noise levels, by the prediction of the network.

    python launch.py reproduce --experiment=experiments/min_snr.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/min_snr.py --workdir=runs/experiments --scale=small

Weights are of the error of x_0, whatever the network predicts: 1, the SNR (which weights the error of eps by 1),
max(SNR, 1) and min(SNR, 5). Trainings are short, as the claim is about the speed of convergence. The claims are tested
in pixels and in the features of a classifier, to see whether an order depends on the features.
"""

from diffjax.reproduce import SMALL_TRAINING, Axis, Experiment, Measure, Ordering, Scale, smoke

WEIGHTING = {"1": "x0", "SNR": "snr", "max(SNR, 1)": "truncated_snr", "min(SNR, 5)": "min_snr(gamma=5)"}
PREDICTION = ("eps", "x0", "v")
MIN_SNR, *OTHERS = reversed(WEIGHTING)
FEATURES = {"pixels": "fd_pixels", "features of a classifier": "fd_classifier"}

EXPERIMENT = Experiment(
    title="Min-SNR: weights of the noise levels",
    source="Hang et al. 2023, abstract (ImageNet 256x256)",
    claim="Training converges faster with the weights min(SNR, gamma) than with earlier ones.",
    axes=[
        Axis("prediction", {name: {"diffusion.parameterization": name} for name in PREDICTION}),
        Axis("weighting", {label: {"diffusion.weighting": name} for label, name in WEIGHTING.items()}),
    ],
    column_axis="weighting",
    measures=[Measure("fd_pixels"), Measure("fd_classifier"), Measure("kd_pixels"), Measure("classifier_accuracy")],
    orderings=[
        Ordering(
            claim=f"{MIN_SNR} is better than {other}, whatever the network predicts, in {words}",
            order=[{"weighting": MIN_SNR}, {"weighting": other}],
            measure=measure,
        )
        for other in OTHERS
        for words, measure in FEATURES.items()
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"sampler.steps": 10, "sampler.guidance": 1.0},
            axes={"prediction": ("v",)},
            measures=[Measure("fd_pixels"), Measure("fd_classifier")],
            features=("configs/classifier_digits.py", {"train.steps": 40, "train.eval_every": 0}),
        ),
        "small": Scale(
            config="configs/digits.py",
            duration="36 trainings of 1000 steps, estimated at 40 minutes on one core of an Intel Xeon",
            fields={
                "sampler.guidance": 1.0,
                **SMALL_TRAINING,
                "train.steps": 1000,
            },
            seeds=(0, 1, 2),
            num=1000,
            features=("configs/classifier_digits.py", {"train.eval_every": 0}),
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="12 trainings of 100,000 steps; CIFAR-10 in the place of ImageNet",
            fields={"diffusion.schedule": "cosine", "train.steps": 100_000, "train.num_preview_samples": 0},
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
