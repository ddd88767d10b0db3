"""PyTorch's files are read without it."""

import hashlib
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.errors import UserError
from diffjax.published.tensors import Weights
from diffjax.published.torch_file import open_torch_file
from tests.torch_files import dictionary, name, plain, tensor, write_plain, write_zip


def read(path):
    return {name: tensor.read() for name, tensor in open_torch_file(path).items()}


WRITERS = pytest.mark.parametrize("write", [write_zip, write_plain])


@WRITERS
def test_views_of_storages_are_read(tmp_path, write):
    a, b = np.arange(24, dtype=np.float32), np.array([7, 8], np.int64)
    c = np.array([1.5, -2], ml_dtypes.bfloat16)
    inner = dictionary({"shifted": tensor("0", a, 5, (2, 3), (7, 2)), "scalar": tensor("1", b, 1, (), ())})
    body = {"whole": tensor("0", a, 0, (2, 3, 4), (12, 4, 1)), "transposed": tensor("0", a, 0, (4, 6), (1, 4))}
    body |= {"broadcast": tensor("0", a, 1, (3, 2), (0, 1)), "none": tensor("2", c, 2, (0,), (1,))}
    body |= {"inner": inner, "epoch": plain(3)}
    write(tmp_path / "file", dictionary(body), {"0": a, "1": b, "2": c})
    arrays = read(tmp_path / "file")
    expected = {
        "whole": a.reshape(2, 3, 4),
        "transposed": a.reshape(6, 4).T,
        "broadcast": np.stack([a[1:3]] * 3),
        "none": c[:0],
        "inner.shifted": np.array([[5, 7, 9], [12, 14, 16]], np.float32),
        "inner.scalar": np.array(8),
    }
    assert arrays.keys() == expected.keys()
    for key, value in expected.items():
        assert arrays[key].dtype == value.dtype and arrays[key].flags["C_CONTIGUOUS"], key
        np.testing.assert_array_equal(arrays[key], value)
    arrays["whole"][:] = 0
    np.testing.assert_array_equal(arrays["transposed"], expected["transposed"])


@WRITERS
def test_an_old_file_is_read(tmp_path, write):
    """VGG16's of torchvision is of 2017."""
    a = np.arange(6, dtype=np.float32)
    write(tmp_path / "file", dictionary({"a": tensor("0", a, 0, (2, 3), (3, 1), old=True)}), {"0": a})
    np.testing.assert_array_equal(read(tmp_path / "file")["a"], a.reshape(2, 3))


def test_a_big_endian_file_is_read(tmp_path):
    a = np.arange(3, dtype=np.float32)
    write_zip(tmp_path / "file", dictionary({"a": tensor("0", a, 0, (3,), (1,))}), {"0": a}, order="big")
    np.testing.assert_array_equal(read(tmp_path / "file")["a"], a)


@WRITERS
@pytest.mark.parametrize(
    "module, attribute", [("os", "system"), ("builtins", "eval"), ("torch._utils", "_rebuild_qtensor")]
)
def test_no_code_of_a_file_runs(tmp_path, write, module, attribute):
    """The result of a call has no tensors; the other tensors of the file are read."""
    victim, a = tmp_path / "victim", np.arange(3, dtype=np.float32)
    call = name(module, attribute) + b"(" + plain(f"open({str(victim)!r}, 'w')") + b"tR"
    write(tmp_path / "file", call, {})
    with pytest.raises(UserError, match="no named tensors"):
        read(tmp_path / "file")
    write(tmp_path / "file", dictionary({"call": call, "a": tensor("0", a, 0, (3,), (1,))}), {"0": a})
    assert list(read(tmp_path / "file")) == ["a"] and not victim.exists()


@WRITERS
def test_attributes_of_objects_are_read(tmp_path, write):
    """A module has the names of its state_dict(); objects of other classes those of their attributes and items."""
    a, b = np.arange(3, dtype=np.float32), np.arange(2, dtype=np.float32)
    of_a, of_b = tensor("0", a, 0, (3,), (1,)), tensor("1", b, 0, (2,), (1,))
    parameter = name("torch._utils", "_rebuild_parameter") + b"(" + of_a + plain(True) + plain({}) + b"tR"

    def instance(state):
        return name("some.module", "Class") + b")\x81" + state + b"b"

    linear = instance(dictionary({"training": plain(True), "_parameters": dictionary({"weight": parameter})}))
    module = instance(dictionary({"_modules": dictionary({"0": linear}), "_buffers": dictionary({"count": of_b})}))
    scripted = instance(dictionary({"scale": of_b}))
    defaults = name("collections", "defaultdict") + name("builtins", "list") + b"\x85R" + dictionary({"b": of_b})[1:]
    slots = instance(b"N" + dictionary({"slot": of_b}) + b"\x86")
    callbacks = b"}" + name("some.module", "Callback") + plain(1) + b"s"  # a key that is a class
    parts = {"net": module, "script": scripted, "defaults": defaults, "slots": slots, "callbacks": callbacks}
    write(tmp_path / "file", dictionary(parts), {"0": a, "1": b})
    expected = {"net.0.weight": a, "net.count": b, "script.scale": b, "defaults.b": b, "slots.slot": b}
    tensors = read(tmp_path / "file")
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(tensors[key], value)


