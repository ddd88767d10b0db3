"""Couplings of noise and data in training. A public function of this file is a choice a config can name.

A choice maps the examples of a batch, with independent noise, to coupled pairs (x_0, noise), [B, ...] each.

Given x_0, coupled noise is not Gaussian. The mean E[x_0 | x_t] still gives the velocity of an ODE from noise to data,
so samplers without noise are exact in the limit of many steps. The variational bound is not defined.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int
from optax.assignment import hungarian_algorithm

from diffjax.diffusion import time_grids
from diffjax.diffusion.noise import Noise, ddim_step, initial_std
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.sampling import at

Pairs = tuple[Float[Array, "B ..."], Float[Array, "B ..."]]


class Examples(NamedTuple):
    """Examples of a training step, before they are coupled.

    Attributes:
      x0: clean examples.
      eps: noise, N(0, I), independent of x_0.
      label: classes that the model is conditioned on; zeros without labels.
      index: positions of the examples in the batch.
      gather: tree of the examples of this device -> those of all devices; the identity on global arrays.
      teacher: (x, noise level) -> x_0 of a trained model, under the conditions of the examples; None: no teacher.
      schedule: noise level at a timestep.
    """

    x0: Float[Array, "B ..."]
    eps: Float[Array, "B ..."]
    label: Int[Array, " B"]
    index: Int[Array, " B"]
    gather: Callable[[Any], Any]
    teacher: Callable[[Array, Noise], Array] | None
    schedule: Schedule


def independent(examples: Examples) -> Pairs:
    """Returns the data and the noise as they are."""
    return examples.x0, examples.eps


def minibatch(examples: Examples) -> Pairs:
    """Permutes the noise of a batch within each class so that the sum of |x_0 - eps|^2 is least.

    The classes are coupled one by one, so that the noise of a class stays N(0, I). The result depends on the whole
    batch, and not on its distribution over devices: with `parallel.mode=pmap` each device gathers all examples, with
    `jit`, also with `fsdp`, the cost matrix; then each solves the same assignment. With `train.accumulate` the parts of
    a batch are coupled one by one. The Hungarian algorithm takes O(B^3) serial steps.

    Reference: Pooladian et al. 2023, "Multisample flow matching", sec. 3; OT-CFM (Tong et al. 2024), sec. 3.2.
    """
    x0, eps, label, index = examples.gather(examples[:4])
    x0_rows, eps_rows = (jnp.reshape(x, (len(x), -1)) for x in (x0, eps))
    cost = -jnp.matmul(x0_rows, eps_rows.T, precision="highest")  # |x_0 - eps|^2 / 2 but for the sums of squares
    penalty = len(cost) * (jnp.max(cost) - jnp.min(cost)) + 1.0  # above the gain of any exchange between classes
    cost = cost + jnp.where(label[:, None] == label[None], 0.0, penalty)
    rows, columns = hungarian_algorithm(lax.stop_gradient(cost))
    assigned = jnp.zeros_like(columns).at[rows].set(columns)
    places = jnp.argmax(examples.index[:, None] == index[None], axis=1)  # examples of this device in the batch
    return examples.x0, eps[assigned[places]]


def reflow(examples: Examples, *, steps: int = 20) -> Pairs:
    """Samples x_0 from the noise by DDIM's steps of the teacher, a flow between the same noise and data.

    Args:
      examples: see above; x_0 is not used.
      steps: number of steps on the grid `trailing`.

    Reference: Liu et al. 2023, "Flow straight and fast" (rectified flow), algorithm 1.
    """
    teacher, schedule = examples.teacher, examples.schedule
    if teacher is None:
        raise ValueError("reflow: requires a teacher")
    if steps % 1:
        raise ValueError(f"reflow: the number of steps must be a whole number, not {steps:g}")
    levels = schedule(jnp.asarray(time_grids.trailing(int(steps), schedule), jnp.float32))

    def step(i, x):
        return ddim_step(x, teacher(x, at(levels, i)), at(levels, i), at(levels, i + 1))

    x0 = lax.fori_loop(0, int(steps), step, initial_std(at(levels, 0)) * examples.eps)
    return lax.stop_gradient(x0), examples.eps
