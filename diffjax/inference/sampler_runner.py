"""Sampling of any number of images with one compiled program."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import UInt8, UInt32

from diffjax.errors import UserError
from diffjax.inference.batching import DataParallelMap
from diffjax.models.images import to_grey_levels, to_unit_range
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import Variables


class SampleRunner:
    """Samples a generative model, or reconstructs images with an autoencoder, in batches of one size.

    Batches are divided over devices, by default the local ones.

    Sample i depends only on `seeds[i]`, its conditions and the sampling settings, not on the batch that it is in.

    Attributes:
      compilations: number of times that the sampling program was compiled.
      not_finite: number of samples of the last call with non-finite values.
    """

    def __init__(self, system: Any, *, batch_size: int, devices: Sequence[Any] | None = None):
        batches = DataParallelMap(batch_size, devices)
        self.compilations = self.not_finite = 0

        def sample(shared: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            self.compilations += 1  # runs when traced, once per compilation
            (variables, settings), (seeds, conditions) = shared, batch
            images = system.sample(variables, jax.vmap(jax.random.key)(seeds), conditions, settings)
            return to_grey_levels(images), jnp.isfinite(images).reshape(len(images), -1).all(axis=1)

        def reconstruct(variables: Variables, images: jax.Array) -> jax.Array:
            codec = system.codec(variables)
            return to_grey_levels(codec.decode(codec.encode(to_unit_range(images))))

        self._sample = batches.compile(sample, "the sampler")
        self._reconstruct = batches.compile(reconstruct, "the autoencoder")

    def __call__(
        self,
        variables: Variables,
        seeds: Sequence[int] | np.ndarray,
        conditions: Mapping[str, np.ndarray],
        settings: SamplingSettings,
        *,
        progress: Callable[[int], Any] = lambda images: None,
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Samples one image per seed. Prints a warning if samples have non-finite values.

        Args:
          variables: variables of the model.
          seeds: N integers in [0, 2**32 - 1].
          conditions: arrays [N, ...] by name.
          settings: sampling settings, from the model's `make_settings`.
          progress: called after each batch with its number of images.

        Returns:
          Images, uint8 in [0, 255].

        Raises:
          UserError: a seed is not below 2**32; larger seeds would repeat others.
        """
        inputs = _validate_seeds(seeds), dict(conditions)
        images, finite = self._sample((variables, settings), inputs, progress)
        self.not_finite = int(np.sum(~finite))
        if self.not_finite:
            print(
                f"warning: {self.not_finite} of {len(finite)} samples are not finite: lower the guidance, use more "
                "steps or another sampler, or train at a lower train.learning_rate",
                file=sys.stderr,
            )
        return images

    def compile(
        self,
        variables: Variables,
        seeds: Sequence[int] | np.ndarray,
        conditions: Mapping[str, np.ndarray],
        settings: SamplingSettings,
    ) -> None:
        """Compiles the sampling program for a later call with these arguments, unless it is compiled already."""
        self._sample.compile((variables, settings), (_validate_seeds(seeds), dict(conditions)))

    def reconstruct(self, variables: Variables, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W C"]:
        """Returns an autoencoder's reconstructions of images, uint8 in [0, 255]."""
        return self._reconstruct(variables, images)


def _validate_seeds(seeds: Sequence[int] | np.ndarray) -> UInt32[np.ndarray, " N"]:
    seeds = np.asarray(seeds)
    if len(seeds) and not (seeds.min() >= 0 and seeds.max() < 2**32):
        raise UserError(f"--seed={seeds[0]}: seeds go up to {seeds.max()}, and must be below 2**32; lower the seed")
    return seeds.astype(np.uint32)
