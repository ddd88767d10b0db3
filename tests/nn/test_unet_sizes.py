"""The networks of the papers have the published numbers of parameters.

The integers were counted, without weights, on modules of the authors' PyTorch code built with their released flags;
those of DDPM (its code is TensorFlow), Stable Diffusion 2 and Karlo (the architecture of unCLIP) on diffusers 0.42
models with the released configs. Networks that were not released are compared with the rounded numbers of their paper.
"""

import jax
import jax.numpy as jnp
import pytest

from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.unet import ADM_DETAILS, UNet

IMPROVED = {"time_conditioning": "scale_shift", **ADM_DETAILS}
ADM = {"resample": "residual", **IMPROVED}
NONE = {"middle_attention": False, **ADM}  # upsamplers without attention
CLASSIFIER = {"attention_resolutions": (32, 16, 8), "head_channels": 64, "pool": "attention", **ADM}
STABLE = {"channels": 320, "multipliers": (1, 2, 4, 4), "transformer_depth": 1, **ADM_DETAILS}

NETWORKS = {
    # DDPM, 35.7M and 114M (appendix B)
    "ddpm cifar-10": (35_746_307, 32, 3, UNet(3)),
    "ddpm lsun": (113_673_219, 256, 3, UNet(3, multipliers=(1, 1, 2, 2, 4, 4))),
    # guided-diffusion's create_model with Improved DDPM's flags, learned sigma
    "improved ddpm cifar-10": (52_546_438, 32, 3, UNet(6, 128, (1, 2, 2, 2), 3, (16, 8), 4, **IMPROVED)),
    "improved ddpm imagenet-64": (121_063_942, 64, 3, UNet(6, 128, (1, 2, 3, 4), 3, (16, 8), 4, **IMPROVED)),
    # guided-diffusion's README, class-conditional, learned sigma: 296M, 422M, 554M, 559M (ADM, appendix)
    "adm imagenet-64": (
        295_904_454, 64, 3,
        UNet(6, 192, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, num_label_embeddings=1000, **ADM)
    ),
    "adm imagenet-128": (
        421_529_606, 128, 3, UNet(6, 256, (1, 1, 2, 3, 4), 2, (32, 16, 8), 4, num_label_embeddings=1000, **ADM)
    ),
    "adm imagenet-256": (
        553_838_086, 256, 3,
        UNet(6, 256, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, num_label_embeddings=1000, **ADM)
    ),
    "adm imagenet-512": (
        558_997_638, 512, 3,
        UNet(6, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, num_label_embeddings=1000, **ADM),
    ),
    # SuperResModel: the upsampled image adds three channels
    "adm 64 to 256": (
        311_795_910, 256, 6, UNet(6, 192, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), 4, num_label_embeddings=1000, **ADM)
    ),
    # guided-diffusion's create_classifier with its README's flags; "mean" is its "adaptive"
    "adm classifier 64": (65_438_568, 64, 3, UNet(1000, 128, (1, 2, 3, 4), 4, **CLASSIFIER)),
    "adm classifier 128": (42_568_040, 128, 3, UNet(1000, 128, (1, 1, 2, 3, 4), 2, **CLASSIFIER)),
    "adm classifier 256": (54_096_360, 256, 3, UNet(1000, 128, (1, 1, 2, 2, 4, 4), 2, **CLASSIFIER)),
    "adm classifier 512": (54_448_360, 512, 3, UNet(1000, 128, (0.5, 1, 1, 2, 2, 4, 4), 2, **CLASSIFIER)),
    "adm classifier 64, mean": (64_617_320, 64, 3, UNet(1000, 128, (1, 2, 3, 4), 4, **{**CLASSIFIER, "pool": "mean"})),
    # Text2ImUNet without text transformer, embeddings and final norm; embedding and context have 512 values
    "glide": (308_728_902, 64, 3, UNet(6, 192, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, **ADM)),
    # SuperResText2ImUNet, likewise
    "glide 64 to 256": (
        322_059_462, 256, 6, UNet(6, 192, (1, 1, 2, 2, 4, 4), 2, (32, 16, 8), head_channels=64, **ADM)
    ),
    # UNet2DConditionModel, whose other conditions are added to the time embedding outside of it
    "karlo": (885_439_686, 64, 3, UNet(6, 320, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, **ADM)),
    # UNet2DModel; the models of the first steps and of the last step are of the same size
    "karlo 64 to 256": (
        691_579_523, 256, 6, UNet(3, 320, (1, 2, 3, 4), 3, (), **{**NONE, "time_conditioning": "add"})
    ),
    # latent-diffusion's openaimodel with models/ldm/*/config.yaml
    "ldm-4 imagenet": (
        400_920_579, 64, 3, UNet(3, 192, (1, 2, 3, 5), 2, (32, 16, 8), transformer_depth=1, **ADM_DETAILS)
    ),
    "ldm-8 churches": (294_966_916, 32, 4, UNet(4, 192, (1, 2, 2, 4, 4), 2, (32, 16, 8, 4), 8, **ADM)),
    "stable diffusion 1": (859_520_964, 64, 4, UNet(4, attention_resolutions=(64, 32, 16), heads=8, **STABLE)),
    "stable diffusion 2": (
        865_910_724, 64, 4, UNet(4, attention_resolutions=(64, 32, 16), head_channels=64, **STABLE)
    ),
}  # fmt: skip
PAPERS = {
    # In millions. The image part of GLIDE (section 4), also unCLIP's decoder
    "glide, 2.3B": (2_300, 64, 3, UNet(6, 512, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, **ADM)),
    # unCLIP, table 3
    "unclip 64 to 256": (700, 256, 6, UNet(3, 320, (1, 2, 3, 4), 3, (), **NONE)),
    "unclip 256 to 1024": (300, 1024, 6, UNet(3, 192, (1, 1, 2, 2, 4, 4), 2, (), **NONE)),
}

