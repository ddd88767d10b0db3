"""Configs of published networks: numbers of parameters, and names of tensors."""

import pytest

from diffjax.conversion import prior_config, unclip_config, unet_config
from diffjax.models.parameter_paths import flatten
from diffjax.published import table
from diffjax.published.table import Block
from diffjax.published.tables import dalle, dit, edm, taesd
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import build_model

DIT_SIZES = [
    ("xl2_256", 675.1, 291),
    ("s2_256", 33.0, 131),
    *(pytest.param(*size, marks=pytest.mark.slow) for size in [("l2_256", 458.1, 251), ("b2_256", 130.5, 131)]),
]


def shapes(name):
    """Returns the config of a file of configs/published, and the shape of every variable of its model by path."""
    config = load_file(f"configs/published/{name}")
    model = build_model(config, abstract=True)
    return config, flatten(model.variable_shapes)


def count(leaves):
    return sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/"))


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "millions", "tensors"), DIT_SIZES)
def test_dit(variant, millions, tensors):
    """The paper's numbers of parameters, table 4, which include the position embeddings; XL/2 has 675,129,632."""
    config, leaves = shapes(f"dit.py:{variant}")
    model = config.model
    grid = config.data.image_size // 8 // model.patch
    positions = grid**2 * model.width
    assert round((count(leaves) + positions) / 1e6, 1) == millions
    names = table.names({"params/model": Block("", dit.meta(patch=2, grid=grid, width=model.width))}, leaves)
    assert len(names) == tensors
    last = model.layers - 1
    assert {
        "x_embedder.proj.weight": "params/model/patch/kernel",
        "t_embedder.mlp.2.bias": "params/model/time_1/bias",
        "y_embedder.embedding_table.weight": "params/model/label/embedding",
        f"blocks.{last}.adaLN_modulation.1.weight": f"params/model/block_{last}/modulation/kernel",
        f"blocks.{last}.mlp.fc2.weight": f"params/model/block_{last}/mlp_out/kernel",
        "final_layer.linear.weight": "params/model/out/kernel",
    }.items() <= names.items()
    copied = table.names({"params/model": Block("", dit.diffusers(patch=2, layers=model.layers))}, leaves)
    assert len(copied) == model.layers * 19 + 6


@pytest.mark.slow
def test_karlos_prior():
    """Counted on diffusers 0.42's PriorTransformer() without the statistics, which are no parameters."""
    _, leaves = shapes("karlo.py:prior")
    assert count(leaves) == 1_022_028_544
    assert {
        "clip_std": "embeddings/std",
        "prd_embedding": "params/model/query",
        "transformer_blocks.19.attn1.to_v.weight": "params/model/transformer/block_19/qkv/kernel",
        "encoder_hidden_states_proj.weight": "params/model/context/kernel",
    }.items() <= table.names(prior_config.table(), leaves).items()


@pytest.mark.slow
def test_karlos_decoder():
    """Counted on diffusers' UNet2DConditionModel and UnCLIPTextProjModel, without one of its two added biases."""
    config, leaves = shapes("karlo.py:decoder")
    assert count(leaves) == 885_439_686 + 7_878_400 - 1280
    names = table.names(unclip_config.table(config.model, tokens=4), leaves)
    assert {
        "text_proj.learned_classifier_free_guidance_embeddings": "params/model/conditions/image_embedding/null",
        "text_proj.clip_extra_context_tokens_proj.weight": "params/model/conditions/image_embedding/tokens/kernel",
        "text_proj.encoder_hidden_states_proj.bias": "params/model/conditions/clip_text/linear/bias",
        "text_proj.text_encoder_hidden_states_norm.weight": "params/model/conditions/clip_text/norm/scale",
        "text_proj.embedding_proj.weight": "params/model/embedding/kernel",
        "text_proj.clip_image_embeddings_project_to_time_embeddings.bias": "params/model/embedding/bias",
        "down_blocks.0.downsamplers.0.time_emb_proj.weight": "params/model/down_0_resample/time/kernel",
        "down_blocks.3.attentions.2.add_v_proj.weight": "params/model/down_3_attention_2/context_kv/kernel",
        "mid_block.attentions.0.to_q.bias": "params/model/middle_attention/qkv/bias",
        "up_blocks.0.attentions.3.to_out.0.weight": "params/model/up_3_attention_3/out/kernel",
    }.items() <= names.items()
    assert len([name for name in names if name.startswith("text_proj.")]) == 11


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["upsampler", "last_step"])
def test_karlos_upsampler(variant):
    """Counted on diffusers' UNet2DModel."""
    config, leaves = shapes(f"karlo.py:{variant}")
    assert count(leaves) == 691_579_523
    assert {
        "conv_in.weight": "params/model/conv_in/kernel",
        "down_blocks.2.downsamplers.0.conv2.weight": "params/model/down_2_resample/conv_1/kernel",
        "mid_block.resnets.1.norm1.bias": "params/model/middle_block_1/norm_0/bias",
        "up_blocks.3.resnets.3.conv_shortcut.weight": "params/model/up_0_block_3/skip/kernel",
    }.items() <= table.names(
        {"params/model": Block("", unet_config.table(config.model, conditional=False))}, leaves
    ).items()


