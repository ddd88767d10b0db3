"""Settings, examples and results of metrics of data, and what the metrics share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from tqdm import tqdm

from diffjax.errors import memory_limit_as_user_error
from diffjax.inference.batching import memory_advice
from diffjax.metrics import resampling
from diffjax.metrics.resampling import Estimate
from diffjax.numbers import with_error

MAX_SHOWN = 10  # images in a grid of reconstructions


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all metrics of data; each metric reads the ones that it needs."""

    seed: int = 0  # random key of the first image; image i has seed + i
    batch_size: int = 100
    split: str = "test"  # split of the data set
    num: int | None = None  # number of images, the first ones of the split; None: the metric's default
    steps: tuple[int, ...] = ()  # steps of DDIM's reconstructions; bound and straightness take the first; (): defaults
    grid: str | None = None  # time grid of the bound, the ODE, reconstruction and straightness; None: their defaults
    terms: int = 0  # sampled terms of the bound per batch; 0: all terms
    decoder: str = "exact"  # convention of the bound's L_0, a name in likelihood.DECODERS
    ode_steps: int = 100  # steps of the likelihood's ODE; 0: bound only
    exact_trace: int | None = (
        None  # images whose trace is also computed exactly; None: 8 if they have at most 256 values
    )
    template: str = "a {}"  # sentence of zero-shot classification; {} is the class name
    draws: int = 64  # samples of a VAE's importance-weighted bound
    lpips: tuple[str, ...] = ()  # files of the weights of LPIPS, backbone and linear layers; (): LPIPS is not computed
    masks: str = "rectangle"  # kind of the masks of inpainting, a name in inpainting_masks.KINDS
    strength: tuple[float, ...] = ()  # fractions t / T of interpolation; (): the config's strength, or several
    overrides: tuple[tuple[str, Any], ...] = ()  # sampling settings of inpainting and interpolation, over the config's

    def count(self, default: int) -> int:
        """Returns `num`, or the default if it is None."""
        return default if self.num is None else self.num


class Examples(NamedTuple):
    """N examples of a split."""

    batch: Mapping[str, np.ndarray]  # "image" uint8 [N, H, W, C], "label" int32 [N]; for a text model "tokens" [N, L]
    captions: list[str] | None = None  # None: the data set has no captions

    @property
    def images(self) -> UInt8[np.ndarray, "N H W C"]:
        return self.batch["image"]

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        return self.batch["label"]

    def first(self, count: int) -> "Examples":
        """Returns the first `count` examples."""
        batch = {name: values[:count] for name, values in self.batch.items()}
        return Examples(batch, self.captions and self.captions[:count])


class Row(NamedTuple):
    """A printed line of a result."""

    label: str
    text: str


class Shown(NamedTuple):
    """Images that an experiment's report shows in the place of samples, and what they are."""

    images: UInt8[np.ndarray, "N H W C"]
    text: str


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a metric of data.

    Attributes:
      title: measured data and checkpoint, in one line.
      values: numbers by name. A mean or a proportion is a mapping with "mean" and "standard_error".
      rows: the main values as text.
      plots: functions that write an image to a path, by file name.
      shown: images for the report of an experiment; None: the metric has none.
      warnings: reasons to distrust a value.
      provenance: everything else that the values depend on; `evaluation.evaluate` adds it.
    """

    title: str
    values: Mapping[str, Any]
    rows: Sequence[Row]
    plots: Mapping[str, Callable[[Path], None]] = dataclasses.field(default_factory=dict)
    shown: Shown | None = None
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The title and the rows, for a terminal."""
        width = max((len(row.label) for row in self.rows), default=0)
        return "\n".join([self.title, *(f"  {row.label:{width}}  {row.text}" for row in self.rows)])


def map_batches(settings: Settings, description: str, function: Callable, examples: Examples) -> Any:
    """Applies a function to examples, in batches of one size.

    Args:
      description: label of the progress bar.
      function: maps random keys [B] and a batch to a tree of arrays [B, ...]. Example i has the key of
        `settings.seed` + i, for any batch size.

    Returns:
      The function's tree, with arrays [N, ...].
    """
    count, results = len(examples.images), []
    size = min(settings.batch_size, count)
    for start in tqdm(range(0, count, size), unit="batch", desc=description):
        indices = np.minimum(np.arange(start, start + size), count - 1)  # the last batch repeats its last image
        keys = jax.vmap(jax.random.key)(indices.astype(np.uint32) + np.uint32(settings.seed))
        with memory_limit_as_user_error(memory_advice(size)):
            result = function(keys, {name: values[indices] for name, values in examples.batch.items()})
            results.append(jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: count - start], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def mean_and_error(
    values: Float[np.ndarray, " N"], groups: Shaped[np.ndarray, " N"] | None = None
) -> dict[str, float | None]:
    """Returns the mean over images and its standard error, for a result file; `groups` as of `resampling.mean`."""
    return with_names(resampling.mean(values, groups))


def share_and_error(
    correct: Bool[np.ndarray, " N"], groups: Shaped[np.ndarray, " N"] | None = None
) -> dict[str, float | None]:
    """Returns the proportion of correct images and its standard error, which is positive at 0 and 1 too."""
    return with_names(resampling.proportion_with_error(correct, groups))


def with_names(estimate: Estimate) -> dict[str, float | None]:
    """Returns an estimate for a result file."""
    return {"mean": estimate.value, "standard_error": estimate.standard_error}


def text_with_error(mean: float | None, standard_error: float | None) -> str:
    """Returns the text of a mean, such as "3.584 ± 0.008"."""
    return with_error(mean, standard_error)


def percent_with_error(mean: float | None, standard_error: float | None) -> str:
    """Returns the text of a proportion in percent, such as "95.7 ± 0.6 %"."""
    return f"{with_error(*(None if x is None else 100 * x for x in (mean, standard_error)))} %"
