"""Files of OpenAI's code: sizes and names of the published ones, and errors of imports of others."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax import cli
from diffjax.conversion import openai
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import build_model

SIZES = [  # parameters and tensors of the networks that the published code builds
    ("adm.py:64", 295_904_454, 541),
    ("adm.py:512", 558_997_638, 645),
    ("adm_upsampler.py:64_256", 311_795_910, 567),
    ("adm_classifier.py:64", 65_438_568, 307),
    ("improved_ddpm.py:cifar10_vlb", 52_546_438, 446),
    ("consistency.py:lsun", 526_304_771, 566),
    ("glide.py:base", 385_030_726, 783),
    ("glide.py:upsampler_inpainting", 398_368_198, 797),
    ("adm.py:128", 421_529_606, 493),
    ("adm.py:256", 553_838_086, 567),
    ("adm.py:256_uncond", 552_814_086, 566),
    ("adm.py:lsun", 552_814_086, 566),
    ("adm_upsampler.py:128_512", 308_835_270, 537),
    ("adm_classifier.py:128", 42_568_040, 221),
    ("adm_classifier.py:256", 54_096_360, 249),
    ("adm_classifier.py:512", 54_448_360, 281),
    ("improved_ddpm.py:imagenet64", 121_063_942, 450),
    ("improved_ddpm.py:imagenet64_class", 273_049_350, 451),
    ("improved_ddpm.py:lsun", 113_676_678, 426),
    ("improved_ddpm.py:upsampler", 279_792_390, 457),
    ("consistency.py:imagenet64", 295_899_267, 541),
    ("consistency.py:edm_lsun", 526_304_771, 566),
    ("glide.py:inpainting", 385_037_638, 783),
    ("glide.py:upsampler", 398_361_286, 797),
]
NAMES = {  # of published files, with their shapes
    "adm.py:64": {
        "time_embed.2.weight": (768, 768),
        "label_emb.weight": (1000, 768),
        "input_blocks.0.0.weight": (192, 3, 3, 3),
        "input_blocks.4.0.in_layers.2.weight": (192, 192, 3, 3),  # halves the resolution
        "input_blocks.5.0.skip_connection.weight": (384, 192, 1, 1),
        "input_blocks.5.1.qkv.weight": (1152, 384, 1),
        "middle_block.1.proj_out.weight": (768, 768, 1),
        "output_blocks.3.2.out_layers.3.weight": (768, 768, 3, 3),  # doubles it
        "output_blocks.15.0.emb_layers.1.weight": (384, 768),
        "out.2.weight": (6, 192, 3, 3),
    },
    "improved_ddpm.py:cifar10_vlb": {
        "input_blocks.4.0.op.weight": (128, 128, 3, 3),
        "input_blocks.5.1.qkv.weight": (768, 256, 1),
        "output_blocks.3.1.conv.weight": (256, 256, 3, 3),
        "output_blocks.7.2.conv.bias": (256,),
    },
    "adm_classifier.py:64": {
        "out.0.weight": (512,),
        "out.2.positional_embedding": (512, 65),
        "out.2.qkv_proj.weight": (1536, 512, 1),
        "out.2.c_proj.bias": (1000,),
    },
    "consistency.py:lsun": {
        "middle_block.1.qkv.weight": (3072, 1024, 1, 1),
        "middle_block.2.emb_layers.1.weight": (1024, 1024),
    },
    "glide.py:base": {
        "transformer_proj.weight": (768, 512),
        "token_embedding.weight": (50257, 512),
        "padding_embedding": (128, 512),
        "positional_embedding": (128, 512),
        "final_ln.weight": (512,),
        "transformer.resblocks.15.attn.c_qkv.weight": (1536, 512),
        "transformer.resblocks.0.mlp.c_proj.weight": (512, 2048),
        "middle_block.1.encoder_kv.weight": (1536, 512, 1),
    },
}
SMALL = {
    "data.image_size": 16,
    "data.num_classes": 5,
    "model.channels": 32,
    "model.multipliers": (1, 2),
    "model.blocks": 1,
    "model.attention_resolutions": (8,),
    "model.head_channels": 32,
}
DIFFERENCES = [  # a change of the config, and the message
    ({"model.channels": 64}, "model.channels=64: {} has 32; set the field to it, or use another variant"),
    ({"model.blocks": 2}, "model.blocks=2: {} has 1;"),
    ({"model.multipliers": (1, 2, 2)}, "model.multipliers=(1, 2, 2): {} has (1, 2);"),
    ({"model.attention_resolutions": (16, 8)}, "model.attention_resolutions=(16, 8): {} has (8,);"),
    ({"model.time_conditioning": "add"}, "model.time_conditioning=add: {} has scale_shift;"),
    ({"model.resample": "conv"}, "model.resample=conv: {} has residual;"),
    ({"data.num_classes": 7}, "data.num_classes=7: {} has 5;"),
    ({"diffusion.class_conditional": False}, "diffusion.class_conditional=False: {} has True;"),
    ({"diffusion.variance": "fixed_small"}, "diffusion.variance=fixed_small: {} has learned_range;"),
]


def shapes(name):
    """Returns a published config, and the shape of every variable of its model by path."""
    config = load_file(f"configs/published/{name}")
    return config, flatten(build_model(config, abstract=True).variable_shapes)


def flags(changes):
    return [f"--config.{name}={value}" for name, value in changes.items()]


def written(config, leaves):
    """Returns the tensors of a file whose values are zeros, which take no memory."""
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    return table.write(openai.table(config), zeros)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Returns the tensors of a small file of the config adm.py:64, and the file."""
    config = load_file("configs/published/adm.py:64")
    config.update_from_flattened_dict(SMALL)
    leaves = flatten(build_model(config, abstract=True).variable_shapes)
    tensors = written(config, leaves)
    path = tmp_path_factory.mktemp("small") / "model.safetensors"
    save_file(tensors, path)
    return tensors, path


