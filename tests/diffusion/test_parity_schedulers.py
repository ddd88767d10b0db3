"""Samplers, grids and tables give the numbers of diffusers' schedulers, step by step, from the same network."""

import functools
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax import numpy as jnp

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.guiders.guider_utils import rescale_noise_cfg  # noqa: E402
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler  # noqa: E402
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr  # noqa: E402
from diffusers.schedulers.scheduling_utils import AysSchedules  # noqa: E402

from diffjax.conversion import scheduler_config  # noqa: E402
from diffjax.diffusion import (  # noqa: E402
    clipping,
    guidance,
    noise_schedules,
    parameterizations,
    samplers,
    sampling,
    time_grids,
    variance,
)
from diffjax.diffusion.denoiser import Denoised, from_network, with_clipping  # noqa: E402
from diffjax.diffusion.noise import Noise  # noqa: E402
from diffjax.diffusion.noise_schedules import Schedule  # noqa: E402
from diffjax.registry import lookup  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = 1e-5  # of the largest |x| at that step: ours are in float32
STEPS, SHAPE = 10, (4, 3, 2, 2)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
VP, LINEAR_VP, COSINE_VP = noise_schedules.scaled_linear(), noise_schedules.linear(), noise_schedules.cosine()
ZERO_SNR = VP.with_zero_terminal_snr()
EDM = noise_schedules.edm(continuous=True)


class Case(NamedTuple):
    sampler: samplers.Sampler
    scheduler: str
    config: dict  # of the scheduler
    grid: Callable = time_grids.trailing
    schedule: Schedule = VP
    parameterization: Callable = parameterizations.eps
    threshold: Callable = clipping.none
    calls: tuple[int, ...] = (1,) * STEPS  # how often they ask the network, step by step
    options: dict = {}  # of their step
    tolerance: float = TOLERANCE
    compared: int = (
        STEPS  # number of steps; the last ones of theirs may have another end or order, or longer extrapolations
    )


def ddpm(sampler, threshold=clipping.none, **config):
    """From a last time above 1, which `trailing` has, theirs adds noise of fixed_large to the image."""
    config = {**LINEAR, "timestep_spacing": "linspace", "clip_sample": threshold is not clipping.none, **config}
    return Case(sampler, "DDPMScheduler", config, time_grids.linspace, LINEAR_VP, threshold=threshold)


def spacing(grid):
    return getattr(grid, "func", grid).__name__


def ddim(grid=time_grids.trailing, eta=0.0, *, table=SCALED, **fields):
    """Theirs takes all steps for equal, so their number must divide T."""
    config = {**table, "timestep_spacing": spacing(grid), "clip_sample": False, **fields.pop("config", {})}
    options = {"eta": eta, **fields.pop("options", {})}
    sampler = fields.pop("sampler", samplers.ddim(eta=eta))
    return Case(sampler, "DDIMScheduler", config, grid, options=options, **fields)


def solver(sampler, scheduler, *, table=SCALED, grid=time_grids.trailing, calls=(1,) * STEPS, config=(), **fields):
    config = {**table, "timestep_spacing": spacing(grid), **dict(config)}
    return Case(sampler, scheduler, config, grid, calls=calls, **fields)


def sa(predictor=2, corrector=2, tau=1.0, compared=STEPS - 1):
    """Their last step ends at time 1, and lowers the order as others of theirs do. Their tau is a function of time."""
    orders = {"predictor_order": predictor, "corrector_order": corrector}
    sampler = samplers.sa_solver(**orders, tau=tau)
    config = {**orders, "tau_func": lambda t: tau if 200 <= t <= 800 else 0}
    return solver(sampler, "SASolverScheduler", config=config, compared=compared)


def edm(sampler, scheduler, **config):
    return Case(sampler, scheduler, config, time_grids.karras, EDM, parameterizations.edm)


def flow(shift, schedule, sampler=None, scheduler="FlowMatchEulerDiscreteScheduler", **fields):
    fields |= {"schedule": schedule, "parameterization": parameterizations.flow}
    return Case(sampler or samplers.euler(), scheduler, {"shift": shift}, **fields)


