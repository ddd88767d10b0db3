"""GLIDE (Nichol et al. 2021), section 4.3: inpainting by replacing the known region, against a model that sees it.

    python launch.py reproduce --experiment=experiments/glide_inpainting.py --workdir=runs/experiments --scale=smoke
    python launch.py reproduce --experiment=experiments/glide_inpainting.py --workdir=runs/experiments --scale=small

Held-out images are inpainted in random rectangles, under their captions. The rows "replace" and "RePaint" are of one
model that is trained without masks: the known region of each estimate is replaced, and RePaint (Lugmayr et al. 2022)
takes each step five times. The model of the last row has the masked image and the mask as inputs. The paper fine-tunes
it from the first one; here it is trained from scratch for as many steps.
"""

from diffjax.reproduce import SMALL_NETWORKS, Axis, Experiment, Measure, Ordering, Scale, smoke

REPLACE, REPAINT, MASKED = "replace", "RePaint, 5 times", "masked image as input"
METHODS = {
    REPLACE: {},
    REPAINT: {"sampler.resample_steps": 5},
    MASKED: {"config": "configs/glide_inpainting.py:{data}"},
}
HEADINGS = {
    "border_excess": ("excess difference across the border, grey levels", "lower"),
    "caption_accuracy": ("caption accuracy", "higher"),
    "mse": ("MSE of the region", "lower"),
    "fd_pixels": ("FD-pixels", "lower"),
}


def measures(num: int, *names: str) -> list[Measure]:
    return [Measure("inpainting", name, *HEADINGS[name], settings={"num": num}) for name in names or HEADINGS]


def claimed(claim: str, better: str, worse: str, measure: str) -> Ordering:
    return Ordering(claim=claim, order=[{"inpainting": better}, {"inpainting": worse}], measure=f"inpainting.{measure}")


EXPERIMENT = Experiment(
    title="GLIDE: inpainting",
    source="Nichol et al. 2021, section 4.3",
    claim="A model that sees the masked image inpaints without the artifacts at edges that replacement leaves.",
    axes=[Axis("inpainting", METHODS)],
    measures=measures(500),
    orderings=[
        claimed(
            "The model that sees the masked image has smaller edges than replacement", MASKED, REPLACE, "border_excess"
        ),
        claimed("It has a higher caption accuracy than replacement", MASKED, REPLACE, "caption_accuracy"),
        claimed("RePaint has smaller edges than replacement", REPAINT, REPLACE, "border_excess"),
    ],
    scales={
        "smoke": smoke(
            config="configs/glide_base.py",
            duration="minutes on two CPU cores; not measured",
            train_steps=20,
            fields={**SMALL_NETWORKS, "sampler.steps": 5},
            measures=measures(20),
            num=20,
        ),
        "small": Scale(
            config="configs/glide_base.py",
            duration="six trainings of 1500 steps, estimated at 55 minutes on one core of an Intel Xeon",
            fields={
                "model.channels": 24,
                "model.head_channels": 24,
                "train.steps": 1500,
                "train.num_preview_samples": 0,
                "train.eval_every": 0,
            },
            seeds=(0, 1, 2),
            num=500,
        ),
        "paper": Scale(
            config="configs/glide_base.py:emoji",
            duration="two trainings of a day on one GPU; our data set",
            measures=measures(1000, "border_excess", "mse", "fd_pixels"),
            num=1000,
        ),
    },
)
