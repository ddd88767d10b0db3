"""What is set before jax is imported: XLA's flags and the persistent compilation cache. The user's own settings win."""

import os
import sys
from pathlib import Path

from diffjax import io
from diffjax.errors import UserError, note

# What CPUs give to that library: networks train faster than by XLA's own choice, and LIBRARY_FUSION_TYPE_DOT, which is
# faster still, makes some products wrong (docs/performance.md). Others ignore it.
_XLA_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_CACHE = "JAX_COMPILATION_CACHE_DIR"


def configure() -> None:
    """Sets each flag and variable that the environment does not set already.

    Raises:
      UserError: XLA_FLAGS of the environment is malformed or has an unknown flag.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags.strip() and "jax" not in sys.modules:
        _check_xla_flags(flags)
    missing = [f"{name}={value}" for name, value in _XLA_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    _set_cache()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _set_cache() -> None:
    """Sets the folder of compiled programs, which is made if missing; where there can be none, a note says so.

    An empty JAX_COMPILATION_CACHE_DIR disables the cache, and a URL there is for jax to check.
    """
    chosen = os.environ.get(_CACHE)
    if chosen == "" or (chosen and "://" in chosen):
        return
    try:
        cache = Path(chosen) if chosen else io.cache_folder() / "xla"
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {cache}")
    except (OSError, RuntimeError) as error:  # a RuntimeError where the user has no home
        os.environ.pop(_CACHE, None)
        note(f"compiled programs are not cached ({error}): set {_CACHE} or XDG_CACHE_HOME to a folder to write to")
    else:
        os.environ[_CACHE] = str(cache)


def _check_xla_flags(flags: str) -> None:
    """Raises UserError for flags that XLA cannot parse.

    XLA ends the process for them, so they are parsed in a fork, which is safe while jax has started no thread.
    """
    from jaxlib import xla_client

    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            getattr(xla_client, "CompileOptions", int)()  # int: a jaxlib without it is not checked
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        lines = pipe.read().splitlines()
    if os.waitpid(child, 0)[1]:
        reason = lines[0].rpartition("] ")[2].rstrip(".") if lines else "XLA rejects it"
        raise UserError(f"XLA_FLAGS={flags}: {reason}; correct the flag, or unset XLA_FLAGS")
