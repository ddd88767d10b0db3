"""The verbs on pipelines: a tiny unCLIP and a tiny GLIDE of shapes."""

import shutil

import numpy as np
import pytest

import diffjax
from diffjax.cli import settings
from diffjax.cli.sample import parse_flags
from diffjax.data import shapes, tokenizer
from diffjax.inference import image_grids
from diffjax.inference.sample_flags import SampleFlags
from diffjax.inference.sample_requests import RunSampler
from tests.command_line import entries, launch, refused, sample

RED, BLUE = "a small red circle", "a large blue square"


@pytest.fixture(scope="module")
def unclip(run_copy):
    """The stages prior and decoder, of 8x8 images."""
    return run_copy("unclip")


@pytest.fixture(scope="module")
def unclip_all(run_copy):
    """Also with the stages pca, ar_prior and upsampler, of 16x16 images."""
    return run_copy("unclip_all")


CASES = {
    "diffusion prior": [f"--prompt={RED}", "--prior=diffusion", "--steps=prior:2,decoder:2"],
    "text difference": ["--image=test:0", f"--prompt={RED}", f"--base_prompt={BLUE}", "--interpolate=4"],
    "autoregressive prior": [f"--prompt={RED}", "--prior=ar"],
    "no prior": [f"--prompt={RED}", "--prior=none", "--guidance=3"],
    "variations": ["--image=test:0"],
    "inversion": ["--image=test:0", "--invert", "--eta=0"],
    "two images": ["--image=test:0,test:1", "--interpolate=4"],
    "components": ["--image=test:0", "--components=1,2,4,12"],
    "inpainting": ["--image=test:0", "--mask=left", f"--prompt={RED}"],
    "edit": ["--image=test:0", "--strength=0.5", f"--prompt={RED}"],
}


def grid(workdir, folder, *flags):
    """Returns the images of a grid of `launch.py sample`."""
    path = folder / "grid.png"
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", "--batch_size=8", *flags) == 0
    return image_grids.read_images(path)


def test_samples_of_unclip(unclip, tmp_path):
    assert grid(unclip, tmp_path, "--num=4", *CASES["diffusion prior"]).shape == (4, 8, 8, 3)
    settings = image_grids.read_settings(tmp_path / "grid.png")
    assert settings["prompt"] == RED and settings["sampler"]["decoder:steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_all_manipulations_of_unclip(unclip_all, tmp_path, case):
    assert grid(unclip_all, tmp_path, "--num=4", *CASES[case]).shape == (4, 16, 16, 3)


@pytest.mark.slow
def test_a_stage_caches_features(unclip_all, tmp_path, capsys):
    flags = [f"--prompt={RED}", "--steps=decoder:2,upsampler:3", "--prior=none", "--cache_interval=upsampler:2"]
    grid(unclip_all, tmp_path, "--num=4", *flags)
    assert "deep features of the network: computed in 4 of 5 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_each_prompt_has_its_own_images(unclip, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{RED}\n{BLUE}\n")
    arrays = sample(unclip, tmp_path, f"--prompts={tmp_path}/prompts.txt", "--num=2", "--prior=none")
    assert list(arrays["captions"]) == [RED, RED, BLUE, BLUE]
    assert not np.array_equal(arrays["images"][0], arrays["images"][2])


@pytest.mark.slow
def test_glide_samples_inpaints_and_is_guided_by_clip(run_copy, tmp_path):
    glide, flags = run_copy("glide"), [f"--prompt={RED}", "--num=2", "--guidance=1"]
    unguided = sample(glide, tmp_path, *flags)["images"]
    guided = sample(glide, tmp_path, *flags, "--clip_scale=100")["images"]
    assert unguided.shape == (2, 16, 16, 3)
    assert not np.array_equal(unguided, guided)
    inpainted = sample(glide, tmp_path, f"--prompt={RED}", "--num=2", "--image=test:0", "--mask=left")["images"]
    image = shapes.render(shapes.scene("test", 0), 16)
    np.testing.assert_array_equal(inpainted[:, :, 8:], np.stack([image, image])[:, :, 8:])