def fails(capsys, path, changes=()):
    """Returns the line of the error of an import."""
    run = path.with_name("run")
    arguments = [
        f"--source={path}",
        "--config=configs/published/adm.py:64",
        f"--workdir={run}",
        *flags({**SMALL, **dict(changes)}),
    ]
    capsys.readouterr()
    assert cli.main(["launch.py", "import", *arguments]) == 2
    assert not run.exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def slow_but(first, cases):
    """Returns cases for `parametrize`, all slow but the one that starts with `first`."""
    return [case if case[0] == first else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "parameters", "tensors"), slow_but("adm.py:64", SIZES))
def test_sizes(name, parameters, tensors):
    config, leaves = shapes(name)
    assert sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/")) == parameters
    assert len(table.names(openai.table(config), leaves)) == tensors


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "glide" in name else name for name in NAMES]
)
def test_names_and_shapes(name):
    config, leaves = shapes(name)
    names = table.names(openai.table(config), leaves)
    needed = {names[tensor] for tensor in NAMES[name]}
    pooled = {path for path in leaves if "/pool/" in path}  # queries, keys and values are one tensor
    found = written(config, {path: leaf for path, leaf in leaves.items() if path in needed | pooled})
    assert {tensor: found[tensor].shape for tensor in NAMES[name]} == NAMES[name]


def test_tensors_of_several_parameters_are_contiguous():
    """The queries, keys and values of a classifier's pool: safetensors writes other arrays in the wrong order."""
    config, leaves = shapes("adm_classifier.py:64")
    pool = {path: np.ones(leaf.shape, np.float32) for path, leaf in leaves.items() if "/pool/" in path}
    assert all(value.flags.c_contiguous for value in table.write(openai.table(config), pool).values())


@pytest.mark.parametrize(("changes", "message"), DIFFERENCES)
def test_differences_are_reported_by_the_field(small, capsys, changes, message):
    _, path = small
    assert fails(capsys, path, changes).startswith(message.format(path))


def test_missing_and_other_tensors(small, tmp_path, capsys):
    tensors, _ = small
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in tensors.items() if name != "time_embed.2.bias"}, path)
    assert fails(capsys, path).endswith("time_embed.2.bias is missing")
    save_file({**tensors, "optimizer.step": np.zeros(1, np.float32)}, path)
    assert fails(capsys, path).endswith("optimizer.step is not part of that network")
    save_file({**tensors, "out.0.weight": np.zeros(33, np.float32)}, path)
    assert "out.0.weight is 33, and does not fit params/model/norm_out/scale, 32" in fails(capsys, path)


def test_a_file_of_another_family(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file({"conv_in.weight": np.zeros((32, 3, 3, 3), np.float32)}, path)
    message = f"{path} has no time_embed.0.weight, so it is not of OpenAI's code; use the config of its family"
    assert fails(capsys, path) == message
    save_file({"time_embed.0.weight": np.zeros((1,), np.float32)}, path)
    assert "missing" in fails(capsys, path)


def test_a_naming_that_is_not_of_the_network_is_an_error_in_exports(small, tmp_path, capsys):
    _, path = small
    run = tmp_path / "run"
    arguments = [f"--source={path}", "--config=configs/published/adm.py:64", f"--workdir={run}", *flags(SMALL)]
    assert cli.main(["launch.py", "import", *arguments]) == 0
    config = (run / "config.json").read_text()
    assert config.count('"openai"') == 1
    (run / "config.json").write_text(config.replace('"openai"', '"compvis"'))
    capsys.readouterr()
    arguments = [f"--workdir={run}", f"--out={tmp_path / 'out'}", "--format=safetensors"]
    assert cli.main(["launch.py", "export", *arguments]) == 2
    message = (
        f"published.naming=compvis of {run / 'config.json'}: --format=safetensors requires one of dalle, dit, "
        "edm, openai, taesd"
    )
    assert message in capsys.readouterr().err
