"""Names of CLIP's tensors: published sizes and names of the published code, both directions, and configs."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs.published import clip
from diffjax.errors import UserError
from diffjax.models.parameter_paths import flatten
from diffjax.nn.clip import TextTransformer, VisionTransformer
from diffjax.published import clip_config, table
from diffjax.published.lazy import LazyTensor
from diffjax.published.tables import clip as tables
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import build_model

# Parameters of OpenAI's code and open_clip's, built on the device "meta"; of the text encoders: of transformers' code
COUNTS = {
    "vit_b32": 151_277_313,
    "vit_b16": 149_620_737,
    "vit_l14": 427_616_513,
    "vit_l14_336": 427_944_193,
    "rn50": 102_007_137,
    "rn101": 119_688_033,
    "rn50x4": 178_300_601,
    "rn50x16": 290_979_217,
    "rn50x64": 623_258_305,
    "laion_vit_b32": 151_277_313,
    "laion_vit_b16": 149_620_737,
    "laion_vit_l14": 427_616_513,
    "laion_vit_h14": 986_109_441,
    "laion_vit_g14": 1_366_678_273,
    "laion_vit_bigg14": 2_539_567_105,
    "sd1_text": 123_060_480,
    "sd2_text": 340_387_840,
}
# Names and shapes as in the code of OpenAI (ViT-B/32 and RN50) and of GLIDE (its noised CLIP)
NAMES = {
    "vit_b32": {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49_408, 512),
        "ln_final.bias": (512,),
        "transformer.resblocks.11.attn.in_proj_weight": (1536, 512),
        "transformer.resblocks.0.mlp.c_proj.weight": (512, 2048),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.ln_pre.weight": (768,),
        "visual.ln_post.bias": (768,),
        "visual.transformer.resblocks.3.attn.in_proj_bias": (2304,),
        "visual.transformer.resblocks.11.attn.out_proj.weight": (768, 768),
        "visual.transformer.resblocks.0.ln_2.weight": (768,),
    },
    "rn50": {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.bn3.running_var": (64,),
        "visual.layer1.0.conv3.weight": (256, 64, 1, 1),
        "visual.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "visual.layer4.2.bn2.running_mean": (512,),
        "visual.layer2.0.downsample.1.bias": (512,),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.c_proj.weight": (1024, 2048),
        "visual.attnpool.k_proj.bias": (2048,),
    },
    "glide_noised": {
        "image.blocks.input.w_t": (1000, 768),
        "image.blocks.input.patch_proj": (768, 3, 4, 4),
        "image.blocks.input.w_pos": (257, 768),
        "image.blocks.input.ln.g": (768,),
        "image.blocks.block_11.f_attn.f_k.w": (768, 768),
        "image.blocks.output.f.w": (512, 768),
        "text.blocks.input.w_voc": (65_536, 512),
        "text.blocks.block_0.f_mlp.f_1.b": (2048,),
        "text.blocks.output.ln.b": (512,),
    },
}


def abstract(variant):
    config = load_file(f"configs/published/clip.py:{variant}")
    return config, flatten(build_model(config).variable_shapes)


def test_each_published_size_has_an_expected_number_of_parameters():
    assert COUNTS.keys() == clip.VARIANTS.keys() - {"glide_noised"}


FAST = ("vit_b32", "rn50", "sd1_text")


@pytest.mark.parametrize(
    "variant", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS]
)
def test_number_of_parameters(variant):
    _, shapes = abstract(variant)
    assert sum(leaf.size for path, leaf in shapes.items() if path.startswith("params/")) == COUNTS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", NAMES)
def test_tensors_have_the_names_and_shapes_of_the_published_code(variant):
    config, shapes = abstract(variant)
    names = tables.glide() if config.published.naming == "glide_clip" else tables.openai()
    expected = NAMES[variant]
    written = {}
    paths = table.names(names, shapes)
    for name in expected:
        path = paths[name]
        values = np.broadcast_to(np.float32(0), shapes[path].shape)  # without memory
        written.update(table.write(names, {path: values}))
    assert {name: written[name].shape for name in expected} == expected
    assert all(stored in paths for stored in written)
    biases = [name for name in paths if name.endswith("f_k.b")]
    assert not biases  # GLIDE's keys have none


def small(**changes):
    """Returns shapes of the variables of a small CLIP."""
    image = VisionTransformer(patch=4, width=8, layers=1, heads=2, dimensions=6)
    text = TextTransformer(vocabulary=20, width=8, layers=2, heads=2, dimensions=6)
    shapes = {
        "image": jax.eval_shape(image.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"],
        "text": jax.eval_shape(text.init, jax.random.key(0), np.zeros((1, 5), int))["params"],
        "log_scale": jax.ShapeDtypeStruct((), np.float32),
    }
    return traverse_util.flatten_dict({"params": {"model": {**shapes, **changes}}}, sep="/")


def random_variables(shapes):
    rng = np.random.default_rng(0)
    return {path: np.array(rng.normal(size=leaf.shape), np.float32) for path, leaf in shapes.items()}


@pytest.mark.parametrize("names", [tables.transformers(), tables.openai()], ids=["transformers", "openai"])
def test_reading_what_was_written_is_the_identity(names):
    variables = random_variables(small())
    tensors = table.write(names, variables)
    assert tensors["logit_scale"].shape == ()
    lazy = {name: LazyTensor(a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()}
    reread = table.read(names, small(), lazy, network="the file")
    assert reread.keys() == variables.keys()
    for path, value in variables.items():
        np.testing.assert_array_equal(reread[path], value)


def test_a_bias_of_keys_that_glide_does_not_have_is_zero():
    names, shapes = tables.glide(), small()
    del shapes["params/model/image/class"]
    tensors = table.write(names, random_variables(shapes))
    block = "text.blocks.block_1.f_attn"
    assert f"{block}.f_k.b" not in tensors
    lazy = {name: LazyTensor(a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()}
    read = table.read(names, shapes, lazy, network="the file")
    bias = read["params/model/text/transformer/block_1/qkv/bias"]
    np.testing.assert_array_equal(bias, [*tensors[f"{block}.f_q.b"], *[0] * 8, *tensors[f"{block}.f_v.b"]])
    assert read["params/model/log_scale"] == np.float32(np.log(100))


def test_queries_keys_and_values_are_rows_of_in_proj_weight_in_this_order():
    variables = random_variables(small())
    weight = table.write(tables.openai(), variables)["transformer.resblocks.0.attn.in_proj_weight"]
    kernel = variables["params/model/text/transformer/block_0/qkv/kernel"]
    np.testing.assert_array_equal(weight[8:16], kernel[:, 8:16].T)  # keys


@pytest.mark.parametrize("encoders", [("text_encoder", "image_encoder"), ("text_encoder",), ("image_encoder",)])
def test_configs_of_transformers_are_read_as_they_were_written(tmp_path, encoders):
    config = load_file("configs/published/clip.py:laion_vit_bigg14").to_dict()
    for name in {"text_encoder", "image_encoder"} - {*encoders}:
        del config[name]
    fields = clip_config.write(config)
    sections = clip_config.read(tmp_path / "config.json", fields)
    for name in encoders:
        skipped = ("architecture", "padding", "pixel_mean", "pixel_std")
        expected = {field: value for field, value in config[name].items() if field not in skipped}
        assert sections[name] == {"mlp_ratio": 4} | expected
    assert sections["model"]["dimensions"] == 1280
    assert clip_config.write(sections) == fields


def test_a_config_without_projection_is_that_of_a_class_without_it(tmp_path):
    fields = clip_config.write({"model": {"dimensions": 0}, "text": {}, "text_encoder": {"width": 512}})
    assert fields["architectures"] == ["CLIPTextModel"]
    assert clip_config.read(tmp_path / "config.json", fields, projects=False)["model"]["dimensions"] == 0


@pytest.mark.parametrize("field,value", [("hidden_act", "gelu_new"), ("layer_norm_eps", 1e-6), ("rope_theta", 1e4)])
def test_an_option_that_changes_states_is_refused_by_its_name(tmp_path, field, value):
    config = {"model_type": "clip_text_model", field: value}
    with pytest.raises(UserError, match=rf"config\.json: {field}="):
        clip_config.read(tmp_path / "config.json", config)
