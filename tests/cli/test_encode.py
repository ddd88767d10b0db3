"""`launch.py encode`, and training on stored latents."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.data import ImageOptions, latents_store, open_dataset
from diffjax.models.images import to_unit_range
from diffjax.runs import datasets
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import open_clip
from diffjax.runs.tokenizers import load_tokenizer
from tests import tiny
from tests.command_line import launch, refused, result, sample
from tests.running import steps

SPLITS = {"train[:80%]": 32, "train[80%:]": 8}
COLOURS = ("red", "green", "blue", "white", "grey")


@pytest.fixture(scope="module")
def parts(trained_runs):
    """The folder of two trained runs for 8x8 images in colours: codec, a VQ-VAE, and clip."""
    return trained_runs("dalle")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 40 images in two classes, with captions."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(40):
        path = root / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"a {COLOURS[i % 5]} circle", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def config(parts, images, tmp_path_factory):
    """The config of a diffusion model on the images, conditioned on labels and on captions that CLIP encodes."""
    return tiny.write(
        tmp_path_factory.mktemp("config") / "config.py",
        system="latent",
        codec=str(parts / "codec"),
        clip=str(parts / "clip"),
        model=tiny.DIT | {"patch": 2},
        conditions={"clip_text": {"states": True, "embedding": True, "dropout": 0.25}},
        data__name="folder",
        data__dir=str(images),
        data__split="train[:80%]",
        data__flip=True,
        sampler__threshold="none",
        train__num_preview_samples=2,
        parallel__num_devices=1,
    )


@pytest.fixture(scope="module")
def store(parts, config, tmp_path_factory):
    """Latents of the images and of their mirror images, with text states."""
    out = tmp_path_factory.mktemp("stores") / "store"
    flags = ["--text_states", "--batch_size=16"]
    assert launch("encode", f"--workdir={parts}/codec", f"--config={config}", f"--out={out}", *flags) == 0
    return out


def on_latents(config, store, workdir) -> list[str]:
    """Returns the command that trains on stored latents."""
    data = ["--config.data.name=latents", f"--config.data.dir={store}"]
    return ["train", f"--config={config}", *data, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def run(config, store, tmp_path_factory):
    """The command that trains on the store, and the run's folder."""
    workdir = tmp_path_factory.mktemp("runs") / "on_latents"
    command = on_latents(config, store, workdir)
    assert launch(*command) == 0
    return command, workdir


