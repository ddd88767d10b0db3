"""Fidelity and diversity of samples by nearest neighbours: precision, recall, density and coverage."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int

_BLOCK = 1024  # rows of the distance matrix in memory at once, float32


class PRDC(NamedTuple):
    """Precision, recall, density and coverage. The ball of a feature reaches to its k-th nearest neighbour in its set.

    Attributes:
      precision: proportion of fake features in the ball of any real one (Kynkaanniemi et al. 2019, eq. 2).
      recall: proportion of real features in the ball of any fake one.
      density: mean number of real balls around a fake feature, over k (Naeem et al. 2020); 1: as dense as the real set.
      coverage: proportion of real features whose ball has a fake one (Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Float[np.ndarray, "N D"], fake: Float[np.ndarray, "M D"], *, k: int
) -> PRDC:
    """Computes the metrics of PRDC, which all depend on N and M.

    Distances are float32 from inner products: distances below about 1e-3 of the spread of the features are lost in
    rounding.

    Args:
      real: features [N, D].
      fake: features [M, D].
      k: neighbours; published as 3 for precision and recall, and 5 for density and coverage.

    Raises:
      ValueError: a set does not have more than k features.

    Reference: Kynkaanniemi et al. 2019; Naeem et al. 2020.
    """
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k={k}: both sets must have more than k features, not {len(real)} and {len(fake)}")
    centre = real.mean(0, dtype=np.float64)  # far from zero, inner products would cancel
    r, f = (jnp.asarray(x - centre, jnp.float32) for x in (real, fake))
    real_radius, fake_radius = (_to_neighbour(x, x, k + 1) for x in (r, f))  # the nearest is the feature itself
    real_around_fake = np.asarray(_count_balls(f, r, real_radius))
    fake_around_real = np.asarray(_count_balls(r, f, fake_radius))
    covered = np.asarray(_to_neighbour(r, f, 1) <= real_radius)
    return PRDC(
        precision=float(np.mean(real_around_fake > 0)),
        recall=float(np.mean(fake_around_real > 0)),
        density=float(np.mean(real_around_fake) / k),
        coverage=float(np.mean(covered)),
    )


@functools.partial(jax.jit, static_argnames="k")
def _to_neighbour(x: Float[Array, "N D"], others: Float[Array, "M D"], k: int) -> Float[Array, " N"]:
    """Computes the squared distance from each of `x` to the k-th nearest of `others`."""

    def kth_least(row):
        distances = _squared_distances(row, others)
        # Equals lax.top_k, which takes six times as long on a CPU.
        without_nearer = lax.fori_loop(0, k - 1, lambda _, rest: rest.at[jnp.argmin(rest)].set(jnp.inf), distances)
        return jnp.min(without_nearer)

    return lax.map(kth_least, x, batch_size=_BLOCK)


@jax.jit
def _count_balls(x: Float[Array, "N D"], centres: Float[Array, "M D"], radii: Float[Array, " M"]) -> Int[Array, " N"]:
    """Counts the balls around each of `x`, their edge included; `radii` are squared."""
    return lax.map(lambda row: jnp.sum(_squared_distances(row, centres) <= radii), x, batch_size=_BLOCK)


def _squared_distances(row: Float[Array, " D"], others: Float[Array, "M D"]) -> Float[Array, " M"]:
    """Computes squared distances [M]; under the batches of `lax.map` one matrix product of full precision."""
    product = jnp.matmul(others, row, precision=lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(row**2) + jnp.sum(others**2, axis=1) - 2 * product, 0.0)
