"""`diffjax.load(workdir)`: the Python interface gives what the verbs of the command line give."""

import csv
import logging
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict

import diffjax
from diffjax.diffusion import noise_schedules, samplers, sampling, time_grids
from diffjax.errors import UserError
from diffjax.models.images import to_grey_levels
from tests import tiny
from tests.command_line import entries, launch, sample


@pytest.fixture(scope="module")
def workdir(trained_runs, tmp_path_factory):
    return trained_runs.copy("pixel", tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def run(workdir):
    return diffjax.load(workdir)


def test_the_package_lists_its_public_names():
    assert dir(diffjax) == [
        *(
            "__version__",
            "data",
            "diffusion",
            "errors",
            "evaluation",
            "image_grid",
            "import_weights",
            "inference",
            "latents",
            "load",
        ),
        *("metrics", "models", "nn", "reproduce", "runs", "train"),
    ]
    assert all(hasattr(diffjax, name) for name in dir(diffjax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        diffjax.lod  # noqa: B018


@pytest.mark.slow
def test_load_sets_xla_flags_before_it_imports_jax_and_imports_no_wandb():
    code = (
        "import os, sys, diffjax; assert 'jax' not in sys.modules; diffjax.load; print(os.environ['XLA_FLAGS'])\n"
        "assert 'diffjax.training.loggers' in sys.modules and 'wandb' not in sys.modules"
    )
    assert "xla_cpu" in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_run_has_a_short_repr(run, workdir):
    text = repr(run)
    assert f"{run.parameters:,}" in text and f"path={workdir}" in text and "step=4" in text and "digits" in text
    assert len(text) - len(str(workdir)) < 100
    assert len(repr(run.denoiser(labels=3))) < len(text) + 20
    assert len(repr(run.system.noise_schedule)) < 40 and len(repr(run.workdir)) < len(str(workdir)) + 20
    assert "Array" not in repr(run.system)


def test_loading_reports_nothing_and_leaves_the_logger_of_the_user_as_it_was(workdir, capsys):
    records, absl = [], logging.getLogger("absl")
    handler = logging.Handler()
    handler.emit = records.append
    absl.addHandler(handler)
    before = absl.level, list(absl.filters)
    try:
        diffjax.load(workdir)
        assert (absl.level, absl.filters) == before and not records
        absl.warning("of the user")
        assert len(records) == 1
    finally:
        absl.removeHandler(handler)
    captured = capsys.readouterr()
    assert not captured.out and "orbax" not in captured.err


def test_training_equals_that_of_the_verb_and_resumes(run, trained_runs, tmp_path, capsys):
    options = {"progress": False}
    trained = diffjax.train(trained_runs.config("pixel"), tmp_path / "run", **options)
    jax.tree.map(np.testing.assert_array_equal, trained.variables, run.variables)
    assert trained.step == 4 and capsys.readouterr() == ("", "")
    resumed = diffjax.train(None, tmp_path / "run", {"train.steps": 5}, **options)
    assert resumed.step == resumed.config.train.steps == 5
    with pytest.raises(UserError, match=r"train.batch_size was 16, now 8.*use another workdir, or allow_config_change"):
        diffjax.train(resumed.config, tmp_path / "run", {"train.batch_size": 8}, **options)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("configs/digit.py", {}, "cannot read config=configs/digit.py: No such file"),
        (None, {}, "config is missing"),
        ({"system": "ddpm"}, {}, "must be a config file or a ConfigDict"),
        (ConfigDict({"system": "ddpm"}), {}, "does not have the field 'seed'"),
        (ConfigDict({"system": print}), {}, "must be a plain value"),
        ("configs/digits.py", {"train.step": 3}, "did you mean 'train.steps'?"),
        ("configs/digits.py", {"train": 3}, "train is a section; set one of its fields"),
        ("configs/digits.py", {"train.steps": "many"}, "train.steps='many': must be a whole number"),
        ("configs/digits.py", {"train.steps": 0}, "train.steps=0: must be a whole number from 1"),
    ],
)
def test_invalid_training_raises_and_writes_nothing(tmp_path, monkeypatch, config, overrides, message):
    monkeypatch.chdir(tmp_path)  # the config is then that of this repository
    with pytest.raises(UserError) as error:
        diffjax.train(config, "run", overrides)
    assert message in str(error.value) and "--" not in str(error.value)
    assert not os.listdir(tmp_path)


def test_a_file_and_a_run_of_an_older_version_cannot_be_loaded(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'file'}: is a file; name the folder of a run")):
        diffjax.load(tmp_path / "file")
    config = re.sub(r'"time_sampling": "\w+",', "", run.workdir.config.read_text())
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"time_sampling.*if an older version of diffjax wrote it"):
        diffjax.load(tmp_path)


