"""Samplers: steps from one noise level to the next. A public function of this package is a sampler a config can name.

The keyword arguments of a sampler are its options; numbers among them may be traced. The process passes `variance`,
`schedule`, and `steps`, the number of steps of the grid. A step works on a batch [B, ...] at one noise level, with the
noise of the interval; one with adaptive step sizes evaluates the denoiser at a level per example. Coordinates are
x / alpha and sigma / alpha, as in EDM (Karras et al. 2022), written so that alpha may be zero at the first level and
sigma is zero at the last.
"""

from diffjax.diffusion.samplers.adaptive import dpm_adaptive, rk45
from diffjax.diffusion.samplers.base import Evaluations, Sampler, StepNoise
from diffjax.diffusion.samplers.few_steps import consistency, flow_map, lcm, tcd
from diffjax.diffusion.samplers.first_order import ancestral, ddim, euler, euler_ancestral, euler_maruyama
from diffjax.diffusion.samplers.multistep import (
    deis,
    dpm_solver_multistep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    ipndm,
    lms,
    plms,
    pndm,
    sa_solver,
    unipc,
)
from diffjax.diffusion.samplers.runge_kutta import (
    dpm2,
    dpm2_ancestral,
    dpm_solver,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    edm,
    heun,
    restart,
)

__all__ = [
    "Evaluations",
    "Sampler",
    "StepNoise",
    "ancestral",
    "consistency",
    "ddim",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_solver",
    "dpm_solver_multistep",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "flow_map",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "plms",
    "pndm",
    "restart",
    "rk45",
    "sa_solver",
    "tcd",
    "unipc",
]
