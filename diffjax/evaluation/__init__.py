"""Evaluates trained runs: likelihood, reconstructions, samples, classifiers and CLIPs. Prints nothing."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.errors import UserError, unknown
from diffjax.evaluation import alignment, autoencoder, classifier, diffusion, editing, metrics, provenance
from diffjax.evaluation.settings import Examples, Result, Settings
from diffjax.models.capabilities import (
    has_likelihood,
    is_autoencoder,
    is_classifier,
    is_clip,
    is_diffusion,
    is_generative,
    is_upsampling_stage,
    outputs_embeddings,
)
from diffjax.models.images import to_unit_range
from diffjax.runs.datasets import open_dataset
from diffjax.runs.loading import Run

Evaluate = Callable[[Settings, Run, Examples], Result]
# Functions that compute a metric of data, each with the capability of the model that it requires
OF_DATA: dict[str, list[tuple[Callable[[Any], bool], Evaluate]]] = {
    "nll": [(is_diffusion, diffusion.nll), (has_likelihood, autoencoder.nll)],
    "progressive_coding": [(is_diffusion, diffusion.progressive_coding)],
    "reconstruction": [(is_diffusion, diffusion.reconstruction), (is_autoencoder, autoencoder.reconstruction)],
    "straightness": [(is_diffusion, diffusion.straightness)],
    "inpainting": [(is_diffusion, editing.inpainting)],
    "interpolation": [(is_diffusion, editing.interpolation)],
    "accuracy": [(is_classifier, classifier.accuracy)],
    "retrieval": [(is_clip, alignment.retrieval)],
    "zero_shot": [(is_clip, alignment.zero_shot)],
    "composition": [(is_clip, alignment.composition)],
}
OF_EDITS = ("inpainting", "interpolation")  # those of OF_DATA that have the sampling settings of samples
OF_RECONSTRUCTIONS = {f"recon_{name}": name for name in metrics.COMPARISONS if name != "is"}
NAMES = (*OF_DATA, *OF_RECONSTRUCTIONS, *metrics.NAMES)
_DEFAULT_EXAMPLES = 256


def evaluate(name: str, trained: Run, settings: Settings, examples: Examples) -> Result:
    """Returns the result of a metric of data, with its provenance.

    Args:
      name: name in OF_DATA.
      examples: those that `examples` returns for the same settings.

    Raises:
      UserError: the run does not support the metric.
    """
    result = _function(name, trained)(settings, trained, examples)
    depends = {"split": settings.split, "images": len(examples.images), "seed": settings.seed}
    return dataclasses.replace(result, provenance={**provenance.run_provenance(trained), **depends})


def _function(name: str, trained: Run) -> Evaluate:
    for is_supported, function in OF_DATA[name]:
        if is_supported(trained.system):
            return function
    raise _unsupported(name, trained)


def examples(settings: Settings, trained: Run) -> Examples:
    """Returns the first examples of the split."""
    source = open_dataset(trained.config, settings.split)
    read = source.__getitems__(range(min(len(source), settings.count(_DEFAULT_EXAMPLES))))
    captions = [example["caption"] for example in read] if "caption" in read[0] else None
    batch = {"image": np.stack([e["image"] for e in read]), "label": np.array([e["label"] for e in read], np.int32)}
    if is_upsampling_stage(trained.system):
        batch["original"] = np.asarray(to_unit_range(batch["image"]))
    if "number" in read[0]:
        batch["number"] = np.array([example["number"] for example in read], np.float32)
    if (text := trained.system.text) and trained.tokenizer and captions is not None:
        batch["tokens"] = trained.tokenizer.encode(captions, text.length)
    return Examples(batch, captions)


def check_name(name: str) -> None:
    """Raises UserError for an unknown metric."""
    if name not in NAMES:
        raise unknown("metric", name, NAMES)


def check(name: str, trained: Run, settings: Settings | None = None, guides: Collection[str] = ()) -> None:
    """Raises UserError for a metric that the run does not support, or that does not fit the settings.

    Args:
      guides: flags of models that guide the samples.
    """
    if name in OF_DATA:
        _function(name, trained)
    elif not (is_autoencoder if name in OF_RECONSTRUCTIONS else is_generative)(trained.system):
        raise _unsupported(name, trained)
    if outputs_embeddings(trained.system):
        raise UserError(
            f"--metrics={name}: {trained.workdir.name} outputs embeddings; evaluate the full pipeline instead"
        )
    if name in OF_EDITS:
        for guide in guides:
            raise UserError(f"--{guide}: is not supported with --metrics={name}; remove one of them")
        editing.check(name, trained, settings)
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
    if is_diffusion(trained.system):
        diffusion.check(name, settings, trained)


def _unsupported(name: str, trained: Run) -> UserError:
    system, path = trained.config.system, trained.workdir.name
    return UserError(f"--metrics={name}: system={system} does not support this metric ({path}); remove it")
