"""Every test runs on eight virtual CPU devices, with implicit broadcasting of ranks refused."""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from diffjax import platform

platform.configure()

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
