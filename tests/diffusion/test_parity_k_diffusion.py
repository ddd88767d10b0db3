"""Samplers take the steps of k-diffusion (0.1.1.post1), from the same denoiser and noise."""

import functools
import importlib.util
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import samplers, time_grids
from diffjax.diffusion.noise import Noise, flow_time
from tests.diffusion.test_published_samplers import NOISE, SCHEDULE, SHAPE, STEPS, denoise, denoiser, run

torch = pytest.importorskip("torch")
SPEC = importlib.util.find_spec("k_diffusion")
if SPEC is None:
    pytest.skip("needs pip install --no-deps k-diffusion==0.1.1.post1", allow_module_level=True)

pytestmark = pytest.mark.parity


def load():
    """Returns their module of samplers, without their package and what only other functions of the module use."""
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", Path(SPEC.origin).with_name("sampling.py"))
    module = importlib.util.module_from_spec(spec)
    utils = SimpleNamespace(append_dims=lambda x, ndim: x[(..., *[None] * (ndim - x.ndim))])
    others = {"k_diffusion": SimpleNamespace(utils=utils), "torchdiffeq": mock.Mock(), "torchsde": mock.Mock()}
    with mock.patch.dict(sys.modules, others):
        spec.loader.exec_module(module)
    return module


k_diffusion = load()
LEVELS = jax.tree.map(np.asarray, SCHEDULE(jnp.asarray(time_grids.karras(STEPS, SCHEDULE))))
SIGMAS = torch.tensor(LEVELS.sigma, dtype=torch.float64)
X = float(SIGMAS[0]) * np.random.default_rng(1).normal(size=SHAPE)


def model(x, sigma):
    return torch.tensor(denoise(x.numpy(), sigma.numpy()[:, None]))


def index(sigma):
    return int(torch.argmin(torch.abs(SIGMAS - sigma)))


def noise_sampler(sigma, to):
    return torch.tensor(NOISE[0, index(sigma)])


def noise_in_two_parts(sigma, to, r=0.5):
    """The noise of a step of `dpmpp_sde`, or of its first part: of our Brownian path, as theirs is over sigma."""
    i = index(sigma)
    first, rest = torch.tensor(NOISE[:2, i])
    start, middle, end = (
        flow_time(Noise(0.0, 1.0, level)) for level in (sigma, sigma ** (1 - r) * SIGMAS[i + 1] ** r, SIGMAS[i + 1])
    )
    share = (start - middle) / (start - end)
    return first if to > 1.001 * SIGMAS[i + 1] else share.sqrt() * first + (1 - share).sqrt() * rest


def theirs(function, **options):
    """x after each step."""
    found = []
    options |= {"callback": lambda info: found.append(info["x"].numpy()), "disable": True}
    last = function(model, torch.tensor(X), SIGMAS, **options)
    return [*found[1:], last.numpy()]


def check(sampler, expected):
    for i, (found, x) in enumerate(zip(run(sampler, LEVELS, X, len(expected)), expected, strict=True)):
        np.testing.assert_allclose(found, x, atol=1e-5 * np.abs(x).max(), err_msg=f"step {i}")


FED, FED_TWICE = {"noise_sampler": noise_sampler}, {"noise_sampler": noise_in_two_parts}
CASES = {  # ours, their function and its options
    "euler": (samplers.euler(), "euler", {}),
    "euler_ancestral": (samplers.euler_ancestral(), "euler_ancestral", FED),
    "euler_ancestral 0.5": (samplers.euler_ancestral(eta=0.5), "euler_ancestral", {**FED, "eta": 0.5}),
    "heun": (samplers.heun(), "heun", {}),
    "dpm2": (samplers.dpm2(schedule=SCHEDULE), "dpm_2", {}),
    "dpm2_ancestral": (samplers.dpm2_ancestral(schedule=SCHEDULE), "dpm_2_ancestral", FED),
    "lms": (samplers.lms(), "lms", {}),
    "lms 2": (samplers.lms(order=2), "lms", {"order": 2}),
    "dpmpp_2s": (samplers.dpmpp_2s_ancestral(schedule=SCHEDULE, eta=0.0), "dpmpp_2s_ancestral", {"eta": 0.0, **FED}),
    "dpmpp_2s_ancestral": (samplers.dpmpp_2s_ancestral(schedule=SCHEDULE), "dpmpp_2s_ancestral", FED),
    "dpmpp_sde": (samplers.dpmpp_sde(schedule=SCHEDULE), "dpmpp_sde", FED_TWICE),
    "dpmpp_sde 0.5": (samplers.dpmpp_sde(schedule=SCHEDULE, eta=0.5), "dpmpp_sde", {"eta": 0.5, **FED_TWICE}),
    "dpmpp_sde r": (
        samplers.dpmpp_sde(schedule=SCHEDULE, r=0.3),
        "dpmpp_sde",
        {"r": 0.3, "noise_sampler": functools.partial(noise_in_two_parts, r=0.3)},
    ),
    "dpmpp_2m": (samplers.dpmpp_2m(), "dpmpp_2m", {}),
    "dpmpp_2m_sde": (samplers.dpmpp_2m_sde(), "dpmpp_2m_sde", FED),
    "dpmpp_2m_sde heun": (samplers.dpmpp_2m_sde(heun=True), "dpmpp_2m_sde", {"solver_type": "heun", **FED}),
    "dpmpp_3m_sde": (samplers.dpmpp_3m_sde(), "dpmpp_3m_sde", FED),
    "dpmpp_3m_sde 0": (samplers.dpmpp_3m_sde(eta=0.0), "dpmpp_3m_sde", {"eta": 0.0, **FED}),
}