@WRITERS
@pytest.mark.parametrize(
    "offset, shape, strides", [(0, (4, 4), (4, 2)), (20, (2,), (10,)), (-1, (2,), (1,)), (3, (2,), (-8,))]
)
def test_a_tensor_outside_its_storage_raises(tmp_path, write, offset, shape, strides):
    a = np.zeros(16, np.float32)
    write(tmp_path / "file", dictionary({"a": tensor("0", a, offset, shape, strides)}), {"0": a})
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        read(tmp_path / "file")


@WRITERS
@pytest.mark.parametrize("stored", [0, 2, 9])
def test_a_storage_of_another_length_is_reported(tmp_path, write, stored):
    a = np.zeros(4, np.float32)
    body = dictionary({"a": tensor("0", a, 0, (2,), (1,))})
    write(tmp_path / "file", body, {"0": np.zeros(stored, np.float32)})
    with pytest.raises(UserError, match="length"):
        read(tmp_path / "file")


def test_other_files_are_reported_in_one_line(tmp_path):
    for content in (b"", b"PK\x03\x04 and more", b"hello", pickle.dumps({"a": 1}), np.random.default_rng(0).bytes(999)):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(UserError, match="not a PyTorch checkpoint"):
            read(tmp_path / "junk")
    write_zip(tmp_path / "empty", plain({"epoch": 3}), {})
    for path, message in (
        (tmp_path / "empty", "no named tensors"),
        (tmp_path, "directory"),
        (tmp_path / "x", "No such"),
    ):
        with pytest.raises(UserError, match=message):
            read(path)


def read_within(*paths, mebibytes=64, seconds=20, each="tensor.read()"):
    """Reads files in one separate process with bounded memory and time per file; returns the error messages."""
    code = (
        "import resource, sys, time\n"
        "from diffjax.errors import UserError\n"
        "from diffjax.published.torch_file import open_torch_file\n"
        "for path in sys.argv[1:]:\n"
        "    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"    try: message = [{each} for tensor in open_torch_file(path).values()] and 'read'\n"
        "    except UserError as error: message = error\n"
        "    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    print(rise, time.monotonic() - start, message)"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds * len(paths))
    lines = [line.split(" ", 2) for line in process.stdout.splitlines()]
    for path, (kibibytes, duration, _) in zip(paths, lines, strict=True):
        assert int(kibibytes) < mebibytes * 1024, f"{kibibytes} KiB for {path} of {path.stat().st_size} bytes"
        assert float(duration) < seconds, f"{duration} s for {path}"
    return [message for *_, message in lines]


def get(index):
    return b"j" + (1000 + index).to_bytes(4, "little")


def put(index):  # `plain` uses the indices below 1000
    return b"r" + (1000 + index).to_bytes(4, "little")


ONE = np.ones(1, np.float32)
BOMBS = {
    "stride 0": dictionary({"w": tensor("0", ONE, 0, (32768, 65536), (0, 0))}),
    "doubled": b"".join(  # each dictionary contains the previous one twice
        [dictionary({"leaf": tensor("0", ONE, 0, (1,), (1,))}), put(0)]
        + [b"}(" + plain("a") + get(i) + plain("b") + get(i) + b"u" + put(i + 1) for i in range(60)]
    ),
    "doubled keys": b"}" + b")" + put(0) + b"".join(get(i) * 2 + b"\x86" + put(i + 1) for i in range(60)) + b"Ns",
    "doubled name": b")" + put(0) + b"".join(get(i) * 2 + b"\x86" + put(i + 1) for i in range(60)) + b"N\x93",
    "memo": b"}r\xff\xff\xff\x3f",  # pickle allocates a table of two thousand million entries
    "bytes": b"\x8e" + (2**40).to_bytes(8, "little"),
    "text": b"X\xff\xff\xff\xff",
    "long names": b"}(" + plain("n" * 100_000) + b"}(" + b"".join(
        plain(f"{i}") + b"}(" + plain("m" * 10_000) + tensor("0", ONE, 0, (1,), (1,)) + b"u" for i in range(1000)
    ) + b"uu",
    "copies": b"]" + put(0) + b"(" + b"NN\x86" * 10_000 + b"e"
    + b"".join(name("collections", "OrderedDict") + get(0) + b"\x85R" for _ in range(10_000)),
    "many names of one tensor": b"}("
    + plain("first") + tensor("0", np.ones(200_000, np.float32), 0, (200_000,), (1,)) + put(0)
    + b"".join(plain(f"{i}") + get(0) for i in range(1000)) + b"u",
}  # fmt: skip


