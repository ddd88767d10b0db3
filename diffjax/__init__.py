"""diffjax: a JAX research codebase for scalable diffusion. `diffjax.load(workdir)` opens a trained run."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Late, so that launch.py can set XLA's flags before jax is imported.
    if name == "load":
        from diffjax.runs.loading import load

        return load
    raise AttributeError(f"module 'diffjax' has no attribute {name!r}")