V = {"prediction_type": "v_prediction"}
STRIDES = functools.partial(time_grids.leading, whole_strides=True)
STABLE_DIFFUSION = functools.partial(time_grids.leading, offset=1, whole_strides=True, end=1)
STABLE_DIFFUSION_CONFIG = {"steps_offset": 1, "set_alpha_to_one": False}  # scheduler_config.json of versions 1 and 2
SDE = {"algorithm_type": "sde-dpmsolver++"}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}  # their last step ends at time 1
THIRD = {"solver_order": 3}  # they lower the order of the last two steps of fewer than 15
HEUN = (2,) * (STEPS - 1) + (1,)
PLMS, PNDM = (2,) + (1,) * (STEPS - 1), (4,) * 3 + (1,) * (STEPS - 3)
AT_ONE = {"set_alpha_to_one": True}  # else their last step ends at time 1 and not at the image
COSINE_V = {"table": COSINE, "schedule": COSINE_VP, "parameterization": parameterizations.v, "config": V}
# At a terminal SNR of zero only DDIM's is compared: the others of theirs put 2^-24 for it. Heun's is not on the
# cosine: ours starts by Euler's step where sigma / alpha > 1000.
CASES = {
    "ddpm small": ddpm(samplers.ancestral(variance=variance.fixed_small)),
    "ddpm large": ddpm(samplers.ancestral(variance=variance.fixed_large), variance_type="fixed_large"),
    "ddpm learned": ddpm(samplers.ancestral(variance=variance.learned_range), variance_type="learned_range"),
    "ddpm clipped": ddpm(samplers.ancestral(), clipping.clip),
    "ddpm dynamic": ddpm(  # by default they let nothing above 1 stay, which is plain clipping
        samplers.ancestral(), clipping.dynamic, thresholding=True, sample_max_value=1e9
    ),
    "ddim leading": ddim(time_grids.leading),
    "ddim trailing": ddim(time_grids.trailing),
    "ddim 0.5": ddim(time_grids.leading, 0.5),
    "ddim 1": ddim(time_grids.trailing, 1.0),
    "ddim linear": ddim(eta=1.0, table=LINEAR, schedule=LINEAR_VP),
    # sigma_next^2 - std^2 cancels in float32 where next to no signal is left.
    "ddim cosine": ddim(eta=1.0, **COSINE_V),
    "ddim v from no signal": ddim(eta=1.0, config=V, schedule=ZERO_SNR, parameterization=parameterizations.v),
    "ddim x0": ddim(eta=0.5, config={"prediction_type": "sample"}, parameterization=parameterizations.x0),
    "ddim clipped": ddim(
        config={"clip_sample": True},
        options={"use_clipped_model_output": True},  # else their x_0 and eps are not of one x_t
        threshold=clipping.clip,
    ),
    "ddim clipped, eps not": ddim(
        config={"clip_sample": True}, sampler=samplers.ddim(unclipped_eps=True), threshold=clipping.clip
    ),
    "ddim clipped at 2.5, eps not, 0.7": ddim(
        eta=0.7,
        config={"clip_sample": True, "clip_sample_range": 2.5},
        sampler=samplers.ddim(eta=0.7, unclipped_eps=True),
        threshold=functools.partial(clipping.clip, limit=2.5),
    ),
    "ddim dynamic": ddim(
        config={"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8},
        options={"use_clipped_model_output": True},
        threshold=functools.partial(clipping.dynamic, percentile=80.0, limit=1.5),
    ),
    "stable diffusion": ddim(STABLE_DIFFUSION, config=STABLE_DIFFUSION_CONFIG),
    "stable diffusion 0.5": ddim(STABLE_DIFFUSION, 0.5, config=STABLE_DIFFUSION_CONFIG),
    "stable diffusion v, from no signal": ddim(
        STABLE_DIFFUSION,
        config={**STABLE_DIFFUSION_CONFIG, **V},
        schedule=ZERO_SNR,
        parameterization=parameterizations.v,
    ),
    "stable diffusion plms": solver(
        samplers.plms(),
        "PNDMScheduler",
        grid=STABLE_DIFFUSION,
        calls=PLMS,
        config={**STABLE_DIFFUSION_CONFIG, "skip_prk_steps": True},
    ),
    "plms": solver(
        samplers.plms(), "PNDMScheduler", grid=time_grids.leading, calls=PLMS, config={**AT_ONE, "skip_prk_steps": True}
    ),
    "pndm": solver(samplers.pndm(schedule=VP), "PNDMScheduler", grid=time_grids.leading, calls=PNDM, config=AT_ONE),
    "euler": solver(samplers.euler(), "EulerDiscreteScheduler"),
    "euler leading": solver(samplers.euler(), "EulerDiscreteScheduler", grid=time_grids.leading),
    "euler ancestral": solver(samplers.euler_ancestral(), "EulerAncestralDiscreteScheduler"),
    "heun": solver(samplers.heun(), "HeunDiscreteScheduler", calls=HEUN),
    "heun linear": solver(
        samplers.heun(), "HeunDiscreteScheduler", table=LINEAR, schedule=LINEAR_VP, grid=time_grids.leading, calls=HEUN
    ),
    "2m": solver(samplers.dpmpp_2m(), "DPMSolverMultistepScheduler"),
    "2m cosine": solver(samplers.dpmpp_2m(), "DPMSolverMultistepScheduler", **COSINE_V),
    "2m sde": solver(samplers.dpmpp_2m_sde(), "DPMSolverMultistepScheduler", config=SDE),
    "2m sde heun": solver(
        samplers.dpmpp_2m_sde(heun=True),
        "DPMSolverMultistepScheduler",
        config={**SDE, "solver_type": "heun"},
        compared=STEPS - 2,
    ),
    # Not with noise: in version 0.42.1 the term of the second difference, D2, is not that of k-diffusion's formula.
    "3m": solver(
        samplers.dpmpp_3m_sde(eta=0.0),
        "DPMSolverMultistepScheduler",
        config={**THIRD, "solver_type": "heun"},
        compared=STEPS - 2,
    ),
    "dpm-solver 2m": solver(
        samplers.dpm_solver_multistep(), "DPMSolverMultistepScheduler", config=NOISE, compared=STEPS - 1
    ),
    "dpm-solver 2m heun": solver(
        samplers.dpm_solver_multistep(heun=True),
        "DPMSolverMultistepScheduler",
        config={**NOISE, "solver_type": "heun"},
        compared=STEPS - 1,
    ),
    "dpm-solver 3m": solver(
        samplers.dpm_solver_multistep(order=3),
        "DPMSolverMultistepScheduler",
        config={**NOISE, **THIRD},
        compared=STEPS - 2,
    ),
    "dpm2": solver(samplers.dpm2(schedule=VP), "KDPM2DiscreteScheduler", calls=HEUN),
    "dpm2 ancestral": solver(samplers.dpm2_ancestral(schedule=VP), "KDPM2AncestralDiscreteScheduler", calls=HEUN),
    "lms": solver(samplers.lms(), "LMSDiscreteScheduler"),
    "deis 2": solver(samplers.deis(schedule=VP, order=2, log_rho=True), "DEISMultistepScheduler", compared=STEPS - 1),
    "deis 3": solver(
        samplers.deis(schedule=VP, log_rho=True), "DEISMultistepScheduler", config=THIRD, compared=STEPS - 2
    ),
    "unipc 3": solver(samplers.unipc(order=3), "UniPCMultistepScheduler", config=THIRD, compared=STEPS - 3),
    "unipc bh1": solver(samplers.unipc(bh1=True), "UniPCMultistepScheduler", config={"solver_type": "bh1"}),
    "unipc 3 bh1": solver(
        samplers.unipc(order=3, bh1=True),
        "UniPCMultistepScheduler",
        config={**THIRD, "solver_type": "bh1"},
        compared=STEPS - 3,
    ),
    "unipc 1 bh1": solver(
        samplers.unipc(order=1, bh1=True), "UniPCMultistepScheduler", config={"solver_order": 1, "solver_type": "bh1"}
    ),
    "unipc 1": solver(samplers.unipc(order=1), "UniPCMultistepScheduler", config={"solver_order": 1}),
    "unipc": solver(samplers.unipc(), "UniPCMultistepScheduler"),
    "unipc cosine": solver(samplers.unipc(), "UniPCMultistepScheduler", **COSINE_V),
    "sa": sa(),
    "sa 3, 4": sa(3, 4, compared=STEPS - 3),
    "sa 4, 1": sa(4, 1, tau=1.5, compared=STEPS - 3),
    "edm euler": edm(samplers.euler(), "EDMEulerScheduler"),
    "edm 2m": edm(samplers.dpmpp_2m(), "EDMDPMSolverMultistepScheduler"),
    "edm 2m sde": edm(samplers.dpmpp_2m_sde(), "EDMDPMSolverMultistepScheduler", **SDE),
    "flow": flow(1.0, noise_schedules.rectified_flow()),
    "flow heun": flow(
        1.0,
        noise_schedules.rectified_flow(),
        samplers.heun(velocity=True),
        "FlowMatchHeunDiscreteScheduler",
        grid=time_grids.linspace,
        calls=HEUN,
    ),
    "flow shifted": flow(3.0, noise_schedules.rectified_flow(shift=3.0)),
}
SCALED_X = (  # keep x / alpha
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)


def network(x, time, xp=np):
    """Acts on each element alone, so layouts do not matter."""
    return xp.tanh(0.8 * x + xp.sin(1.0 + time / 100.0))


def spread(x, xp=np):
    """Network output for a learned variance, from -1 (small) to 1 (large)."""
    return xp.sin(3.0 * x)


def learns_variance(case):
    return case.config.get("variance_type") == "learned_range"


def draws(steps=STEPS):
    """x_T, but for its scale, and the noise of each step."""
    rng = np.random.default_rng(0)
    return rng.normal(size=SHAPE), rng.normal(size=(steps, *SHAPE))


def lay(grid, schedule, steps=STEPS):
    return jax.tree.map(np.asarray, jax.jit(schedule)(grid(steps, schedule)))


def ours(sampler, denoiser, levels, x, noise):
    """x after each step."""
    step = jax.jit(lambda noise, carry, x, now, next: sampler.step(lambda *_: noise, denoiser, carry, x, now, next))
    x, noise, found = np.float32(x), np.float32(noise), []
    carry = sampler.init(x)
    for i, eps in enumerate(noise):
        x, carry = step(eps, carry, x, sampling.at(levels, i), sampling.at(levels, i + 1))
        found.append(np.asarray(x))
    return found


def feed(monkeypatch, scheduler, noise):
    rest = iter(torch.tensor(noise))
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(
        module, "randn_tensor", lambda shape, dtype=torch.float64, **_: next(rest).to(dtype), raising=False
    )


def theirs(monkeypatch, case, levels, x, noise):
    scheduler, steps = getattr(diffusers, case.scheduler)(**case.config), len(noise)
    feed(monkeypatch, scheduler, noise)
    if hasattr(scheduler, "alphas_cumprod"):  # theirs are float32, which leaves 1 - alpha-bar few digits at time 1
        scheduler.alphas_cumprod = torch.tensor(case.schedule.alphas[1:] ** 2)
    if case.scheduler == "FlowMatchHeunDiscreteScheduler":
        scheduler.set_timesteps(steps)
        network_times = scheduler.timesteps.numpy() - 1
    elif "FlowMatch" in case.scheduler:  # by default they shift the last time twice
        times = case.grid(steps, case.schedule)[:-1]
        scheduler.set_timesteps(sigmas=times / case.schedule.timesteps)
        network_times = times - 1  # ours count from zero, theirs from one and after the shift
    else:
        scheduler.set_timesteps(steps)
        network_times = scheduler.timesteps
    alphas = np.asarray(levels.alpha, np.float64) if case.scheduler in SCALED_X else np.ones(steps + 1)
    x, seen = torch.tensor(x / alphas[0]), []
    for t, time in zip(scheduler.timesteps, network_times, strict=True):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled.numpy(), float(time))
        if learns_variance(case):
            output = np.concatenate([output, spread(scaled.numpy())], axis=1)
        x = scheduler.step(torch.tensor(output), t, x, **case.options).prev_sample
        seen.append(x.double().numpy())
    assert len(seen) == sum(case.calls)
    return [seen[i] * alpha for i, alpha in zip(np.cumsum(case.calls) - 1, alphas[1:], strict=True)]


