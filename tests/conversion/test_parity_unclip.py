"""diffusers' UnCLIPPipeline (Karlo) with random weights: the same images after an import, and the same export."""

import functools
import json
import pathlib
import shutil
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.pipelines.deprecated.unclip import pipeline_unclip, text_proj  # noqa: E402

from diffjax import cli  # noqa: E402
from diffjax.diffusion import sampling  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests import clip_folder, parity  # noqa: E402

pytestmark = pytest.mark.parity

STEPS = 3  # random networks amplify rounding
LENGTH, D, CONTEXT = 12, 16, 24
CAPTIONS = ["a cat", "two cats, éa"]
RESIDUAL = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
ATTENTION = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")
LINEAR_SUM = ("embedding_proj.bias", "clip_image_embeddings_project_to_time_embeddings.bias")


def text_encoder():
    with tempfile.TemporaryDirectory() as folder:
        size = clip_folder.write_vocabulary(pathlib.Path(folder))
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, pad_token="!")
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=D, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=D, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=size - 2, eos_token_id=size - 1,
    )  # fmt: skip
    return parity.randomise(transformers.CLIPTextModelWithProjection(config)), tokenizer


def prior():
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=D, num_embeddings=LENGTH
    )
    return parity.randomise(model)


def decoder():
    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=(RESIDUAL[0], ATTENTION[0]), up_block_types=(ATTENTION[1], RESIDUAL[1]),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift", attention_head_dim=16,
        cross_attention_dim=CONTEXT, class_embed_type="identity",
    )  # fmt: skip
    return parity.randomise(model)


def projections():
    model = text_proj.UnCLIPTextProjModel(
        clip_extra_context_tokens=3, clip_embeddings_dim=D, time_embed_dim=128, cross_attention_dim=CONTEXT
    )
    return parity.randomise(model)


def upsampler(scale):
    """Returns a network whose weights are random, times `scale`, so that the two upsamplers differ."""
    model = diffusers.UNet2DModel(
        sample_size=32, in_channels=6, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=RESIDUAL[:1] * 2, up_block_types=RESIDUAL[1:] * 2, add_attention=False,
    )  # fmt: skip
    parity.randomise(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def scheduler(**options):
    """Returns a scheduler with its alphas in double: the last 1 - beta has four digits in float32."""
    return exact(diffusers.UnCLIPScheduler(**options))


def exact(scheduler):
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    scheduler.alphas_cumprod = torch.tensor(np.cumprod(np.maximum(bar[1:] / bar[:-1], 0.001)))
    return scheduler


def pipeline():
    encoder, tokenizer = text_encoder()
    return diffusers.UnCLIPPipeline(
        text_encoder=encoder,
        tokenizer=tokenizer,
        prior=prior(),
        decoder=decoder(),
        text_proj=projections(),
        super_res_first=upsampler(1.0),
        super_res_last=upsampler(0.9),
        prior_scheduler=scheduler(clip_sample_range=1.5, prediction_type="sample"),
        decoder_scheduler=scheduler(variance_type="learned_range"),
        super_res_scheduler=scheduler(prediction_type="sample"),  # predicted noise would saturate the images
    )


def launch(*arguments):
    assert cli.main(["launch.py", *map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns a pipeline, and a folder with its source, its import, and the export of the import."""
    folder, source = tmp_path_factory.mktemp("unclip"), pipeline()
    source.save_pretrained(folder / "theirs")
    launch("import", f"--source={folder / 'theirs'}", f"--workdir={folder / 'run'}")
    launch("export", f"--workdir={folder / 'run'}", f"--out={folder / 'exported'}", "--format=diffusers")
    return source, folder


def noise(shape):
    """Returns the noise of every example in every step, and its x_T."""
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def nchw(images):
    return torch.tensor(images).movedim(-1, -3)


@pytest.fixture
def same_noise(monkeypatch):
    """Gives both libraries' samplers the same noise and the same x_T."""

    def ours(keys, shape, dtype=jnp.float32):
        return jnp.broadcast_to(jnp.asarray(noise(shape), dtype), (len(keys), *shape))

    def theirs(shape, **_):
        count, *sides = shape
        value = torch.tensor(noise(sides)) if len(sides) == 1 else nchw(noise((*sides[1:], sides[0])))
        return value.expand(count, *value.shape)

    monkeypatch.setattr(sampling, "normal_each", ours)
    for module in (sys.modules["diffusers.schedulers.scheduling_unclip"], pipeline_unclip):
        monkeypatch.setattr(module, "randn_tensor", theirs)


def sample(run, **overrides):
    """Returns the samples of a run for CAPTIONS."""
    settings = run.system.make_settings(run.config.sampler, **overrides)
    conditions = {"tokens": run.tokenizer.encode(CAPTIONS, run.system.text.length), "label": np.zeros(2, np.int32)}
    keys = jax.random.split(jax.random.key(0), 2)
    return np.asarray(jax.jit(run.system.sample)(run.variables, keys, conditions, settings))


def sample_theirs(source, guidance):
    stages = ("prior", "decoder", "super_res")
    steps = {f"{stage}_num_inference_steps": STEPS for stage in stages}
    scales = {f"{stage}_guidance_scale": scale for stage, scale in zip(stages, guidance, strict=False)}
    return source(CAPTIONS, **steps, **scales, output_type="np").images


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (4.0, 3.0)])
def test_the_pipeline_samples_the_same_images(folders, same_noise, guidance):
    source, folder = folders
    expected = sample_theirs(source, guidance)
    assert expected.std() > 0.1 and np.abs(expected[0] - expected[1]).max() > 0.1
    steps = {f"{stage}:steps": STEPS for stage in ("prior", "decoder", "upsampler")}
    scales = {f"{stage}:guidance": scale for stage, scale in zip(("prior", "decoder"), guidance, strict=True)}
    images = sample(load(folder / "run"), **steps, **scales)
    np.testing.assert_allclose(images.clip(-1, 1) / 2 + 0.5, expected, atol=2e-3)


def test_the_export_is_the_source_bit_for_bit(folders, monkeypatch):
    """Weights and configs; of two biases that are added only the sum is."""
    source, folder = folders
    # Diffusers after 0.33 do not find the module of UnCLIPTextProjModel, also not of Karlo's own repository.
    monkeypatch.setattr(diffusers.pipelines, "unclip", diffusers.pipelines.deprecated.unclip, raising=False)
    exported = diffusers.UnCLIPPipeline.from_pretrained(folder / "exported")
    for name, theirs in source.components.items():
        ours = getattr(exported, name)
        if name == "tokenizer":
            assert ours(CAPTIONS).input_ids == theirs(CAPTIONS).input_ids
            continue
        configs = [part.config if isinstance(part.config, dict) else part.config.to_dict() for part in (theirs, ours)]
        before, after = (json.loads(json.dumps(dict(config))) for config in configs)
        assert not [each for each in before if not each.startswith("_") and before[each] != after.get(each)], name
        if name.endswith("scheduler"):
            continue
        before, after = theirs.state_dict(), ours.state_dict()
        assert before.keys() == after.keys()
        if name == "text_proj":
            biases = [[tensors.pop(bias) for bias in LINEAR_SUM] for tensors in (before, after)]
            assert torch.equal(*(sum(pair) for pair in biases))
        assert all(torch.equal(before[key], after[key]) for key in before), name


def test_the_import_of_the_export_is_the_import_bit_for_bit(folders, tmp_path):
    _, folder = folders
    launch("import", f"--source={folder / 'exported'}", f"--workdir={tmp_path / 'run'}")
    before = {path.relative_to(folder / "run"): path for path in (folder / "run").rglob("*") if path.is_file()}
    assert len([path for path in before if path.name == "weights.safetensors"]) == 5
    for path, file in before.items():
        if path.name != "source.json":
            assert file.read_bytes() == (tmp_path / "run" / path).read_bytes(), path


def test_an_image_is_sampled_from_the_command_line(folders, tmp_path):
    _, folder = folders
    steps = "--steps=prior:2,decoder:2,upsampler:2"
    launch("sample", f"--workdir={folder / 'run'}", "--prompt=a cat", "--num=2", steps, f"--out={tmp_path / 'a.npz'}")


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_prior_samples_the_same_embeddings(folders, same_noise, tmp_path, guidance):
    source, folder = folders
    launch("import", f"--source={folder / 'theirs' / 'prior'}", f"--workdir={tmp_path / 'prior'}")
    read = json.loads((tmp_path / "prior" / "source.json").read_text())["sha256"]
    assert {"config.json", "../text_encoder/model.safetensors", "../tokenizer/tokenizer.json"} <= read.keys()
    expected = sample_prior(source, guidance)
    assert expected.std() > 0.1
    embeddings = sample(load(tmp_path / "prior"), steps=STEPS, guidance=guidance)
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)


