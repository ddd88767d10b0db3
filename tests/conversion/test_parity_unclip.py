"""diffusers' UnCLIPPipeline (Karlo) with random weights samples the same embeddings after an import."""

import itertools
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffjax import cli  # noqa: E402
from diffjax.diffusion import samplers  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402
from tests import clip_folder, parity  # noqa: E402

pytestmark = pytest.mark.parity

STEPS = 3  # random networks amplify rounding
LENGTH, D = 12, 16
CAPTIONS = ["a cat", "two cats, éa"]


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a pipeline's folder with the components of its prior."""
    folder = tmp_path_factory.mktemp("unclip")
    encoder, tokenizer = text_encoder()
    scheduler = diffusers.UnCLIPScheduler(clip_sample_range=1.5, prediction_type="sample")
    components = {"text_encoder": encoder, "tokenizer": tokenizer, "prior": prior(), "prior_scheduler": scheduler}
    for name, component in components.items():
        component.save_pretrained(folder / name)
    return folder


def noise(shape):
    """Returns the noise of every example in every step."""
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.fixture
def same_noise(monkeypatch):
    """Gives both libraries' samplers the same noise."""
    monkeypatch.setattr(samplers, "normal_each", lambda keys, shape, dtype: jnp.asarray(noise(shape), dtype)[None])

    def theirs(shape, **_):
        _, *sides = shape
        if len(sides) == 1:
            return torch.tensor(noise(sides))
        channels, height, width = sides
        return torch.tensor(noise((height, width, channels))).permute(2, 0, 1)

    monkeypatch.setattr(sys.modules["diffusers.schedulers.scheduling_unclip"], "randn_tensor", theirs)


def open_scheduler(folder, steps=STEPS):
    """With its alphas in double: the last 1 - beta has four digits in float32."""
    scheduler = diffusers.UnCLIPScheduler.from_pretrained(folder)
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    scheduler.alphas_cumprod = torch.tensor(np.cumprod(np.maximum(bar[1:] / bar[:-1], 0.001)))
    scheduler.set_timesteps(steps)
    return scheduler


def encode_theirs(encoder, tokenizer, captions):
    tokens = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt")
    outputs = encoder(tokens.input_ids)
    return outputs.text_embeds, outputs.last_hidden_state, tokens.attention_mask.bool()


def sample_prior(folder, latents, guidance):
    """Returns embeddings: the first half of UnCLIPPipeline.__call__."""
    encoder = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    model = diffusers.PriorTransformer.from_pretrained(folder / "prior").eval()
    scheduler = open_scheduler(folder / "prior_scheduler")
    x, times = torch.tensor(latents), [*scheduler.timesteps, None]
    with torch.no_grad():
        inputs = [encode_theirs(encoder, tokenizer, texts) for texts in (CAPTIONS, [""] * len(CAPTIONS))]
        for t, following in itertools.pairwise(times):
            conditional, unconditional = (
                model(x, t, embeds, states, mask).predicted_image_embedding for embeds, states, mask in inputs
            )
            predicted = unconditional + guidance * (conditional - unconditional)
            x = scheduler.step(predicted, t, x, prev_timestep=following).prev_sample.float()
        return model.post_process_latents(x).numpy()


def test_the_whole_pipeline_is_refused(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text('{"_class_name": "UnCLIPPipeline"}')
    assert cli.main(["launch.py", "import", f"--source={tmp_path}", f"--workdir={tmp_path / 'run'}"]) != 0
    assert f"pass --source={tmp_path}/prior" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_prior_samples_the_same_embeddings(folder, same_noise, tmp_path_factory, guidance):
    out = tmp_path_factory.mktemp("run") / "prior"
    assert cli.main(["launch.py", "import", f"--source={folder / 'prior'}", f"--workdir={out}"]) == 0
    run = load(out)
    latents = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)
    expected = sample_prior(folder, latents, guidance)
    assert expected.std() > 0.1
    settings = run.system.make_settings(run.config.sampler, steps=STEPS, guidance=guidance)
    conditions = {"latent": latents, "tokens": run.tokenizer.encode(CAPTIONS, run.system.text.length)}
    keys = jax.random.split(jax.random.key(0), 2)
    embeddings = jax.jit(run.system.sample)(run.variables, keys, conditions, settings)
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)
