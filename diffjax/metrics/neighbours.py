"""How two sets of features lie among each other: fidelity and diversity, two numbers each, from nearest neighbours."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int

_BLOCK = 1024  # rows whose distances to all others are in memory at once, float32


class Manifold(NamedTuple):
    """All but the density are shares, in [0, 1]."""

    precision: float  # of the fake, those in the ball of any real one: Kynkaanniemi et al. 2019, eq. 2
    recall: float  # of the real, those in the ball of any fake one
    density: float  # real balls that a fake one lies in, over k: Naeem et al. 2020; 1 is as dense as the real
    coverage: float  # of the real, those whose ball holds any fake one: Naeem et al. 2020


def manifold(real: Float[np.ndarray, "N D"], fake: Float[np.ndarray, "M D"], *, k: int) -> Manifold:
    """A feature's ball reaches to its k-th nearest neighbour in its own set.

    Published with k = 3 for precision and recall and k = 5 for density and coverage; all depend on N and M.
    Distances are float32 from inner products: those below some thousandth of the features' spread are lost in rounding.
    Raises ValueError unless both sets have more than k features.
    """
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"no {k} neighbours among {len(real)} and {len(fake)} features")
    centre = real.mean(0, dtype=np.float64)  # far from zero, inner products would cancel
    real, fake = (jnp.asarray(x - centre, jnp.float32) for x in (real, fake))
    real_radius, fake_radius = (_to_neighbour(x, x, k + 1) for x in (real, fake))  # the first is itself
    real_around_fake = np.asarray(_count_balls(fake, real, real_radius))
    fake_around_real = np.asarray(_count_balls(real, fake, fake_radius))
    covered = np.asarray(_to_neighbour(real, fake, 1) <= real_radius)
    return Manifold(
        precision=float(np.mean(real_around_fake > 0)),
        recall=float(np.mean(fake_around_real > 0)),
        density=float(np.mean(real_around_fake) / k),
        coverage=float(np.mean(covered)),
    )


@functools.partial(jax.jit, static_argnames="k")
def _to_neighbour(x: Float[Array, "N D"], others: Float[Array, "M D"], k: int) -> Float[Array, "N"]:
    """From each of `x` the squared distance to the k-th nearest of `others`."""

    def kth_least(row):
        distances = _squared_distances(row, others)
        # What lax.top_k would find; on a CPU it takes six times as long.
        without_nearer = lax.fori_loop(0, k - 1, lambda _, left: left.at[jnp.argmin(left)].set(jnp.inf), distances)
        return jnp.min(without_nearer)

    return lax.map(kth_least, x, batch_size=_BLOCK)


@jax.jit
def _count_balls(x: Float[Array, "N D"], centres: Float[Array, "M D"], radii: Float[Array, "M"]) -> Int[Array, "N"]:
    """How many of the balls each of `x` lies in, their edge included; `radii` are squared."""
    return lax.map(lambda row: jnp.sum(_squared_distances(row, centres) <= radii), x, batch_size=_BLOCK)


def _squared_distances(row: Float[Array, "D"], others: Float[Array, "M D"]) -> Float[Array, "M"]:
    """[M]; under `lax.map`'s batches one product of matrices, of full precision on accelerators too."""
    product = jnp.matmul(others, row, precision=lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(row**2) + jnp.sum(others**2, axis=1) - 2 * product, 0.0)
