"""What is set before jax is imported: XLA's flags and the persistent compilation cache. The user's own settings win."""

import os
from pathlib import Path

# What CPUs give to that library: networks train faster than by XLA's own choice, and LIBRARY_FUSION_TYPE_DOT, which is
# faster still, makes some products wrong (docs/performance.md). Others ignore it.
_XLA_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def configure() -> None:
    """Sets each flag and variable that the environment does not set already."""
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _XLA_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "diffjax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
