"""Sampling of runs for the web demo: the samples of `launch.py sample` with the same flags, one request at a time."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from diffjax.inference.image_grids import Grid

ImagesUInt8 = UInt8[np.ndarray, "N H W C"]


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Capabilities and default settings of a run.

    Attributes:
      name: name of the run in the engine.
      workdir: folder of the run.
      system: `system` of the config, such as "diffusion" or "glide".
      num_parameters: number of trained parameters.
      step: training step of the checkpoint; 0 for published weights.
      classes: number of classes; 0: none.
      class_names: names of the classes; () if the data set does not name them.
      text: whether the run is text-conditioned (flag "prompt").
      image_size: height and width of the images, pixels.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      settings: the run's default by flag, for the sampling settings that it supports, such as "steps".
      stages: the same for each stage of a pipeline, in the order of sampling; {} for other models. A flag that sets
        them has the form "base:50,upsampler:15".
      choices: values by flag, for the settings whose value is a name: "sampler", "grid", "threshold", "prior".
      edits: subset of EDITS.
      best_of: whether the run has a CLIP to rank samples by (flag "best_of").
      trajectory: whether `Engine.trajectory` is supported, and samples have previews.
      checkpoints: training steps of all checkpoints, ascending (flag "checkpoint").
    """

    name: str
    workdir: str
    system: str
    num_parameters: int
    step: int
    classes: int
    class_names: Sequence[str]
    text: bool
    image_size: int
    channels: int
    settings: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Sequence[str]]
    edits: frozenset[str]
    best_of: bool
    trajectory: bool
    checkpoints: Sequence[int]


