"""Memory does not grow over many batches; running out of memory is reported in one line."""

import gc

import jax
import numpy as np
import psutil
import pytest

import diffjax
from diffjax import cli
from diffjax.errors import UserError, memory_limit_as_user_error
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings, map_batches
from diffjax.inference import batching
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.training.sharding import Devices

MEBIBYTE = 2**20


def held() -> tuple[int, float]:
    """Returns the number of arrays on the devices, and the MiB of this process."""
    gc.collect()
    return len(jax.live_arrays()), psutil.Process().memory_info().rss / MEBIBYTE


def check_constant(compute, *, warm: int, rounds: int) -> None:
    """Asserts that `rounds` more calls hold as much as the first `warm`."""
    for i in range(warm):
        compute(i)
    arrays, before = held()
    for i in range(warm, warm + rounds):
        compute(i)
    after_arrays, after = held()
    assert after_arrays <= arrays
    assert after - before < 32, f"{after - before:.1f} MiB more after {rounds} rounds"


@pytest.fixture(scope="module")
def trained(workdir):
    return diffjax.load(workdir)


@pytest.mark.slow
def test_memory_of_a_sweep(trained):
    """A copy of the variables per call would exceed the bound."""
    runner, conditions = SampleRunner(trained.system, batch_size=8), {"label": np.zeros(16, np.int32)}
    measure = Measurer(["fd_pixels"], trained)

    def compute(i):
        settings = trained.system.make_settings(
            trained.config.sampler, guidance=1.0 + i / 100, steps=1 + i % 4, capacity=4
        )
        measure(runner(trained.variables, range(16), conditions, settings), conditions["label"])

    check_constant(compute, warm=3, rounds=12)
    assert runner.compilations == 1


def test_memory_of_a_metric():
    """Tests the loop that computes likelihoods and reconstructions."""
    examples = Examples({"image": np.zeros((64, 8, 8, 1), np.uint8)})
    double = jax.jit(lambda keys, batch: 2.0 * batch["image"])
    check_constant(lambda i: map_batches(Settings(batch_size=8), "doubling", double, examples), warm=3, rounds=40)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sweep", "evaluate"])
def test_a_verb_frees_its_arrays(verb, workdir):
    flags = {
        "sweep": ["--steps=1,2", "--eta=0,1", "--metrics=fd_pixels", "--num=8", "--batch_size=8"],
        "evaluate": ["--metrics=nll", "--num=8", "--batch_size=8", "--ode_steps=0", "--terms=1"],
    }
    counts = []
    for _ in range(3):
        assert cli.main(["launch.py", verb, f"--workdir={workdir}", *flags[verb]]) == 0
        counts.append(held()[0])
    assert counts[2] <= counts[1]


def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")


def test_a_training_step_out_of_memory(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Devices, "compile", lambda *_: exhausted)
    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={tmp_path}/run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in ("out of memory", "train.batch_size=16", "train.accumulate=1", "parallel.fsdp=1"):
        assert word in line


def test_a_batch_of_samples_out_of_memory():
    """Allocates more memory than any machine has."""
    broken = batching.DataParallelMap(8).compile(
        lambda shared, batch: jax.numpy.zeros((len(batch), 2**42)) + batch[:, None]
    )
    with pytest.raises(UserError, match="out of memory: a batch has 8: lower --batch_size"):
        broken(np.ones(1, np.float32), np.zeros(8, np.float32))


def test_a_metric_out_of_memory():
    examples = Examples({"image": np.zeros((6, 8, 8, 1), np.uint8)})
    with pytest.raises(UserError, match="out of memory: a batch has 4: lower --batch_size"):
        map_batches(Settings(batch_size=4), "", exhausted, examples)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=2147483640", ("train.batch_size=2147483640", "GiB")),
        ("model.width=1000000", ("training state", "parallel.fsdp")),
    ],
)
def test_too_large_configs_are_refused_before_compilation(override, words, config, tmp_path, capsys):
    flags = [f"--config={config}", f"--workdir={tmp_path}/run", f"--config.{override}"]
    assert cli.main(["launch.py", "train", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert all(word in line for word in words)


def test_other_errors_are_not_changed():
    with pytest.raises(RuntimeError, match="another"), memory_limit_as_user_error(""):
        raise RuntimeError("another")
