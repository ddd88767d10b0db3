"""Configs of published repositories, as literals, are read as those of configs/published, and written again."""

import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffjax.conversion import (
    autoencoder_config,
    clip,
    dit_config,
    openai,
    prior_config,
    scheduler_config,
    tiny_config,
    unclip_config,
    unet_config,
)
from diffjax.diffusion import noise_schedules, time_grids
from diffjax.errors import UserError
from diffjax.registry import lookup
from diffjax.runs.config_files import load_file

PATH = Path("unet/config.json")


def levels(blocks, attends, kind="Attn"):
    """Returns the types of blocks down, and up."""
    down = [f"{kind if attending else ''}Down{blocks}" for attending in attends]
    return {
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up").replace("Encoder", "Decoder") for name in reversed(down)],
    }


DDPM = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    **levels("Block2D", [False, True, False, False]),
}
STABLE_DIFFUSION = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    **levels("Block2D", [True, True, True, False], "CrossAttn"),
}
STABLE_DIFFUSION_2 = {
    **STABLE_DIFFUSION,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
LATENT_DIFFUSION = {
    **DDPM,
    "attention_head_dim": 32,
    "block_out_channels": [224, 448, 672, 896],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-05,
    "sample_size": 64,
    **levels("Block2D", [False, True, True, True]),
}
KARLO = {
    **LATENT_DIFFUSION,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 960, 1280],
    "in_channels": 6,
    "layers_per_block": 3,
    "out_channels": 3,
    "sample_size": 256,
    "add_attention": False,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
    "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
    "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
}
KARLO_DECODER = {
    **STABLE_DIFFUSION,
    "attention_head_dim": 64,
    "block_out_channels": [320, 640, 960, 1280],
    "class_embed_type": "identity",
    "cross_attention_dim": 1536,
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
}
UNETS = {  # by config of configs/published
    "ddpm.py:cifar10": DDPM,
    "ddpm.py:256": {
        **DDPM,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "sample_size": 256,
        **levels("Block2D", [False, False, False, False, True, False]),
    },
    "karlo.py:decoder": KARLO_DECODER,
    "karlo.py:last_step": KARLO,
    "latent_diffusion.py:celebahq": LATENT_DIFFUSION,
    "stable_diffusion.py:1": STABLE_DIFFUSION,
    "stable_diffusion.py:1_inpainting": {**STABLE_DIFFUSION, "in_channels": 9},
    "stable_diffusion.py:2": STABLE_DIFFUSION_2,
    "stable_diffusion.py:2_base": {**STABLE_DIFFUSION_2, "sample_size": 64},
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    theirs, published = UNETS[name], load_file(f"configs/published/{name}").model
    model = unet_config.read(PATH, theirs, side=theirs["sample_size"])
    for field in set(published) - {"initializer", "dropout"}:  # of training
        value, expected = (sorted(v) if "resolutions" in field else v for v in (model[field], published[field]))
        assert value == expected, field


@pytest.mark.parametrize("name", UNETS)
def test_unet_is_written_again(name):
    theirs = UNETS[name]
    written = unet_config.write(
        unet_config.read(PATH, theirs, side=theirs["sample_size"]),
        side=theirs["sample_size"],
        in_channels=theirs["in_channels"],
        out_channels=theirs["out_channels"],
        context=theirs.get("cross_attention_dim", 0),
        linear=theirs.get("use_linear_projection", False),
    )
    ignored = ("_diffusers_version", "upcast_attention", "dropout")
    assert {key: value for key, value in theirs.items() if written.get(key) != value and key not in ignored} == {}


UNSUPPORTED = {
    "addition_embed_type": "text_time",  # Stable Diffusion XL
    "class_embed_type": "projection",
    "transformer_layers_per_block": [1, 2, 10, 10],
    "time_embedding_type": "fourier",
    "dual_cross_attention": True,
    "act_fn": "gelu",
    "resnet_out_scale_factor": 2.0,
    "center_input_sample": True,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "SkipDownBlock2D"],
    "mid_block_type": None,
    "block_out_channels": "320",
    "a_field_of_a_later_version": 3,
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_an_unsupported_field_is_named(field):
    with pytest.raises(UserError, match=re.escape(f"{PATH}: {field}=")) as error:
        unet_config.read(PATH, {**STABLE_DIFFUSION, field: UNSUPPORTED[field]}, side=64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_embed_type", None),
        ("only_cross_attention", True),
        ("cross_attention_norm", "group_norm"),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("down_block_types", ["DownBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3]),
    ],
)
def test_an_unsupported_field_of_unclips_decoder_is_named(field, value):
    with pytest.raises(UserError, match=re.escape(f"{PATH}: {field}=")):
        unet_config.read(PATH, {**KARLO_DECODER, field: value}, side=64)


@pytest.mark.parametrize(("field", "value"), [("attention_head_dim", [8] * 4), ("norm_eps", 1e-6)])
def test_the_attention_of_unclips_decoder_has_one_head_size_and_epsilon(field, value):
    with pytest.raises(UserError, match=r"down_block_types=.*requires one attention_head_dim, and norm_eps=1e-5"):
        unet_config.read(PATH, {**KARLO_DECODER, field: value}, side=64)


TEXT_PROJ = {
    "_class_name": "UnCLIPTextProjModel",
    "clip_embeddings_dim": 768,
    "clip_extra_context_tokens": 4,
    "cross_attention_dim": 1536,
    "time_embed_dim": 1280,
}
SIZES = {"dimensions": 768, "channels": 320}


def test_unclips_projections():
    published = load_file("configs/published/karlo.py:decoder").conditions
    conditions = unclip_config.read(PATH, TEXT_PROJ, **SIZES, context=1536)
    for name, fields in conditions.items():
        assert {field: published[name][field] for field in fields} == fields
    assert unclip_config.write(conditions, **SIZES) == TEXT_PROJ


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_embeddings_dim", 512),
        ("clip_extra_context_tokens", 0),
        ("cross_attention_dim", 768),
        ("time_embed_dim", 640),
        ("a_field_of_a_later_version", 3),
    ],
)
def test_unclips_projections_that_do_not_fit_are_named(field, value):
    with pytest.raises(UserError, match=re.escape(f"{PATH}: {field}=")):
        unclip_config.read(PATH, {**TEXT_PROJ, field: value}, **SIZES, context=1536)


