"""Tables of published networks: layouts, completeness from both sides, and errors."""

import re

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.parameter_paths import flatten
from diffjax.nn.autoencoders import ldm
from diffjax.nn.unet import UNet
from diffjax.published import table
from diffjax.published.lazy import LazyTensor
from diffjax.published.table import Block, Constant, Fixed, Module, Sum, Tensor, by_head, convolution, fused
from diffjax.published.tables import autoencoder, unet

RNG = np.random.default_rng(0)


def lazy(tensors):
    return {name: LazyTensor(value.shape, value.dtype, lambda value=value: value) for name, value in tensors.items()}


def shapes(**leaves):
    """Returns shapes by path; `__` is a slash."""
    return {path.replace("__", "/"): jax.ShapeDtypeStruct(shape, np.float32) for path, shape in leaves.items()}


def read(names, leaves, tensors, **options):
    return table.read(names, leaves, lazy(tensors), network="FILE is not the network", **options)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_a_linear_layer_is_transposed():
    weight, bias = normal(3, 2), normal(3)
    params = read({"a": "b"}, shapes(a__kernel=(2, 3), a__bias=(3,)), {"b.weight": weight, "b.bias": bias})
    x = normal(4, 2)
    np.testing.assert_allclose(x @ params["a/kernel"] + params["a/bias"], x @ weight.T + bias, rtol=1e-5)


def test_a_convolution_has_its_outputs_last():
    weight = normal(5, 2, 3, 4)  # [O, I, h, w]
    kernel = read({"a": "b"}, shapes(a__kernel=(3, 4, 2, 5)), {"b.weight": weight})["a/kernel"]
    assert all(kernel[y, x, i, o] == weight[o, i, y, x] for y, x, i, o in np.ndindex(kernel.shape))


@pytest.mark.parametrize("ends", [(), (1,), (1, 1)])
def test_1x1_convolutions_are_linear_layers(ends):
    weight = normal(3, 2)
    names = {"a": Module(("b",), dims=2 + len(ends))}
    params = read(names, shapes(a__kernel=(2, 3)), {"b.weight": weight.reshape(3, 2, *ends)})
    assert (params["a/kernel"] == weight.T).all()
    assert table.write(names, params)["b.weight"].shape == (3, 2, *ends)


def test_fused_layers_are_side_by_side():
    q, k, v = normal(3, 4, 2)
    names = {"qkv": fused("q", "k", "v")}
    tensors = {"q.weight": q, "k.weight": k, "v.weight": v}
    params = read(names, shapes(qkv__kernel=(2, 12)), tensors)
    x = normal(2)
    np.testing.assert_allclose(x @ params["qkv/kernel"], np.concatenate([q @ x, k @ x, v @ x]), rtol=1e-5)
    back = table.write(names, params)
    assert all((back[name] == tensors[name]).all() for name in tensors)


def test_linear_layers_that_are_added_are_one_on_all_their_inputs():
    tensors = {
        f"{name}.{kind}": normal(*shape) for name in "ab" for kind, shape in (("weight", (3, 2)), ("bias", (3,)))
    }
    names = {"sum": Sum(("a", "b"))}
    params = read(names, shapes(sum__kernel=(4, 3), sum__bias=(3,)), tensors)
    x, y = normal(2), normal(2)
    expected = tensors["a.weight"] @ x + tensors["a.bias"] + tensors["b.weight"] @ y + tensors["b.bias"]
    np.testing.assert_allclose(np.concatenate([x, y]) @ params["sum/kernel"] + params["sum/bias"], expected, rtol=1e-5)
    back = table.write(names, params)
    assert all((back[f"{name}.weight"] == tensors[f"{name}.weight"]).all() for name in "ab")
    assert (back["a.bias"] == tensors["a.bias"] + tensors["b.bias"]).all() and not back["b.bias"].any()


def test_parts_of_a_fused_layer_are_split_and_joined():
    weight = normal(6, 2)
    names = {"q": Module(("qkv",), part=(0, 3)), "k": Module(("qkv",), part=(1, 3)), "v": Module(("qkv",), part=(2, 3))}
    params = read(names, shapes(q__kernel=(2, 2), k__kernel=(2, 2), v__kernel=(2, 2)), {"qkv.weight": weight})
    assert (params["k/kernel"] == weight[2:4].T).all()
    assert (table.write(names, params)["qkv.weight"] == weight).all()


