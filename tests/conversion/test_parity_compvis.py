"""Files with CompVis's names become the tensors that diffusers' own converters make of them, and runs of ours."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.loaders import single_file_utils  # noqa: E402

from diffjax import cli  # noqa: E402
from diffjax.models.parameter_paths import flatten  # noqa: E402
from diffjax.nn.autoencoders import ldm  # noqa: E402
from diffjax.nn.layers import Dense  # noqa: E402
from diffjax.nn.unet import UNet  # noqa: E402
from diffjax.published import table  # noqa: E402
from diffjax.published.lazy import LazyTensor  # noqa: E402
from diffjax.published.tables import autoencoder, unet  # noqa: E402
from diffjax.published.tensors import open_tensors  # noqa: E402
from diffjax.runs.loading import load  # noqa: E402

pytestmark = pytest.mark.parity

SCALE = 0.6  # of the latents
FIELDS = {  # of configs/published/latent_diffusion.py, at small size
    "parts.codec.model.channels": 32,
    "parts.codec.model.multipliers": "(1,2)",
    "parts.codec.model.blocks": 1,
    "parts.codec.codebook.size": 20,
    "parts.codec.data.image_size": 32,
    "data.image_size": 32,
    "model.channels": 32,
    "model.multipliers": "(1,2)",
    "model.blocks": 1,
    "model.attention_resolutions": "(8,)",
}


def launch(*arguments):
    assert cli.main(["launch.py", *arguments]) == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns the tensors of a file as of training latent diffusion, the network's with diffusers' names, and a folder
    with the imported run."""
    folder = tmp_path_factory.mktemp("compvis")
    rng = np.random.default_rng(0)
    down, up = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    widths = {"block_out_channels": (32, 64), "layers_per_block": 1}
    vq = diffusers.VQModel(**widths, down_block_types=down, up_block_types=up, num_vq_embeddings=20)
    attends = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    net = diffusers.UNet2DModel(**widths, **attends, sample_size=16, attention_head_dim=32)
    tensors = {}
    for model, prefix, ours in ((vq, "first_stage_model.", "codec"), (net, "model.diffusion_model.", "unet")):
        arrays = {name: rng.normal(size=p.shape).astype(np.float32) for name, p in model.state_dict().items()}
        tensors |= {prefix + name: value for name, value in renamed(ours, dict(arrays)).items()}
        weights = arrays  # of the last, the network
    tensors |= {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value + 1
        for name, value in tensors.items()
        if name.startswith("model.diffusion_model.")
    } | {f"model_ema.diffusion_modelname{i}": np.zeros(1, np.float32) for i in range(100)}
    tensors |= {"scale_factor": np.float32(SCALE), "betas": np.zeros(1000, np.float32)}
    tensors["first_stage_model.loss.discriminator.main.0.weight"] = np.zeros(3, np.float32)
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save({"state_dict": state, "global_step": 3}, folder / "model.ckpt")
    overrides = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    config = "--config=configs/published/latent_diffusion.py"
    launch("import", f"--source={folder / 'model.ckpt'}", config, *overrides, f"--workdir={folder / 'run'}")
    return state, weights, folder


@pytest.fixture(scope="module")
def exported(imported):
    _, _, folder = imported
    launch("export", f"--workdir={folder / 'run'}", f"--out={folder / 'out'}", "--format=diffusers")
    return diffusers.LDMPipeline.from_pretrained(folder / "out")


def init(net, *inputs, **options):
    return jax.eval_shape(functools.partial(net.init, **options), jax.random.key(0), *inputs)["params"]


def renamed(part, arrays):
    """Returns arrays with diffusers' names under CompVis's: read by one table, written by the other."""
    if part == "codec":
        theirs, ours = autoencoder.diffusers(levels=2), autoencoder.compvis()
        book = {"quantize.embedding.weight": arrays.pop("quantize.embedding.weight")}
    else:
        theirs, ours, book = unet.diffusers(levels=2), unet.openai(blocks=1, levels=2, attention_levels=[1]), {}
    names = paths_of(part, theirs, arrays)
    return {**table.write(ours, names), **book}


