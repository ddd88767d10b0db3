"""Samplers equal NumPy, step by step, written in the letters of their papers and of k-diffusion, at alpha = 1."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy.integrate import quad

from diffjax.diffusion import noise_schedules, samplers, sampling, time_grids
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise, flow_time

SCHEDULE = noise_schedules.edm(1000, continuous=True)
STEPS, SHAPE = 40, (3, 2)
NOISE = np.random.default_rng(0).normal(size=(3, STEPS, *SHAPE))  # one for each part, or repeat, of a step


def denoise(x, sigma, xp=np):
    """Returns D(x; sigma), a nonlinear function that is near x for small sigma."""
    return (x + sigma**2 * xp.tanh(x / (1 + sigma) + xp.sin(xp.log(sigma)))) / (1 + sigma**2)


def slope(x, sigma):
    return (x - denoise(x, sigma)) / sigma


def get_ancestral_step(sigma, to, eta=1.0):
    up = min(to, eta * (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5)
    return (to**2 - up**2) ** 0.5, up


def from_log(t):
    return np.exp(-t)


# Each yields x after each step. The last step, to sigma = 0, is Euler's in all of them.


def dpm_solver_3(x, sigmas):
    """Lu et al. 2022, algorithm 2, r_1 = 1/3 and r_2 = 2/3."""
    r1, r2 = 1 / 3, 2 / 3
    for sigma, to in sigmas:
        t, h = -np.log(sigma), np.log(sigma / to)
        s1, s2 = t + r1 * h, t + r2 * h
        eps = slope(x, sigma)
        u1 = x - from_log(s1) * np.expm1(r1 * h) * eps
        d1 = slope(u1, from_log(s1)) - eps
        u2 = x - from_log(s2) * np.expm1(r2 * h) * eps
        u2 -= from_log(s2) * (r2 / r1) * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = slope(u2, from_log(s2)) - eps
        x = x - to * np.expm1(h) * eps - to / r2 * (np.expm1(h) / h - 1) * d2
        yield x


def dpmpp_3s(x, sigmas):
    """Data prediction of the same: code of DPM-Solver, `singlestep_dpm_solver_third_update`."""
    r1, r2 = 1 / 3, 2 / 3
    for sigma, to in sigmas:
        t, h = -np.log(sigma), np.log(sigma / to)
        s1, s2 = t + r1 * h, t + r2 * h
        phi_1, phi_11, phi_12 = (np.expm1(-r * h) for r in (1, r1, r2))
        phi_22, phi_2 = np.expm1(-r2 * h) / (r2 * h) + 1, phi_1 / h + 1
        m = denoise(x, sigma)
        x1 = from_log(s1) / sigma * x - phi_11 * m
        m1 = denoise(x1, from_log(s1))
        x2 = from_log(s2) / sigma * x - phi_12 * m + r2 / r1 * phi_22 * (m1 - m)
        m2 = denoise(x2, from_log(s2))
        x = to / sigma * x - phi_1 * m + phi_2 / r2 * (m2 - m)
        yield x


def dpm_2_ancestral(x, sigmas):
    for i, (sigma, to) in enumerate(sigmas):
        down, up = get_ancestral_step(sigma, to)
        middle = np.exp((np.log(sigma) + np.log(down)) / 2)
        x2 = x + slope(x, sigma) * (middle - sigma)
        x = x + slope(x2, middle) * (down - sigma) + up * NOISE[0, i]
        yield x


def dpmpp_2s_ancestral(x, sigmas):
    for i, (sigma, to) in enumerate(sigmas):
        down, up = get_ancestral_step(sigma, to)
        h = np.log(sigma / down)
        s = -np.log(sigma) + h / 2
        x2 = from_log(s) / sigma * x - np.expm1(-h / 2) * denoise(x, sigma)
        x = down / sigma * x - np.expm1(-h) * denoise(x2, from_log(s)) + up * NOISE[0, i]
        yield x


def dpmpp_sde(x, sigmas):
    """Their noise of the whole step is that of its halves, of one Brownian path."""
    for i, (sigma, to) in enumerate(sigmas):
        middle = np.exp((np.log(sigma) + np.log(to)) / 2)
        down, up = get_ancestral_step(sigma, middle)
        x2 = down / sigma * x - np.expm1(np.log(down / sigma)) * denoise(x, sigma) + up * NOISE[0, i]
        time = lambda sigma: sigma / (1 + sigma)  # noqa: E731
        share = (time(sigma) - time(middle)) / (time(sigma) - time(to))
        whole = np.sqrt(share) * NOISE[0, i] + np.sqrt(1 - share) * NOISE[1, i]
        down, up = get_ancestral_step(sigma, to)
        x = down / sigma * x - np.expm1(np.log(down / sigma)) * denoise(x2, middle) + up * whole
        yield x


def dpmpp_3m_sde(x, sigmas, eta=1.0):
    denoised_1 = denoised_2 = h_1 = h_2 = None
    for i, (sigma, to) in enumerate(sigmas):
        denoised = denoise(x, sigma)
        h = np.log(sigma / to)
        h_eta = h * (eta + 1)
        x = np.exp(-h_eta) * x - np.expm1(-h_eta) * denoised
        phi_2 = np.expm1(-h_eta) / h_eta + 1
        phi_3 = phi_2 / h_eta - 0.5
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            x = x + phi_2 * d1 - phi_3 * (d1_0 - d1_1) / (r0 + r1)
        elif h_1 is not None:
            x = x + phi_2 * (denoised - denoised_1) / (h_1 / h)
        x = x + NOISE[0, i] * to * np.sqrt(-np.expm1(-2 * h * eta))
        denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1
        yield x


def ipndm(x, sigmas):
    """Liu et al. 2022, eq. 12, with Adams-Bashforth methods of orders 1, 2 and 3 at the start."""
    weights = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    slopes = []
    for sigma, to in sigmas:
        slopes = [slope(x, sigma), *slopes][:4]
        x = x + (to - sigma) * sum(w * d for w, d in zip(weights[len(slopes) - 1], slopes, strict=True))
        yield x


def deis(x, sigmas):
    """Zhang & Chen 2023, eq. 15: C_ij is the integral of a Lagrange polynomial in t over d rho, here d sigma."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    times = lambda sigma: (sigma ** (1 / 7) - low) / (high - low)  # noqa: E731
    sigma_at = lambda t: (low + t * (high - low)) ** 7  # noqa: E731
    slopes, places = [], []
    for sigma, to in sigmas:
        slopes, places = [slope(x, sigma), *slopes][:3], [times(sigma), *places][:3]

        def coefficient(j, places=places, sigma=sigma, to=to):
            others = places[:j] + places[j + 1 :]
            basis = lambda t: np.prod([(t - other) / (places[j] - other) for other in others])  # noqa: E731
            rate = lambda t: 7 * (high - low) * (low + t * (high - low)) ** 6  # noqa: E731
            return quad(lambda t: basis(t) * rate(t), times(sigma), times(to), epsabs=0, epsrel=1e-9)[0]

        assert np.isclose(sigma_at(places[0]), sigma)
        x = x + sum(coefficient(j) * slopes[j] for j in range(len(slopes)))
        yield x