def check(found, expected, tolerance=TOLERANCE):
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]
    assert max(errors) < tolerance, errors


@pytest.mark.parametrize("name", CASES)
def test_steps(name, monkeypatch):
    case, (x, noise) = CASES[name], draws()
    levels, learned = lay(case.grid, case.schedule), learns_variance(case)

    def net(x, time):
        output = network(x, time[0], jnp)
        return jnp.concatenate([output, spread(x, jnp)], axis=-1) if learned else output

    denoiser = with_clipping(from_network(net, case.parameterization, learned_variance=learned), case.threshold)
    x = x * np.hypot(levels.alpha[0], levels.sigma[0])
    expected = theirs(monkeypatch, case, levels, x, noise)
    found = ours(case.sampler, denoiser, levels, x, noise)
    check(found[: case.compared], expected[: case.compared], case.tolerance)


NEAR = {"final_sigmas_type": "sigma_min"}
IMPORTED = [  # by class
    *(
        ("DPMSolverMultistepScheduler", {"solver_type": kind, "timestep_spacing": "trailing", **config})
        for kind in ("midpoint", "heun")
        for config in ({}, NEAR, SDE, {**SDE, **NEAR}, NOISE, {**NOISE, **THIRD})
    ),
    *(
        ("DPMSolverMultistepScheduler", {"solver_type": "heun", "timestep_spacing": "trailing", **THIRD, **config})
        for config in ({}, NEAR)
    ),
    *(
        ("DPMSolverMultistepScheduler", {"solver_order": 1, "timestep_spacing": "trailing", **config})
        for config in ({}, {**NEAR, "lower_order_final": False}, SDE, NOISE)
    ),
    (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "euler_at_final": True, "lower_order_final": False},
    ),
    *(
        (
            "UniPCMultistepScheduler",
            {"solver_type": kind, "solver_order": order, "timestep_spacing": "trailing", **config},
        )
        for kind in ("bh1", "bh2")
        for order in (1, 2)
        for config in ({}, NEAR)
    ),
    *(("DEISMultistepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
    *(
        (f"{name}DiscreteScheduler", {field: True})
        for name in ("Euler", "Heun", "LMS")
        for field in ("use_karras_sigmas", "use_exponential_sigmas")
    ),
]


@pytest.mark.parametrize("name, config", IMPORTED)
def test_imported_schedulers(name, config, monkeypatch):
    config = {**SCALED, **config}
    read = {"_class_name": name, **config}
    lines = scheduler_config.differences(Path(), read)
    assert all("bounds extrapolations, which matters in the last steps" in line for line in lines)
    section = scheduler_config.read(Path(), read)[1]
    grid = lookup("sampler.grid", time_grids, section["grid"], injected=("schedule",)).bind()
    sampler = lookup("sampler.name", samplers, section["name"], injected=("schedule",)).bind(schedule=VP)()
    steps, (x, noise) = section["steps"], draws(section["steps"])
    calls = (2,) * (steps - 1) + (1,) if name == "HeunDiscreteScheduler" else (1,) * steps
    case, levels = Case(sampler, name, config, grid, calls=calls), lay(grid, VP, steps)
    denoiser = from_network(lambda x, time: network(x, time[0], jnp), parameterizations.eps)
    expected = theirs(monkeypatch, case, levels, x, noise)
    count = steps - 5 if lines else steps
    check(ours(sampler, denoiser, levels, x, noise)[:count], expected[:count])


@pytest.mark.parametrize("algorithm, data", [("dpmsolver++", True), ("dpmsolver", False)])
def test_single_steps(algorithm, data):
    """Two steps of theirs on evenly spaced log-SNRs are one of ours. Their network is given times that are cut off."""
    config = {"use_exponential_sigmas": True, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    scheduler = diffusers.DPMSolverSinglestepScheduler(**SCALED, **config, algorithm_type=algorithm)
    scheduler.alphas_cumprod = torch.tensor(VP.alphas[1:] ** 2)
    scheduler.set_timesteps(2 * STEPS)
    sigmas, (x, noise) = scheduler.sigmas.numpy(), draws()
    times = np.asarray(VP.time_at(-2 * np.log(sigmas)))
    y, expected = torch.tensor(x), []
    for t, time in zip(scheduler.timesteps, times[:-1], strict=True):
        y = scheduler.step(torch.tensor(network(y.numpy(), time - 1)), t, y).prev_sample
        expected.append(y.double().numpy())
    denoiser = from_network(lambda x, time: network(x, time[0], jnp), parameterizations.eps)
    levels = jax.tree.map(np.asarray, VP(jnp.asarray(times[::2])))
    found = ours(samplers.dpm_solver(schedule=VP, data=data), denoiser, levels, x, noise)
    check(found[:-1], expected[1:-2:2])  # their last step has no length


def test_ipndm():
    """From the second level, as there is no signal at the first. Their network predicts v."""
    steps = 2 * STEPS
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(1)
    x, noise = draws(steps - 1)
    y, expected = torch.tensor(x), []
    for t in scheduler.timesteps[1:]:
        y = scheduler.step(torch.tensor(network(y.numpy(), 1000 * float(t))), t, y).prev_sample
        expected.append(y.numpy())
    times = np.append(scheduler.timesteps[1:], 0.0)
    levels = Noise(*(np.float32(leaf) for leaf in (times, scheduler.alphas[1:], scheduler.betas[1:])))

    def denoiser(x, noise):
        return Denoised(noise.alpha * x - noise.sigma * network(x, 1000 * noise.t, jnp))

    check(ours(samplers.ipndm(), denoiser, levels, x, noise), expected)


# EDMEulerScheduler adds its churn after the network's evaluation, then takes an Euler step.
@pytest.mark.parametrize("schedule", [EDM, VP], ids=["edm", "vp"])
@pytest.mark.parametrize("churn, high", [(3.0, 10.0), (80.0, 10.0), (80.0, math.inf)])
def test_churn(schedule, churn, high, monkeypatch):
    """Without an upper bound of theirs the first steps start beyond the last level."""
    low, noise_scale = 0.05, 1.007
    steps = 18  # EDM's own for CIFAR-10; in 10 steps some are too long for the correction, with noise added
    (x, noise), levels = draws(steps), lay(time_grids.karras, schedule, steps)
    options = {"churn": churn, "noise": noise_scale, "low": low, "high": high, "beyond": high == math.inf}
    sampler = samplers.edm(schedule=schedule, steps=steps, **options)
    denoiser = from_network(lambda x, time: network(x, time[0], jnp), parameterizations.edm)

    scheduler = KarrasVeScheduler(s_churn=churn, s_noise=noise_scale, s_min=low, s_max=high)
    feed(monkeypatch, scheduler, noise)
    scheduler.set_timesteps(steps)
    scaling, alphas = diffusers.EDMEulerScheduler(), np.asarray(levels.alpha, np.float64)
    sigmas = np.asarray(levels.sigma, np.float64) / alphas

    def direction(x, sigma):  # minus eps, in x / alpha
        output = network(scaling.precondition_inputs(x, sigma).numpy(), np.log(sigma) / 4)
        return (scaling.precondition_outputs(x, torch.tensor(output), sigma) - x) / sigma

    x = x * sigmas[0]
    y, expected = torch.tensor(x), []
    for now, next in itertools.pairwise(sigmas):
        y, hat = scheduler.add_noise_to_input(y, now)
        ahead = scheduler.step(direction(y, hat), hat, next, y)
        if next > 0:
            args = (direction(ahead.prev_sample, next), hat, next, y, ahead.prev_sample, ahead.derivative)
            ahead = scheduler.step_correct(*args)
        y = ahead.prev_sample
        expected.append(y.numpy() * alphas[len(expected) + 1])
    check(ours(sampler, denoiser, levels, x * alphas[0], noise), expected)


@pytest.mark.parametrize("grid", [time_grids.leading, time_grids.trailing])
def test_encoding(grid):
    """Their pipelines ask the network at the time that a step goes to; here, as the paper, where it comes from."""
    levels, first, (x, _) = lay(grid, VP), VP(1.0), draws()
    scheduler = diffusers.DDIMInverseScheduler(**SCALED, timestep_spacing=grid.__name__, clip_sample=False)
    scheduler.alphas_cumprod = torch.tensor(VP.alphas[1:] ** 2)
    scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(STEPS)
    y, expected = torch.tensor(x), []
    for t in scheduler.timesteps:
        time = max(float(t) - 1000 // STEPS, 0.0)
        y = scheduler.step(torch.tensor(network(y.numpy(), time)), t, y).prev_sample
        expected.append(y.numpy())

    @jax.jit
    def encode(x, count):
        denoiser = from_network(lambda x, time: network(x, time[0], jnp), parameterizations.eps)
        last = jax.tree.map(lambda leaf: jnp.roll(leaf, count - STEPS), levels)  # the last `count` steps
        return sampling.encode(denoiser, x, last, count, first)

    check([np.asarray(encode(jnp.asarray(x, jnp.float32), i + 1)) for i in range(STEPS)], expected)


@pytest.mark.parametrize("times", [(40,), (40, 18), (40, 31, 18, 1)])
def test_consistency_models(times, monkeypatch):
    """A distilled network of OpenAI's: their boundary condition, time input and multistep sampling."""
    schedule, (x, noise) = noise_schedules.edm(40), draws(len(times))
    levels = jax.tree.map(np.asarray, schedule(time_grids.times(0, schedule, *times)))
    scheduler = diffusers.CMStochasticIterativeScheduler()
    feed(monkeypatch, scheduler, noise)
    scheduler.set_timesteps(timesteps=sorted((40 - t for t in times), reverse=True))  # theirs count from the noise
    assert scheduler.timesteps[0] == pytest.approx(250 * np.log(levels.sigma[0]), rel=1e-5)
    parameterize = functools.partial(parameterizations.consistency, time_scale=1000.0)
    denoiser = with_clipping(from_network(lambda x, time: network(x, time[0], jnp), parameterize), clipping.clip)
    x, expected = 80.0 * x, []
    y = torch.tensor(x)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(y, t).numpy(), float(t))
        y = scheduler.step(torch.tensor(output), t, y).prev_sample
        expected.append(y.double().numpy())
    check(ours(samplers.consistency(schedule=schedule), denoiser, levels, x, noise), expected, 2e-5)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.3, 1.0])
