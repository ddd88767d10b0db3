"""Pipelines of diffusers with random weights sample the same images after an import, and after an export."""

import json
import pathlib
import tempfile

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffjax import cli  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests import clip_folder  # noqa: E402

pytestmark = pytest.mark.parity

STEPS = 3  # random networks amplify rounding
DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CODEC = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
}

DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 16,
    "out_channels": 8,
    "num_embeds_ada_norm": 5,
    "norm_eps": 1e-6,
}
LABEL = 3
CAPTIONS = ["a cat", "two cats, éa"]


def randomise(model):
    """Nothing stays at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.2 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p[0].numel() ** 0.5)
    return model.eval()


def ddim(**options):
    return diffusers.DDIMScheduler(**options)


def unet(**options):
    return randomise(diffusers.UNet2DModel(**{**UNET, **options}))


def vq():
    return randomise(diffusers.VQModel(**CODEC, num_vq_embeddings=20, latent_channels=3, scaling_factor=0.5))


def dit():
    """Blocks of published files have the same embeddings of time and label."""
    model = randomise(diffusers.DiTTransformer2DModel(**DIT))
    first, *others = (block.norm1.emb for block in model.transformer_blocks)
    for other in others:
        other.load_state_dict(first.state_dict())
    return model


def kl():
    """Latents have nearly no variance, since the pipeline for in-painting samples them."""
    model = randomise(diffusers.AutoencoderKL(**CODEC))
    with torch.no_grad():
        model.quant_conv.weight[4:] = 0.0
        model.quant_conv.bias[4:] = -30.0
    return model


def stable_diffusion(linear, inpaints=False):
    """Stable Diffusion 1 (convolutions as projections, padded with the end token) or 2 (v, padded with a token)."""
    with tempfile.TemporaryDirectory() as folder:
        size = clip_folder.write_vocabulary(pathlib.Path(folder))
        pad = {"pad_token": "!"} if linear else {}
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12, **pad)
    text = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, hidden_act="gelu" if linear else "quick_gelu", pad_token_id=tokenizer.pad_token_id,
        bos_token_id=size - 2, eos_token_id=size - 1,
    )  # fmt: skip
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    network = diffusers.UNet2DConditionModel(
        **{**UNET, "down_block_types": down, "up_block_types": up},
        in_channels=9 if inpaints else 4,
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if linear else 2,
        use_linear_projection=linear,
    )
    options = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012, "clip_sample": False}
    prediction = "v_prediction" if linear else "epsilon"
    kind = diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    return kind(
        vae=kl(),
        text_encoder=randomise(transformers.CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=randomise(network),
        scheduler=ddim(**options, steps_offset=1, set_alpha_to_one=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PIPELINES = {
    "inpaint": lambda: stable_diffusion(False, inpaints=True),
    "sd1": lambda: stable_diffusion(False),
    "sd2": lambda: stable_diffusion(True),
    "ddpm": lambda: diffusers.DDIMPipeline(unet=unet(**DDPM, attention_head_dim=None), scheduler=ddim()),
    "adm": lambda: diffusers.DDIMPipeline(
        unet=unet(
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=32,
            attention_head_dim=16,
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            downsample_type="resnet",
            upsample_type="resnet",
        ),
        scheduler=ddim(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    ),
    "dit": lambda: diffusers.DiTPipeline(transformer=dit(), vae=kl(), scheduler=ddim(clip_sample=False)),
    "ldm": lambda: diffusers.LDMPipeline(
        vqvae=vq(),
        unet=unet(),
        scheduler=ddim(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False),
    ),
}


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


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
    settings = run.system.make_settings(run.config.sampler, steps=STEPS, guidance=guidance)
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


def test_the_import_samples_the_same_images(folders):
    pipeline, folder = folders
    if hasattr(pipeline, "tokenizer"):
        pytest.skip("is conditioned on captions")
    run = load(folder / "run")
    latents = np.random.default_rng(0).normal(size=(2, *run.system.data_space.shape)).astype(np.float32)
    expected = sample_theirs(pipeline, latents)
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(run, latents), expected, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_stable_diffusion_draws_captions_as_its_pipeline_does(folders, guidance):
    pipeline, folder = folders
    if not hasattr(pipeline, "tokenizer"):
        pytest.skip("is not conditioned on captions")
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


def test_a_single_file_of_stable_diffusion_is_imported_bit_for_bit(folders, tmp_path):
    """The export under the names of CompVis, and for Stable Diffusion 2 of open_clip."""
    pipeline, folder = folders
    if not hasattr(pipeline, "tokenizer"):
        pytest.skip("is not conditioned on captions")
    launch("export", f"--workdir={folder / 'run'}", f"--out={tmp_path / 'file'}", "--format=safetensors")
    source, config = tmp_path / "file" / "model.safetensors", tmp_path / "file" / "config.json"
    vocabulary = f"--config.parts.clip.text.tokenizer={folder / 'theirs' / 'tokenizer'}"
    launch("import", f"--source={source}", f"--config={config}", vocabulary, f"--workdir={tmp_path / 'run'}")
    for part in (".", "codec", "clip"):
        before, after = (path / part / "weights.safetensors" for path in (folder / "run", tmp_path / "run"))
        assert before.read_bytes() == after.read_bytes(), part