@pytest.mark.slow
def test_dalle_dvae():
    _, leaves = shapes("dalle_dvae.py")
    identity = 128**2
    encoder = count({path: leaf for path, leaf in leaves.items() if path.startswith("params/model/encoder")})
    assert (encoder, count(leaves) - encoder - identity) == (53_786_240, 43_829_766)
    names = table.names(dalle.openai(groups=4), leaves)
    assert {
        "encoder.blocks.input.w": "params/model/encoder/conv_in/kernel",
        "encoder.blocks.group_2.block_1.id_path.w": "params/model/encoder/group_1_block_0/skip/kernel",
        "decoder.blocks.input.w": "params/model/codebook",
        "decoder.blocks.input.b": "params/model/decoder/conv_in/bias",
        "decoder.blocks.group_1.block_2.res_path.conv_4.b": "params/model/decoder/group_3_block_1/conv_3/bias",
        "decoder.blocks.output.conv.w": "params/model/decoder/conv_out/kernel",
    }.items() <= names.items()


def test_taesd():
    _, leaves = shapes("taesd.py")
    leaves = {path: leaf for path, leaf in leaves.items() if not path.startswith("params/discriminator")}
    log_variances = 4 * (9 * 64 + 1)
    assert count(leaves) - log_variances == 2_445_063
    assert {
        "encoder.layers.2.weight": "params/model/encoder/down_1/kernel",
        "encoder.layers.14.bias": "params/model/encoder/conv_out/bias",
        "decoder.layers.16.weight": "params/model/decoder/up_1/kernel",
        "decoder.layers.17.conv.2.weight": "params/model/decoder/level_0_block_0/conv_1/kernel",
    }.items() <= table.names(taesd.diffusers(), leaves).items()
    names = table.names(taesd.original(), leaves)
    assert len(names) == 134
    assert names["decoder.18.conv.0.weight"] == "params/model/decoder/level_0_block_0/conv_0/kernel"


@pytest.mark.slow
def test_edm_imagenet64():
    """ADM's network (Dhariwal & Nichol 2021): 295.9 million parameters."""
    _, leaves = shapes("edm_imagenet64.py")
    assert count(leaves) == 295_899_267
    names = table.names({"params/model": Block("model", edm.dhariwal_unet(side=64, levels=4))}, leaves)
    assert {
        "model.map_label.weight": "params/model/label/embedding",
        "model.enc.32x32_down.affine.bias": "params/model/down_0_resample/time/bias",
        "model.enc.16x16_block0.skip.weight": "params/model/down_2_block_0/skip/kernel",
        "model.dec.8x8_in0.qkv.weight": "params/model/middle_attention/qkv/kernel",
        "model.dec.64x64_up.conv1.weight": "params/model/up_1_resample/conv_1/kernel",
        "model.dec.8x8_block3.proj.weight": "params/model/up_3_attention_3/out/kernel",
    }.items() <= names.items()


SIZES = [  # numbers of parameters of the releases' networks
    ("stable_diffusion.py:1", 859_520_964),
    *(
        pytest.param(*size, marks=pytest.mark.slow)
        for size in [
            ("stable_diffusion.py:1_inpainting", 859_535_364),
            ("stable_diffusion.py:2", 865_910_724),
            ("stable_diffusion.py:2_inpainting", 865_925_124),
            ("latent_diffusion.py:celebahq", 274_056_163),
            ("autoencoder_kl.py:stable_diffusion", 83_653_863),
            ("ddpm.py:cifar10", 35_746_307),
            ("ddpm.py:256", 113_673_219),
        ]
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_sizes(name, size):
    _, leaves = shapes(name)
    assert sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/model")) == size