def test_counts_have_limits_in_every_class():
    """Above them, or where a class has one number and no list, a config is damaged or hostile."""
    for read, field, value, kind in (
        (dit_config.read, "num_layers", 10**6, "a whole number from 1 to 1,024"),
        (dit_config.read, "num_attention_heads", 0, "a whole number from 1 to 65,536"),
        (dit_config.read, "attention_head_dim", None, "a whole number from 1 to 65,536"),
        (dit_config.read, "attention_head_dim", [72, 72], "a whole number from 1 to 65,536"),
        (dit_config.read, "num_embeds_ada_norm", 2**30, "a whole number from 1 to 16,777,216"),
        (tiny_config.read, "num_encoder_blocks", 3, "a list of whole numbers from 1 to 64"),
        (tiny_config.read, "num_encoder_blocks", [1, 3, 3, 1000], "a list of whole numbers from 1 to 64"),
        (tiny_config.read, "encoder_block_out_channels", [64, None], "a list of whole numbers from 1 to 65,536"),
        (tiny_config.read, "latent_channels", 2**20, "a whole number from 1 to 65,536"),
    ):
        with pytest.raises(UserError, match=rf"^{re.escape(str(PATH))}: {field}=.*: must be {kind}$"):
            read(PATH, {field: value})


VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    **levels("EncoderBlock2D", [False] * 4),
}
VQ = {
    **VAE,
    "_class_name": "VQModel",
    "block_out_channels": [128, 256, 512],
    "latent_channels": 3,
    "num_vq_embeddings": 8192,
    "vq_embed_dim": None,
    **levels("EncoderBlock2D", [False] * 3),
}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("autoencoder_kl.py:stable_diffusion", VAE), ("autoencoder_kl.py:f8", VAE), ("vqgan.py:f4", VQ)],
)
def test_autoencoder(name, theirs):
    ours, published = autoencoder_config.read(PATH, theirs), load_file(f"configs/published/{name}")
    for section in ("model", "codebook"):
        found, expected = (config.get(section, ConfigDict()).to_dict() for config in (ours, published))
        assert {field: found[field] for field in expected} == expected
    written = autoencoder_config.write(ours)
    assert {key: value for key, value in theirs.items() if written.get(key) != value} == {}