def test_latent_consistency_and_trajectory_consistency(gamma, monkeypatch):
    """Without LCM's boundary condition, which is nearly the identity; TCD's last step ends at time 1."""
    times = (999, 759, 499, 259)  # from zero
    schedule, (x, noise) = VP, draws(len(times))
    levels = jax.tree.map(np.asarray, schedule(np.array([*(t + 1.0 for t in times), gamma is not None], np.float32)))
    kind, config = (
        (diffusers.LCMScheduler, {"timestep_scaling": 1e4}) if gamma is None else (diffusers.TCDScheduler, {})
    )
    scheduler = kind(**SCALED, set_alpha_to_one=True, **config)
    scheduler.alphas_cumprod = torch.tensor(VP.alphas[1:] ** 2)
    feed(monkeypatch, scheduler, noise)
    scheduler.set_timesteps(timesteps=list(times))
    sampler = samplers.lcm() if gamma is None else samplers.tcd(schedule=schedule, gamma=gamma)
    denoiser = from_network(lambda x, time: network(x, time[0], jnp), parameterizations.eps)
    y, expected, options = torch.tensor(x), [], {} if gamma is None else {"eta": gamma}
    for t in scheduler.timesteps:
        y = scheduler.step(torch.tensor(network(y.numpy(), float(t))), t, y, **options).prev_sample
        expected.append(y.double().numpy())
    check(ours(sampler, denoiser, levels, x, noise), expected)