def test_images_are_shown_in_rows():
    for images in ([1, 2], np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1), np.uint8)):
        with pytest.raises(UserError, match="must be a uint8 array"):
            diffjax.image_grid(images)
    assert diffjax.image_grid(np.zeros((6, 8, 8, 1), np.uint8), columns=3).size == (3 * 66 + 2, 2 * 66 + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (
            {"num": 3, "labels": 3, "sampler": "ddim", "steps": 3},
            ["--num=3", "--label=3", "--sampler=ddim", "--steps=3"],
        ),
        (
            {"num": 12, "seed": 5, "eta": 1.0, "guidance": 2, "steps": 3, "sampler": "ddim"},
            ["--num=12", "--seed=5", "--eta=1", "--guidance=2", "--steps=3", "--sampler=ddim"],
        ),
    ],
)
def test_samples_equal_those_of_the_verb(run, workdir, tmp_path, options, flags):
    images = run.sample(**options, batch_size=8)
    np.testing.assert_array_equal(images, sample(workdir, tmp_path, *flags)["images"])
    assert images.dtype == np.uint8 and images.shape == (options["num"], 8, 8, 1)


def test_each_image_can_have_its_label(run):
    one = run.sample(labels=[3, 7], sampler="ddim", steps=3, batch_size=8)
    np.testing.assert_array_equal(one[1:], run.sample(1, labels=7, seed=1, sampler="ddim", steps=3, batch_size=8))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["a small red circle", ["a large blue square", "a small red circle"]])
def test_images_of_prompts_equal_those_of_the_verb(trained_runs, tmp_path, prompts):
    workdir = trained_runs("dalle")
    images = diffjax.load(workdir).sample(2, prompts=prompts, best_of=3, top_k=2, batch_size=8)
    (tmp_path / "prompts.txt").write_text(prompts if isinstance(prompts, str) else "\n".join(prompts))
    flags = [f"--prompts={tmp_path}/prompts.txt", "--num=2", "--best_of=3", "--top_k=2"]
    np.testing.assert_array_equal(images, sample(workdir, tmp_path, *flags)["images"])


@pytest.mark.slow  # trains a pipeline
def test_settings_of_stages_are_mappings(trained_runs, tmp_path):
    workdir = trained_runs("unclip")
    images = diffjax.load(workdir).sample(
        2, prompts="a small red circle", steps={"prior": 2, "decoder": 3}, batch_size=8
    )
    flags = ["--prompt=a small red circle", "--num=2", "--steps=prior:2,decoder:3"]
    np.testing.assert_array_equal(images, sample(workdir, tmp_path, *flags)["images"])


def test_an_exported_folder_and_a_checkpoint_can_be_loaded(run, workdir, tmp_path):
    assert launch("export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}") == 0
    exported = diffjax.load(tmp_path / "out")
    options = {"num": 2, "sampler": "ddim", "steps": 3, "batch_size": 8}
    np.testing.assert_array_equal(exported.sample(**options), run.sample(**options))
    assert diffjax.load(workdir, checkpoint=2).step == 2


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1, 2.0])
def test_sampling_with_the_denoiser_gives_the_samples_of_the_run(run, guidance):
    schedule = run.system.noise_schedule
    levels = schedule(time_grids.trailing(3, schedule))
    denoiser = run.denoiser(labels=3, guidance=guidance)
    keys = jax.vmap(jax.random.key)(np.arange(5, 8, dtype=np.uint32))
    x = jax.jit(lambda keys: sampling.sample(keys, denoiser, samplers.ddim(), levels, 3, shape=(8, 8, 1)))(keys)
    options = {"sampler": "ddim", "steps": 3, "grid": "trailing", "eta": 0, "batch_size": 8}
    images = run.sample(3, labels=3, seed=5, guidance=guidance, **options)
    difference = np.abs(np.asarray(to_grey_levels(x), int) - images)
    assert difference.max() <= 1  # rounded from floats of two programs


