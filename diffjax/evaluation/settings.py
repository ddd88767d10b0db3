"""How a run is measured, and what the measures share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from tqdm import tqdm

from diffjax.errors import enough_memory
from diffjax.inference.batching import memory_advice
from diffjax.metrics import resampling
from diffjax.numbers import with_error

SHOWN = 10  # images of a picture of reconstructions


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of all measures; each takes those it has a use for."""

    seed: int = 0  # image or sample i has the key of seed + i
    batch_size: int = 100
    split: str = "test"  # of the data set, that is measured on
    num: int | None = None  # images of the split, or samples; None: as many as suits the measure
    steps: tuple[int, ...] = ()  # of reconstruction by a diffusion model; the first one's, of the bound
    grid: str | None = None  # of times that the bound, the ODE or reconstruction visit
    terms: int = 0  # of the bound computed a batch; 0: all
    decoder: str = "exact"  # convention of the bound's L_0: a name of likelihood.DECODERS
    ode_steps: int = 100  # 0: no likelihood by the ODE
    exact_trace: int | None = None  # images whose trace is exact too; None: 8 of at most 256 values
    template: str = "a {}"  # of the sentences that zero-shot classification makes of classes' names
    draws: int = 64  # of a VAE's importance-weighted bound
    lpips: tuple[str, ...] = ()  # files of its weights, of the backbone and of the linear layers; (): not measured

    def count(self, default: int) -> int:
        """How many images or samples."""
        return default if self.num is None else self.num


class Examples(NamedTuple):
    """Of a data set's split, N of them."""

    batch: Mapping[str, np.ndarray]  # "image" uint8 [N, H, W, C], "label" int32 [N], "tokens" where a run reads text
    captions: list[str] | None = None  # where the data set has them

    @property
    def images(self) -> UInt8[np.ndarray, "N H W C"]:
        return self.batch["image"]

    @property
    def labels(self) -> Int[np.ndarray, "N"]:
        return self.batch["label"]

    def first(self, count: int) -> "Examples":
        batch = {name: values[:count] for name, values in self.batch.items()}
        return Examples(batch, self.captions and self.captions[:count])


def over(settings: Settings, what: str, function: Callable, examples: Examples):
    """function(keys, batch) in batches of one size, its leaves [B, ...] joined; keys are the examples' own."""
    count, results = len(examples.images), []
    size = min(settings.batch_size, count)
    for start in tqdm(range(0, count, size), unit="batch", desc=what):
        place = np.minimum(np.arange(start, start + size), count - 1)  # the last batch repeats its last image
        keys = jax.vmap(jax.random.key)(place.astype(np.uint32) + np.uint32(settings.seed))
        with enough_memory(memory_advice(size)):
            found = function(keys, {name: values[place] for name, values in examples.batch.items()})
            results.append(jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: count - start], found))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def mean_and_error(values: Float[np.ndarray, "N"], groups: Shaped[np.ndarray, "N"] | None = None) -> dict[str, float]:
    """Returns the mean over images and its standard error, for a result file; `groups` as of `resampling.mean`."""
    return _named(resampling.mean(values, groups))


def share_and_error(right: Bool[np.ndarray, "N"], groups: Shaped[np.ndarray, "N"] | None = None) -> dict[str, float]:
    """Returns the share of images that are right and its standard error, which is not 0 at a share of 0 or 1."""
    return _named(resampling.share(right, groups))


def _named(estimate: resampling.Estimate) -> dict[str, float | None]:
    return {"mean": estimate.value, "standard_error": estimate.standard_error}


def text_with_error(mean: float, standard_error: float | None) -> str:
    """Returns the text of a figure of a result file, such as "3.584 ± 0.008"."""
    return with_error(mean, standard_error)


def percent_with_error(mean: float, standard_error: float | None) -> str:
    """Returns the text of a share in percent, such as "95.7 ± 0.6 %"."""
    return f"{with_error(100 * mean, None if standard_error is None else 100 * standard_error)} %"
