"""Flax checkpoints: names and layouts of PyTorch, and files that are not what they declare."""

import struct
import tracemalloc

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from diffjax.errors import UserError
from diffjax.published.flax_file import open_flax_file
from diffjax.published.tensors import open_tensors

NAMES = {  # of Flax classes, and of PyTorch's with the order of axes
    # FlaxUNet2DConditionModel
    "conv_in/kernel": ("conv_in.weight", (3, 2, 0, 1)),
    "time_embedding/linear_1/kernel": ("time_embedding.linear_1.weight", (1, 0)),
    "down_blocks_0/resnets_1/norm1/scale": ("down_blocks.0.resnets.1.norm1.weight", (0,)),
    "down_blocks_0/resnets_0/time_emb_proj/bias": ("down_blocks.0.resnets.0.time_emb_proj.bias", (0,)),
    "down_blocks_0/downsamplers_0/conv/kernel": ("down_blocks.0.downsamplers.0.conv.weight", (3, 2, 0, 1)),
    "down_blocks_10/resnets_0/conv_shortcut/kernel": ("down_blocks.10.resnets.0.conv_shortcut.weight", (3, 2, 0, 1)),
    "mid_block/attentions_0/proj_in/kernel": ("mid_block.attentions.0.proj_in.weight", (3, 2, 0, 1)),
    "mid_block/attentions_0/transformer_blocks_0/attn1/to_q/kernel": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        (1, 0),
    ),
    "mid_block/attentions_0/transformer_blocks_0/attn2/to_out_0/kernel": (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight",
        (1, 0),
    ),
    "mid_block/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
        (1, 0),
    ),
    "mid_block/attentions_0/transformer_blocks_0/ff/net_2/bias": (
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2.bias",
        (0,),
    ),
    "up_blocks_1/upsamplers_0/conv/bias": ("up_blocks.1.upsamplers.0.conv.bias", (0,)),
    # FlaxAutoencoderKL
    "encoder/mid_block/attentions_0/query/kernel": ("encoder.mid_block.attentions.0.query.weight", (1, 0)),
    "quant_conv/kernel": ("quant_conv.weight", (3, 2, 0, 1)),
    # FlaxCLIPModel
    "text_model/embeddings/token_embedding/embedding": ("text_model.embeddings.token_embedding.weight", (0, 1)),
    "text_model/encoder/layers/11/self_attn/q_proj/kernel": (
        "text_model.encoder.layers.11.self_attn.q_proj.weight",
        (1, 0),
    ),
    "text_model/encoder/layers/0/layer_norm1/scale": ("text_model.encoder.layers.0.layer_norm1.weight", (0,)),
    "vision_model/embeddings/class_embedding": ("vision_model.embeddings.class_embedding", (0,)),
    "vision_model/embeddings/patch_embedding/kernel": (
        "vision_model.embeddings.patch_embedding.weight",
        (3, 2, 0, 1),
    ),
    "visual_projection/kernel": ("visual_projection.weight", (1, 0)),
    "logit_scale": ("logit_scale", ()),
}
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def test_parameters_have_the_names_and_layouts_of_pytorch(tmp_path):
    rng = np.random.default_rng(0)
    flat = {
        tuple(name.split("/")): rng.normal(size=(3, 1, 2, 5)[-len(axes) :] if axes else ()).astype(np.float32)
        for name, (_, axes) in NAMES.items()
    }
    tensors = open_tensors(write(tmp_path / "flax_model.msgpack", unflatten_dict(flat)))
    assert tensors.keys() == {name for name, _ in NAMES.values()}
    for name, (torch_name, axes) in NAMES.items():
        expected = np.transpose(flat[tuple(name.split("/"))], axes)
        assert (tensors[torch_name].shape, tensors[torch_name].dtype) == (expected.shape, np.float32)
        value = tensors[torch_name].read()
        np.testing.assert_array_equal(value, expected, strict=True)
        assert value.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int32", "uint8", "bool"])
