"""Pipelines of diffusers with random weights sample the same images after an import, and after an export."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
scheduling_lcm = pytest.importorskip("diffusers.schedulers.scheduling_lcm")

from diffjax import cli  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests.conversion.diffusers_pipelines import PIPELINES  # noqa: E402

pytestmark = pytest.mark.parity

STEPS = 3  # random networks amplify rounding
LABEL = 3
CAPTIONS = ["a cat", "two cats, éa"]
NASTY_CAPTIONS = [
    *("", " ", "!", "!!", "! !", "wow!! a cat's, don't", "hello!world?!", "<|endoftext|> x", "x<|startoftext|>y!"),
    *("😀 cat👍🏽", "two\nlines\tand\r\ntabs", "éa 日本語 ŝ", "3.14 & 1,000", "cat " * 200, "!" * 200, "CAT\u200bcat"),
]
CAPTIONED = ("inpaint", "lcm", "sd1", "sd2")


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


def pipelines(*, captions):
    """Returns a parametrization by the pipelines that are conditioned on captions, or those that are not."""
    return pytest.mark.parametrize(
        "folders", [name for name in PIPELINES if (name in CAPTIONED) == captions], indirect=True, scope="module"
    )


@pytest.fixture(scope="module", params=PIPELINES)
def folders(request, tmp_path_factory):
    """Returns a pipeline, its import, and the export of the import."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = PIPELINES[request.param]()
    pipeline.save_pretrained(folder / "theirs")
    launch("import", f"--source={folder / 'theirs'}", f"--workdir={folder / 'run'}")
    launch("export", f"--workdir={folder / 'run'}", f"--out={folder / 'exported'}", "--format=diffusers")
    return pipeline, folder


def sample(run, latents, guidance=1.0, **conditions):
    """Returns images of a run from x_T."""
    settings = run.system.make_settings(run.config.sampler, steps=STEPS, guidance=guidance, temperature=0.0)
    conditions |= {"latent": latents, "label": np.full(len(latents), LABEL)}
    if run.tokenizer:
        conditions["tokens"] = run.tokenizer.encode(CAPTIONS, run.system.text.length)
    keys = jax.random.split(jax.random.key(0), len(latents))
    return np.asarray(jax.jit(run.system.sample)(run.variables, keys, conditions, settings))


def nchw(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def sample_theirs(pipeline, latents):
    """Returns images of a pipeline from x_T: its loop, which itself does not accept x_T."""
    x = nchw(latents)
    pipeline.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            if hasattr(pipeline, "unet"):
                output = pipeline.unet(x, t).sample
            else:
                labels = torch.full((len(x),), LABEL)
                output = pipeline.transformer(x, timestep=t.expand(len(x)), class_labels=labels).sample
                output = output[:, : x.shape[1]]  # without the learned variance
            x = pipeline.scheduler.step(output, t, x, eta=0.0).prev_sample
        codec = getattr(pipeline, "vqvae", getattr(pipeline, "vae", None))
        if codec:
            x = codec.decode(x / codec.config.scaling_factor).sample
    return x.clamp(-1, 1).permute(0, 2, 3, 1).numpy()


@pipelines(captions=False)
def test_the_import_samples_the_same_images(folders):
    pipeline, folder = folders
    run = load(folder / "run")
    latents = np.random.default_rng(0).normal(size=(2, *run.system.data_space.shape)).astype(np.float32)
    expected = sample_theirs(pipeline, latents)
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(run, latents), expected, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pipelines(captions=True)
def test_stable_diffusion_draws_captions_as_its_pipeline_does(folders, guidance, monkeypatch):
    """Without the noise that the sampler of latent consistency models adds in each step."""
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda shape, **_: torch.zeros(shape))
    pipeline, folder = folders
    run = load(folder / "run")
    latents = np.random.default_rng(0).normal(size=(2, *run.system.data_space.shape)).astype(np.float32)
    theirs, ours = {}, {}
    if "masked_image" in run.system.conditions.each:
        image = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
        known = np.ones((2, 32, 32, 1), np.float32)
        known[:, 5:20, 9:31] = 0.0
        ours = {"image": image, "mask": known}
        theirs = {"image": nchw(image), "mask_image": nchw(1 - known), "height": 32, "width": 32}
    expected = pipeline(
        CAPTIONS,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=nchw(latents),
        output_type="np",
        **theirs,
    ).images
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(run, latents, guidance, **ours) / 2 + 0.5, expected, atol=2e-3)


def test_the_export_is_the_source_bit_for_bit(folders):
    """Weights, and what the classes of diffusers read from the configs."""
    pipeline, folder = folders
    exported = type(pipeline).from_pretrained(folder / "exported")
    for name in pipeline.components:
        ours, theirs = getattr(exported, name), getattr(pipeline, name)
        if name == "tokenizer":
            assert ours(CAPTIONS).input_ids == theirs(CAPTIONS).input_ids
        if not hasattr(theirs, "config"):
            continue
        configs = [part.config if isinstance(part.config, dict) else part.config.to_dict() for part in (theirs, ours)]
        before, after = (json.loads(json.dumps(dict(config))) for config in configs)
        differing = [field for field in before if not field.startswith("_") and before[field] != after.get(field)]
        assert not differing, name
        if hasattr(theirs, "state_dict"):
            before, after = theirs.state_dict(), ours.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)


@pipelines(captions=True)
def test_captions_have_the_tokens_of_the_pipeline(folders):
    """Stable Diffusion 2 pads with "!", which its tokenizer then finds in any word."""
    pipeline, folder = folders
    run = load(folder / "run")
    tokens = run.tokenizer.encode(NASTY_CAPTIONS, 12)
    padding = pipeline.tokenizer.pad_token_id
    expected = pipeline.tokenizer(NASTY_CAPTIONS, padding="max_length", max_length=12, truncation=True).input_ids
    np.testing.assert_array_equal(np.where(tokens < 0, padding, tokens), expected)


@pytest.mark.parametrize("folders", [name for name in CAPTIONED if name != "lcm"], indirect=True, scope="module")
def test_a_single_file_of_stable_diffusion_is_imported_bit_for_bit(folders, tmp_path):
    """The export under the names of CompVis, and for Stable Diffusion 2 of open_clip."""
    _, folder = folders
    launch("export", f"--workdir={folder / 'run'}", f"--out={tmp_path / 'file'}", "--format=safetensors")
    source, config = tmp_path / "file" / "model.safetensors", tmp_path / "file" / "config.json"
    vocabulary = f"--config.parts.clip.text.tokenizer={folder / 'theirs' / 'tokenizer'}"
    launch("import", f"--source={source}", f"--config={config}", vocabulary, f"--workdir={tmp_path / 'run'}")
    for part in (".", "codec", "clip"):
        before, after = (path / part / "weights.safetensors" for path in (folder / "run", tmp_path / "run"))
        assert before.read_bytes() == after.read_bytes(), part