@pytest.mark.slow
def test_a_pipeline_is_evaluated_and_swept(unclip, capsys):
    assert launch("evaluate", f"--workdir={unclip}", "--metrics=caption_accuracy", "--num=8", "--prior=none") == 0
    assert entries(unclip)[-1]["num"] == 8
    flags = ["--steps=decoder:1,decoder:3", "--num=8", "--metrics=caption_accuracy", "--prior=none"]
    assert launch("sweep", f"--workdir={unclip}", *flags) == 0
    assert "1 compilation(s)" in capsys.readouterr().out
    assert sorted(cell["settings"]["decoder:steps"] for cell in entries(unclip)[-2:]) == [1, 3]


@pytest.mark.slow
def test_a_stage_samples_variations_of_an_image(unclip_all, tmp_path):
    for stage, size in (("decoder", 8), ("upsampler", 16)):
        images = sample(unclip_all / stage, tmp_path, "--image=test:0", "--num=2")["images"]
        assert images.shape == (2, size, size, 3)


@pytest.mark.slow
def test_a_negative_prompt_changes_guided_samples(unclip, tmp_path):
    """With the prompt itself as the negative prompt, guidance follows the embedding of the image alone."""
    flags = (f"--prompt={RED}", "--num=2", "--guidance=decoder:4")
    none, same, other = (
        sample(unclip, tmp_path, *flags, *(f"--negative_prompt={text}" for text in texts))["images"]
        for texts in ((), (RED,), ("two large blue squares",))
    )
    assert (none != other).any() and (same != other).any()


@pytest.mark.slow
def test_a_finished_pipeline_is_not_trained_again(unclip, trained_runs, capsys):
    assert launch("train", f"--config={trained_runs.config('unclip')}", f"--workdir={unclip}") == 0
    assert capsys.readouterr().out.count("is trained to step 2") == 3


REFUSED = {
    "no prompt": ([], "pass --prompt=TEXT"),
    "unknown stage": ([f"--prompt={RED}", "--steps=decodr:3"], "unknown stage 'decodr'"),
    "unknown prior": ([f"--prompt={RED}", "--prior=gan"], "unknown prior 'gan'"),
    "two values": ([f"--prompt={RED}", "--steps=decoder:3,decoder:4"], "must be one value"),
    "unused stage": ([f"--prompt={RED}", "--prior=none", "--steps=prior:3"], "prior"),
    "no low-resolution image": ([f"--prompt={RED}", "--augmentation=0.5"], "augmentation"),
    "CLIP guidance": ([f"--prompt={RED}", "--clip_scale=3"], "requires a pipeline with a noised_clip stage"),
    "too many steps": ([f"--prompt={RED}", "--steps=prior:99"], "99"),
    "components without an image": (["--components=1,2"], "--components: requires --image"),
    "components without PCA": (["--image=test:0", "--components=1"], "requires a pipeline with a PCA stage"),
    "base prompt without prompt": (["--image=test:0", f"--base_prompt={RED}"], "requires --prompt and --interpolate"),
    "equal prompts": (
        ["--image=test:0", f"--base_prompt={RED}", f"--prompt={RED}", "--interpolate=2"],
        "--base_prompt: has the same embedding as --prompt",
    ),
    "interpolation of seeds": (["--interpolate=4", f"--prompt={RED}"], "--interpolate: requires --image=A,B"),
    "one image of two": (["--interpolate=4", "--image=test:0"], "requires two images, --image=A,B, not 1"),
    "label": ([f"--prompt={RED}", "--label=1"], "--label: requires a model that is not text-conditioned"),
    "negative prompt of variations": (["--image=test:0", "--negative_prompt=blue"], "--negative_prompt: is not"),
    "best of variations": (["--image=test:0", "--best_of=4"], "--best_of: is not supported with --image"),
    "prior of variations": (["--image=test:0", "--prior=none"], "--prior: is not supported with --image"),
    "label of variations": (["--image=test:0", "--label=1"], "--label: requires"),
    "prompt between images": (
        ["--image=test:0,test:1", "--interpolate=2", f"--prompt={RED}"],
        "--prompt: has no effect with --interpolate",
    ),
    "inverted components": (["--image=test:0", "--components=1", "--invert"], "--invert: is not supported"),
    "inverted and resampled": (["--image=test:0", "--invert", "--resample_steps=2"], "--resample_steps: is not"),
    "masked components": (
        ["--image=test:0", "--mask=left", f"--prompt={RED}", "--components=1"],
        "--components: is not supported with --mask",
    ),
    "best of interpolation": (
        ["--image=test:0,test:1", "--interpolate=2", "--best_of=3"],
        "--best_of: is not supported with --interpolate",
    ),
}


