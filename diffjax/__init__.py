"""diffjax: a JAX research codebase for scalable diffusion.

`diffjax.train(config, workdir)` trains a run, and `diffjax.load(workdir)` opens one.
"""

import importlib

__version__ = "0.1.0"

_FUNCTIONS = ("image_grid", "import_weights", "load", "train")
_PACKAGES = (
    *("data", "diffusion", "errors", "evaluation", "inference", "latents", "metrics", "models", "nn", "reproduce"),
    "runs",
)


def __getattr__(name: str):
    # Late, so that XLA's flags are set before jax is imported.
    if name in _FUNCTIONS:
        from diffjax import xla_flags

        xla_flags.configure()
        from diffjax import api

        globals().update({function: getattr(api, function) for function in _FUNCTIONS})
        return globals()[name]
    if name in _PACKAGES:
        return importlib.import_module(f"diffjax.{name}")
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_FUNCTIONS, *_PACKAGES])
