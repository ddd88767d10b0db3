"""Settings of launch.py before jax is imported, and settings of the user that it keeps."""

import os
import subprocess
import sys

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


def test_settings_of_the_user_take_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "elsewhere"))
    xla_flags.configure()
    assert xla_flags.os.environ["XLA_FLAGS"] == f"--xla_other=1 {FLAG}=LIBRARY_FUSION_TYPE_REDUCE"
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_relative_cache_home_is_ignored(value, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    xla_flags.configure()
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/diffjax/xla")
    monkeypatch.delenv("DIFFJAX_CACHE")
    assert reference.folder() == tmp_path / ".cache/diffjax/references"


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_a_missing_cache_is_noted(variable, monkeypatch, capsys):
    """Also without a home directory, as for a user who is not in the system's database."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/proc/none")
    xla_flags.configure()
    assert "JAX_COMPILATION_CACHE_DIR" not in xla_flags.os.environ
    line = capsys.readouterr().err
    assert line.startswith("note: compiled programs are not cached") and line.count("\n") == 1


@pytest.mark.parametrize("value", ["", "gs://bucket/cache"])
def test_a_disabled_or_remote_cache_is_not_changed(value, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    xla_flags.configure()
    assert xla_flags.os.environ["JAX_COMPILATION_CACHE_DIR"] == value


@pytest.mark.slow
def test_damaged_programs_in_the_cache_are_replaced(tmp_path):
    code = "import jax, numpy as np; print(jax.jit(lambda x: x @ x + 1)(np.eye(3))[0, 0])"
    script = f"from diffjax import xla_flags; xla_flags.configure(); {code}"
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run():
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)

    assert run().stdout == "2.0\n"
    (entry,) = tmp_path.glob("jit__lambda-*-cache")
    (tmp_path / "jit__lambda-0-cache").write_bytes(entry.read_bytes())  # a whole program of this name stays
    entry.write_bytes(entry.read_bytes()[:1000])
    second = run()
    assert second.stdout == "2.0\n" and "Error reading" not in second.stderr
    assert entry.stat().st_size > 1000 and (tmp_path / "jit__lambda-0-cache").exists()


def test_a_product_with_a_constant_matrix_is_correct():
    """With LIBRARY_FUSION_TYPE_DOT, XLA read memory past the scalar (jaxlib 0.10.2)."""
    x = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    product = jax.jit(lambda x, number: x @ jnp.broadcast_to(number, (16, 16)))(x, np.float32(0.5))
    np.testing.assert_allclose(product, x @ np.full((16, 16), 0.5), atol=1e-5)


def test_a_sum_of_squared_products_is_correct():
    """With LIBRARY_FUSION_TYPE_REDUCE, a default of XLA, some rows are wrong (jaxlib 0.10.2, jax issue 39103)."""
    rows = np.arange(32_769, dtype=np.float32)[:, None] * np.asarray([[1, 0, 0]], np.float32)
    norms = jax.jit(lambda x, matrix: jax.vmap(lambda row: ((matrix @ row) ** 2).sum())(x))(
        rows, np.eye(3, dtype=np.float32)
    )
    np.testing.assert_allclose(norms, rows[:, 0] ** 2)