def test_dit():
    theirs = {
        "_class_name": "Transformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 32,
        "upcast_attention": False,
        "use_linear_projection": False,
    }
    published = load_file("configs/published/dit.py").model
    model = dit_config.read(PATH, theirs)
    assert all(model[name] == published[name] for name in ("patch", "width", "layers", "heads", "architecture"))


@pytest.mark.parametrize("options", [{"norm": "rms"}, {"positions": "both"}, {"activation": "gelu"}, {"registers": 2}])
def test_options_that_files_of_dit_do_not_have_are_named(options):
    for diffusers in (False, True):
        with pytest.raises(UserError, match=f"model.{next(iter(options))}=.*: files of DiT do not have this option"):
            dit_config.check_options({"patch": 2, **options}, diffusers=diffusers)
    dit_config.check_options({"mlp_ratio": 2.0, "norm": "layer"}, diffusers=False)
    with pytest.raises(UserError, match=r"model.mlp_ratio=2\.0: .* only 4 is supported"):
        dit_config.check_options({"mlp_ratio": 2.0}, diffusers=True)


def test_options_of_transformers_that_published_files_do_not_have_are_named():
    glide = ConfigDict(load_file("configs/published/glide.py").to_dict())
    glide.conditions.caption.qk_norm = True
    openai_clip = ConfigDict({"published": {"naming": "openai"}, "text_encoder": {"rope": True}})
    vit = ConfigDict({"published": {"naming": "openai"}, "image_encoder": {"registers": 4}})
    prior = {"width": 8, "layers": 1, "heads": 2, "activation": "swiglu"}
    for write, name in (
        (lambda: openai.table(glide), "conditions.caption.qk_norm=True"),
        (lambda: clip.table(openai_clip), "text_encoder.rope=True"),
        (lambda: clip.table(vit), "image_encoder.registers=4"),
        (lambda: prior_config.write(prior, dimensions=4, length=4), "model.activation=swiglu"),
    ):
        with pytest.raises(UserError, match=f"{name}: published files do not have this option"):
            write()


PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SCHEDULERS = [
    (
        {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_start": 0.0001, "variance_type": "fixed_large"},
        {"schedule": "linear", "parameterization": "eps", "variance": "fixed_large"},
        {"name": "ancestral", "grid": "leading(whole_strides=True)", "threshold": "clip", "steps": 1000},
    ),
    (
        PNDM,
        {"schedule": "scaled_linear", "parameterization": "eps"},
        {"name": "plms", "grid": "leading(offset=1,whole_strides=True,end=1)", "threshold": "none"},
    ),
    (
        {**PNDM, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"schedule": "scaled_linear", "parameterization": "v"},
        {"name": "ddim", "grid": "trailing(end=1)", "threshold": "none"},
    ),
    (
        {"_class_name": "DDIMScheduler", "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"},
        {"schedule": "scaled_linear(beta_min=0.0015,beta_max=0.0195)"},
        {"name": "ddim(unclipped_eps=True)", "threshold": "clip"},
    ),
    (
        {"_class_name": "UnCLIPScheduler", "clip_sample_range": 10.0, "prediction_type": "sample"},
        {"schedule": "cosine", "parameterization": "x0", "variance": "fixed_small"},
        {"name": "ancestral", "grid": "linspace", "threshold": "clip(limit=10)", "steps": 25},
    ),
    (
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {},
        {"name": "dpm_solver_multistep", "grid": "linspace(end=1)", "steps": 25},
    ),
    (
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_karras_sigmas": True},
        {},
        {"name": "dpmpp_2m", "grid": "karras"},
    ),
    (
        {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3, "use_exponential_sigmas": True},
        {},
        {"name": "dpm_solver(order=3,data=True)", "grid": "log_snr"},
    ),
    (
        {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "solver_type": "bh1"},
        {},
        {"name": "unipc(order=3,bh1=True)", "grid": "trailing"},
    ),
    (
        {"_class_name": "DEISMultistepScheduler", "solver_order": 3, "timestep_spacing": "trailing"},
        {},
        {"name": "deis(order=3,log_rho=True)", "grid": "trailing(end=1)"},
    ),
    (
        {"_class_name": "HeunDiscreteScheduler", "use_exponential_sigmas": True},
        {},
        {"name": "heun", "grid": "log_snr(fractional=True)"},
    ),
]


@pytest.mark.parametrize("case", SCHEDULERS, ids=lambda case: case[0]["_class_name"])
def test_scheduler(case):
    theirs, diffusion, sampler = case
    ours = scheduler_config.read(PATH, theirs)
    for found, expected in zip(ours, (diffusion, sampler), strict=True):
        assert {name: found[name] for name in expected} == expected


SPACINGS = ("leading", "linspace", "trailing")
CLASSES = {  # that pipelines of Stable Diffusion accept, and in which timestep_spacing ours is theirs
    **{f"{name}Scheduler": SPACINGS for name in ("DDPM",)},
    **{f"{name}Scheduler": ("leading", "trailing") for name in ("DDIM", "PNDM")},
    **{
        f"{name}DiscreteScheduler": ("leading", "trailing")
        for name in ("Euler", "EulerAncestral", "Heun", "LMS", "KDPM2", "KDPM2Ancestral")
    },
    **{f"{name}MultistepScheduler": ("trailing",) for name in ("DPMSolver", "UniPC")},
    "DEISMultistepScheduler": ("linspace", "trailing"),  # its last step ends at the first level
    "DPMSolverSinglestepScheduler": (),
}
SIGMAS = {  # how the grid of use_karras_sigmas is that of the class
    **dict.fromkeys((f"{name}DiscreteScheduler" for name in ("Euler", "Heun", "LMS")), "exact"),
    **dict.fromkeys((f"{name}DiscreteScheduler" for name in ("KDPM2", "KDPM2Ancestral")), "approximated"),
    **dict.fromkeys((f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS")), "approximated"),
    "DPMSolverSinglestepScheduler": "approximated",
}  # other classes have no such field


@pytest.mark.parametrize("name", CLASSES)
def test_a_sampler_that_is_not_the_scheduler_s_is_noted(name):
    for spacing in SPACINGS:
        config = {"_class_name": name, "timestep_spacing": spacing, "steps_offset": 1}
        lines = scheduler_config.differences(PATH, config)
        assert (lines == []) == (spacing in CLASSES[name]), spacing
        assert all(line.startswith(f"{PATH}: ") and "\n" not in line for line in lines)
    config = {"_class_name": name, "use_karras_sigmas": True, "timestep_spacing": "trailing"}
    lines, grid = scheduler_config.differences(PATH, config), scheduler_config.read(PATH, config)[1]["grid"]
    assert grid.startswith("karras") == (name in SIGMAS)
    approximated = f"{PATH}: use_karras_sigmas=true: the timesteps of {name} are approximated"
    assert any(line.startswith(approximated) for line in lines) == (SIGMAS.get(name) == "approximated")


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_2m"),  # its second step is another
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": [3], "solver_type": "heun"}, "dpmpp_2m"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc(order=3)"),  # lower in their last steps
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 7}, "unipc"),
    ],
)
def test_a_solver_that_is_not_the_scheduler_s_is_noted(config, sampler):
    assert scheduler_config.read(PATH, config)[1]["name"] == sampler
    line, *_ = scheduler_config.differences(PATH, config)
    assert re.search(rf": solver_order=.*: is replaced by {re.escape(sampler)}, the nearest sampler", line)