@pytest.mark.parametrize("name", CASES)
def test_steps(name):
    sampler, function, options = CASES[name]
    count = STEPS - 2 if "3m" in name else STEPS  # ours bounds extrapolations, here in the step before the last
    check(sampler, theirs(getattr(k_diffusion, f"sample_{function}"), **options)[:count])


@pytest.mark.parametrize("order, function", [(1, "euler"), (2, "heun")])
def test_steps_with_churn(order, function):
    options = {"churn": 20.0, "low": 0.05, "high": 50.0, "noise": 1.007}
    sampler = samplers.edm(schedule=SCHEDULE, steps=STEPS, order=order, beyond=True, **options)
    churn = dict(zip(("s_churn", "s_tmin", "s_tmax", "s_noise"), options.values(), strict=True))
    with mock.patch.object(torch, "randn_like", side_effect=map(torch.tensor, NOISE[0])):
        *_, expected = theirs(getattr(k_diffusion, f"sample_{function}"), **churn)
    *_, found = run(sampler, LEVELS, X, STEPS)  # x of their earlier steps has the churn of the next one
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_of_dpm_solver(order):
    solver, x, expected = k_diffusion.DPMSolver(model), torch.tensor(X), []
    for start, end in itertools.pairwise(-SIGMAS[:-1].log()):
        x, _ = getattr(solver, f"dpm_solver_{order}_step")(x, start, end)
        expected.append(x.numpy())
    check(samplers.dpm_solver(schedule=SCHEDULE, order=order), expected)


class Exponential:
    """alpha = 1 and sigma = e^t: a schedule in float64."""

    timesteps, first = np.log(80.0), np.log(0.002)

    def __call__(self, t):
        return Noise(jnp.asarray(t), jnp.ones_like(t), jnp.exp(t))

    def time_at(self, log_snr):
        return -log_snr / 2


def noise_of_level(sigma, xp):
    """The same for levels that differ by rounding, with a standard deviation of about 1."""
    return xp.cos(7 * xp.log(sigma) + 5 * xp.arange(SHAPE[1])[None]) * 2**0.5


@functools.cache
def adaptive_program():
    @jax.jit
    def run(x, options):
        schedule = Exponential()
        sampler = samplers.dpm_adaptive(schedule=schedule, **options)
        first, last = schedule(schedule.timesteps), schedule(schedule.first)
        noise = lambda start, end, part: noise_of_level(end.sigma, jnp)  # noqa: E731
        x, carry = sampler.step(noise, denoiser, sampler.init(x), x, first, last)
        return x, sampler.evaluations(carry).count

    return run


DEFAULTS = {"order": 3, "h_init": 0.05, "pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0, "accept_safety": 0.81, "eta": 0.0}
PID = {"pcoeff": 0.3, "icoeff": 0.5, "dcoeff": 0.1}
ADAPTIVE = {
    "order 2": {"order": 2},
    "order 3": {},
    "PID": PID,
    "accept_safety": {"accept_safety": 0.9, "h_init": 0.5},
    "eta 0.5": {"eta": 0.5},
    "eta 1, PID": {"order": 2, "eta": 1.0, **PID},
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps(name):
    """Theirs have one step size per batch, so each example is a batch; the first estimate is not in their count.

    With noise step sizes amplify rounding errors, by 10^5 in theirs alone.
    """
    options = DEFAULTS | {"rtol": 2**-7, "atol": 2**-10} | ADAPTIVE[name]  # theirs are float32
    with jax.enable_x64(True):
        found, counts = adaptive_program()(X, {**options, "k_diffusion": True})
    for i, x in enumerate(torch.tensor(X)):
        expected, info = k_diffusion.sample_dpm_adaptive(
            model,
            x[None],
            np.float64(0.002),
            np.float64(80.0),
            noise_sampler=lambda sigma, to: noise_of_level(to, torch),
            return_info=True,
            disable=True,
            **options,
        )
        assert info["n_reject"] > 0
        np.testing.assert_allclose(found[i], expected[0], rtol=1e-5)
        assert counts[i] == 1 + info["nfe"]