@pytest.mark.slow
def test_the_denoiser_takes_a_timestep_or_a_noise_level(run):
    x, schedule = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), run.system.noise_schedule
    denoiser = run.denoiser(labels=[3, 7])
    by_time, by_level = denoiser(x, 10), denoiser(x, schedule(10))
    np.testing.assert_array_equal(by_time.x0, by_level.x0)
    np.testing.assert_allclose(by_time.x0[1:], run.denoiser(labels=7)(x[1:], 10).x0, rtol=1e-4, atol=1e-5)
    for shape, t, message in (
        ((3, 8, 8, 1), 10, "x: has 3 examples for the 2 labels"),
        ((2, 4, 4, 1), 10, r"x: has the shape \[2, 4, 4, 1\]; it must be \[B, 8, 8, 1\]"),
        ((8, 8, 1), 10, "it must be"),
        ((2, 8, 8, 1), 21, "t=21: must be a finite number from 0 to 20"),
    ):
        with pytest.raises(UserError, match=message):
            denoiser(jnp.zeros(shape), t)
    raw = run.denoiser(labels=[3, 7], guidance=1, threshold="none")(100 * x, 10).x0
    assert np.abs(raw).max() > 1 >= np.abs(run.denoiser(labels=[3, 7], threshold="clip")(100 * x, 10).x0).max()


@pytest.mark.slow
def test_jax_transforms_the_denoiser(run):
    """The gradient equals a finite difference, and a batch of noise levels equals one call each."""
    denoiser = run.denoiser(labels=3, guidance=2.0, threshold="none")
    x, direction = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 1))
    loss = jax.jit(lambda x: (denoiser(x, 7).x0 ** 2).sum())
    slope = (loss(x + 1e-2 * direction) - loss(x - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(x), direction), slope, rtol=1e-2)
    each = jax.jit(jax.vmap(lambda x, t: denoiser(x[None], t).x0[0]))(x, np.array([2, 7, 15]))
    np.testing.assert_allclose(each[1:2], jax.jit(denoiser)(x[1:2], 7).x0, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_sweep_equals_that_of_the_verb(run, workdir, tmp_path, capsys):
    options = {"steps": [2, 4], "eta": 0, "num": 8, "metrics": ["fd_pixels"], "seed": 3, "batch_size": 8}
    flags = ["--steps=2,4", "--eta=0", "--num=8", "--metrics=fd_pixels", "--seed=3", "--batch_size=8"]
    (workdir / "results" / "results.jsonl").unlink(missing_ok=True)
    capsys.readouterr()
    result = run.sweep(**options, store=False, progress=False)
    out, error = capsys.readouterr()
    assert not out and error.startswith("warning: fd_pixels: 8 samples") and error.count("\n") == 1
    assert not (workdir / "results" / "results.jsonl").exists()
    assert launch("sweep", f"--workdir={workdir}", *flags) == 0
    stored = [(entry["settings"]["steps"], entry["metrics"]) for entry in entries(workdir)]
    assert [steps for steps, _ in stored] == [4, 2]
    for row, (steps, metrics) in zip(result.rows, stored[::-1], strict=True):
        assert (row["steps"], row["eta"], row["num"], row["seed"]) == (steps, 0, 8, 3)
        for name, about in metrics.items():
            assert (row[name], row[f"{name}_standard_error"]) == (about["value"], about["standard_error"])
    assert len(result) == 2 and "fd_pixels" in repr(result) and "±" in repr(result)
    result.to_csv(tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["fd_pixels"]) for row in rows] == [row["fd_pixels"] for row in result.rows]
    from_store = run.sweep(**options)
    assert [row["date"] for row in from_store.rows] == [entry["date"] for entry in entries(workdir)[::-1]]