def paths_of(part, names, arrays):
    """Returns our parameters of arrays with diffusers' names."""
    image, latent = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 16, 16, 3), np.float32)
    sizes = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
    if part == "codec":
        shapes = {"encoder": init(ldm.Encoder(3, **sizes), image), "decoder": init(ldm.Decoder(3, **sizes), latent)}
        shapes |= {name: init(Dense(3, "torch"), latent) for name in ("to_latent", "from_latent")}
    else:
        shapes = init(UNet(3, **sizes, attention_resolutions=(8,), head_channels=32), latent, np.zeros(1))
    lazy = {name: LazyTensor(value.shape, value.dtype, lambda value=value: value) for name, value in arrays.items()}
    return table.read(names, flatten(shapes), lazy, network="diffusers")


def test_the_first_stage_is_the_one_that_diffusers_converts(imported, exported):
    state, _, _ = imported
    theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(state), dict(exported.vqvae.config))
    ours = exported.vqvae.state_dict()
    assert torch.equal(ours.pop("quantize.embedding.weight"), state["first_stage_model.quantize.embedding.weight"])
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert exported.vqvae.config.scaling_factor == SCALE


def test_the_network_has_the_averaged_weights(imported, exported):
    _, weights, _ = imported
    ours = exported.unet.state_dict()
    assert weights.keys() == ours.keys()
    assert all((weights[name] + 1 == ours[name].numpy()).all() for name in weights)


@pytest.mark.parametrize("linear", [False, True])  # Stable Diffusion 1 and 2
def test_a_spatial_transformer_is_the_one_that_diffusers_converts(linear):
    fields = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,)}
    net = UNet(4, **fields, heads=2, transformer_depth=1)
    context = np.zeros((1, 3, 6), np.float32)
    shapes = init(net, np.zeros((1, 16, 16, 4), np.float32), np.zeros(1), context=context)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in flatten(shapes).items()}
    options = {"transformer": True, "linear": linear}
    file = table.write(unet.openai(blocks=1, levels=2, attention_levels=[1], **options), params)
    state = {f"model.diffusion_model.{name}": torch.tensor(value) for name, value in file.items()}
    config = {"layers_per_block": 1, "class_embed_type": None, "addition_embed_type": None}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(state, config)
    ours = table.write(unet.diffusers(levels=2, **options), params)
    assert theirs.keys() == ours.keys()
    assert all((theirs[name].numpy() == ours[name]).all() for name in ours)


def test_the_run_is_the_latent_diffusion_model_of_the_file(imported):
    run = load(imported[2] / "run")
    assert run.config.system == "latent"
    np.testing.assert_allclose(load(imported[2] / "run" / "codec").codec.scale, SCALE, rtol=1e-6)


def test_a_written_file_is_imported_again_bit_for_bit(imported, tmp_path):
    state, _, folder = imported
    launch("export", f"--workdir={folder / 'run'}", f"--out={tmp_path / 'out'}", "--format=safetensors")
    file, config = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "config.json"
    tensors = open_tensors(file)
    averaged = {
        name: value + 1 if name.startswith("model.diffusion_model.") else value
        for name, value in state.items()
        if not name.startswith(("model_ema", "first_stage_model.loss", "betas"))
    }
    assert tensors.keys() == averaged.keys()
    assert all((tensors[name].read() == averaged[name].numpy()).all() for name in tensors)
    launch("import", f"--source={file}", f"--config={config}", f"--workdir={tmp_path / 'again'}")
    for part in (".", "codec"):
        before, after = (path / part / "weights.safetensors" for path in (folder / "run", tmp_path / "again"))
        assert before.read_bytes() == after.read_bytes()