def test_types_are_those_of_the_file(tmp_path, dtype):
    array = np.asarray(jnp.array([[0, 1], [1, 1]], dtype)) if dtype != "float64" else np.eye(2)
    tensors = open_flax_file(write(tmp_path / "a.msgpack", {"x": array, "number": array[0, 0], "step": 3}))
    np.testing.assert_array_equal(tensors["x"].read(), array, strict=True)
    assert tensors["number"].read() == array[0, 0] and "step" not in tensors


def test_an_array_in_chunks_is_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    path = write(tmp_path / "a.msgpack", {"a": {"kernel": ARRAY}, "b": {"bias": ARRAY[0]}})
    assert b"chunked" in path.read_bytes()
    tensors = open_flax_file(path)
    np.testing.assert_array_equal(tensors["a.weight"].read(), ARRAY.T, strict=True)
    np.testing.assert_array_equal(tensors["b.bias"].read(), ARRAY[0], strict=True)


def array(shape, dtype, content):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))


NESTED = b"\x81\xa1a" * 10_000 + b"\xc0"
HOSTILE = {
    "8 GiB of an array": (b"\x81\xa1a\xc9" + struct.pack(">I", 2**32 - 1) + b"\x01\x93", "shorter"),
    "8 GiB of bytes": (b"\x81\xa1a\xc6" + struct.pack(">I", 2**32 - 1), "shorter"),
    "a long name": (b"\x81\xdb" + struct.pack(">I", 2**32 - 1), "above 1000 bytes"),
    "four billion values": (b"\x81\xa1a\xdd" + struct.pack(">I", 2**32 - 1) + b"\xc0" * 400, "shorter"),
    "four billion names": (b"\xdf" + struct.pack(">I", 2**32 - 1), "shorter"),
    "nested dictionaries": (NESTED, "nested"),
    "nested lists": (b"\x81\xa1a" + b"\x91" * 10_000, "nested"),
    "a large shape": (msgpack.packb({"a": array((2**31, 2**31), "float32", b"1234")}), "length described"),
    "a negative side": (msgpack.packb({"a": array((-1, -1), "float32", b"1234")}), "counts"),
    "many axes": (msgpack.packb({"a": array((1,) * 40, "float32", b"1234")}), "without a shape"),
    "a type of objects": (msgpack.packb({"a": array((1,), "object", b"12345678")}), "not supported"),
    "an array of two fields": (msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((1, 2)))}), "without shape"),
    "chunks that are missing": (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {}}}), "chunks"),
    "chunks of another size": (
        msgpack.packb(
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**40},
                    "chunks": {"0": array((1,), "float32", b"1234")},
                }
            }
        ),
        "length described",
    ),
    "a name that is a number": (msgpack.packb({1: 2}), "not text"),
    "a name that controls the terminal": (msgpack.packb({"\x1b[2J": 1}), "not text"),
    "a name twice": (b"\x82\xa1a\xc0\xa1a\xc0", "twice"),
    "a byte without meaning": (b"\xc1", "0xc1"),
    "a number": (b"\x01", "no parameters"),
    "nothing": (b"", "shorter"),
    "no arrays": (msgpack.packb({"a": 1}), "no named arrays"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line_and_takes_no_memory(tmp_path, kind):
    content, message = HOSTILE[kind]
    (tmp_path / "a.msgpack").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        open_flax_file(tmp_path / "a.msgpack")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_names_that_multiply_are_refused(tmp_path):
    """A thousand arrays inside of 60 long names."""
    tree = {f"{i:04}": np.zeros(1, np.float32) for i in range(1000)}
    for _ in range(60):
        tree = {"a" * 1000: tree}
    with pytest.raises(UserError, match="multiply"):
        open_flax_file(write(tmp_path / "a.msgpack", tree))


def test_every_truncation_is_one_line(tmp_path):
    path = write(tmp_path / "a.msgpack", {"a": {"kernel": ARRAY, "bias": ARRAY[0]}})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="shorter"):
            open_flax_file(path)


def test_a_file_that_was_cut_after_opening_is_one_line(tmp_path):
    path = write(tmp_path / "a.msgpack", {"a": {"kernel": ARRAY}})
    tensors = open_flax_file(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a Flax checkpoint"):
        tensors["a.weight"].read()