@pytest.mark.parametrize("variance_type", ["fixed_small_log", "learned_range"])
def test_unclip(variance_type, monkeypatch):
    """Ancestral sampling of karlo's prior, which predicts clipped images, and of its decoder."""
    (x, noise), levels = draws(), lay(time_grids.linspace, COSINE_VP)
    is_learned = variance_type == "learned_range"
    config = {"variance_type": variance_type, "prediction_type": "epsilon" if is_learned else "sample"}
    scheduler = diffusers.UnCLIPScheduler(**config, clip_sample_range=1.0 if is_learned else 5.0)
    scheduler.alphas_cumprod = torch.tensor(COSINE_VP.alphas[1:] ** 2)
    feed(monkeypatch, scheduler, noise)
    scheduler.set_timesteps(STEPS)
    y, expected, times = torch.tensor(x), [], [*scheduler.timesteps.tolist(), None]
    for t, following in itertools.pairwise(times):
        output = network(y.numpy(), t)
        output = np.concatenate([output, spread(y.numpy())], axis=1) if is_learned else output
        y = scheduler.step(torch.tensor(output), t, y, prev_timestep=following).prev_sample
        expected.append(y.numpy())

    def net(x, time):
        output = network(x, time[0], jnp)
        return jnp.concatenate([output, spread(x, jnp)], axis=-1) if is_learned else output

    sampler = samplers.ancestral(variance=variance.learned_range if is_learned else variance.fixed_small)
    parameterize = parameterizations.eps if is_learned else parameterizations.x0
    clip = clipping.clip if is_learned else functools.partial(clipping.clip, limit=5.0)
    denoiser = with_clipping(from_network(net, parameterize, learned_variance=is_learned), clip)
    check(ours(sampler, denoiser, levels, x, noise), expected, 5e-5)


