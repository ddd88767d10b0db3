"""Sheets of images that a training run draws now and then: samples, and what an autoencoder makes of images."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffjax.cluster import multihost
from diffjax.data import tokenizer
from diffjax.data.sources import Source
from diffjax.inference import image_grids
from diffjax.inference.prompts import captions_of, of_examples, prompts
from diffjax.inference.sampler_runner import Generator
from diffjax.runs.state import TrainState, ema_variables
from diffjax.runs.workdir import Workdir
from diffjax.training.logging import MetricsLog, NoLog
from diffjax.training.sharding import Devices
from diffjax.typing import System

MOST = 10_000  # images of a sheet of samples
_RECONSTRUCTED = 10  # images of a sheet of reconstructions
_ALIKE = 8  # images of each caption of a sheet of samples


def make_preview(
    config, system: System, source: Source, workdir: Workdir, log: MetricsLog | NoLog, devices: Devices
) -> Callable[[int, TrainState], None]:
    """What draws the sheets of a step, with the averaged parameters, into the workdir and the log.

    Samples, a column for each class or a row for each caption, if there are any; and, of an autoencoder, training
    images over their reconstructions.
    """
    count = config.train.sample_count
    if count and (system.embeds or not _names(system)):
        print(f"train.sample_count={count}: has no effect, as a run of system={config.system} draws no images")
    if not count or system.embeds or not _names(system):
        return lambda step, state: None
    everywhere = (
        None if multihost.alone() else list(devices.mesh.devices.flat)
    )  # all draw: each has a part of the state
    generator = Generator(system, batch_size=count, devices=everywhere)
    if system.takes:
        examples = source.__getitems__(range(min(count, len(source))))
        asked = of_examples(system, examples, tokenizer.load(workdir.tokenizer) if system.text else None)
        if len(examples) < count:
            print(f"train.sample_count={count}: only {len(examples)} are drawn, one for each example of the data set")
        count, layout = len(examples), {"columns": _ALIKE}
    elif system.text:
        captions = captions_of(source, math.ceil(count / _ALIKE))
        asked = prompts(system, count, tokenizer.load(workdir.tokenizer), [c for c in captions for _ in range(_ALIKE)])
        layout = {"columns": _ALIKE, "titles": captions}
    else:
        asked, layout = prompts(system, count), {"columns": image_grids.class_columns(system.classes, count)}
    shown = source.__getitems__(range(min(count, _RECONSTRUCTED, len(source))))
    images = np.stack([example["image"] for example in shown])

    def preview(step: int, state: TrainState) -> None:
        variables = {**ema_variables(state), "frozen": system.frozen}
        for name in _names(system):
            if name == "step":
                drawn = generator(variables, range(count), asked.condition, system.plan(config.sampler))
                sheet = image_grids.grid(drawn, **layout)
            else:
                rows = np.concatenate([images, generator.reconstruct(variables, images)])
                sheet = image_grids.grid(rows, len(images))
            if multihost.first():
                image_grids.save(_file(workdir, name, step), sheet)
            log.image(step, "samples" if name == "step" else name, sheet)

    return preview


def are_lacking(config, system: System, workdir: Workdir, step: int) -> bool:
    """Whether the run ended after `step` was saved and before its sheets, if it has any, were drawn."""
    c = config.train
    due = step > 0 and (step == c.steps or (c.sample_every > 0 and step % c.sample_every == 0))
    drawn = c.sample_count > 0 and not system.embeds
    return due and drawn and not all(_file(workdir, name, step).exists() for name in _names(system))


def _names(system: System) -> list[str]:
    """What a system's sheets show, by the names of their files."""
    return [name for name, can in {"step": system.sample, "reconstruction": system.codec}.items() if can]


def _file(workdir: Workdir, name: str, step: int) -> Path:
    return workdir.samples / f"{name}_{step:08d}.png"
