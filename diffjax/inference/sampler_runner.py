"""Pictures from a system: one compiled program, fed batch after batch."""

import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import UInt8, UInt32

from diffjax.errors import UserError
from diffjax.inference.batching import Spread
from diffjax.models.pixels import to_grey_levels, to_unit_range
from diffjax.typing import System, Variables


class Generator:
    """Draws any number of samples of a system in batches of one size, spread over devices, the local ones by default.

    Sample i depends on `seeds[i]`, its condition and the plan alone, whatever batch it falls into.

    Attributes:
      compilations: how often the sampling program was traced and compiled so far.
      not_finite: samples of the last call that have non-finite values.
    """

    def __init__(self, system: System, *, batch_size: int, devices: Sequence[jax.Device] | None = None):
        spread = Spread(batch_size, devices)
        self.compilations = self.not_finite = 0

        def draw(shared, batch):
            self.compilations += 1  # runs when traced, once a compilation
            (variables, plan), (seeds, condition) = shared, batch
            drawn = system.sample(variables, jax.vmap(jax.random.key)(seeds), condition, plan)
            return to_grey_levels(drawn), jnp.isfinite(drawn).reshape(len(drawn), -1).all(axis=1)

        def reconstruct(variables, images):
            codec = system.codec(variables)
            return to_grey_levels(codec.decode(codec.encode(to_unit_range(images))))

        self._draw, self._reconstruct = spread.compile(draw), spread.compile(reconstruct)

    def __call__(
        self,
        variables: Variables,
        seeds: Sequence[int],
        condition: Mapping[str, np.ndarray],
        plan,
        *,
        progress: Callable[[int], None] = lambda images: None,
    ) -> UInt8[np.ndarray, "N H W C"]:
        """One image per seed; `condition` leaves are [N, ...]. `progress` is told of each batch's images.

        Says on standard error how many have values that are no finite numbers, and so are no pictures.

        Raises:
          UserError: a seed is not from 0 to 2**32 - 1: those beyond would repeat others.
        """
        images, finite = self._draw((variables, plan), (_checked_seeds(seeds), dict(condition)), progress)
        self.not_finite = int(np.sum(~finite))
        if self.not_finite:
            print(
                f"warning: {self.not_finite} of {len(finite)} samples are not finite: lower the guidance, take more "
                "steps or another sampler, or train at a lower train.learning_rate",
                file=sys.stderr,
            )
        return images

    def compile(self, variables: Variables, seeds: Sequence[int], condition: Mapping[str, np.ndarray], plan) -> None:
        """Compiles the sampling program for a later call with these arguments, if it is not compiled; draws nothing."""
        self._draw.compile((variables, plan), (_checked_seeds(seeds), dict(condition)))

    def reconstruct(self, variables: Variables, images: UInt8[np.ndarray, "N H W C"]) -> UInt8[np.ndarray, "N H W C"]:
        """What an autoencoder makes of images."""
        return self._reconstruct(variables, images)


def _checked_seeds(seeds: Sequence[int]) -> UInt32[np.ndarray, "N"]:
    """Returns seeds as the sampling program takes them. Raises UserError for one that is not from 0 to 2**32 - 1."""
    seeds = np.asarray(seeds)
    if len(seeds) and not (seeds.min() >= 0 and seeds.max() < 2**32):
        raise UserError(f"--seed={seeds[0]}: seeds go up to {seeds.max()}, and must be below 2**32; lower the seed")
    return seeds.astype(np.uint32)
