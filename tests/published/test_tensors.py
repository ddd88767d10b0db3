"""Tensors of safetensors files and of checkpoints in shards."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffjax.errors import UserError
from diffjax.published import safetensors_file, table
from diffjax.published.lazy import LazyTensor
from diffjax.published.tensors import open_tensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "c": np.array(3, np.int64),
}


def write_shards(folder, shard_of):
    for shard in set(shard_of.values()):
        save_file({name: ARRAYS[name] for name, file in shard_of.items() if file == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder / "model.safetensors.index.json"


def test_shards_are_one_checkpoint(tmp_path):
    index = write_shards(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    tensors = open_tensors(index)
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[name].read(), array, strict=True)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is damaged"),
        ("{}", "weight_map"),
        ('{"weight_map": {"a": "../1.safetensors"}}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "weight_map"),
        ('{"weight_map": {"x": "1.safetensors"}}', "has no x"),
        ('{"weight_map": {"a": "2.safetensors"}}', "cannot read"),
    ],
)
def test_an_index_that_does_not_match_its_shards_raises(tmp_path, content, message):
    index = write_shards(tmp_path, {"a": "1.safetensors"})
    index.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        open_tensors(index)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 4, 40, 75])
def test_a_truncated_file_raises(tmp_path, size):
    write_shards(tmp_path, {"a": "1.safetensors"})
    content = (tmp_path / "1.safetensors").read_bytes()
    (tmp_path / "1.safetensors").write_bytes(content[:size])
    with pytest.raises(UserError, match="is not a safetensors file that can be read"):
        open_tensors(tmp_path / "1.safetensors")
    with pytest.raises(UserError, match="No such file"):
        open_tensors(tmp_path / "x.index.json")


def test_a_written_file_has_the_bytes_of_the_library(tmp_path):
    save_file(ARRAYS, tmp_path / "theirs", metadata={"format": "pt"})
    tensors = {name: LazyTensor.of(array) for name, array in reversed(ARRAYS.items())}
    safetensors_file.save(tmp_path / "ours", tensors, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_of_a_table_are_written_one_at_a_time(tmp_path):
    """The attention's queries, keys and values are a tensor each, and fused in ours."""
    names = {r"layer_(\d+)/qkv": table.fused("{0}.q", "{0}.k", "{0}.v"), r"layer_(\d+)/out": "{0}.out"}
    rng = np.random.default_rng(0)
    params = {
        f"layer_{i}/{name}/kernel": rng.normal(size=(256, width)).astype(np.float32)
        for i in range(8)
        for name, width in (("qkv", 768), ("out", 256))
    }
    expected = table.write(names, params)
    tracemalloc.start()
    safetensors_file.save(tmp_path / "a.safetensors", table.tensors_of(names, params), {})
    assert tracemalloc.get_traced_memory()[1] < 3 * 256 * 256 * 4
    tracemalloc.stop()
    written = load_file(tmp_path / "a.safetensors")
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array, strict=True)
