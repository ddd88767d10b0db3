"""What the README shows is true."""

import re

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import grids, samplers, sampling, schedules
from diffjax.diffusion.denoiser import Denoised
from tests import tiny

README = (tiny.ROOT / "README.md").read_text()


def test_the_sampler_that_it_adds_is_ddim():
    scope = {"Sampler": samplers.Sampler}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), scope)
    levels = sampling.lay(schedules.cosine(100), grids.trailing(10, 100))
    keys = jax.random.split(jax.random.key(0), 50)

    def denoise(x, noise):
        return Denoised(0.5 * x)

    drawn = [
        sampling.sample(keys, denoise, sampler, levels, jnp.asarray(10), shape=(2,))
        for sampler in (scope["deterministic"](), samplers.ddim())
    ]
    np.testing.assert_allclose(*drawn, rtol=1e-5)


def test_every_file_it_names_is_there():
    for name in re.findall(r"\]\(([\w/.]+)\)|`(configs/\w+\.py)`", README):
        assert (tiny.ROOT / "".join(name)).exists(), name