@pytest.fixture(scope="module")
def opened(unclip):
    return diffjax.load(unclip)


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_do_not_fit_a_pipeline(unclip, opened, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(settings, "load", lambda *_, **__: opened)  # loading takes a second
    flags, message = REFUSED[case]
    assert message in refused(capsys, "sample", f"--workdir={unclip}", f"--out={tmp_path}/a.png", *flags)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "is_noted"),
    [
        (["--guidance=prior:1,decoder:1"], True),
        (["--guidance=prior:2,decoder:1"], False),
        (["--guidance=prior:1,decoder:2"], False),
        (["--guidance=decoder:1", "--prior=none"], True),
        (["--guidance=1", "--first_condition=image_embedding", "--first_scale=2"], False),
    ],
)
def test_a_negative_prompt_without_guidance_is_noted(unclip, opened, capsys, flags, is_noted):
    parsed = parse_flags([f"--workdir={unclip}", f"--prompt={RED}", "--negative_prompt=blue", *flags])
    flags = SampleFlags(parsed.as_dict(), parsed.given_flags)
    capsys.readouterr()
    RunSampler(opened, flags.values).prepare(flags, [RED])
    note = "note: --negative_prompt: has no effect at guidance=1; set --guidance\n"
    assert capsys.readouterr().err == note * is_noted


@pytest.mark.slow
def test_verbs_that_do_not_fit_a_pipeline_or_stage(unclip, trained_runs, tmp_path, capsys):
    out = f"--out={tmp_path}/a.png"
    error = refused(capsys, "sample", f"--workdir={unclip}", out, f"--prompt={RED}", "--checkpoint=2")
    assert "checkpoint" in error
    error = refused(capsys, "sample", f"--workdir={unclip}/prior", out, f"--prompt={RED}")
    assert "outputs embeddings, not images; sample the full pipeline" in error
    error = refused(capsys, "sample", f"--workdir={unclip}/decoder", out)
    assert "this stage is conditioned on an image; pass --image=FILE" in error
    error = refused(capsys, "benchmark", f"--config={trained_runs.config('unclip')}")
    assert "a pipeline trains nothing itself" in error


@pytest.mark.slow
def test_missing_and_mismatched_stages_are_named(trained_runs, tmp_path, capsys):
    run = trained_runs.copy("unclip", tmp_path / "run")
    command = ["sample", f"--workdir={run}", f"--out={tmp_path}/a.png", f"--prompt={RED}"]
    original = (run / "decoder" / "tokenizer.json").read_bytes()
    tokenizer.train(["quite other words"], 260).save(run / "decoder" / "tokenizer.json")
    assert "different tokenizers, of 300 and 258" in refused(capsys, *command)
    (run / "decoder" / "tokenizer.json").write_bytes(original)
    shutil.rmtree(run / "decoder")
    assert f"`python launch.py train --workdir={run}`" in refused(capsys, *command)


def test_two_images_of_different_captions_are_not_interpolated(run_copy, capsys):
    error = refused(capsys, "evaluate", f"--workdir={run_copy('glide') / 'base'}", "--metrics=interpolation")
    assert "two images differ in conditions.caption" in error
