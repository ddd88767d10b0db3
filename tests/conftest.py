"""Every test runs on eight virtual CPU devices, with implicit broadcasting of ranks refused."""

import os
import signal
import subprocess

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# The tests' programs are small and run for a moment: nearly all of the time is the compiler's, which is
# quicker without optimisation, and by its older way to write loops.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

from diffjax import xla_flags  # noqa: E402

xla_flags.configure()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests send signals that a background job or nohup ignores.
for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Statistics of real images are kept apart from the user's."""
    os.environ["DIFFJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of so many MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
