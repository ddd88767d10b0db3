"""Optimisers of optax, side by side, on a DiT.

    python launch.py reproduce --experiment=experiments/optimizers.py --workdir=runs/experiments --scale=small

No paper has this table. Each optimiser has three learning rates, a factor of 4 apart, and claims compare optimisers at
their best one. All but schedule-free have a cosine decay. There is no weight decay.
"""

from collections.abc import Mapping

from diffjax.reproduce import Axis, Experiment, Fields, Measure, Ordering, Scale, smoke

RATE = "learning rate"
RATES = {  # the middle ones
    "adamw": 8e-3,
    "lion": 1.6e-3,
    "adan": 8e-3,
    "adafactor(min_size=16)": 8e-3,
    "muon": 1.6e-2,
    "prodigy": 1.0,
    "schedule_free": 1.6e-2,
    "sgd": 0.4,
}


def optimizer(name: str) -> Fields:
    schedule = {"train.learning_rate_schedule": "constant"} if name == "schedule_free" else {}
    return {"train.optimizer": name, **schedule}


def rates(factor: float) -> Mapping[str, Fields]:
    """Returns the learning rate of each optimiser."""
    return {name: {"train.learning_rate": factor * rate} for name, rate in RATES.items()}


def lower_loss(claim: str, better: str, worse: str) -> Ordering:
    """Returns a claim about held-out losses."""
    return Ordering(
        claim=f"{claim}, each at its best learning rate",
        order=[{"optimizer": better}, {"optimizer": worse}],
        best_of=RATE,
    )


EXPERIMENT = Experiment(
    title="Optimisers",
    source="Chen et al. 2023 (Lion), abstract (diffusion models on ImageNet); Liu et al. 2025 (Muon, language models)",
    claim="On diffusion models Lion achieves a better FID than Adam.",
    axes=[
        Axis("optimizer", {name: optimizer(name) for name in RATES}),
        Axis(RATE, {"low": rates(1 / 4), "middle": rates(1), "high": rates(4)}, by="optimizer"),
    ],
    column_axis=RATE,
    measures=[
        Measure("training", "eval/loss", heading="held-out loss", better="lower"),
        Measure("fd_pixels"),
    ],
    orderings=[
        Ordering(
            claim="Lion makes better samples than AdamW, each at its best learning rate",
            order=[{"optimizer": "lion"}, {"optimizer": "adamw"}],
            measure="fd_pixels",
            best_of=RATE,
        ),
        lower_loss("Muon has a lower held-out loss than AdamW", "muon", "adamw"),
        lower_loss("Schedule-free AdamW has a lower held-out loss than AdamW", "schedule_free", "adamw"),
        lower_loss("AdamW has a lower held-out loss than Adafactor", "adamw", "adafactor(min_size=16)"),
        lower_loss("AdamW has a lower held-out loss than SGD", "adamw", "sgd"),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py:dit",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"train.eval_every": 40, "train.warmup_steps": 5, "train.batch_size": 32},
            axes={RATE: ("middle",)},
        ),
        "small": Scale(
            config="configs/digits.py:dit",
            duration="72 trainings of 1000 steps: 43 minutes on one core of an Intel Xeon with AVX-512",
            fields={"train.batch_size": 64, "train.eval_every": 1000, "train.num_preview_samples": 0},
            seeds=(0, 1, 2),
            num=1000,
        ),
        "paper": Scale(
            config="configs/ddpm_cifar10.py",
            duration="four trainings of 800,000 steps, on CIFAR-10, where the paper has ImageNet",
            axes={"optimizer": ("adamw", "lion")},
            num=50_000,
            measures=[Measure("training", "eval/loss", better="lower"), Measure("fid")],
        ),
    },
)
