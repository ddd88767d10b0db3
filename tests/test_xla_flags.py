"""What launch.py sets before jax is imported, and what it leaves to the user."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import xla_flags
from diffjax.metrics import reference

FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def test_flags_and_cache_are_set(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    xla_flags.configure()
    assert xla_flags.os.environ["XLA_FLAGS"] == f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path))


def test_the_users_settings_win(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "elsewhere"))
    xla_flags.configure()
    assert xla_flags.os.environ["XLA_FLAGS"] == f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE"
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_cache_home_that_is_no_absolute_path_counts_as_unset(value, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    xla_flags.configure()
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/diffjax/xla")
    monkeypatch.delenv("DIFFJAX_CACHE")
    assert reference.folder() == tmp_path / ".cache/diffjax/references"


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_without_a_cache_a_note_says_so(variable, monkeypatch, capsys):
    """Also without a home: a user whom the system does not know has none."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/proc/none")
    xla_flags.configure()
    assert "JAX_COMPILATION_CACHE_DIR" not in xla_flags.os.environ
    line = capsys.readouterr().err
    assert line.startswith("note: compiled programs are not cached") and line.count("\n") == 1


@pytest.mark.parametrize("value", ["", "gs://bucket/cache"])
def test_a_cache_that_is_off_or_far_is_left_alone(value, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    xla_flags.configure()
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == value


def test_a_product_with_one_number_everywhere_is_right():
    """With LIBRARY_FUSION_TYPE_DOT it read what lies behind the number (jaxlib 0.10.2)."""
    x = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    found = jax.jit(lambda x, number: x @ jnp.broadcast_to(number, (16, 16)))(x, np.float32(0.5))
    np.testing.assert_allclose(found, x @ np.full((16, 16), 0.5), atol=1e-5)