def heun_step(x, sigma, to):
    d = slope(x, sigma)
    return x + (to - sigma) * (d + slope(x + (to - sigma) * d, to)) / 2


def edm(x, sigmas):
    """Karras et al. 2022, algorithm 2; the first steps start above sigma_max."""
    for i, (sigma, to) in enumerate(sigmas):
        gamma = min(CHURN["churn"] / STEPS, np.sqrt(2) - 1) if sigma >= CHURN["low"] else 0.0
        hat = (1 + gamma) * sigma
        x = heun_step(x + np.sqrt(hat**2 - sigma**2) * CHURN["noise"] * NOISE[0, i], hat, to)
        yield x


def restart(x, sigmas):
    """Xu et al. 2023 and their code, which restarts at the level nearest to t_min; N_restart is a number of levels."""
    t_min, t_max, repeats, n_restart = RESTART["low"], RESTART["high"], RESTART["repeats"], RESTART["inner_steps"] + 1
    nearest = min((to for _, to in sigmas), key=lambda to: abs(to - t_min))
    for i, (sigma, to) in enumerate(sigmas):
        x = heun_step(x, sigma, to)
        if to == nearest:
            inner = np.linspace(t_max ** (1 / 7), to ** (1 / 7), n_restart) ** 7
            for repeat in range(repeats):
                x = x + np.sqrt(t_max**2 - to**2) * NOISE[1 + repeat, i]
                for now, next in itertools.pairwise(inner):
                    x = heun_step(x, now, next)
        yield x


def euler_maruyama(x, sigmas, diffusion=lambda t: 1 - t):
    """SiT's code on the linear path, where x / (1 + sigma) is at t = 1 / (1 + sigma); w / 2 is the diffusion at t."""
    x = x / (1 + sigmas[0][0])
    for i, (sigma, to) in enumerate(sigmas):
        t, dt = 1 / (1 + sigma), 1 / (1 + to) - 1 / (1 + sigma)
        x0 = denoise(x * (1 + sigma), sigma)
        eps = (x - t * x0) / (1 - t)
        velocity, score = x0 - eps, -eps / (1 - t)
        x = x + (velocity + diffusion(t) * score) * dt + np.sqrt(2 * diffusion(t) * dt) * NOISE[0, i]
        yield x * (1 + to)