# Edits of images, and the flags of `sample` that each requires.
EDITS: Mapping[str, tuple[str, ...]] = {
    "image_to_image": ("image", "strength"),
    "inpaint": ("image", "mask"),
    "variations": ("image",),
    "interpolate_seeds": ("interpolate",),
    "interpolate_images": ("image", "interpolate"),
    "text_diff": ("image", "base_prompt", "prompt", "interpolate"),
    "complete": ("initial_image",),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """Progress of a request.

    Attributes:
      stage: pipeline stage that is sampled; "" for other models.
      index: sampler step of the stage, from 1; for models without steps, number of images that are finished.
      total: number of steps of the stage; or of images.
      images: x_0 estimates of the images of the batch, uint8 [n, H, W, C]; n = 0 for models without steps.
      fraction: finished fraction of the request, 0 to 1, with all batches and stages.
    """

    stage: str
    index: int
    total: int
    images: ImagesUInt8
    fraction: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Images of a request.

    Attributes:
      images: uint8 [N, H, W, C] in [0, 255].
      seeds: seed of each image.
      captions: prompt of each image; "" for runs that are not text-conditioned.
      labels: class of each image; -1 for runs without classes.
      scores: CLIP similarity of each image, with best_of; else None.
      grid: the images as `launch.py sample` arranges them.
      command: command line that samples the same pixels.
      settings: settings of each image, which its PNG stores.
      grid_settings: settings that the PNG of the grid stores.
      seconds: time from the request's start, without waiting for other requests.
      compilations: number of programs that were compiled.
      notes: one line for each flag that has no effect or is replaced, and each warning.
    """

    images: ImagesUInt8
    seeds: list[int]
    captions: list[str]
    labels: list[int]
    scores: list[float] | None
    grid: Grid
    command: str
    settings: list[dict[str, Any]]
    grid_settings: dict[str, Any]
    seconds: float
    compilations: int
    notes: list[str]

    def save(self, path: Path, index: int | None = None) -> None:
        """Writes an image, or the grid if `index` is None, as a PNG with its settings."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Every step of the samples of a request, for K steps, decoded to images.

    Attributes:
      stage: pipeline stage; "" for other models.
      times: t in [0, T], before each step.
      alphas, sigmas: noise levels, q(x_t | x_0) = N(alpha x_0, sigma² I).
      x_t: noised images. Values outside [-1, 1] are clipped, after division by their standard deviation.
      x_0: estimates of the image.
      eps: estimates of the noise.
      forward: samples q(x_t | x_0) of the forward process from the final images, with one fixed noise.
      result: the final images.
    """

    stage: str
    times: Float[np.ndarray, " K"]
    alphas: Float[np.ndarray, " K"]
    sigmas: Float[np.ndarray, " K"]
    x_t: UInt8[np.ndarray, "K n H W C"]
    x_0: UInt8[np.ndarray, "K n H W C"]
    eps: UInt8[np.ndarray, "K n H W C"]
    forward: UInt8[np.ndarray, "K n H W C"]
    result: Result


@dataclasses.dataclass(frozen=True)
class PlotResult:
    """Samples of the same seeds over a grid of two settings.

    Attributes:
      images: uint8 [Y, X, n, H, W, C], for n images per cell.
      x, y: flag and values of the columns and rows; y is None with one row.
      commands: command line of each cell, [Y][X].
      grid: the cells with the values as labels.
      seconds: time from the request's start.
      compilations: number of programs that were compiled.
      notes: one line for each flag that has no effect or is replaced, and each warning.
    """

    images: UInt8[np.ndarray, "Y X n H W C"]
    x: tuple[str, Sequence[str]]
    y: tuple[str, Sequence[str]] | None
    commands: list[list[str]]
    grid: Grid
    seconds: float
    compilations: int
    notes: list[str]


class Stopped(Exception):
    """A request was stopped by its `stop` event."""


class Engine:
    """Samples runs for several clients, one request at a time.

    Thread-safe: a request waits until the former has ended. A request that fails does not affect the next.
    """

    def __init__(self, workdirs: Sequence[str], parse: Callable[[Sequence[str]], Any]):
        """Opens runs; loads each at its first request.

        Args:
          workdirs: folders of runs.
          parse: parses flags of `launch.py sample`, "--name=value" each, and raises UserError for invalid ones:
            `diffjax.cli.sample.parse_flags`.

        Raises:
          UserError: a folder is not a run, or its model does not sample images.
        """
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the runs: their folders' names, or whole paths where two have the same name."""
        raise NotImplementedError

    def capabilities(self, name: str) -> Capabilities:
        """Returns what a run can do. Loads the run.

        Raises:
          UserError: an unknown name, or a run that cannot be loaded.
        """
        raise NotImplementedError

    def sample(
        self,
        name: str,
        flags: Mapping[str, Any],
        *,
        on_step: Callable[[Step], None] | None = None,
        stop: threading.Event | None = None,
        previews: int = 10,
    ) -> Result:
        """Samples images: those of `launch.py sample` with the same flags.

        Args:
          name: name of the run.
          flags: texts or numbers by name of a flag of `launch.py sample`, without "workdir", "out" and "from"; None
            or "": not set. True and False set a flag without a value, such as "invert".
          on_step: called with the progress, in a thread of the sampler; it must be fast.
          stop: ends the request when it is set.
          previews: largest number of calls of `on_step` per stage and batch.

        Raises:
          UserError: flags that are invalid or that the run does not support.
          Stopped: `stop` was set.
        """
        raise NotImplementedError

    def trajectory(self, name: str, flags: Mapping[str, Any], *, stop: threading.Event | None = None) -> Trajectory:
        """Samples images as `sample`, and returns every step of them; of a pipeline, the first stage of images.

        Args:
          name: name of the run.
          flags: as of `sample`; at most 16 images.
          stop: ends the request when it is set.

        Raises:
          UserError: invalid flags, or a model without steps.
          Stopped: `stop` was set.
        """
        raise NotImplementedError

    def plot(
        self,
        name: str,
        flags: Mapping[str, Any],
        x: tuple[str, Sequence[str]],
        y: tuple[str, Sequence[str]] | None = None,
        *,
        on_cell: Callable[[int, int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> PlotResult:
        """Samples the same seeds over a grid of two settings. Settings with equal shapes share one compilation.

        Args:
          name: name of the run.
          flags: as of `sample`; the flags of all cells.
          x: flag and values of the columns, such as ("steps", ["5", "10"]).
          y: flag and values of the rows; None: one row.
          on_cell: called after each cell with the number of finished cells and of all.
          stop: ends the request when it is set.

        Raises:
          UserError: flags that are invalid or that the run does not support.
          Stopped: `stop` was set.
        """
        raise NotImplementedError

    def restore(self, path: str | Path) -> tuple[str, dict[str, Any]]:
        """Returns the run and the flags that a PNG of `launch.py sample` or of `Result.save` stores.

        Raises:
          UserError: the file has no settings, or its run is not one of the engine's.
        """
        raise NotImplementedError
