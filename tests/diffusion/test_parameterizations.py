"""Each parameterization against its definition."""

import numpy as np
import pytest

from diffjax.choice import choices
from diffjax.diffusion import parameterizations, schedules
from diffjax.diffusion.noise import perturb

# What the network is asked for, by each paper's own words.
DEFINITIONS = {
    "eps": lambda x0, eps, alpha, sigma: eps,
    "x0": lambda x0, eps, alpha, sigma: x0,
    "v": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
}


def test_the_table_is_complete():
    assert set(DEFINITIONS) == set(choices(parameterizations))


@pytest.mark.parametrize("t", [1, 10, 500, 900, 1000])
@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_target_and_estimate(name, t):
    rng = np.random.default_rng(t)
    x0, eps = rng.uniform(-1, 1, (4, 4)), rng.normal(size=(4, 4))
    noise = schedules.linear(1000)(float(t))
    x = perturb(x0, eps, noise)
    c = choices(parameterizations)[name](noise)
    wanted = DEFINITIONS[name](x0, eps, float(noise.alpha), float(noise.sigma))
    np.testing.assert_allclose((x0 - c.skip * x) / c.out, wanted, atol=2e-5)  # the regression target
    np.testing.assert_allclose(c.skip * x + c.out * wanted, x0, atol=2e-5 / float(noise.alpha))  # the way back
    assert c.input == 1.0
