"""A published consistency model, as ONNX: an import samples what ONNX Runtime does, in one step and in several.

The weights are in the package adaptive-terrain-diffusion 0.4.2; its own Python code is not run.
"""

import functools
from importlib import resources

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("terrain_diffusion")

from diffjax import cli  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402

pytestmark = pytest.mark.parity

FILE = resources.files("terrain_diffusion") / "weights/terrain_consistency_unet_difficulty100.onnx"
DIFFICULTY = np.array([0.2, 0.9], np.float32)
NOISE = 80 * np.random.default_rng(0).normal(size=(2, 128, 128, 1)).astype(np.float32)


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terrain")
    config = "--config=configs/published/terrain.py"
    launch("import", f"--source={FILE}", config, f"--workdir={folder / 'run'}")
    return folder


def sample(run, **settings):
    """Returns samples from the noise."""
    settings = run.system.make_settings(run.config.sampler, **settings)
    draw = jax.jit(functools.partial(run.system.sample, run.variables))
    conditions = {"latent": NOISE, "number": DIFFICULTY}
    return np.asarray(draw(jax.random.split(jax.random.key(0), 2), conditions, settings))


@pytest.fixture(scope="module")
def denoise():
    """Returns the denoiser of the file: images and their noise level to clean images."""
    session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])

    def call(x, sigma):
        feeds = {"noisy": np.moveaxis(x, -1, 1), "sigma": np.full(2, sigma, np.float32), "difficulty": DIFFICULTY}
        return np.moveaxis(session.run(None, feeds)[0], 1, -1)

    return call


def test_one_step(imported, denoise):
    expected = denoise(NOISE, 80)
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(load(imported / "run")), expected, atol=1e-4)


def test_three_deterministic_steps(imported, denoise):
    """DDIM between the levels 80, 10 and 1."""
    run = load(imported / "run")
    times = np.array(run.system.noise_schedule.time_at(-2 * np.log(np.array([80.0, 10.0, 1.0]))))
    x, levels = NOISE, np.asarray(run.system.noise_schedule(times).sigma)
    np.testing.assert_allclose(levels, [80, 10, 1], rtol=1e-3)
    for now, after in zip(levels, [*levels[1:], 0], strict=True):
        x0 = denoise(x, now)
        x = (x0 + (x - x0) * np.float32(after / now)).astype(np.float32)
    grid = f"times({','.join(str(float(t)) for t in times)})"
    np.testing.assert_allclose(sample(run, name="ddim", steps=3, grid=grid), x, atol=1e-4)


def test_an_export_has_the_names_of_the_code(imported):
    launch("export", f"--workdir={imported / 'run'}", f"--out={imported / 'exported'}", "--format=safetensors")
    file = imported / "exported" / "model.safetensors"
    tensors = load_file(file)
    assert sum(tensor.size for tensor in tensors.values()) == 10_456_545
    assert tensors["label_emb.0.weight"].shape == (128, 1)
    assert tensors["input_blocks.1.0.in_layers.0.weight"].shape == (32,)
    assert tensors["middle_block.1.qkv.weight"].shape == (384, 128, 1, 1)
    launch("import", f"--source={file}", "--config=configs/published/terrain.py", f"--workdir={imported / 'again'}")
    before, after = (load_file(imported / name / "weights.safetensors") for name in ("run", "again"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
