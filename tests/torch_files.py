"""A writer of PyTorch's files, which puts the opcodes of the pickle by hand."""

import io
import pickle
import zipfile
from pathlib import Path

KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage", "bool": "BoolStorage"}


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