@pytest.mark.slow
def test_metrics_equal_those_of_the_verb(run, workdir, capsys):
    options = {"num": 8, "steps": 3, "batch_size": 8}
    metrics = run.evaluate(["fd_pixels", "reconstruction"], **options, store=False)
    flags = ["--metrics=fd_pixels,reconstruction", "--num=8", "--steps=3", "--batch_size=8"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    stored = {name: about for entry in entries(workdir)[-2:] for name, about in entry["metrics"].items()}
    assert {"fd_pixels", "fd_pixels_infinity", "reconstruction.mse"} <= metrics.keys() == stored.keys()
    for name, estimate in metrics.items():
        assert estimate.standard_error == stored[name]["standard_error"]
    assert metrics["fd_pixels"].value == stored["fd_pixels"]["value"]
    capsys.readouterr()
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    out = capsys.readouterr().out
    assert out.count("--recompute computes it again") == 2 and "FD-pixels" in out and "MSE" in out


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sweep", {"steps": [2, "x"]}, "must be whole numbers"),
        ("sweep", {"metrics": "fd_pixel"}, "did you mean 'fd_pixels'?"),
        ("sweep", {"num": 1}, "must be a whole number from 2"),
        ("sweep", {"guidence": [1, 2]}, "did you mean 'guidance'?"),
        ("sweep", {"metric": "fd_pixels"}, "unknown argument 'metric': did you mean 'metrics'?"),
        ("evaluate", {"metrics": []}, "there are no metrics"),
        ("evaluate", {"metrics": "fid"}, "inception"),
        ("evaluate", {"metrics": "fd_dinov2", "dinov2": "gone"}, "dinov2=gone: no such folder"),
        ("evaluate", {"metrics": "fd_pixels", "reference": "gone.npz"}, "reference=gone.npz: cannot be read"),
        ("sweep", {"metrics": "fd_pixels", "reference": "gone.npz"}, "reference=gone.npz: cannot be read"),
        ("evaluate", {"metrics": "nll", "terms": -1}, "terms=-1: must be a whole number from 0"),
        ("evaluate", {"metrics": "fd_pixels", "steps": [2, 3]}, "must be one value"),
    ],
)
def test_invalid_arguments_of_metrics_raise(run, method, options, message):
    with pytest.raises(UserError) as error:
        getattr(run, method)(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 10}, "labels=10: must be from 0 to 9"),
        ({"labels": "cat"}, "labels=cat: must be a whole number from 0"),
        ({"labels": [1, 2], "num": 3}, "num=3: there are 2 labels"),
        ({"num": 0}, "num=0: must be a whole number from 1 to 10,000,000"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"seed": 2**32}, "seed=4294967296: must be a whole number from 0"),
        ({"steps": 21}, "21"),
        ({"steps": 2.5}, "steps=2.5: must be whole numbers"),
        ({"steps": [2, 3]}, "steps=[2, 3]: must be one value"),
        ({"steps": "2,3"}, "steps=2,3: must be one value"),
        ({"sampler": "dim"}, "did you mean 'ddim'?"),
        ({"sampler": ""}, "sampler=: the value is empty"),
        ({"guidence": 2}, "unknown argument 'guidence': did you mean 'guidance'?"),
        ({"label": 3}, "unknown argument 'label': did you mean 'labels'?"),
        ({"prompts": "a circle"}, "prompts: requires a text-conditioned model"),
        ({"prompts": ["a circle", ""]}, "prompts=: must be one text that is not blank"),
        ({"negative_prompt": ["a circle"]}, "negative_prompt=['a circle']: must be one text that is not blank"),
        ({"negative_prompt": "\n"}, "negative_prompt= : must be one text that is not blank"),
        ({"negative_prompt": "\x1b"}, "negative_prompt has the control character"),
        ({"negative_prompt": "a circle"}, "negative_prompt: requires a diffusion model or pipeline with"),
        ({"weak_scale": 2}, "weak_scale: requires weak=RUN"),
        ({"weak": "nowhere"}, "nowhere"),
    ],
)
def test_errors_name_arguments(run, options, message):
    with pytest.raises(UserError) as error:
        run.sample(**options)
    assert message in str(error.value) and "\n" not in str(error.value) and "--" not in str(error.value)


def test_notes_name_arguments_and_commands_keep_their_flags(run, capsys, tmp_path):
    run.sample(2, labels=3, guidance=2, guidance_low=3, guidance_high=2, steps=2, sampler="ddim", batch_size=8)
    assert "note: guidance_low=3, guidance_high=2: the interval is empty" in capsys.readouterr().err
    (tmp_path / "config.json").write_text((run.workdir.config).read_text())
    with pytest.raises(UserError, match=re.escape(f"diffjax train --workdir={tmp_path}")):
        diffjax.load(tmp_path)


