"""Rules of guidance give the numbers of diffusers' guiders, step by step."""

import functools

import numpy as np
import pytest
from jax import numpy as jnp

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance  # noqa: E402
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer  # noqa: E402

from diffjax.diffusion import guidance_rules  # noqa: E402
from diffjax.diffusion.guidance_rules import Estimates  # noqa: E402
from diffjax.diffusion.noise import Noise  # noqa: E402

pytestmark = pytest.mark.parity

STEPS, SHAPE, SCALE = 4, (3, 5, 4, 2), 6.0
PREDICTIONS = np.float32(np.random.default_rng(0).normal(size=(STEPS, 2, *SHAPE)))  # with the condition, without


def of_diffusers(guider, step):
    guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(1000 - step))
    return guider.forward(*map(torch.tensor, PREDICTIONS[step])).pred.numpy()


@pytest.mark.parametrize(("eta", "norm", "momentum"), [(0.0, 4.0, -0.75), (0.5, 2.5, 0.3), (1.0, 0.0, 0.0)])
def test_adaptive_projected_equals_diffusers(eta, norm, momentum):
    """Their scale of the original formulation is s - 1."""
    guider = AdaptiveProjectedGuidance(
        guidance_scale=SCALE - 1,
        eta=eta,
        adaptive_projected_guidance_rescale=norm,
        adaptive_projected_guidance_momentum=momentum,
        use_original_formulation=True,
    )
    guider.momentum_buffer = MomentumBuffer(momentum)
    average = jnp.zeros(SHAPE)
    rule = functools.partial(guidance_rules.adaptive_projected, eta=eta, norm=norm, momentum=momentum)
    level = Noise(*map(jnp.asarray, (500.0, 0.6, 0.8)))
    for step in range(STEPS):
        x0, average = rule(Estimates(jnp.zeros(SHAPE), level, *map(jnp.asarray, PREDICTIONS[step]), average), SCALE)
        np.testing.assert_allclose(x0, of_diffusers(guider, step), rtol=1e-4, atol=1e-4)


def test_zero_star_equals_diffusers():
    """The predictions are velocities of a rectified flow."""
    guider = ClassifierFreeZeroStarGuidance(guidance_scale=SCALE, zero_init_steps=2)
    times = jnp.linspace(1000, 0, STEPS + 1)
    x = np.float32(np.random.default_rng(1).normal(size=SHAPE))
    for step in range(STEPS):
        share = float(times[step]) / 1000
        estimates = (jnp.asarray(x - share * v) for v in PREDICTIONS[step])
        level = Noise(*map(jnp.asarray, (times[step], 1 - share, share)))
        x0, _ = guidance_rules.zero_star(Estimates(jnp.asarray(x), level, *estimates), SCALE, times=times, zero_steps=2)
        np.testing.assert_allclose((x - x0) / share, of_diffusers(guider, step), rtol=1e-4, atol=1e-4)