CHURN = {"churn": 20.0, "noise": 1.003, "low": 0.05}
RESTART = {"low": 0.1, "high": 2.0, "repeats": 2, "inner_steps": 9}
DIFFUSIONS = {  # of SiT's code, with their norm, and the options of ours
    "sigma": ({"sigma": 0.7}, lambda t: 0.7 * (1 - t)),
    "constant": ({"constant": 0.7}, lambda t: 0.7),
    "SBDM": ({"sbdm": 0.7}, lambda t: 0.7 * (1 / t * (1 - t) ** 2 + (1 - t))),
    "decreasing": ({"decreasing": 1.0}, lambda t: 0.25 * (np.cos(np.pi * t) + 1) ** 2),
    "increasing-decreasing": ({"increasing_decreasing": 0.7}, lambda t: 0.7 * np.sin(np.pi * t) ** 2),
}
SAMPLERS = {
    "euler_maruyama": (samplers.euler_maruyama(), euler_maruyama),
    **{
        f"euler_maruyama {name}": (
            samplers.euler_maruyama(**{"sigma": 0.0, **options}),
            functools.partial(euler_maruyama, diffusion=diffusion),
        )
        for name, (options, diffusion) in DIFFUSIONS.items()
    },
    "edm beyond sigma_max": (samplers.edm(schedule=SCHEDULE, steps=STEPS, beyond=True, **CHURN), edm),
    "restart": (samplers.restart(schedule=SCHEDULE, **RESTART), restart),
    "dpm_solver 3": (samplers.dpm_solver(schedule=SCHEDULE, order=3), dpm_solver_3),
    "dpm_solver data 3": (samplers.dpm_solver(schedule=SCHEDULE, order=3, data=True), dpmpp_3s),
    "dpm2_ancestral": (samplers.dpm2_ancestral(schedule=SCHEDULE), dpm_2_ancestral),
    "dpmpp_2s_ancestral": (samplers.dpmpp_2s_ancestral(schedule=SCHEDULE), dpmpp_2s_ancestral),
    "dpmpp_sde": (samplers.dpmpp_sde(schedule=SCHEDULE), dpmpp_sde),
    "dpmpp_3m_sde": (samplers.dpmpp_3m_sde(), dpmpp_3m_sde),
    "ipndm": (samplers.ipndm(), ipndm),
    "deis": (samplers.deis(schedule=SCHEDULE), deis),
}


def denoiser(x, noise, next=None):
    return Denoised(denoise(x, noise.sigma, jnp))


def run(sampler, levels, x, count):
    """Yields x after each of the first `count` steps of ours, in float32, with the noise of `NOISE`."""

    @jax.jit
    def step(parts, carry, x, now, next):
        noise = lambda start, end, part=0, repeat=0: parts[part + repeat]  # noqa: E731
        return sampler.step(noise, denoiser, carry, x, now, next)

    x = jnp.float32(x)
    carry = sampler.init(x)
    for i in range(count):
        x, carry = step(np.float32(NOISE[:, i]), carry, x, sampling.at(levels, i), sampling.at(levels, i + 1))
        yield x


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_equal_the_published_ones(name):
    """Relative to the noise of the level, in float32; down to sigma = 0.02, from where extrapolations are bounded."""
    sampler, reference = SAMPLERS[name]
    levels = jax.tree.map(np.asarray, SCHEDULE(jnp.asarray(time_grids.karras(STEPS, SCHEDULE))))
    sigmas = np.float64(levels.sigma)
    count = int((sigmas > 0.02).sum())
    x = sigmas[0] * np.random.default_rng(1).normal(size=SHAPE)
    tolerance = 3e-5 if "SBDM" in name else 1e-5  # its w is about sigma, and differences of u lose digits near u = 1
    expected = reference(x, list(itertools.pairwise(sigmas))[:count])
    for i, (ours, theirs) in enumerate(zip(run(sampler, levels, x, count), expected, strict=True)):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), err_msg=f"step {i}")


def test_the_time_of_noise_is_that_of_a_rectified_flow():
    assert flow_time(Noise(0.0, 1.0, 3.0)) == 0.75
    schedule = noise_schedules.rectified_flow(1000)
    np.testing.assert_allclose(flow_time(schedule(jnp.arange(1001.0))), np.arange(1001) / 1000, atol=1e-6)
