"""diffjax: a JAX research codebase for scalable diffusion. `diffjax.load(workdir)` opens a trained run."""

import importlib

__version__ = "0.1.0"

_PACKAGES = ("data", "diffusion", "errors", "evaluation", "inference", "latents", "metrics", "models", "nn", "runs")


def __getattr__(name: str):
    # Late, so that XLA's flags are set before jax is imported.
    if name == "load":
        from diffjax import xla_flags

        xla_flags.configure()
        from diffjax.api import load

        globals()["load"] = load
        return load
    if name in _PACKAGES:
        return importlib.import_module(f"diffjax.{name}")
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", "load", *_PACKAGES]
