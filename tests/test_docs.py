"""The README and docs/ agree with the code."""

import importlib.util
import re
import shutil

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

from diffjax import evaluation, reproduce
from diffjax.diffusion import noise_schedules, samplers, sampling, time_grids
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import ddim_step, log_snr
from diffjax.models.diffusion.axes import AXES
from diffjax.registry import choices
from diffjax.reproduce import plan
from diffjax.runs.config_fields import documented_fields
from tests import command_line, tiny

DOCS = tiny.ROOT / "docs"


@pytest.mark.slow
def test_the_example_sampler_is_dpmpp_2m():
    scope = {"Sampler": samplers.Sampler, "jnp": jnp, "log_snr": log_snr, "ddim_step": ddim_step}
    source = re.search(r"```python\n(.*?)```", (DOCS / "diffusion.md").read_text(), re.DOTALL).group(1)
    assert source.count("\n") <= 20
    exec(source, scope)
    schedule = noise_schedules.cosine(100)
    levels = schedule(time_grids.trailing(10, schedule))
    keys = jax.random.split(jax.random.key(0), 50)
    samples = [
        sampling.sample(keys, lambda x, noise: Denoised(jnp.tanh(x)), sampler, levels, 10, shape=(2,))
        for sampler in (scope["two_step"](), samplers.dpmpp_2m(), scope["two_step"](share=0.0))
    ]
    np.testing.assert_allclose(samples[0], samples[1], rtol=1e-4, atol=1e-5)
    assert np.abs(samples[0] - samples[2]).max() > 0.01


@pytest.mark.slow
def test_every_example_of_the_python_page_runs(trained_runs, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    shutil.copy(trained_runs.config("pixel"), tmp_path / "configs" / "digits.py")
    trained_runs.copy("pixel", tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    scope = {"network": lambda x, t, label: 0.1 * x}
    first, metrics, second, third = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    exec(first, scope)
    assert scope["images"].shape == (16, 8, 8, 1) and (tmp_path / "threes.png").exists()
    exec(metrics, scope)
    assert len(scope["result"]) == 3 and scope["metrics"]["nll.bound"].value > 0
    exec(second, scope)
    assert scope["x0"].shape == scope["gradient"].shape == scope["x0_of_each"].shape == (4, 8, 8, 1)
    np.testing.assert_allclose(scope["x0_of_each"][3], scope["x0"][3], atol=1e-4)
    exec(third, scope)
    assert scope["images"].shape == (4, 8, 8, 1)


def script(name: str):
    """Returns a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [pytest.param("combinations", marks=pytest.mark.slow), "experiments"])
def test_generated_pages_are_up_to_date(page):
    assert script(page).main() == (DOCS / f"{page}.md").read_text()


@pytest.mark.slow
def test_the_reference_has_every_flag_field_and_choice():
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    hooks = script("hooks")
    for section in re.split(r"^## ", hooks.commands(), flags=re.MULTILINE)[1:]:
        verb, _, text = section.partition("\n")
        for name in command_line.flags_of(verb):
            assert re.search(rf"^\| `--{name}[=`]", text, re.MULTILINE), (verb, name)
    fields = hooks.config_fields()
    assert all(f"| `{name}` |" in fields for name in documented_fields())
    listed = hooks.choices_of_diffusion()
    assert all(f"[`{name}`]" in listed for module in (samplers, noise_schedules) for name in choices(module))


def test_the_example_experiment_is_valid():
    source = re.search(r"```python\n(EXPERIMENT.*?)```", (DOCS / "evaluation.md").read_text(), re.DOTALL).group(1)
    scope = {name: getattr(reproduce, name) for name in reproduce.__all__}
    exec(source, scope)
    experiment = scope["EXPERIMENT"]
    assert len(plan.make_groups(experiment, experiment.scales["small"], {})) == 3  # one trained model per seed


def test_every_metric_is_listed():
    text = (DOCS / "evaluation.md").read_text()
    for name in evaluation.OF_DATA | {
        "classifier_accuracy": None,
        "cas": None,
        "fid": None,
        "kid": None,
        "is": None,
        "sfid": None,
    }:
        assert f"`{name}`" in text, name


def test_every_choice_is_listed():
    text = (DOCS / "diffusion.md").read_text()
    for axis in AXES:
        for name in choices(axis.module):
            assert re.search(rf"`{name}[`(]", text), name


def test_figures_do_not_have_the_command_and_folders_that_made_them():
    with_command = [path for path in DOCS.rglob("*.png") if "diffjax" in Image.open(path).info]
    assert not with_command, with_command


def test_every_linked_file_exists():
    pages = [path for path in DOCS.rglob("*.md") if "reports" not in path.parts]
    for path in [*tiny.ROOT.glob("*.md"), *pages]:
        for link, config in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)|`(configs/\w+\.py)`", path.read_text()):
            assert ((path.parent / link) if link else (tiny.ROOT / config)).exists(), (path, link, config)


def test_every_source_on_the_mathematics_page_exists():
    for file, name in re.findall(r"<!-- source: (\S+) (\S+) -->", (DOCS / "mathematics.md").read_text()):
        assert re.search(rf"^def {name}\(", (tiny.ROOT / file).read_text(), re.MULTILINE), (file, name)


def test_every_name_on_the_architecture_page_exists():
    """Checks files, `module.function` and `Class.attribute`; sections of configs are skipped."""
    text = (DOCS / "architecture.md").read_text()
    sources = {path: path.read_text() for path in (tiny.ROOT / "diffjax").rglob("*.py")}
    for file in re.findall(r"`([a-z_/]+\.py)`", text):
        assert (tiny.ROOT / file).exists() or any(str(path).endswith(f"/{file}") for path in sources), file
    for owner, name in re.findall(r"`(\w+)\.(\w+)`", text):
        inside = [
            source for path, source in sources.items() if path.stem == owner or re.search(rf"class {owner}\b", source)
        ]
        if name != "py" and owner not in {"train", "model", "sampler"} and inside:
            assert any(re.search(rf"\b{name}\b", source) for source in inside), f"{owner}.{name}"
