"""Platform that a program is traced for, as some layers have another form on CPUs."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_simulated = contextvars.ContextVar("simulated", default=False)


def is_cpu() -> bool:
    """Returns whether the program that is traced will run on a CPU."""
    return jax.default_backend() == "cpu" and not _simulated.get()


@contextlib.contextmanager
def simulated_accelerator() -> Iterator[None]:
    """Traces programs as for an accelerator, although they are compiled for a CPU."""
    token = _simulated.set(True)
    try:
        yield
    finally:
        _simulated.reset(token)
