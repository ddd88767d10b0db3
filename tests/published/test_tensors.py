"""Tensors of safetensors files and of checkpoints in shards."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffjax.errors import UserError
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