def sample_prior(source, guidance):
    """Returns the embeddings that UnCLIPPipeline gives to its decoder."""
    embeddings = []

    def stop(image_embeddings, **_):
        embeddings.append(image_embeddings.numpy())
        raise StopIteration

    hook = source.text_proj.register_forward_pre_hook(lambda _, args, inputs: stop(**inputs), with_kwargs=True)
    try:
        sample_theirs(source, (guidance, 1.0))
    except StopIteration:
        return embeddings[0]
    finally:
        hook.remove()


def edited(source, target, file, **fields):
    """Copies a folder, with other values of fields of a JSON file in it."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    for path, value in fields.items():
        *sections, name = path.split("__")
        functools.reduce(dict.__getitem__, sections, content)[name] = value
    (target / file).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("decoder/config.json", "out_channels", 3),
        ("decoder/config.json", "class_embed_type", None),
        ("decoder_scheduler/scheduler_config.json", "prediction_type", "v"),
        ("prior/config.json", "embedding_dim", 8),
        ("super_res_first/config.json", "in_channels", 3),
        ("super_res_last/config.json", "sample_size", 24),
        ("super_res_scheduler/scheduler_config.json", "variance_type", "learned_range"),
        ("text_encoder/config.json", "projection_dim", 8),
        ("text_proj/config.json", "clip_embeddings_dim", 8),
    ],
)
def test_a_field_that_is_not_supported_is_named(folders, tmp_path, capsys, file, field, value):
    source = edited(folders[1] / "theirs", tmp_path / "theirs", file, **{field: value})
    assert cli.main(["launch.py", "import", f"--source={source}", f"--workdir={tmp_path / 'run'}"]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{file}: {field}=" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("decoder", "conditions.clip_text.null", "start"),
        ("decoder", "conditions.image_embedding.unit_length", True),
        ("upsampler", "conditions.low_res_image.interpolation", "bilinear"),
        (".", "prior", ""),
    ],
)
def test_a_run_that_cannot_be_exported_is_named(folders, tmp_path, capsys, stage, field, value):
    fields = {field.replace(".", "__"): value}
    run = edited(folders[1] / "run", tmp_path / "run", f"{stage}/config.json", **fields)
    arguments = [f"--workdir={run}", f"--out={tmp_path / 'exported'}", "--format=diffusers"]
    assert cli.main(["launch.py", "export", *arguments]) != 0
    assert f"{field}=" in capsys.readouterr().err.strip().splitlines()[-1]
