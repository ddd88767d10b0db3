"""muP: the best learning rate of a narrow DiT is that of a wide one.

    python launch.py reproduce --experiment=experiments/mup.py --workdir=runs/experiments --scale=small

Each width is trained with each learning rate, under the standard parametrization and under muP, whose base width is the
smallest. There they are equal, and are trained once. Heads have 16 channels (72 in the paper).
"""

import itertools

from ml_collections import ConfigDict

from diffjax.reproduce import Axis, Experiment, Fields, Measure, Ordering, SameBest, Scale, smoke

RATE, WIDTHS, PAPER_WIDTHS = "learning rate", (16, 32, 64, 128), (144, 288, 576)
RATES = ("0.002", "0.004", "0.008", "0.016", "0.032")
PAPER_RATES = tuple(f"2^-{power}" for power in (13, 12, 11, 10, 9))


def mup(config: ConfigDict) -> Fields:
    """Sets the base width, unless it is the width."""
    base = WIDTHS[0] if config.data.name == "digits" else PAPER_WIDTHS[1]
    return {"train.mup_base_width": 0 if config.model.width == base else base}


STANDARD, MUP = {"parametrization": ("standard",)}, {"parametrization": ("muP",)}
HELD_OUT = Measure("training", "eval/loss", heading="held-out loss", better="lower")

EXPERIMENT = Experiment(
    title="muP: transfer of the learning rate from width to width",
    source="Zheng et al. 2025, figure 3 (DiT, ImageNet 256x256); Yang et al. 2022",
    claim="Under muP the best learning rate is the same at all widths; under the standard parametrization it is not.",
    axes=[
        Axis(
            "width",
            {str(width): {"model.width": width, "model.heads": width // 16} for width in WIDTHS}
            | {str(width): {"model.width": width, "model.heads": width // 72} for width in PAPER_WIDTHS},
        ),
        Axis("parametrization", {"standard": {}, "muP": mup}),
        Axis(
            RATE,
            {rate: {"train.learning_rate": float(rate)} for rate in RATES}
            | {rate: {"train.learning_rate": 2.0 ** float(rate[2:])} for rate in PAPER_RATES},
        ),
    ],
    column_axis=RATE,
    measures=[HELD_OUT],
    orderings=[
        SameBest(
            claim="Under muP the best learning rate of the smallest width is the best at each width",
            axis=RATE,
            along="width",
            where=MUP,
        ),
        SameBest(
            claim="Under the standard parametrization, too, it is the best at each width (in the paper it is not)",
            axis=RATE,
            along="width",
            where=STANDARD,
        ),
        Ordering(
            claim="At a high learning rate, the widest network is better under muP",
            order=[{"parametrization": "muP"}, {"parametrization": "standard"}],
            where={"width": ("128", "576"), RATE: ("0.016", "2^-10")},
        ),
        *(
            Ordering(
                claim=f"Under muP width {wider} is better than {narrower}, at any learning rate",
                order=[{"width": str(wider)}, {"width": str(narrower)}],
                where=MUP,
            )
            for narrower, wider in itertools.pairwise(WIDTHS)
        ),
    ],
    scales={
        "smoke": smoke(
            config="configs/digits.py:dit",
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields={"train.eval_every": 40, "train.warmup_steps": 5, "train.batch_size": 32},
            axes={"width": ("16", "64"), RATE: ("0.004", "0.016")},
        ),
        "small": Scale(
            config="configs/digits.py:dit",
            duration="105 trainings of 500 steps, estimated at an hour on one core of an Intel Xeon",
            fields={
                "train.steps": 500,
                "train.batch_size": 64,
                "train.warmup_steps": 50,
                "train.eval_every": 500,
                "train.num_preview_samples": 0,
            },
            axes={"width": tuple(map(str, WIDTHS)), RATE: RATES},
            seeds=(0, 1, 2),
        ),
        "paper": Scale(
            config="configs/published/dit.py:xl2_256",
            duration="25 trainings of 40 epochs of ImageNet",
            fields={"train.steps": 200_000, "train.num_preview_samples": 0},
            axes={"width": tuple(map(str, PAPER_WIDTHS)), RATE: PAPER_RATES},
            num=50_000,
            measures=[Measure("fid")],
        ),
    },
)
