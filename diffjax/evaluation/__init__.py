"""What is measured of a trained run: of its likelihood, its reconstructions, and its samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffjax.errors import UserError, unknown
from diffjax.evaluation import alignment, autoencoder, classifier, diffusion, metrics
from diffjax.evaluation.settings import Examples, Settings
from diffjax.models.pixels import to_unit_range
from diffjax.runs.loading import Run, open_source

# How each is measured of systems that have this: see typing.System. (settings, run, examples) -> figures
OF_DATA = {
    "nll": {"model": diffusion.nll, "likelihood": autoencoder.nll},
    "reconstruction": {"model": diffusion.reconstruction, "codec": autoencoder.reconstruction},
    "accuracy": {"classify": classifier.accuracy},
    "retrieval": {"clip": alignment.retrieval},
    "zero_shot": {"clip": alignment.zero_shot},
    "composition": {"clip": alignment.composition},
}
OF_RECONSTRUCTIONS = {f"r{name}": name for name, metric in metrics.COMPARISONS.items() if name != "is"}
NAMES = (*OF_DATA, *OF_RECONSTRUCTIONS, *metrics.NAMES)


def of_data(name: str, trained: Run) -> Callable[..., dict]:
    """How a metric of OF_DATA is measured of a run. Raises UserError where the run has no such measure."""
    for needed, measure in OF_DATA[name].items():
        if getattr(trained.system, needed) is not None:
            return measure
    raise _without(name, trained)


def examples(settings: Settings, trained: Run) -> Examples:
    """The first of the split."""
    source = open_source(trained.config, settings.split)
    found = source.__getitems__(range(min(len(source), settings.count(256))))
    captions = [example["caption"] for example in found] if "caption" in found[0] else None
    batch = {"image": np.stack([e["image"] for e in found]), "label": np.array([e["label"] for e in found], np.int32)}
    if trained.system.takes:
        batch["original"] = np.asarray(to_unit_range(batch["image"]))
    if text := trained.system.text:
        batch["tokens"] = trained.tokenizer.encode(captions, text.length)
    return Examples(batch, captions)


def check_name(name: str) -> None:
    """Raises UserError for a metric that does not exist."""
    if name not in NAMES:
        raise unknown("metric", name, NAMES)


def check(name: str, trained: Run, settings: Settings | None = None) -> None:
    """Raises UserError for a metric that the run does not have, or that does not fit the settings."""
    if name in OF_DATA:
        of_data(name, trained)
    elif (trained.system.codec if name in OF_RECONSTRUCTIONS else trained.system.sample) is None:
        raise _without(name, trained)
    if trained.system.embeds:
        raise UserError(
            f"--metrics={name}: {trained.workdir.path} is of embeddings, which are measured by the pictures of the "
            "whole chain"
        )
    if name == "composition":
        alignment.check_shapes(name, trained)
    if settings is None:
        return
    if name == "zero_shot":
        alignment.check_template(settings.template)
    if name == "reconstruction":
        for path in settings.lpips:
            if not Path(path).is_file():
                raise UserError(f"--lpips={','.join(settings.lpips)}: no file {path}; name two files of weights")
    if name in ("nll", "reconstruction") and trained.system.model:
        for steps in settings.steps:
            grid = settings.grid or trained.config.sampler.grid
            trained.system.plan({"name": "ddim", "steps": steps, "grid": grid, "threshold": "none"})


def _without(name: str, trained: Run) -> UserError:
    return UserError(
        f"--metrics={name}: {trained.workdir.path} is a run of system={trained.config.system}, without one"
    )
