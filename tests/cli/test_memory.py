"""Long sweeps hold no more memory than short ones; running out of it is one line that says what to do."""

import gc

import jax
import numpy as np
import psutil
import pytest

import diffjax
from diffjax import cli
from diffjax.errors import UserError, enough_memory
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings, over
from diffjax.inference import batching
from diffjax.inference.sampler_runner import Generator
from diffjax.training.sharding import Devices

MEBIBYTE = 2**20


def held() -> tuple[int, float]:
    """Arrays on the devices, and MiB of this process."""
    gc.collect()
    return len(jax.live_arrays()), psutil.Process().memory_info().rss / MEBIBYTE


def stays_flat(draw, *, warm: int, rounds: int) -> None:
    """Asserts that `rounds` more calls hold what the first `warm` did."""
    for i in range(warm):
        draw(i)
    arrays, before = held()
    for i in range(warm, warm + rounds):
        draw(i)
    after_arrays, after = held()
    assert after_arrays <= arrays
    assert after - before < 32, f"{after - before:.1f} MiB more after {rounds} rounds"


@pytest.fixture(scope="module")
def run(workdir):
    return diffjax.load(workdir)


def test_many_cells_through_one_generator(run):
    """A copy of the run's variables left at each call would be more than the bound."""
    generator, label = Generator(run.system, batch_size=8), {"label": np.zeros(16, np.int32)}
    measure = Measurer(["fd_pixels"], run)

    def draw(i):
        plan = run.system.plan(run.config.sampler, guidance=1.0 + i / 100, steps=1 + i % 4, capacity=4)
        measure(generator(run.variables, range(16), label, plan), label["label"])

    stays_flat(draw, warm=3, rounds=24)
    assert generator.compilations == 1


def test_many_batches_of_a_measure(run):
    """Of the loop that likelihoods and reconstructions are measured by."""
    examples = Examples({"image": np.zeros((64, 8, 8, 1), np.uint8)})
    double = jax.jit(lambda keys, batch: 2.0 * batch["image"])
    stays_flat(lambda i: over(Settings(batch_size=8), "doubling", double, examples), warm=3, rounds=40)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sweep", "evaluate"])
def test_a_verb_leaves_no_arrays_behind(verb, workdir):
    flags = {
        "sweep": ["--steps=1,2", "--eta=0,1", "--metrics=fd_pixels", "--num=8", "--batch_size=8"],
        "evaluate": ["--metrics=nll", "--num=8", "--batch_size=8", "--ode_steps=0", "--terms=1"],
    }
    counts = []
    for _ in range(3):
        assert cli.main(["launch.py", verb, f"--workdir={workdir}", *flags[verb]]) == 0
        counts.append(held()[0])
    assert counts[2] <= counts[1]


def too_much(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")


def test_a_step_that_does_not_fit(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Devices, "compile", lambda *_: too_much)
    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={tmp_path}/run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for word in ("out of memory", "train.batch_size=16", "train.accumulate=1", "parallel.fsdp=1"):
        assert word in line


def test_samples_that_do_not_fit():
    """A real allocation, which no machine has the memory for."""
    broken = batching.Spread(8).compile(lambda shared, batch: jax.numpy.zeros((len(batch), 2**42)) + batch[:, None])
    with pytest.raises(UserError, match="out of memory: a batch has 8: lower --batch_size"):
        broken(np.ones(1, np.float32), np.zeros(8, np.float32))


def test_a_measure_that_does_not_fit():
    examples = Examples({"image": np.zeros((6, 8, 8, 1), np.uint8)})
    with pytest.raises(UserError, match="out of memory: a batch has 4: lower --batch_size"):
        over(Settings(batch_size=4), "", too_much, examples)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=2147483640", ("train.batch_size=2147483640", "GiB")),
        ("model.channels=1000000", ("training state", "parallel.fsdp")),
    ],
)
def test_what_cannot_fit_is_refused_first(override, words, config, tmp_path, capsys):
    flags = [f"--config={config}", f"--workdir={tmp_path}/run", f"--config.{override}"]
    assert cli.main(["launch.py", "train", *flags]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert all(word in line for word in words)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="another"), enough_memory(""):
        raise RuntimeError("another")
