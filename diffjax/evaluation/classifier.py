"""Metrics of classifiers of noised images, and their features for metrics of samples."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import numpy as jnp

from diffjax.diffusion.noise import perturb
from diffjax.diffusion.random import normal_each
from diffjax.errors import UserError
from diffjax.evaluation.settings import (
    Examples,
    Result,
    Row,
    Settings,
    map_batches,
    percent_with_error,
    share_and_error,
)
from diffjax.metrics.features import Network
from diffjax.models.diffusion.process import make_schedule
from diffjax.models.images import to_unit_range
from diffjax.models.parameter_paths import tree_hash
from diffjax.progress import announced_jit
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import Run, load
from diffjax.runs.workdir import Workdir
from diffjax.typing import ImageSpec

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


def check_features(path: str | os.PathLike, spec: ImageSpec) -> None:
    """Raises UserError if `feature_network` cannot open a run for images of `spec`; reads its config only."""
    config = Workdir(path).read_config()
    if config.system != "classifier":
        raise UserError(f"--features={path}: must be a run of a classifier, not of system={config.system}")
    theirs, ours = (f"{each.size}x{each.size}x{each.channels}" for each in (image_spec(config), spec))
    if theirs != ours:
        raise UserError(f"--features={path}: was trained on images of {theirs}; train it on those of the run, {ours}")


def feature_network(path: str | os.PathLike, spec: ImageSpec) -> Network:
    """Opens a run of a classifier as a feature network.

    Args:
      path: folder of the run.
      spec: images to extract features of.

    Raises:
      UserError: the run is not a classifier of such images.
    """
    check_features(path, spec)
    trained = load(path)
    model: Any = trained.system

    def extract(variables: Any, images: Any) -> Mapping[str, Any]:
        return {"pooled": model.features(variables, to_unit_range(images))}

    provenance = {"weights": f"sha256:{tree_hash(trained.variables)[:16]}"}
    return Network("classifier", trained.variables, extract, provenance)
