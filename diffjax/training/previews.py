"""Previews: grids of samples, and of an autoencoder's reconstructions, saved during training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax.cluster import multihost
from diffjax.data import tokenizer
from diffjax.data.examples import Source
from diffjax.inference import image_grids
from diffjax.inference.prompts import Prompts, make_prompts, prompts_from_examples, unique_captions
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import Model
from diffjax.models.capabilities import is_autoencoder, is_generative, is_upsampling_stage, outputs_embeddings
from diffjax.runs.state import TrainState, ema_variables
from diffjax.runs.workdir import Workdir
from diffjax.training.logging import MetricsLog, NullLog
from diffjax.training.sharding import Devices

MAX_SAMPLES = 10_000  # samples per grid
_NUM_RECONSTRUCTIONS = 10
_SAMPLES_PER_CAPTION = 8


def make_preview(
    config: ConfigDict, system: Model, source: Source, workdir: Workdir, log: MetricsLog | NullLog, devices: Devices
) -> Callable[[int, TrainState], None]:
    """Returns a function that saves the previews of a step, with averaged parameters, to the workdir and the log.

    Samples have a column per class or a row per caption, if the model has them. Training images of an autoencoder are
    above their reconstructions.
    """
    count = config.train.num_preview_samples
    if not count:
        return lambda step, state: None
    if outputs_embeddings(system) or not _kinds(system):
        print(f"train.num_preview_samples={count}: has no effect, as system={config.system} does not sample images")
        return lambda step, state: None
    # With several processes all of them sample, as each has only a part of the state.
    all_devices = None if multihost.is_single_process() else list(devices.mesh.devices.flat)
    runner = SampleRunner(system, batch_size=count, devices=all_devices)
    prompts, layout = _prompts(system, source, workdir, count)
    if prompts.size < count:
        print(f"train.num_preview_samples={count}: only {prompts.size} are sampled, one per example of the data set")
    examples = source.__getitems__(range(min(count, _NUM_RECONSTRUCTIONS, len(source))))
    images = np.stack([example["image"] for example in examples])

    def preview(step: int, state: TrainState) -> None:
        variables = {**ema_variables(state), "frozen": system.frozen}
        for kind in _kinds(system):
            if kind == "step" and is_generative(system):
                settings = system.make_settings(config.sampler)
                samples = runner(variables, range(prompts.size), prompts.conditions, settings)
                grid = image_grids.grid(samples, **layout)
            else:
                pairs = np.concatenate([images, runner.reconstruct(variables, images)])
                grid = image_grids.grid(pairs, len(images))
            if multihost.is_main_process():
                image_grids.save(_file(workdir, kind, step), grid)
            log.image(step, "samples" if kind == "step" else kind, grid)

    return preview


def previews_missing(config: ConfigDict, system: Model, workdir: Workdir, step: int) -> bool:
    """Returns whether the run ended after the checkpoint of `step` and before its previews were saved."""
    c = config.train
    is_due = step > 0 and (step == c.steps or (c.sample_every > 0 and step % c.sample_every == 0))
    has_previews = c.num_preview_samples > 0 and not outputs_embeddings(system)
    return is_due and has_previews and not all(_file(workdir, kind, step).exists() for kind in _kinds(system))


def _prompts(system: Model, source: Source, workdir: Workdir, count: int) -> tuple[Prompts, dict[str, Any]]:
    """Returns the conditions of at most `count` samples, and the layout of their grid."""
    text_tokenizer = tokenizer.load(workdir.tokenizer) if system.text else None
    if is_upsampling_stage(system):
        examples = source.__getitems__(range(min(count, len(source))))
        return prompts_from_examples(system, examples, text_tokenizer), {"columns": _SAMPLES_PER_CAPTION}
    if system.text:
        captions = unique_captions(source, math.ceil(count / _SAMPLES_PER_CAPTION))
        repeated = [caption for caption in captions for _ in range(_SAMPLES_PER_CAPTION)]
        layout = {"columns": _SAMPLES_PER_CAPTION, "titles": captions}
        return make_prompts(system, count, text_tokenizer, repeated), layout
    return make_prompts(system, count), {"columns": image_grids.class_columns(system.classes, count)}


def _kinds(system: Model) -> list[str]:
    """Returns the kinds of previews of a model: prefixes of their files."""
    return ["step"] * is_generative(system) + ["reconstruction"] * is_autoencoder(system)


def _file(workdir: Workdir, kind: str, step: int) -> Path:
    return workdir.samples / f"{kind}_{step:08d}.png"
