"""What the README and docs/ show is true."""

import importlib.util
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import evaluation, reproduce
from diffjax.diffusion import noise_schedules, samplers, sampling, time_grids
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import log_snr, transfer
from diffjax.reproduce import plan
from tests import tiny

DOCS = tiny.ROOT / "docs"


def test_the_sampler_that_is_added_is_dpmpp_2m():
    scope = {"Sampler": samplers.Sampler, "jnp": jnp, "log_snr": log_snr, "transfer": transfer}
    source = re.search(r"```python\n(.*?)```", (DOCS / "diffusion.md").read_text(), re.DOTALL).group(1)
    assert source.count("\n") <= 20
    exec(source, scope)
    schedule = noise_schedules.cosine(100)
    levels = schedule(time_grids.trailing(10, schedule))
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = [
        sampling.sample(keys, lambda x, noise: Denoised(jnp.tanh(x)), sampler, levels, 10, shape=(2,))
        for sampler in (scope["two_step"](), samplers.dpmpp_2m(), scope["two_step"](share=0.0))
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01


@pytest.mark.parametrize("page", ["combinations", "experiments"])
def test_a_page_that_is_made_is_what_the_code_says(page):
    spec = importlib.util.spec_from_file_location(page, DOCS / f"{page}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == (DOCS / f"{page}.md").read_text()


def test_the_experiment_that_is_shown_is_one():
    source = re.search(r"```python\n(EXPERIMENT.*?)```", (DOCS / "evaluation.md").read_text(), re.DOTALL).group(1)
    scope = {name: getattr(reproduce, name) for name in reproduce.__all__}
    exec(source, scope)
    made = scope["EXPERIMENT"]
    assert len(plan.make_units(made, made.scales["small"], {})) == 3  # a training for each seed


def test_every_metric_is_listed():
    text = (DOCS / "evaluation.md").read_text()
    for name in evaluation.OF_DATA | {
        "recognised": None,
        "cas": None,
        "fid": None,
        "kid": None,
        "is": None,
        "sfid": None,
    }:
        assert f"`{name}`" in text, name


def test_every_choice_is_listed():
    from diffjax.diffusion import clipping, loss_weighting, losses, parameterizations, time_sampling, variance
    from diffjax.registry import choices

    text = (DOCS / "diffusion.md").read_text()
    for module in (
        noise_schedules,
        parameterizations,
        losses,
        loss_weighting,
        time_sampling,
        variance,
        time_grids,
        samplers,
        clipping,
    ):
        for name in choices(module):
            assert re.search(rf"`{name}[`(]", text), name


def test_every_file_that_is_named_is_there():
    for path in [tiny.ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("results/*.md")]:
        for link, config in re.findall(r"\]\(([\w/.]+)\)|`(configs/\w+\.py)`", path.read_text()):
            assert ((path.parent / link) if link else (tiny.ROOT / config)).exists(), (path, link, config)


def test_every_name_of_the_architecture_is_there():
    """Files, `module.function` and `Class.attribute`; a section of configs is none of these."""
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
