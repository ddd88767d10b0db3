"""The verbs on text-conditioned runs: a tiny DALL-E of shapes with its codec and its CLIP."""

import re

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.cli import settings
from diffjax.data import shapes, tokenizer
from diffjax.evaluation import real_images
from diffjax.inference.image_grids import GAP, read_images
from diffjax.inference.reranking import load_reranker
from tests import clip_folder, tiny
from tests.command_line import launch, refused, result, sample

RED, BLUE = "a small red circle", "three blue squares"


@pytest.fixture(scope="module")
def dalle(run_copy):
    return run_copy("dalle")


@pytest.mark.slow
def test_images_of_a_prompt_depend_on_their_seeds_only(dalle, tmp_path):
    arrays = sample(dalle, tmp_path, f"--prompt={RED}", "--num=6", "--seed=3")
    assert arrays["images"].shape == (6, 8, 8, 3)
    assert list(arrays["captions"]) == [RED] * 6
    np.testing.assert_array_equal(arrays["seeds"], 3 + np.arange(6))
    later = sample(dalle, tmp_path, f"--prompt={RED}", "--num=2", "--seed=7")
    np.testing.assert_array_equal(later["images"], arrays["images"][4:])


@pytest.mark.slow
def test_each_prompt_of_a_file_has_a_row(dalle, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{RED}\n\n  {BLUE}  \n")
    flags = [f"--prompts={file}", "--num=3"]
    assert list(sample(dalle, tmp_path, *flags)["captions"]) == [RED] * 3 + [BLUE] * 3
    assert launch("sample", f"--workdir={dalle}", f"--out={tmp_path}/a.png", "--batch_size=8", *flags) == 0
    assert Image.open(tmp_path / "a.png").height == 2 * (64 + GAP) + GAP  # the prompts are on the left of the rows
    np.testing.assert_array_equal(read_images(tmp_path / "a.png"), sample(dalle, tmp_path, *flags)["images"])


@pytest.mark.slow
def test_best_of_keeps_the_images_nearest_to_the_caption(dalle, tmp_path):
    candidates = sample(dalle, tmp_path, f"--prompt={RED}", "--num=12")
    best = sample(dalle, tmp_path, f"--prompt={RED}", "--num=3", "--best_of=12", f"--clip={dalle}/clip")
    reranker = load_reranker(diffjax.load(dalle), batch_size=8)
    scores = reranker.embed_images(candidates["images"]) @ reranker.embed_captions([RED])[0]
    order = np.argsort(-scores, kind="stable")[:3]
    np.testing.assert_array_equal(best["seeds"], candidates["seeds"][order])
    np.testing.assert_array_equal(best["images"], candidates["images"][order])


@pytest.mark.slow
def test_completions_keep_the_top_of_the_image(dalle, tmp_path):
    """The top rows are nearly equal in all completions, and equal to the codec's reconstruction of the image."""
    flags = [f"--prompt={RED}", "--num=16"]
    free = sample(dalle, tmp_path, *flags)["images"].astype(float)
    completed = sample(dalle, tmp_path, *flags, "--initial_image=test:0")["images"].astype(float)
    image = shapes.render(shapes.scene("test", 0), 8)
    codec = diffjax.load(dalle / "codec").codec
    reconstruction = np.asarray(codec.from_codes(codec.to_codes(image[None].astype(np.float32) / 127.5 - 1)))[0]
    top, expected = np.s_[:, :2], (reconstruction + 1) * 127.5
    assert completed[top].std(axis=0).mean() < 0.5 * free[top].std(axis=0).mean()
    assert np.abs(completed[top] - expected[:2]).mean() < 0.5 * np.abs(free[top] - expected[:2]).mean()
    assert completed[:, -2:].std(axis=0).mean() > 0.5 * free[:, -2:].std(axis=0).mean()


@pytest.mark.slow
def test_settings_of_token_sampling_change_the_images(dalle, tmp_path):
    """The guidance scale is large, because a model after few steps hardly depends on the caption."""
    default = sample(dalle, tmp_path, f"--prompt={RED}", "--num=4")["images"]
    for flags in (["--guidance=1e5"], ["--top_k=2", "--temperature=0.5"], ["--top_p=0.5"]):
        images = sample(dalle, tmp_path, f"--prompt={RED}", "--num=4", *flags)["images"]
        assert not np.array_equal(images, default), flags


def test_a_truncated_prompt_is_noted(dalle, tmp_path, capsys):
    long_prompt = "a small red circle " * 500
    assert len(sample(dalle, tmp_path, f"--prompt={long_prompt}", "--num=2")["images"]) == 2
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: prompt")]
    assert "note: prompt 1, 'a small red circle" in note and "the model reads 10" in note
    cut, total = map(int, re.search(r"the last (\d+) of its (\d+) tokens are cut", note).groups())
    assert total - cut == 10 and total >= 2000


REFUSED = {
    "no prompt": ([], "pass --prompt=TEXT or --prompts=FILE"),
    "two sources": ([f"--prompt={RED}", "--prompts=x.txt"], "--prompts: is not supported with --prompt"),
    "empty prompt": (["--prompt=  "], "--prompt=  : the value is empty"),
    "missing file": (["--prompts=TMP/none.txt"], "--prompts=TMP/none.txt: cannot be read"),
    "folder": (["--prompts=TMP"], "--prompts=TMP: cannot be read"),
    "not UTF-8": (["--prompts=TMP/latin.txt"], "line 1 is not UTF-8"),
    "blank file": (["--prompts=TMP/empty.txt"], "every line is blank"),
    "control character": (["--prompt=a\x1b[31mred"], r"has the control character '\x1b'"),
    "CLIP without best_of": ([f"--prompt={RED}", "--clip=DALLE/clip"], "--clip: requires --best_of"),
    "classifier": ([f"--prompt={RED}", "--classifier=DALLE"], "--classifier: requires a diffusion model"),
    "negative prompt": (
        [f"--prompt={RED}", "--negative_prompt=blue"],
        "--negative_prompt: requires a diffusion model or",
    ),
    "sampler": ([f"--prompt={RED}", "--sampler=ddim"], "--sampler: requires a diffusion model, a pipeline or"),
    "fewer than kept": ([f"--prompt={RED}", "--num=4", "--best_of=2"], "--best_of=2: must be at least --num=4"),
    "no run": ([f"--prompt={RED}", "--num=1", "--best_of=2", "--clip=TMP"], "is not a run"),
    "not a CLIP": ([f"--prompt={RED}", "--num=1", "--best_of=2", "--clip=DALLE/codec"], "CLIP"),
    "label": (["--label=3"], "--label: requires a model that is not text-conditioned"),
    "fraction without image": ([f"--prompt={RED}", "--keep_fraction=0.5"], "--keep_fraction: requires --initial_image"),
    "whole image": ([f"--prompt={RED}", "--initial_image=test:0", "--keep_fraction=1"], "keep_fraction=1"),
    "missing image": ([f"--prompt={RED}", "--initial_image=TMP/none.png"], "none.png"),
    "edit": ([f"--prompt={RED}", "--image=test:0", "--strength=0.5"], "--image: requires a diffusion model"),
}


@pytest.fixture(scope="module")
def opened(dalle):
    return diffjax.load(dalle)


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_do_not_fit_a_text_conditioned_run(dalle, opened, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(settings, "load", lambda *_, **__: opened)
    flags, message = REFUSED[case]
    (tmp_path / "latin.txt").write_bytes("ein grüner Kreis".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    flags = [flag.replace("TMP", str(tmp_path)).replace("DALLE", str(dalle)) for flag in flags]
    error = refused(capsys, "sample", f"--workdir={dalle}", f"--out={tmp_path}/a.png", *flags)
    assert message.replace("TMP", str(tmp_path)) in error
    assert not (tmp_path / "a.png").exists()


def test_a_clip_does_not_sample(dalle, tmp_path, capsys):
    error = refused(capsys, "sample", f"--workdir={dalle}/clip", f"--out={tmp_path}/a.png", f"--prompt={RED}")
    assert "system=clip does not sample images" in error


def test_samples_are_compared_with_their_captions(dalle, capsys, monkeypatch):
    monkeypatch.setattr(real_images, "MAX_IMAGES", 200)  # number of real images
    flags = ["--metrics=clip_score,r_precision,cmmd,caption_accuracy", "--num=24", "--batch_size=8"]
    assert launch("evaluate", f"--workdir={dalle}", *flags) == 0
    assert "CLIP score" in capsys.readouterr().out
    values = result(dalle, "caption_accuracy")["metrics"]
    parts = [values[f"caption_{part}"]["value"] for part in ("count", "colour", "shape")]
    assert values["caption_accuracy"]["value"] <= min(parts)
    real = [values[name]["real"]["value"] for name in ("caption_accuracy", "caption_relation")]
    assert 0.5 < real[0] < real[1]  # the images are tiny
    assert values["caption_accuracy"]["chance"] < 0.05 and values["caption_relation"]["chance"] == 0.25
    assert values["caption_colour"]["chance"] < 0.3 < values["caption_count"]["chance"] < 0.6
    assert 0 <= result(dalle, "clip_score")["metrics"]["clip_score"]["value"] <= 100
    assert "captions of test" in result(dalle, "caption_accuracy")["prompts"]


@pytest.mark.slow
def test_metrics_of_a_clip(dalle, capsys):
    clip = dalle / "clip"
    assert launch("evaluate", f"--workdir={clip}", "--metrics=retrieval,composition", "--num=40") == 0
    retrieval = result(clip, "retrieval")["details"]
    for direction in ("text_of_image", "image_of_text"):
        values = [retrieval[f"{direction}_{k}"]["mean"] for k in (1, 5, 10)]
        assert values == sorted(values)
        assert 1 / 40 <= retrieval[f"{direction}_1"]["chance"] < 0.1 < retrieval[f"{direction}_10"]["chance"] < 0.5
    assert retrieval["captions"] <= 40
    composition = result(clip, "composition")["details"]
    assert {"colour", "shape", "size", "order", "binding"} <= composition.keys()
    assert composition["order"]["chance"] == 0.5
    assert "order" in capsys.readouterr().out


@pytest.fixture(scope="module")
def published_clip(tmp_path_factory):
    folder = clip_folder.write(
        tmp_path_factory.mktemp("published"),
        clip_folder.CONFIG | {"text_config": clip_folder.TEXT | {"vocab_size": 300}},
        clip_folder.tensors(300),
    )
    tokenizer.train([RED, BLUE], 300).save(folder / "tokenizer.json")
    return folder


@pytest.mark.slow
def test_a_published_clip_ranks_and_scores(dalle, published_clip, tmp_path):
    flags = [f"--prompt={RED}", "--num=2", "--best_of=6", f"--clip={published_clip}"]
    assert sample(dalle, tmp_path, *flags)["images"].shape == (2, 8, 8, 3)
    flags = ["--metrics=clip_score", "--num=8", f"--clip={published_clip}"]
    assert launch("evaluate", f"--workdir={dalle}", *flags) == 0
    assert result(dalle, "clip_score")["reference"]["judge"]["clip"].startswith("sha256:")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["part", "published"])
def test_a_prior_conditioned_on_embeddings_of_a_frozen_clip(dalle, published_clip, tmp_path, source):
    clip = "@clip" if source == "part" else str(published_clip)
    changes = {"model__condition": "clip", "model__masks": (), "model__last_mask": "", "clip": clip}
    config = tiny.write_dalle(tmp_path, **changes, loss={"text_weight": 0.0})
    codec = f"--config.codec={dalle}/codec"
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}/run", codec) == 0
    run = diffjax.load(tmp_path / "run")
    assert run.system.text.length == (12 if source == "part" else 5)
    assert "text_head" not in run.variables["params"]["model"]
    arrays = sample(tmp_path / "run", tmp_path, f"--prompt={RED}", "--num=2", "--guidance=2")
    assert arrays["images"].shape == (2, 8, 8, 3)