EMBEDDING_WIDTH = {"glide": 512, "glide 64 to 256": 512, "glide, 2.3B": 2048}
CONTEXT_WIDTH = {
    **EMBEDDING_WIDTH,
    "karlo": 1536,
    "ldm-4 imagenet": 512,
    "stable diffusion 1": 768,
    "stable diffusion 2": 1024,
}


def size(name, side, channels, net):
    """Number of parameters."""
    inputs = {"label": jnp.zeros(1, int)} if net.num_label_embeddings else {}
    if name in CONTEXT_WIDTH:
        inputs["context"] = jnp.zeros((1, 77, CONTEXT_WIDTH[name]))
    if name in EMBEDDING_WIDTH:
        inputs["embedding"] = jnp.zeros((1, EMBEDDING_WIDTH[name]))
    x = jnp.zeros((1, side, side, channels))
    params = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), **inputs)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


FAST = ("improved ddpm cifar-10", "ldm-4 imagenet")  # the others repeat their layers at other sizes


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in FAST]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_number_of_parameters(name):
    expected, *network = NETWORKS[name]
    assert size(name, *network) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_number_of_parameters_in_papers(name):
    """The networks here have 2.24 billion, 730 and 282 million."""
    millions, *network = PAPERS[name]
    assert size(name, *network) == pytest.approx(1e6 * millions, rel=0.07)


@pytest.mark.slow
def test_number_of_parameters_of_text_transformers():
    """GLIDE consists of a U-Net and a text transformer for 128 tokens from a vocabulary of 50,257."""

    def text(*fields):
        shapes = jax.eval_shape(CaptionEncoder(50257, *fields).init, jax.random.key(0), jnp.zeros((1, 128), int))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    released = text(512, 16, 8)
    assert NETWORKS["glide"][0] + released == 385_030_726
    assert NETWORKS["glide 64 to 256"][0] + released == 398_361_286
    assert 2.24e9 + text(2048, 24, 32) == pytest.approx(3.5e9, rel=0.02)  # as in the paper
