"""Exported weights: read by another library, and damaged in every way."""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.errors import UserError
from diffjax.runs import exported_weights

RNG = np.random.default_rng(0)
TREE = {
    "params": {
        "model": {
            "kernel": RNG.normal(size=(3, 4)).astype(np.float32),
            "bias": RNG.normal(size=3).astype(np.float32),
            "half": RNG.normal(size=(2, 5)).astype(ml_dtypes.bfloat16),
            "flag": np.array([True, False, True]),
            "scalar": np.array(2.5, np.float32),
            "none": np.zeros((0, 3), np.float32),
        }
    },
    "codes": {"used": np.arange(5, dtype=np.int32), "seen": np.arange(3, dtype=np.uint8)},
}


def template(tree=TREE):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def flat(tree=TREE):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in keys): leaf for keys, leaf in leaves}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), a, b)


@pytest.fixture
def path(tmp_path):
    exported_weights.save(tmp_path / "a.safetensors", TREE, 7)
    return tmp_path / "a.safetensors"


def written(path, tensors, **metadata):
    """Writes a file as an older version or another program does."""
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np", **metadata})
    return path


def refused(path, match, tree=TREE):
    with pytest.raises(UserError, match=match) as error:
        exported_weights.load(path, template(tree))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_saved_variables_are_loaded_and_read_by_another_library(path, capsys):
    same(exported_weights.load(path, template()), TREE)
    assert exported_weights.step_of(path) == 7 and capsys.readouterr().err == ""
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == flat().keys()
    for name, leaf in flat().items():
        np.testing.assert_array_equal(loaded[name], leaf, strict=True)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata().keys() == {"format", "sha256", "step"} and file.metadata()["step"] == "7"


def test_arrays_that_are_not_contiguous(tmp_path):
    """safetensors.numpy writes the memory of a transposed array in its own order."""
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tree = {"transposed": whole.T, "slice": whole[:, ::2, 1], "flipped": whole[::-1], "expanded": whole[:1, 0, :1]}
    tree |= {"fortran": np.asfortranarray(whole), "device": jax.numpy.asarray(whole).T}
    exported_weights.save(tmp_path / "a", tree, 1)
    same(exported_weights.load(tmp_path / "a", template(tree)), {name: np.array(leaf) for name, leaf in tree.items()})


def test_what_only_training_needs_may_be_in_the_file(tmp_path):
    whole = {**TREE, "params": {**TREE["params"], "other": {"w": np.ones(3, np.float32)}}}
    for name, tree in (("old", whole), ("new", TREE)):
        exported_weights.save(tmp_path / name, tree, 7)
        same(exported_weights.load(tmp_path / name, template(whole), omitted=("params/other/",)), TREE)
    refused(tmp_path / "old", "params/other/w is in one of them only")


