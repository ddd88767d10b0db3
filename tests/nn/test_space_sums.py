"""Sums and broadcasts over space against jnp, in every mode of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import layers
from diffjax.nn.space_sums import _folds, repeat_over_space, sum_over_space
from diffjax.nn.target import simulated_accelerator


@pytest.mark.parametrize(("space", "folds"), [((28, 28), 2), ((256,), 3), ((15, 15), 0), ((17, 17), 0), ((2, 2), 0)])
def test_sums_and_broadcasts_equal_plain_ones(space, folds):
    assert _folds(space, jnp.dtype(jnp.float32)) == folds and _folds(space, jnp.dtype(jnp.bfloat16)) == 0
    rng, axes = np.random.default_rng(0), tuple(range(1, 1 + len(space)))
    x, y, dx = (jnp.asarray(rng.normal(size=(2, *space, 3)), jnp.float32) for _ in range(3))
    v, dv = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(2))
    plain = lambda v, space: jnp.broadcast_to(jnp.expand_dims(v, axes), x.shape)  # noqa: E731

    def results(total, repeat):
        f = lambda x, v: jnp.sin(total(x * repeat(v, space))).sum() + (jnp.cos(repeat(v, space)) * y).sum()  # noqa: E731
        tangent = lambda x, v: jax.jvp(f, (x, v), (dx, dv))[1]  # noqa: E731
        mapped = jax.vmap(lambda x: jax.grad(f, 1)(x, v))(jnp.stack([x, dx]))
        return f(x, v), jax.grad(f, (0, 1))(x, v), tangent(x, v), jax.grad(tangent, (0, 1))(x, v), mapped

    run = jax.jit(lambda: (results(sum_over_space, repeat_over_space), results(lambda x: x.sum(axes), plain)))
    for found, expected in zip(*map(jax.tree.leaves, run()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_programs_for_accelerators_have_neither_folds_nor_barriers():
    def program(x):
        y = layers.LayerNorm().apply({"params": {"scale": jnp.ones(3), "bias": jnp.ones(3)}}, x)
        return sum_over_space(y)

    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    gradient = lambda: str(jax.make_jaxpr(jax.grad(lambda x: program(x).sum()))(x))  # noqa: E731
    with simulated_accelerator():
        plain = gradient()
    assert "optimization_barrier" in gradient() and "optimization_barrier" not in plain and "split" not in plain
