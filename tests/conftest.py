"""Tests run on eight virtual CPU devices, and raise for implicit broadcasting of ranks."""

import gc
import os
import signal
import subprocess

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# The programs of tests are small, so most of the time is compilation, which is faster without optimisation, with the
# older emitter of loops and without splitting. Programs of any length are cached: the verbs compile them again.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
gc.set_threshold(100_000)  # tracing makes many objects and little garbage

from diffjax import progress, xla_flags  # noqa: E402

xla_flags.configure()

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

from tests.trained_runs import TrainedRuns, session_folder  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
_MEMORY = 2**31  # bytes of a process above which compiled programs are freed
# Tests send signals, which background jobs and nohup ignore.
for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish():
    """Excludes the objects of imported modules from garbage collection, which is then faster."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keeps statistics of real images apart from the user's."""
    os.environ["DIFFJAX_CACHE"] = str(session_folder(tmp_path_factory.getbasetemp()) / "cache")


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Frees compiled programs, which later files seldom use, if memory is scarce; they stay in the cache on disk."""
    yield
    if psutil.Process().memory_info().rss > _MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def no_messages_of_compilations():
    """Omits the messages, which depend on the load of the machine, from the standard error that tests compare."""
    progress._DELAY = 1e6


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory):
    return TrainedRuns(session_folder(tmp_path_factory.getbasetemp()) / "trained_runs")


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of `request.param` MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