@pytest.mark.slow
@WRITERS
def test_bombs_are_reported_in_bounded_memory_and_time(tmp_path, write):
    paths = [tmp_path / kind.replace(" ", "_") for kind in BOMBS]
    for path, (kind, body) in zip(paths, BOMBS.items(), strict=True):
        write(path, body, {"0": np.ones(200_000 if kind.startswith("many") else 1, np.float32)})
        assert path.stat().st_size < 15_000_000
    for path, message in zip(paths, read_within(*paths, mebibytes=128), strict=True):
        assert message.startswith(f"{path} ")
        harmless = path.name in ("memo", "doubled_keys")
        assert "is not a PyTorch checkpoint that can be read: " in message or harmless


@WRITERS
def test_deep_nesting_does_not_recurse(tmp_path, write):
    """50,000 nested dictionaries and tuples exceed neither Python's stack nor C's."""
    a, depth = np.arange(3, dtype=np.float32), 50_000
    body = dictionary({"a": tensor("0", a, 0, (3,), (1,)), "deep": b")" + b"\x85" * depth})
    write(tmp_path / "file", body, {"0": a})
    np.testing.assert_array_equal(read(tmp_path / "file")["a"], a)
    nested = b"}" + (plain("") + b"}") * depth + b"s" * depth
    write(tmp_path / "file", nested, {"0": a})
    with pytest.raises(UserError):
        read(tmp_path / "file")


@WRITERS
def test_a_dictionary_referenced_twice_has_two_names(tmp_path, write):
    a = np.arange(3, dtype=np.float32)
    model = dictionary({"a": tensor("0", a, 0, (3,), (1,))}) + put(0)
    write(tmp_path / "file", b"}(" + plain("model") + model + plain("ema") + get(0) + b"u", {"0": a})
    arrays = read(tmp_path / "file")
    assert list(arrays) == ["model.a", "ema.a"]
    arrays["model.a"][:] = 0
    np.testing.assert_array_equal(arrays["ema.a"], a)


@WRITERS
def test_an_ordered_dictionary_with_attributes_is_read(tmp_path, write):
    """state_dict() returns one; Python 2 writes its pairs as an argument."""
    a = np.arange(3, dtype=np.float32)
    values = {"a": tensor("0", a, 0, (3,), (1,))}
    attributes = dictionary({"_metadata": plain({"version": 1})})
    new = name("collections", "OrderedDict") + b")R" + dictionary(values)[1:] + attributes + b"b"
    old = name("collections", "OrderedDict") + b"](" + plain("a") + values["a"] + b"la\x85R"
    for body in (new, old):
        write(tmp_path / "file", body, {"0": a})
        arrays = read(tmp_path / "file")
        assert arrays.keys() == {"a"}
        np.testing.assert_array_equal(arrays["a"], a)


def test_zip_entries_with_wrong_or_expanding_sizes_are_reported(tmp_path):
    body = dictionary({"w": tensor("0", np.zeros(2**26, np.float32), 0, (2**26,), (1,))})
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".", zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", bytes(2**28))  # 270 kB compressed
    write_zip(tmp_path / "lying", body, {"0": np.zeros(4, np.float32)})
    content = (tmp_path / "lying").read_bytes()
    sizes = struct.pack("<II", 16, 16)  # compressed and original, in the entry's header and in the directory
    (tmp_path / "lying").write_bytes(content.replace(sizes, struct.pack("<II", 16, 2**28)))
    for message in read_within(tmp_path / "packed", tmp_path / "lying"):
        assert "longer than the file" in message


@pytest.mark.parametrize("storage", [("FloatStorage", "0", -1), ("FloatStorage", "0", True), ("Storage", "0", 1)])
def test_invalid_storages_are_reported(tmp_path, storage):
    kind, key, size = storage
    pid = b"(" + plain("storage") + plain(kind) + plain(key) + plain("cpu") + plain(size) + b"tQ"
    write_plain(tmp_path / "file", dictionary({"a": pid}), {"0": ONE})
    with pytest.raises(UserError, match="without a type, a key or a length"):
        read(tmp_path / "file")


