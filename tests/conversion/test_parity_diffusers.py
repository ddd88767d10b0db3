"""Pipelines of diffusers with random weights sample the same images after an import, and after an export."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax import cli  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402

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
    return randomise(diffusers.AutoencoderKL(**CODEC))


PIPELINES = {
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


def sample(run, latents):
    """Returns images of a run from x_T."""
    settings = run.system.make_settings(run.config.sampler, steps=STEPS, guidance=1.0)
    conditions = {"latent": latents, "label": np.full(len(latents), LABEL)}
    keys = jax.random.split(jax.random.key(0), len(latents))
    return np.asarray(jax.jit(run.system.sample)(run.variables, keys, conditions, settings))


def sample_theirs(pipeline, latents):
    """Returns images of a pipeline from x_T: its loop, which itself does not accept x_T."""
    x = torch.tensor(latents).permute(0, 3, 1, 2)
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
    run = load(folder / "run")
    latents = np.random.default_rng(0).normal(size=(2, *run.system.data_space.shape)).astype(np.float32)
    expected = sample_theirs(pipeline, latents)
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(run, latents), expected, atol=1e-3)


def test_the_export_is_the_source_bit_for_bit(folders):
    """Weights, and what the classes of diffusers read from the configs."""
    pipeline, folder = folders
    again = type(pipeline).from_pretrained(folder / "exported")
    for name in pipeline.components:
        ours, theirs = getattr(again, name), getattr(pipeline, name)
        before, after = (json.loads(json.dumps(dict(part.config))) for part in (theirs, ours))
        differing = [field for field in before if not field.startswith("_") and before[field] != after.get(field)]
        assert not differing, name
        if hasattr(theirs, "state_dict"):
            file = "diffusion_pytorch_model.safetensors"
            before, after = (load_file(folder / side / name / file) for side in ("theirs", "exported"))
            assert before.keys() == after.keys()
            assert all((before[key] == after[key]).all() for key in before)