def test_the_same_variables_are_the_same_bytes(path, tmp_path):
    backwards = {name: dict(reversed(inner.items())) for name, inner in reversed(TREE.items())}
    for i in range(5):  # safetensors' own writer orders metadata at random
        exported_weights.save(tmp_path / "b", backwards if i % 2 else TREE, 7)
        assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_the_checksum_is_as_documented(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert (8 + length) % 8 == 0
    stored = header.pop("__metadata__")["sha256"]
    kinds = {"F32": "float32", "BF16": "bfloat16", "BOOL": "bool", "I32": "int32", "U8": "uint8"}
    rows = [[name, kinds[entry["dtype"]], entry["shape"]] for name, entry in sorted(header.items())]
    text = json.dumps({"step": 7, "tensors": rows}).replace(" ", "")
    numbers = b"".join(data[slice(*entry["data_offsets"])] for _, entry in sorted(header.items()))
    assert stored == hashlib.sha256(text.encode() + numbers).hexdigest()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_bytes_are_refused_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    exported_weights.save(path, TREE, 7)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(0, 3 * len(content)))])
    try:
        loaded = exported_weights.load(path, template())
        step = exported_weights.step_of(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        same(loaded, TREE)
        assert step == 7 or b'"sha256"' not in content or b'"step"' not in content


def test_changed_values_are_refused(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(path, "do not have its checksum; export it again")
    exported_weights.save(path, TREE, 7)
    content = path.read_bytes()
    path.write_bytes(content[:-48] + bytes(48))  # the kernel's last numbers and all of the smaller types
    refused(path, "do not have its checksum; export it again")
    exported_weights.save(path, TREE, 7)
    path.write_bytes(path.read_bytes().replace(b'"step":"7"', b'"step":"8"'))
    refused(path, "do not have its checksum; export it again")


@pytest.mark.parametrize("kind", [np.int8, np.float64, np.int32])
def test_another_type_is_refused(tmp_path, kind):
    changed = flat() | {"params/model/kernel": np.zeros((3, 4), kind)}
    path = written(tmp_path / "a", changed, step="7")
    refused(path, f"params/model/kernel is {np.dtype(kind)} and not float32")


@pytest.mark.parametrize("dtype", exported_weights.HALF_TYPES)
def test_variables_in_half_precision_are_loaded_in_single_precision(tmp_path, dtype):
    path = tmp_path / "half.safetensors"
    exported_weights.save(path, exported_weights.half_precision(TREE, dtype), 7)
    expected = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    rounded = jax.tree.map(lambda x: x.astype(expected).astype(x.dtype) if x.dtype == np.float32 else x, TREE)
    same(exported_weights.load(path, template()), rounded)
    stored = safetensors.numpy.load_file(path) if dtype == "float16" else {}
    assert {name: leaf.dtype.name for name, leaf in stored.items() if leaf.dtype != flat()[name].dtype} == {
        name: "float16" for name in stored if flat()[name].dtype == np.float32
    }


def test_values_out_of_the_range_of_half_precision_are_refused():
    large = {"params": {"w": np.array([1.0, 7e4], np.float32)}}
    with pytest.raises(UserError, match="--dtype=float16: params/w has values out of its range"):
        exported_weights.half_precision(large, "float16")
    assert exported_weights.half_precision(large, "bfloat16")["params"]["w"].dtype == ml_dtypes.bfloat16


def test_another_model_is_refused(tmp_path):
    path = written(tmp_path / "a", flat() | {"params/model/bias": np.zeros(4, np.float32)})
    refused(path, r"params/model/bias is \(4,\) and not \(3,\)")
    path = written(tmp_path / "b", flat() | {"extra\x1b[2J\n": np.zeros(4, np.float32)})
    refused(path, r"extra\\x1b\[2J\\n is in one of them only")


def test_a_file_without_a_checksum_is_accepted_with_a_line(tmp_path, capsys):
    path = written(tmp_path / "old.safetensors", flat(), step="12")
    same(exported_weights.load(path, template()), TREE)
    error = capsys.readouterr().err
    assert error.startswith(f"{path} has no checksum") and error.count("\n") == 1
    assert exported_weights.step_of(path) == 12 and capsys.readouterr().err == ""


@pytest.mark.parametrize("step", ["x", "", "-1", "1.5", "1e3", "²", "9" * 5000, "1\n2"])
def test_a_step_that_is_not_a_number_is_refused(tmp_path, step):
    path = written(tmp_path / "a", flat(), step=step)
    with pytest.raises(UserError, match=r"its step is .*, not a number; export it again") as error:
        exported_weights.step_of(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_files_that_cannot_be_read(tmp_path):
    huge = (2**62).to_bytes(8, "little") + b"{}"
    shapes = json.dumps({"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 16]}}).encode()
    sides = json.dumps({"a": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}).encode()
    deep = b"[" * 100_000
    headers = [len(text).to_bytes(8, "little") + text + bytes(16) for text in (shapes, deep)]
    headers.append(len(sides).to_bytes(8, "little") + sides + bytes(4))
    for content in (b"", b"hello", huge, *headers):
        (tmp_path / "a").write_bytes(content)
        refused(tmp_path / "a", "cannot be read .*export it again", {"a": np.zeros(1, np.float32)})
    refused(tmp_path / "none", "cannot read .*No such file")
    refused(tmp_path, "cannot read .*directory")