@pytest.mark.parametrize("options", [{"heads": 2}, {"head_channels": 3}])
def test_by_head(options):
    """Two heads of three channels: the file has q, k and v of the first head, then those of the second."""
    heads = [[f"{part}{head}{channel}" for part in "qkv" for channel in range(3)] for head in range(2)]
    file = np.array([value for head in heads for value in head])
    ours = file[by_head(3, **options)(18)]
    assert list(ours) == [f"{part}{head}{channel}" for part in "qkv" for head in range(2) for channel in range(3)]


NETWORKS = {
    "ddpm": ({"heads": 2}, {}, 0),
    "adm": ({"head_channels": 8, "resample": "residual", "time_conditioning": "scale_shift"}, {"label": 5}, 0),
    "stable_diffusion": ({"heads": 2, "transformer_depth": 1}, {}, 6),
}
SIZES = {"channels": 16, "multipliers": (1, 2), "blocks": (1, 2), "attention_resolutions": (4,), "norm_groups": 8}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """Returns random parameters of a U-Net by path, and its tables of each naming."""
    fields, options, context = NETWORKS[request.param]
    net = UNet(3, **SIZES, **fields, num_label_embeddings=options.get("label", 0))
    inputs = {"context": np.zeros((1, 2, context), np.float32)} if context else {}
    if "label" in options:
        inputs["label"] = np.zeros(1, int)
    x = np.zeros((1, 8, 8, 3), np.float32)
    leaves = flatten(jax.eval_shape(net.init, jax.random.key(0), x, np.zeros(1), **inputs)["params"])
    shared = {"residual": fields.get("resample") == "residual", "transformer": bool(context)}
    order = by_head(3, heads=fields.get("heads", 1), head_channels=fields.get("head_channels"))
    tables = [unet.openai(blocks=(1, 2), levels=2, attention_levels=[1], **shared, qkv_order=order)]
    return leaves, [*tables, unet.diffusers(levels=2, **shared)]


def test_a_written_network_is_read_again_bit_for_bit(network):
    leaves, tables = network
    params = {path: normal(*leaf.shape) for path, leaf in leaves.items()}
    for names in tables:
        tensors = table.write(names, params)
        assert all(value.flags.c_contiguous for value in tensors.values())
        assert sum(value.size for value in tensors.values()) == sum(value.size for value in params.values())
        assert tensors.keys() == table.names(names, leaves).keys()
        back = read(names, leaves, tensors)
        assert all((back[path] == params[path]).all() for path in params)


@pytest.mark.parametrize("naming", [autoencoder.diffusers(levels=2), autoencoder.compvis()])
def test_a_written_autoencoder_is_read_again_bit_for_bit(naming):
    sizes = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), "norm_groups": 8}
    nets = {"encoder": (ldm.Encoder(4, **sizes), (1, 8, 8, 3)), "decoder": (ldm.Decoder(3, **sizes), (1, 4, 4, 2))}
    leaves = flatten(
        {
            name: jax.eval_shape(net.init, jax.random.key(0), np.zeros(shape, np.float32))["params"]
            for name, (net, shape) in nets.items()
        }
    )
    params = {path: normal(*leaf.shape) for path, leaf in leaves.items()}
    back = read(naming, leaves, table.write(naming, params))
    assert all((back[path] == params[path]).all() for path in params)


def test_names_of_published_files():
    """Names that guided-diffusion's, CompVis's and diffusers' files have."""
    adm = unet.openai(blocks=3, levels=4, attention_levels=[1, 2, 3], residual=True)
    assert table.names(adm, ["down_0_resample/conv_0/kernel", "up_1_resample/conv_0/kernel"]) == {
        "input_blocks.4.0.in_layers.2.weight": "down_0_resample/conv_0/kernel",
        "output_blocks.11.2.in_layers.2.weight": "up_1_resample/conv_0/kernel",
    }
    sd = unet.openai(blocks=2, levels=4, attention_levels=[0, 1, 2], transformer=True)
    paths = ["up_3_resample/conv/kernel", "middle_attention/block_0/cross/k/kernel", "up_0_block_2/skip/kernel"]
    assert list(table.names(sd, paths)) == [
        "output_blocks.2.1.conv.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.11.0.skip_connection.weight",
    ]
    assert list(table.names(autoencoder.compvis(), ["decoder/up_3_resample/conv/kernel", "to_latent/bias"])) == [
        "decoder.up.3.upsample.conv.weight",
        "quant_conv.bias",
    ]