@pytest.mark.slow
def test_invalid_arguments_of_a_denoiser_raise(run, trained_runs):
    with pytest.raises(UserError, match="unknown argument of a denoiser 'steps'"):
        run.denoiser(labels=3, steps=5)
    with pytest.raises(UserError, match="labels is missing"):
        run.denoiser()
    with pytest.raises(UserError, match="requires a diffusion model"):
        diffjax.load(trained_runs("vae")).denoiser()
    with pytest.raises(UserError, match="pass prompts"):
        diffjax.load(trained_runs("dalle")).sample()


# Images of a class are N(mean, STD^2 I), so the ideal network is known. Row 10 is the null class.
MEANS, STD = np.linspace(-1.0, 0.5, 11, dtype=np.float32)[:, None], 0.5


def ideal_noise(x, t, mean):
    """Returns the expected noise in x [..., 8, 8, 1] at the network's time t [...], for the mean [..., 1]."""
    noise = noise_schedules.cosine(1000)(t + 1)
    alpha, sigma = (jnp.expand_dims(level, (-1, -2, -3)) for level in (noise.alpha, noise.sigma))
    return sigma * (x - alpha * jnp.expand_dims(mean, (-2, -3))) / (alpha**2 * STD**2 + sigma**2)


def linen_network():
    from flax import linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, t, label):
            return ideal_noise(x, t, nn.Embed(11, 1, embedding_init=lambda *_: jnp.asarray(MEANS))(label))

    module = Network()
    params = module.init(jax.random.key(0), *EXAMPLE)
    return lambda x, t, label: module.apply(params, x, t, label)


def nnx_network():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.means = nnx.Embed(11, 1, rngs=rngs, embedding_init=lambda *_: jnp.asarray(MEANS))

        def __call__(self, x, t, label):
            return ideal_noise(x, t, self.means(label))

    return Network(nnx.Rngs(0))


def equinox_network():
    equinox = pytest.importorskip("equinox")

    class Network(equinox.Module):
        means: equinox.nn.Embedding

        def __call__(self, x, t, label):
            return ideal_noise(x, t, self.means(label))

    module = Network(equinox.nn.Embedding(weight=jnp.asarray(MEANS)))
    return lambda x, t, label: jax.vmap(module)(x, t, label)


def haiku_network():
    haiku = pytest.importorskip("haiku")

    def network(x, t, label):
        return ideal_noise(x, t, haiku.Embed(embedding_matrix=jnp.asarray(MEANS))(label))

    transformed = haiku.transform(network)
    params = transformed.init(jax.random.key(0), *EXAMPLE)
    return lambda x, t, label: transformed.apply(params, None, x, t, label)


EXAMPLE = np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)


@pytest.fixture(scope="module")
def example():
    """Returns the example of the docs as a function of a network (x, t, label) -> noise."""
    blocks = re.findall(r"```python\n(.*?)```", (tiny.ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    (source,) = [block for block in blocks if "network(" in block]

    def run_example(network):
        scope = {"network": network}
        exec(source, scope)
        return scope

    return run_example


@pytest.mark.slow
@pytest.mark.parametrize("make_network", [linen_network, nnx_network, equinox_network, haiku_network])
def test_the_example_solves_the_ode_of_networks_of_any_library(example, make_network):
    """Guidance of two Gaussians of one width is a Gaussian: its ODE moves x / std along a line.

    Its mean is null + 2 (class 3 - null), the extrapolation of classifier-free guidance.
    """
    scope = example(make_network())
    levels = scope["levels"]
    no_steps = sampling.sample(scope["keys"], scope["guided"], samplers.ddim(), levels, 0, shape=(8, 8, 1))
    x, alpha, sigma = np.asarray(no_steps), float(levels.alpha[0]), float(levels.sigma[0])
    mean = 2.0 * MEANS[3] - MEANS[10]
    exact = mean + STD * (x - alpha * mean) / np.hypot(alpha * STD, sigma)
    np.testing.assert_allclose(scope["images"], exact, atol=0.02)
    assert abs(mean - MEANS[3]) > 0.5  # guidance moves the mean
