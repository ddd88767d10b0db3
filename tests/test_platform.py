"""What launch.py sets before jax is imported, and what it leaves to the user."""

import jax
import numpy as np
from jax import numpy as jnp

from diffjax import platform

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def test_flags_and_cache_are_set(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    platform.configure()
    assert platform.os.environ["XLA_FLAGS"] == f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    assert platform.os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))


def test_the_users_settings_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    platform.configure()
    assert platform.os.environ["XLA_FLAGS"] == f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE"
    assert platform.os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"


def test_a_product_with_one_number_everywhere_is_right():
    """With LIBRARY_FUSION_TYPE_DOT it read what lies behind the number (jaxlib 0.10.2)."""
    x = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    found = jax.jit(lambda x, number: x @ jnp.broadcast_to(number, (16, 16)))(x, np.float32(0.5))
    np.testing.assert_allclose(found, x @ np.full((16, 16), 0.5), atol=1e-5)