@pytest.mark.parametrize("field, value", [("euler_at_final", True), ("lower_order_final", False)])
def test_options_of_the_last_step_are_noted_where_they_matter(field, value):
    """A last step to the image is of first order anyway."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing", field: value}
    assert scheduler_config.differences(PATH, config) == []
    lines = scheduler_config.differences(PATH, {**config, "final_sigmas_type": "sigma_min"})
    assert any(f"{field}=" in line and "is not imported" in line for line in lines)


def test_a_last_step_without_length_is_one_to_the_image():
    """PNDM's, by default, starts and ends at the first level."""
    config = {"_class_name": "PNDMScheduler"}
    assert scheduler_config.read(PATH, config)[1]["grid"] == "leading(whole_strides=True)"
    assert "steps_offset=0: the last step" in scheduler_config.differences(PATH, config)[0]


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name, spacings in CLASSES.items() if spacings])
def test_the_timesteps_are_the_scheduler_s(name):
    """Exactly where nothing is noted; on linspace within 1, as theirs are not whole, or round another number."""
    diffusers = pytest.importorskip("diffusers")
    for spacing in ("linspace", *CLASSES[name]):
        options = {"timestep_spacing": spacing}
        if name == "PNDMScheduler":
            options |= {"skip_prk_steps": True, "steps_offset": 1}
        _, sampler = scheduler_config.read(PATH, {"_class_name": name, **options})
        grid = lookup("sampler.grid", time_grids, sampler["grid"], injected=("schedule",))
        for steps in (10, 25):
            scheduler = getattr(diffusers, name)(**options)
            scheduler.set_timesteps(steps)
            theirs = scheduler.timesteps.double().tolist()
            theirs = list(dict.fromkeys(theirs[::2] if "KDPM2" in name else theirs))  # without those within a step
            ours = grid.function(steps, noise_schedules.linear(), **grid.options)[:-1] - 1
            tolerance = 0.0 if spacing in CLASSES[name] else 1.0
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=spacing)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "EDMEulerScheduler"),
        ("beta_schedule", "laplace"),
        ("prediction_type", "flow"),
        ("timestep_spacing", "log"),
        ("trained_betas", [0.1]),
    ],
)
def test_an_unsupported_scheduler_is_named(field, value):
    with pytest.raises(UserError, match=re.escape(f"{PATH}: {field}=")):
        scheduler_config.read(PATH, {**PNDM, field: value})


UNCLIP = {
    "_class_name": "UnCLIPScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("prior", {"prediction_type": "sample", "clip_sample_range": 5.0, "variance_type": "fixed_small_log"}),
        ("decoder", {}),
        ("last_step", {"variance_type": "fixed_small_log"}),
    ],
)
def test_the_schedulers_of_karlo(stage, changes):
    """The settings are those of the conversion script in diffusers."""
    config, theirs = load_file(f"configs/published/karlo.py:{stage}"), {**UNCLIP, **changes}
    diffusion, sampler = scheduler_config.read(PATH, theirs, learns_variance=stage == "decoder")
    for section, fields in (("diffusion", diffusion), ("sampler", sampler)):
        differing = {name for name, value in fields.items() if config[section].get(name) != value}
        assert differing <= ({"steps"} if stage == "last_step" else set())
    assert scheduler_config.write_unclip(config, path=PATH) == theirs


@pytest.mark.parametrize("learns", [False, True])
def test_a_scheduler_of_unclip_with_another_variance_than_its_network_is_named(learns):
    theirs = {**UNCLIP, "variance_type": "fixed_small_log" if learns else "learned_range"}
    with pytest.raises(UserError, match=re.escape(f"{PATH}: variance_type=")):
        scheduler_config.read(PATH, theirs, learns_variance=learns)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("diffusion.schedule", "linear"),
        ("diffusion.zero_terminal_snr", True),
        ("diffusion.parameterization", "v"),
        ("diffusion.variance", "fixed_large"),
        ("sampler.threshold", "dynamic"),
    ],
)
def test_a_process_that_unclips_scheduler_does_not_have_is_named(field, value):
    config = load_file("configs/published/karlo.py:last_step")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(f"{field}=")):
        scheduler_config.write_unclip(config, path=PATH)