@pytest.mark.slow
def test_losses_equal_those_of_encoding_in_the_step(config, run, tmp_path):
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}/run") == 0
    expected, actual = steps(tmp_path / "run"), steps(run[1])
    assert len(expected) == len(actual) == 4
    for one, other in zip(expected, actual, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_the_store_has_what_the_models_compute(store, parts, images):
    examples, expected = [], []
    for split, length in SPLITS.items():
        stored = open_dataset("latents", directory=store, split=split, options=ImageOptions(8))
        originals = open_dataset("folder", directory=images, split=split, options=ImageOptions(8))
        assert len(stored) == len(originals) == length
        examples += stored.__getitems__(range(length))
        expected += originals.__getitems__(range(length))
    for field in ("label", "caption"):
        assert [example[field] for example in examples] == [example[field] for example in expected]
    codec = diffjax.load(parts / "codec").codec
    pixels = np.stack([example["image"] for example in expected])
    for name, shown in (("latent", pixels), ("mirrored_latent", pixels[:, :, ::-1])):
        latents = np.stack([example[name] for example in examples])
        np.testing.assert_allclose(latents, codec.encode(to_unit_range(jax.numpy.asarray(shown))), atol=1e-5)
    model, variables = open_clip(parts / "clip", (8, 3, 0))[:2]
    clip = model.clip(variables)
    tokens = load_tokenizer(parts / "clip").encode([example["caption"] for example in expected], clip.text.length)
    for name, function in (("text_states", clip.text_states), ("text_embedding", clip.embed_texts)):
        np.testing.assert_allclose(np.stack([e[name] for e in examples]), function(tokens), atol=1e-5)


def test_a_slice_of_a_stored_split_is_the_slice_of_its_images(store):
    stored = open_dataset("latents", directory=store, split="train[:80%]", options=ImageOptions(8))
    index = latents_store.read_index(str(store), "latents")
    renamed = latents_store.Index(**{**vars(index), "splits": {"train": index.splits["train[:80%]"]}})
    part = latents_store.StoredExamples(str(store), renamed, "train[25%:50%]")
    assert part.length == 8
    for i, example in enumerate(part.read(range(8))):
        np.testing.assert_array_equal(example["latent"], stored[8 + i]["latent"])


def test_shards_have_a_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(latents_store, "_SHARD_BYTES", 100)
    arrays = {"label": (), "latent": (2, 2, 1)}  # 20 bytes, and captions
    latents, labels = np.random.default_rng(0).normal(size=(11, 2, 2, 1)).astype(np.float32), np.arange(11)
    captions = [f"é {i}" for i in range(11)]
    batches = [({"label": labels[i : i + 3], "latent": latents[i : i + 3]}, captions[i : i + 3]) for i in (0, 3, 6, 9)]
    written = latents_store.write_split(tmp_path, "test[:50%]", arrays, batches)
    assert written["examples"] == 11 and [shard["examples"] for shard in written["shards"]] == [4, 4, 3]
    index = latents_store.Index({"workdir": "", "step": 1, "digest": ""}, None, {}, arrays, True, {"test": written})
    source = latents_store.StoredExamples(str(tmp_path), index, "test")
    source.check_content()
    for i, example in zip((10, 0, 5), source.read([10, 0, 5]), strict=True):
        np.testing.assert_array_equal(example["latent"], latents[i])
        assert (example["label"], example["caption"]) == (i, captions[i])


def test_the_same_command_resumes(run, capsys):
    assert launch(*run[0], "--config.train.steps=4") == 0
    assert "is trained to step 4" in capsys.readouterr().out


def test_sampling_needs_no_store(run, store, tmp_path):
    copy = shutil.copytree(run[1], tmp_path / "run")
    stored = json.loads((copy / "config.json").read_text())
    assert (stored["data"]["channels"], stored["data"]["class_names"]) == (3, ["ant", "bee"])
    stored["data"]["dir"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(stored))
    flags = ["--num=2", "--prompt=a red circle"]
    assert sample(copy, tmp_path, *flags)["images"].shape == (2, 8, 8, 3)


def test_metrics_compare_with_the_images(run, tmp_path):
    copy = shutil.copytree(run[1], tmp_path / "run")
    flags = ["--metrics=fd_pixels", "--num=8", "--batch_size=8", "--split=train[80%:]"]
    assert launch("evaluate", f"--workdir={copy}", *flags) == 0
    assert result(copy, "fd_pixels")["reference"]["data"] == "folder"


@pytest.mark.slow
def test_benchmark_reads_stored_latents(config, store, capsys):
    flags = on_latents(config, store, "")[1:-1]
    assert launch("benchmark", *flags, "--steps=1", "--samples=0", "--data") == 0
    assert "data images per second" in capsys.readouterr().out


def changed(store, path, change):
    """Returns a copy of a store whose index `change` has changed."""
    copy = shutil.copytree(store, path)
    index = json.loads((copy / "index.json").read_text())
    change(index)
    (copy / "index.json").write_text(json.dumps(index))
    return copy


def shard(store):
    return next(store.glob("train%5B%3A*"))


def cut(store):
    os.truncate(shard(store), 100)


def flip_a_bit(store):
    content = bytearray(shard(store).read_bytes())
    content[len(content) // 2] ^= 1
    shard(store).write_bytes(content)


DAMAGES = {
    "has 100 bytes instead of": cut,
    "is missing, so the stored latents are incomplete": lambda store: shard(store).unlink(),
    "is damaged (its SHA-256 differs)": flip_a_bit,
    "has no stored latents (index.json is missing)": lambda store: (store / "index.json").unlink(),
    "is damaged (it is not an index of stored latents)": lambda store: (store / "index.json").write_text("{}"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_store_is_refused(message, config, store, tmp_path, capsys):
    copy = shutil.copytree(store, tmp_path / "store")
    DAMAGES[message](copy)
    assert message in refused(capsys, *on_latents(config, copy, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


CHANGES = {
    "codec=": (lambda index: index["codec"].update(digest="0"), "its weights are not those that encoded"),
    "clip=": (lambda index: index["clip"].update(digest="0"), "its weights are not those that encoded the captions"),
    "data.flip=True": (lambda index: index["arrays"].pop("mirrored_latent"), "has no latents of mirror images"),
    "data.image_size=8": (lambda index: index["data"].update(image_size=16), "latents of images with 16"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_store_is_refused(field, config, store, tmp_path, capsys):
    change, message = CHANGES[field]
    copy = changed(store, tmp_path / "store", change)
    error = refused(capsys, *on_latents(config, copy, tmp_path / "new"))
    assert error.startswith(f"error: {field}") and message in error
    assert not (tmp_path / "new").exists()


def test_a_split_that_is_not_stored_is_refused(config, store, tmp_path, capsys):
    error = refused(capsys, *on_latents(config, store, tmp_path / "new"), "--config.data.split=test")
    assert "data.split=test" in error and "has train[:80%], train[80%:]" in error


def test_models_of_images_are_refused(trained_runs, store, tmp_path, capsys):
    command = on_latents(trained_runs.config("pixel"), store, tmp_path / "new")
    error = refused(capsys, *command, "--config.data.split=train[:80%]")
    assert "data.name=latents: is only supported for system=latent, not ddpm" in error


def test_an_autoencoder_that_is_trained_with_the_run_is_refused(config, store, parts, tmp_path, capsys):
    part = tiny.write(tmp_path / "config.py", "latent_shapes", data__image_size=8)
    error = refused(capsys, *on_latents(part, store, tmp_path / "new"))
    assert "codec=@codec: is trained with the run" in error and f"--config.codec={parts}/codec" in error


REFUSALS = {
    "data.fit=random_crop: an image has many crops": ["--config.data.fit=random_crop"],
    "data.name=latents: has no images to encode": ["--config.data.name=latents"],
    "was trained on 8x8 images": ["--config.data.image_size=16"],
    "has no split 'validation'": ["--split=validation"],
}


@pytest.mark.parametrize("message", REFUSALS)
def test_encode_refuses(message, parts, config, tmp_path, capsys):
    out = tmp_path / "out"
    error = refused(
        capsys, "encode", f"--workdir={parts}/codec", f"--config={config}", f"--out={out}", *REFUSALS[message]
    )
    assert message in error
    assert not list(tmp_path.iterdir())


def test_encode_refuses_other_runs_and_folders(parts, config, store, trained_runs, tmp_path, capsys):
    flags = [f"--config={config}", f"--out={tmp_path}/out"]
    assert "must be an autoencoder" in refused(capsys, "encode", f"--workdir={parts}/clip", *flags)
    flags = ["encode", f"--workdir={parts}/codec", f"--config={config}", f"--out={store}"]
    assert "is not empty" in refused(capsys, *flags)
    flags = ["encode", f"--workdir={parts}/codec", f"--out={tmp_path}/out", "--text_states"]
    assert "--text_states: the config has no conditions.clip_text" in refused(capsys, *flags)


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_full_disk_leaves_nothing(small_disk, parts, config, capsys):
    (small_disk / "other").write_bytes(bytes(2**20 - 2**14))
    assert launch("encode", f"--workdir={parts}/codec", f"--config={config}", f"--out={small_disk}/out") == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert error.startswith(f"error: --out={small_disk}/out: cannot be written") and "No space left" in error
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_an_interrupted_encode_leaves_nothing(parts, config, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffjax.inference.latent_encoding.write_index", interrupt)
    assert launch("encode", f"--workdir={parts}/codec", f"--config={config}", f"--out={tmp_path}/out") == 130
    assert not list(tmp_path.iterdir())


def test_image_data_are_those_that_were_encoded(config, store, images):
    on_store = load_file(str(config))
    on_store.data.update(name="latents", dir=str(store))
    resolved = datasets.resolve(on_store)
    section = datasets.image_data(resolved)
    assert (section.name, section.dir, section.channels) == ("folder", str(images), 3)
    assert datasets.held_out_split(resolved, "train[:80%]") == "train[80%:]"