@WRITERS
def test_unprintable_names_of_tensors_raise(tmp_path, write):
    write(tmp_path / "file", dictionary({"a\x1b[2J\nb": tensor("0", ONE, 0, (1,), (1,))}), {"0": ONE})
    with pytest.raises(UserError, match="name is not text") as error:
        read(tmp_path / "file")
    assert str(error.value).isprintable()


def fuzzed(write, folder):
    """Returns the content of a small file, and its tensors."""
    a, b = np.arange(6, dtype=np.float32), np.array([7, 8], np.int64)
    inner = dictionary({"b": tensor("1", b, 0, (2,), (1,)), "epoch": plain(3)})
    write(folder / "whole", dictionary({"a": tensor("0", a, 0, (3, 2), (1, 3)), "in": inner}), {"0": a, "1": b})
    return (folder / "whole").read_bytes(), {"a": a.reshape(2, 3).T, "in.b": b}


@pytest.mark.parametrize("write", [write_zip, write_plain])
@given(data=st.data())
@settings(max_examples=100, deadline=2000)
def test_changed_bytes_are_reported_or_harmless(write, tmp_path_factory, data):
    """No change raises another exception. The plain format has no checksum, so its numbers may change."""
    folder = tmp_path_factory.getbasetemp()
    content, expected = fuzzed(write, folder)
    content = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from(b"}](.)NRQ\x93\x85"))
    (folder / "changed").write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    try:
        arrays = read(folder / "changed")
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    if write is write_zip:
        assert arrays.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value, strict=True)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=2000)
def test_any_pickle_is_reported_or_has_tensors(tmp_path_factory, body):
    path = tmp_path_factory.getbasetemp() / "any"
    write_zip(path, body, {})
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_the_checksum_in_a_file_name_is_verified(tmp_path):
    """Names of PyTorch's published files end in the first digits of their SHA-256."""
    write_plain(tmp_path / "net.pth", dictionary({"a": tensor("0", ONE, 0, (1,), (1,))}), {"0": ONE})
    content = (tmp_path / "net.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()
    for file in (f"net-{digits[:8]}.pth", f"net-2015-12-05-{digits}.pth", "net-owt.pth", "net-12345.pth"):
        (tmp_path / file).write_bytes(content)
        assert Weights(tmp_path / file, "a network").pop("a", 1) == 1
    damaged = tmp_path / f"net-{digits[:8]}.pth"
    damaged.write_bytes(content[:-1] + b"@")
    with pytest.raises(UserError, match=rf"{damaged} is damaged: its SHA-256 .* {digits[:8]}, .*; it is at a place"):
        Weights(damaged, "a network", source="it is at a place")


@pytest.mark.slow
@WRITERS
def test_tensors_are_read_one_at_a_time(tmp_path, write):
    """Four storages of 32 MiB: opening reads none of them, and reading each needs the memory of a few."""
    storages = {f"{i}": np.full(2**23, i, np.float32) for i in range(4)}
    write(tmp_path / "file", dictionary({k: tensor(k, v, 0, (2**23,), (1,)) for k, v in storages.items()}), storages)
    (message,) = read_within(tmp_path / "file", mebibytes=8, each="tensor.shape")
    assert message == "read"
    (message,) = read_within(tmp_path / "file", mebibytes=112, each="tensor.read().sum()")
    assert message == "read"


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_are_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    saved = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    saved |= {"transposed": base.T, "slice": base[1:3, ::2], "half": base.half(), "bfloat": base.bfloat16()}
    saved |= {"bool": base > 0, "byte": base.byte(), "double": base.double(), "none": base[:0]}
    torch.save({"state": saved, "step": 3, "name": "x"}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    arrays = read(tmp_path / "file")
    assert arrays.keys() == {f"state.{key}" for key in saved}
    for key, value in saved.items():
        array = arrays[f"state.{key}"]
        assert array.dtype.name == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), value.double().numpy())


@pytest.mark.parity
def test_modules_and_torchscript_of_pytorch_are_read(tmp_path):
    """DALL-E was published as pickled modules, CLIP as TorchScript."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module, tmp_path / "module")
    torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(1, 3)), tmp_path / "script")
    torch.save({"net": torch.nn.Parameter(torch.ones(2))}, tmp_path / "parameter")
    expected = {key: value.numpy() for key, value in module.state_dict().items()}
    for file in ("module", "script"):
        arrays = read(tmp_path / file)
        assert expected.keys() <= arrays.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value)
    np.testing.assert_array_equal(read(tmp_path / "parameter")["net"], 1)
