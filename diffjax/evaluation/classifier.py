"""Metrics of classifiers of noised images."""

from typing import Any

import numpy as np
from jax import numpy as jnp

from diffjax.diffusion.noise import perturb
from diffjax.diffusion.random import normal_each
from diffjax.evaluation.settings import (
    Examples,
    Result,
    Row,
    Settings,
    map_batches,
    percent_with_error,
    share_and_error,
)
from diffjax.models.diffusion.process import make_schedule
from diffjax.models.images import to_unit_range
from diffjax.progress import announced_jit
from diffjax.runs.loading import Run

_TIMES = 9  # evaluated times, evenly spaced


def accuracy(settings: Settings, trained: Run, examples: Examples) -> Result:
    """Returns the accuracy of a classifier at several times, from clean images to noise."""
    model: Any = trained.system
    schedule = make_schedule(trained.config.diffusion)

    @announced_jit("the classifier")
    def is_correct(variables, keys, batch, t):
        noise, x0 = schedule(t), to_unit_range(batch["image"])
        x = perturb(x0, normal_each(keys, x0.shape[1:]), noise)
        return jnp.argmax(model.classify(variables, x, noise), axis=-1) == batch["label"]

    rows = []
    for t in np.unique(np.round(np.linspace(schedule.first, schedule.timesteps, _TIMES))):
        correct = map_batches(
            settings, f"t = {t:g}", lambda keys, batch, t=t: is_correct(trained.variables, keys, batch, t), examples
        )
        rows.append({"t": float(t), "accuracy": share_and_error(correct)})
    return Result(
        title=f"accuracy on {len(examples.images)} images of {settings.split}, checkpoint {trained.step}",
        values={"rows": rows},
        rows=[Row(f"t {row['t']:g}", percent_with_error(**row["accuracy"])) for row in rows],
    )