ERRORS = {
    "missing": ({"b.weight": normal(3, 2)}, "b.bias is missing"),
    "left over": (
        {"b.weight": normal(3, 2), "b.bias": normal(3), "c": normal(1)},
        "c is not part of that network",
    ),
    "shape": ({"b.weight": normal(2, 3), "b.bias": normal(3)}, "b.weight is 2x3, and does not fit a/kernel, 2x3"),
    "not finite": (
        {"b.weight": np.full((3, 2), np.nan, np.float32), "b.bias": normal(3)},
        "b.weight has values that are not finite; download the file again",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_file_of_another_network_is_an_error(case):
    tensors, message = ERRORS[case]
    with pytest.raises(UserError, match=re.escape(message)):
        read({"a": "b"}, shapes(a__kernel=(2, 3), a__bias=(3,)), tensors)


def test_ignored_tensors_and_constants():
    names = {"a": Tensor("b"), "latents/mean": Constant(0.5)}
    leaves = shapes(a=(2,), latents__mean=())
    value = normal(2)
    params = read(names, leaves, {"b": value, "position_ids": normal(3)}, ignored=["position_.*"])
    assert (params["a"] == value).all() and params["latents/mean"] == np.float32(0.5)
    assert list(table.write(names, params)) == ["b"]


def test_patches_are_a_strided_convolution():
    """A patch has its pixels in the order rows, columns, channels."""
    weight, bias, x = normal(5, 3, 2, 2), normal(5), normal(2, 2, 3)
    names = {"patch": Block("", table.patches("proj", 2))}
    tensors = {"proj.weight": weight, "proj.bias": bias}
    params = read(names, shapes(patch__kernel=(12, 5), patch__bias=(5,)), tensors)
    expected = np.einsum("ocyx,yxc->o", weight, x) + bias
    np.testing.assert_allclose(x.reshape(-1) @ params["patch/kernel"] + params["patch/bias"], expected, rtol=1e-5)
    written = table.write(names, params)
    assert written.keys() == tensors.keys()
    assert all((written[name] == value).all() for name, value in tensors.items())


def test_copies_of_a_module_must_be_equal_and_are_written():
    names = {r"block_(\d+)": Block("blocks.{0}", {"a": Module(("first",), copies=("second", "third"))})}
    leaves, weight = shapes(block_7__a__kernel=(2, 3)), normal(3, 2)
    tensors = {f"blocks.7.{name}.weight": weight for name in ("first", "second", "third")}
    params = read(names, leaves, tensors)
    written = table.write(names, params)
    assert written.keys() == tensors.keys() == table.names(names, leaves).keys()
    assert all((value == weight).all() for value in written.values())
    tensors["blocks.7.third.weight"] = weight + 1
    with pytest.raises(UserError, match=r"blocks.7.third.weight must be equal to blocks.7.first.weight, and has other"):
        read(names, leaves, tensors)
    del tensors["blocks.7.second.weight"]
    with pytest.raises(UserError, match=r"blocks.7.second.weight is missing"):
        read(names, leaves, tensors)


def test_fixed_tensors_are_verified_and_written():
    """A file may be without them, or have them in half precision."""
    place, weight = normal(1, 4, 6), normal(3, 2)
    names = {"net": Block("net", {"a": "b", "place": Fixed("place", place)})}
    leaves = shapes(net__a__kernel=(2, 3))
    for stored in ({}, {"net.place": place}, {"net.place": place.astype(np.float16)}):
        params = read(names, leaves, {"net.b.weight": weight, **stored})
        assert params.keys() == leaves.keys()
    np.testing.assert_array_equal(table.write(names, params)["net.place"], place)
    for other in (place[:, :2], -place):
        with pytest.raises(UserError, match=r"net.place has other values than that network's"):
            read(names, leaves, {"net.b.weight": weight, "net.place": other})


def test_a_constant_may_depend_on_the_shape():
    names = {"a": Constant(lambda shape: np.eye(shape[0]))}
    np.testing.assert_array_equal(read(names, shapes(a=(3, 3)), {})["a"], np.eye(3))


def test_half_precision_becomes_single_precision():
    params = read({"a": "b"}, shapes(a__bias=(3,)), {"b.bias": np.ones(3, np.float16)})
    assert params["a/bias"].dtype == np.float32


def test_a_path_that_the_table_does_not_have():
    with pytest.raises(LookupError, match="has no parameter a/kernel"):
        table.names({"b": convolution("b"), "c": Block("c", {"a": "a"})}, ["a/kernel"])
