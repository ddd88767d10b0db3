"""Environment set before jax is imported: XLA flags and the compilation cache. The user's settings take precedence."""

import contextlib
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from diffjax import io
from diffjax.errors import UserError, note

# The operations that the CPU compiler passes to the YNN library. Networks train faster than with XLA's default;
# LIBRARY_FUSION_TYPE_DOT is faster still, but computes some products wrong (docs/performance.md). Others ignore it.
_XLA_FLAGS = {"--xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


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
    """Sets the folder of compiled programs and creates it; prints a note if there can be none.

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
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        os.environ.pop(_CACHE, None)
        note(f"compiled programs are not cached ({error}); set {_CACHE} or XDG_CACHE_HOME to a writable folder")
    else:
        os.environ[_CACHE] = str(cache)
        if not getattr(warnings.showwarning, "replaces_entries", False):
            _replace_damaged_entries(cache)


def _replace_damaged_entries(cache: Path) -> None:
    """Deletes programs that jax warns that it cannot read, such as one whose writing was interrupted.

    jax compiles such a program, but does not overwrite the file, so that each run would compile it again.
    """
    show = warnings.showwarning

    def show_or_replace(message: Warning | str, *arguments: Any, **options: Any) -> None:
        if match := _UNREADABLE.search(str(message)):
            for entry in cache.glob(f"{match[1]}-*-cache"):
                if not _is_complete(entry):
                    entry.unlink(missing_ok=True)
        else:
            show(message, *arguments, **options)

    show_or_replace.replaces_entries = True
    warnings.showwarning = show_or_replace


def _is_complete(entry: Path) -> bool:
    """Returns whether an entry can be read to its end."""
    from jax._src.compilation_cache import decompress_executable  # by zlib or zstandard, as it is written

    with contextlib.suppress(Exception):  # of either library
        return bool(decompress_executable(entry.read_bytes()))
    return False


def _check_xla_flags(flags: str) -> None:
    """Checks that XLA can parse flags. Raises UserError if not.

    XLA ends the process for invalid flags, so a fork parses them, which is safe before jax starts threads.
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