TABLES = {"linear": (LINEAR_VP, LINEAR), "scaled linear": (VP, SCALED), "cosine": (COSINE_VP, COSINE)}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    """At T = 1000: elsewhere ours keep the process, and theirs the betas."""
    schedule, config = TABLES[name]
    scheduler = diffusers.DDPMScheduler(**config)
    times = np.arange(1.0, 1001)
    levels, bar = schedule(times), scheduler.alphas_cumprod.numpy()
    # The absolute term is for the cosine's last: its 1 - beta = 0.001 has four digits in float32.
    np.testing.assert_allclose(levels.alpha**2, bar, rtol=3e-6, atol=1e-12)
    np.testing.assert_allclose(levels.sigma**2, 1 - bar, atol=1e-6)

    bar = np.cumprod(1 - rescale_zero_terminal_snr(scheduler.betas.double()).numpy())
    levels = schedule.with_zero_terminal_snr()(times)
    np.testing.assert_allclose(levels.alpha, np.sqrt(bar), atol=2e-7)
    np.testing.assert_allclose(levels.sigma, np.sqrt(1 - bar), atol=1e-6)
    assert levels.alpha[-1] == bar[-1] == 0


# Where their number of steps does not divide T, `leading` stops short of T by the remainder, and `trailing` rounds to
# the nearest time (as Lin et al. 2024, table 2) and not up. Halves in `linspace` go to the even time counted from zero.
@pytest.mark.parametrize("steps", [1, 4, 10, 20, 1000])
@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
def test_grids(name, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.numpy() + 1
    if (name, steps) == ("linspace", 1):
        expected = [1000]  # theirs is 1, where there is nothing left to denoise
    np.testing.assert_array_equal(getattr(time_grids, name)(steps, VP), [*expected, 0])


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_whole_strides(scheduler, offset):
    """The option of `leading`, for any number of steps."""
    scheduler = getattr(diffusers, scheduler)(timestep_spacing="leading", steps_offset=offset)
    for steps in (1, 3, 7, 30, 50, 64, 77, 300, 999):
        scheduler.set_timesteps(steps)
        grid = time_grids.leading(steps, VP, offset=offset, whole_strides=True)
        np.testing.assert_array_equal(grid, [*scheduler.timesteps.numpy() + 1, 0])


@pytest.mark.parametrize("name", ["trailing", "linspace"])
def test_grids_of_any_number_of_steps(name):
    """Theirs round sums of strides, so that ties may go to the other level, and end in a step too many below 0."""
    differing = 0
    for steps in range(2, 1001):
        scheduler = diffusers.DDIMScheduler(timestep_spacing=name)
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps.numpy()[:steps] + 1
        difference = np.abs(getattr(time_grids, name)(steps, VP)[:-1] - times)
        assert difference.max() <= 1
        differing += difference.any()
    assert differing < 150


@pytest.mark.parametrize("name", ["StableDiffusion", "StableDiffusionXL"])
def test_align_your_steps(name):
    """The timesteps of their table of levels; theirs of Stable Diffusion differ by one in one place."""
    grid = {"StableDiffusion": time_grids.ays_sd15, "StableDiffusionXL": time_grids.ays_sdxl}[name]
    difference = np.abs(grid(STEPS, VP)[:-1] - 1 - AysSchedules[f"{name}Timesteps"])
    assert difference.max() <= 1 and difference.sum() <= 1, difference


@pytest.mark.parametrize(
    "grid, options",
    [
        (time_grids.karras, {"use_karras_sigmas": True}),
        (time_grids.log_snr, {"use_exponential_sigmas": True}),
        (time_grids.linspace, {"timestep_spacing": "linspace"}),
    ],
)
def test_fractional_times(grid, options):
    scheduler = diffusers.EulerDiscreteScheduler(**SCALED, **options)
    scheduler.alphas_cumprod = torch.tensor(VP.alphas[1:] ** 2)
    scheduler.set_timesteps(STEPS)
    times = grid(STEPS, VP, fractional=True)
    np.testing.assert_allclose(times[:-1] - 1, scheduler.timesteps, atol=2e-3)


@pytest.mark.parametrize("steps", [5, 10, 19])
def test_grids_of_multistep_solvers(steps):
    """Grids of DPM-Solver++ and UniPC of theirs have one point more, whose last is left out."""
    for scheduler in (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
        for name, make in (("leading", STRIDES), ("linspace", time_grids.linspace)):
            schedule = scheduler(timestep_spacing=name)
            schedule.set_timesteps(steps)
            np.testing.assert_array_equal(make(steps + 1, VP)[:-2], schedule.timesteps.numpy() + 1)


# For the cosine they cut times off and do not round them, and let them repeat.
@pytest.mark.parametrize("name", ["linear", "scaled linear"])
@pytest.mark.parametrize(
    "grid, option", [(time_grids.karras, "use_karras_sigmas"), (time_grids.log_snr, "use_lu_lambdas")]
)
def test_grids_in_noise(grid, option, name):
    schedule, config = TABLES[name]
    scheduler = diffusers.DPMSolverMultistepScheduler(**config, **{option: True})
    scheduler.set_timesteps(STEPS)
    np.testing.assert_array_equal(grid(STEPS, schedule), [*scheduler.timesteps.numpy() + 1, 0])


def test_real_times():
    """Between two integers both interpolate linearly in the log-SNR."""
    scheduler = diffusers.EulerDiscreteScheduler(**SCALED, use_karras_sigmas=True)
    scheduler.alphas_cumprod = torch.tensor(VP.alphas[1:] ** 2)
    scheduler.set_timesteps(STEPS)
    times, sigmas = scheduler.timesteps.numpy() + 1, scheduler.sigmas.numpy()[:-1]
    assert (times % 1).any()
    levels = VP(jnp.asarray(times))
    np.testing.assert_allclose(levels.sigma / levels.alpha, sigmas, rtol=1e-5)
    np.testing.assert_allclose(VP.time_at(-2 * np.log(sigmas)), times, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 18])
def test_edm_levels(steps):
    """The rule of EDM as a grid over its continuous schedule and as its discrete schedule."""
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    for schedule, grid in ((EDM, time_grids.karras), (noise_schedules.edm(steps), time_grids.trailing)):
        levels = schedule(jnp.asarray(grid(steps, schedule)))
        np.testing.assert_allclose(levels.sigma, scheduler.sigmas, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    levels = noise_schedules.rectified_flow(shift=shift)(jnp.arange(1000.0, 0.0, -1.0))
    np.testing.assert_allclose(levels.sigma, scheduler.sigmas, rtol=1e-6)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaled_guidance(rescale):
    """Theirs is of the network's output and ours of x_0: the same where that is the output."""
    conditional, (unconditional, *_) = draws()
    outputs = (np.float32(conditional), np.float32(unconditional))
    denoisers = [lambda x, noise, x0=x0: Denoised(jnp.asarray(x0)) for x0 in outputs]
    found = jax.jit(guidance.classifier_free(*denoisers, 7.5, rescale=rescale))(jnp.zeros(SHAPE), VP(500.0)).x0
    plain = torch.tensor(unconditional + 7.5 * (conditional - unconditional))
    expected = rescale_noise_cfg(plain, torch.tensor(conditional), rescale)
    check([np.asarray(found)], [expected.numpy()])
